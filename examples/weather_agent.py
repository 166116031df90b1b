"""Twenty questions to a served model from two clients that know nothing of tirkit: `openai`, and the OpenAI Agents SDK.

    tirkit serve runs/weather &
    python examples/weather_agent.py --out weather.json

What you should see: a line a question with the calls of each client, and how many each got right (docs/tutorial.md).
Right: exactly the calls that the question asks for, and their results in the reply. The questions are
examples/weather_tasks.jsonl, written by hand before any model was trained on questions about this catalogue; the tools
are run by examples/mcp_server.py. Needs `pip install 'tirkit[dev]'`.
"""

import argparse
import asyncio
import json
import sys
import textwrap
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, set_tracing_disabled
from agents.exceptions import AgentsException
from agents.mcp import MCPServerStdio
from mcp import Client, StdioServerParameters, Tool
from openai import APIError, AsyncOpenAI

HERE = Path(__file__).parent
COMMAND, ARGS = sys.executable, [str(HERE / "mcp_server.py")]
TIMEOUT_S = 60.0  # of the tools' server, which has to start on a machine that is training
MAX_TURNS = 4  # selections are answered by the server, so that two are enough: the calls and the reply
Call = tuple[str, dict[str, Any]]
Ask = Callable[[str], Awaitable[tuple[list[Call], str]]]


@dataclass(frozen=True)
class Outcome:
    """What one client got for one question."""

    question: str
    calls: list[Call]
    reply: str
    right: bool


async def ask_openai(
    endpoint: AsyncOpenAI, model: str, server: Client, tools: Sequence[Tool], question: str
) -> tuple[list[Call], str]:
    """The loop by hand: send the tools along, run what is called, hand back the results until there is a reply."""
    functions: list[Any] = [
        {"type": "function", "function": {"name": t.name, "description": t.description, "parameters": t.input_schema}}
        for t in tools
    ]
    messages: list[Any] = [{"role": "user", "content": question}]
    calls: list[Call] = []
    for _ in range(MAX_TURNS):
        answer = await endpoint.chat.completions.create(model=model, messages=messages, tools=functions, temperature=0)
        message = answer.choices[0].message
        messages.append(message)
        if not message.tool_calls:
            return calls, message.content or ""
        for call in message.tool_calls:
            arguments = json.loads(call.function.arguments)
            calls.append((call.function.name, arguments))
            result = await server.call_tool(call.function.name, arguments)
            text = "\n".join(block.text for block in result.content if block.type == "text")
            messages.append({"role": "tool", "tool_call_id": call.id, "content": text})
    return calls, ""


async def ask_agent(agent: Agent, question: str) -> tuple[list[Call], str]:
    """The same in a framework: it lists the server's tools, runs them, and ends with a reply."""
    result = await Runner.run(agent, question, max_turns=MAX_TURNS)
    made: list[Any] = [item.raw_item for item in result.new_items if item.type == "tool_call_item"]
    return [(call.name, json.loads(call.arguments)) for call in made], str(result.final_output)


async def outcome(task: dict[str, Any], ask: Ask, defaults: dict[str, dict[str, Any]]) -> Outcome:
    """Ask, and judge: the calls in any order, `defaults` (by tool) said or not."""

    def plain(calls: Sequence[Call]) -> list[str]:
        return sorted(json.dumps([name, defaults.get(name, {}) | args], sort_keys=True) for name, args in calls)

    question = task["prompt"][0]["content"]
    try:
        calls, reply = await ask(question)
    except (AgentsException, APIError) as error:
        return Outcome(question, [], f"{type(error).__name__}: {error}", False)
    gold = [(call["name"], call["arguments"]) for calls_of_round in task["gold_rounds"] for call in calls_of_round]
    results = task["answer"].split("; ") if gold else []
    right = plain(calls) == plain(gold) and all(result in reply for result in results)
    return Outcome(question, calls, reply, right)


async def ask_all(base_url: str, tasks: Sequence[dict[str, Any]]) -> dict[str, list[Outcome]]:
    """Every question to both clients, one after the other."""
    set_tracing_disabled(True)  # it would send what happens to OpenAI
    server = StdioServerParameters(command=COMMAND, args=ARGS)
    async with (
        AsyncOpenAI(base_url=base_url, api_key="not needed") as endpoint,
        Client(server) as by_hand,
        MCPServerStdio(
            {"command": COMMAND, "args": ARGS}, cache_tools_list=True, client_session_timeout_seconds=TIMEOUT_S
        ) as in_agent,
    ):
        model = (await endpoint.models.list()).data[0].id
        tools = (await by_hand.list_tools()).tools
        values = {tool.name: tool.input_schema.get("properties", {}) for tool in tools}
        defaults = {
            name: {key: value["default"] for key, value in of.items() if "default" in value}
            for name, of in values.items()
        }
        agent = Agent(
            name="weather",
            model=OpenAIChatCompletionsModel(model, endpoint),
            model_settings=ModelSettings(temperature=0),
            mcp_servers=[in_agent],
        )
        clients: dict[str, Ask] = {
            "openai": lambda question: ask_openai(endpoint, model, by_hand, tools, question),
            "openai-agents": lambda question: ask_agent(agent, question),
        }
        return {name: [await outcome(task, ask, defaults) for task in tasks] for name, ask in clients.items()}


def lines(outcomes: dict[str, list[Outcome]]) -> Iterator[str]:
    """A question, what each client called and was replied; then how many are right."""
    for number, row in enumerate(zip(*outcomes.values(), strict=True), start=1):
        yield f"{number:2} {row[0].question}"
        for name, one in zip(outcomes, row, strict=True):
            calls = [
                f"{call}({', '.join(f'{key}={value}' for key, value in args.items())})" for call, args in one.calls
            ]
            said = f"{' '.join(calls) or 'no call'} → {one.reply}"
            yield f"   {name:13} {'right' if one.right else 'WRONG'}  {textwrap.shorten(said, 100, placeholder=' …')}"
    yield from (f"{name}: {sum(one.right for one in of)} of {len(of)} right" for name, of in outcomes.items())


def main() -> None:
    """Ask, show, store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--tasks", type=Path, default=HERE / "weather_tasks.jsonl")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    given = parser.parse_args()
    tasks = [json.loads(line) for line in given.tasks.read_text(encoding="utf-8").splitlines()]
    outcomes = asyncio.run(ask_all(given.base_url, tasks))
    print("\n".join(lines(outcomes)))
    if given.out:
        stored = {name: [asdict(one) for one in of] for name, of in outcomes.items()}
        given.out.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
