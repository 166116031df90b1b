"""A client of an exported model behind any OpenAI-compatible server that reads its turns (see `vllm_parser`).

An exported model's folder holds this file too; it needs nothing but the standard library. The second step of the
protocol is one more function: the model asks it for the documents of the tools it selected, and then calls them.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Catalogue:
    """The tools of an exported `tools.json`: `functions` to send with a request, `documents` to answer a selection."""

    def __init__(self, path: Path) -> None:
        data = json.loads(path.read_text(encoding="utf-8"))
        self.selection: str = data["selection"]
        self._internalised: bool = data["index"] != "none"
        fields = ("name", "description", "parameters")
        self._tools = {tool["name"]: {field: tool[field] for field in fields} for tool in data["tools"]}

    @property
    def functions(self) -> list[dict[str, Any]]:
        """What a request's `tools` holds: one function where the tools are in the weights, else all documents."""
        if not self._internalised:
            return [{"type": "function", "function": tool} for tool in self._tools.values()]
        names = {"type": "array", "items": {"type": "string"}}
        parameters = {"type": "object", "properties": {"names": names}, "required": ["names"]}
        about = "Gives the documents of the tools that are about to be called."
        # Servers read calls only where a request has tools.
        function = {"name": self.selection or "tools", "description": about, "parameters": parameters}
        return [{"type": "function", "function": function}]

    def documents(self, names: list[str]) -> str:
        """The documents of the tools `names`, one a line; KeyError where one is unknown."""
        return "\n".join(json.dumps(self._tools[name], ensure_ascii=False) for name in names)


def converse(
    client: Any,
    model: str,
    messages: list[dict[str, Any]],
    catalogue: Catalogue,
    run: Callable[[str, dict[str, Any]], str],
    max_turns: int = 8,
) -> list[dict[str, Any]]:
    """`messages` and all that follows up to the reply: selections are answered with documents, calls by `run`.

    client: an `openai.OpenAI`. run(name, arguments) gives a call's result as text. Greedy, as models are measured.
    """
    messages = list(messages)
    for _ in range(max_turns):
        answer = client.chat.completions.create(
            model=model, messages=messages, tools=catalogue.functions, temperature=0.0
        )
        message = answer.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        if not message.tool_calls:
            break
        for call in message.tool_calls:
            name, arguments = call.function.name, json.loads(call.function.arguments)
            selects = name == catalogue.selection
            content = catalogue.documents(arguments["names"]) if selects else run(name, arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": content})
    return messages
