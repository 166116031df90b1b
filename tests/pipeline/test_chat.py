"""`tirkit chat`: a conversation whose calls are really made, with a script in the model's place."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tirkit.config import ConfigError, parse_config
from tirkit.evaluation.chat_view import ChatView
from tirkit.pipeline.chat import load_partner
from tirkit.pipeline.conversation import Conversation, Partner, talk
from tirkit.pipeline.export import export_run
from tirkit.pipeline.run import run_stages
from tirkit.rollout.policy import ScriptedPolicy
from tirkit.serving.export import read_tools
from tirkit.types import Message, StopReason, Task, ToolCall, Turn

BASKET = '''
import time
from tirkit.tools.functions import read_only, stateful


@stateful
class Basket:
    def __init__(self):
        self.items = []

    def add(self, item: str) -> str:
        """Puts an item into the basket.

        Args:
            item: what is bought
        """
        self.items.append(item)
        return f"{len(self.items)} in the basket"

    @read_only
    def show(self) -> list[str]:
        """Tells what is in the basket."""
        return self.items


@read_only
def wait(seconds: int) -> str:
    """Waits.

    Args:
        seconds: how long
    """
    time.sleep(seconds)
    return "\\x1b[2Jdone"
'''


def question(number: int, text: str, *calls: ToolCall) -> Task:
    prompt = (Message(role="user", content=text),)
    return Task(id=str(number), prompt=prompt, gold_rounds=(calls,) if calls else (), answer=f"Answer {number}.")


ADD = ToolCall(name="add", arguments={"item": "tea"})
SHOW, WAIT = ToolCall(name="show"), ToolCall(name="wait", arguments={"seconds": 60})
TASKS = (
    question(0, "Buy tea.", ADD).model_copy(update={"thoughts": ("Tea it is.", "Done.")}),
    question(1, "What did I buy?", SHOW),
    question(2, "Buy tea twice.", ADD, ADD),
    question(3, "Wait.", WAIT),
    question(4, "Hello."),
    question(5, "Now a little.", WAIT.model_copy(update={"arguments": {"seconds": 0}})),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is prepared (`run`), its export (`out`), and the questions."""
    made = tmp_path_factory.mktemp("chat")
    (made / "basket.py").write_text(BASKET)
    (made / "questions.jsonl").write_text("".join(f"{task.model_dump_json()}\n" for task in TASKS))
    sections = {
        "name": "shop",
        "model": {"scratch": True, "vocab_size": 400},
        "catalogue": {"path": str(made / "basket.py"), "allow": ("add",)},
        "tasks": {"path": str(made / "questions.jsonl"), "num_validation": 1, "num_test": 1},
        "internalise": {"enabled": False},
        "warmup": {"enabled": False},
        "rl": {"enabled": False},
    }
    run_stages(parse_config(sections, "test"), made / "run", ["prepare"])
    export_run(made / "run", made / "out", "prepare")
    return made


@pytest.fixture
def partner(folder: Path) -> Iterator[Partner]:
    found = load_partner(folder / "run", "prepare", folder / "questions.jsonl")
    with found.toolbox:
        yield found


def talked(partner: Partner, *lines: str, yes: bool = False, terminal: bool = False) -> str:
    """What is shown to somebody who types `lines`."""
    shown, left = io.StringIO(), iter(lines)

    def read(_: str) -> str:
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    console = Console(file=shown, force_terminal=terminal, width=100, color_system="standard" if terminal else None)
    talk(partner, ChatView(console, read), yes)
    return shown.getvalue()


def test_turns_calls_and_results_are_shown(partner: Partner) -> None:
    shown = talked(partner, "Buy tea.", "y", "What did I buy?")
    want = """scripted: 3 tools (1 asks first); /help
Tea it is.
tools: add
(N tokens, N s)
(N tokens, N s)
→ add {"item": "tea"}
  run add, which may change something? [y/N]
← 1 in the basket (N s)
Done.
Answer 0.
(N tokens, N s)
(in all N tokens, N s)
tools: show
(N tokens, N s)
(N tokens, N s)
→ show {}
← ["tea"] (N s)
Answer 1.
(N tokens, N s)
(in all N tokens, N s)
"""
    assert numbers_out(shown) == want


def numbers_out(text: str) -> str:
    text = re.sub(r"\d+ tokens", "N tokens", text)
    return re.sub(r"\d+\.\d\d s", "N s", text)


def test_what_may_change_something_is_asked_about(partner: Partner) -> None:
    for answer in ("n", "", "yes please"):
        shown = talked(partner, "Buy tea.", answer, "What did I buy?")
        assert "← [unavailable] the user does not want this call to be made" in shown
        assert "← [] (" in shown
    assert "← [unavailable]" in talked(partner, "Buy tea.")  # the input ends at the question
    shown = talked(partner, "Buy tea twice.", "y", "n", "What did I buy?")
    assert json.loads(shown.rpartition("← ")[2].partition(" (")[0]) == ["tea"]
    shown = talked(partner, "Buy tea twice.", yes=True)
    assert "[y/N]" not in shown
    assert "asks first" not in shown
    assert "← 2 in the basket" in shown


def test_commands(partner: Partner) -> None:
    shown = talked(partner, "Buy tea.", "/new", "What did I buy?", yes=True)
    assert "← [] (" in shown  # the tools begin anew, too
    shown = talked(partner, "", "/tools", "/what", "/quit", "Hello.")
    assert "  add (asks first): Puts an item into the basket.\n  show: Tells what is in the basket.\n" in shown
    assert "/new    forget the conversation" in shown
    assert "Answer 4." not in shown


def test_no_tool_moves_the_cursor(partner: Partner) -> None:
    shown = talked(partner, "Now a little.", terminal=True)
    assert "\\x1b[2Jdone" in shown
    assert "\x1b[2J" not in shown
    assert "\x1b[1mAnswer 5." in shown


def test_the_model_sees_the_conversation(partner: Partner) -> None:
    seen: list[tuple[Message, ...]] = []
    dialect = partner.dialect

    def script(task: Task, turns: Sequence[Turn]) -> str:
        seen.append(task.prompt)
        return dialect.print_answer(f"reply {len(seen)}")

    view = ChatView(Console(file=io.StringIO()))
    conversation = Conversation(replace(partner, policy=ScriptedPolicy(script, partner.renderer)), view)
    for text in ("one", "two"):
        made = conversation.say(text)
        assert made is not None
        assert made.stop is StopReason.ANSWERED
    assert [message.content for message in seen[1]] == ["one", "<answer>reply 1</answer>", "two"]
    full = Conversation(replace(partner, max_context=len(made.prompt_ids)), view)
    full.messages = conversation.messages[:2]
    assert full.say("two") is None  # there is no room for a reply
    assert full.messages == conversation.messages[:2]


def interrupting(partner: Partner) -> Partner:
    """The first turn it is asked for is interrupted."""
    left = [True]

    def script(task: Task, turns: Sequence[Turn]) -> str:
        if left:
            left.pop()
            signal.raise_signal(signal.SIGINT)
        return partner.dialect.print_answer("still here")

    return replace(partner, policy=ScriptedPolicy(script, partner.renderer))


def test_an_interruption_stops_the_answer_not_the_program(partner: Partner) -> None:
    shown = talked(interrupting(partner), "Buy tea.", "And now?")
    assert "stopped; your message is forgotten" in shown
    assert "still here" in shown
    view = ChatView(Console(file=io.StringIO()))
    conversation = Conversation(interrupting(partner), view)
    assert conversation.say("Buy tea.") is None
    assert conversation.messages == ()
    assert conversation.say("And now?") is not None
    assert [message.role for message in conversation.messages] == ["user", "assistant"]


def test_a_running_tool_can_be_interrupted_and_a_line(partner: Partner) -> None:
    threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    assert "stopped; your message is forgotten" in talked(partner, "Wait.", "/quit")
    lines = iter([KeyboardInterrupt(), "Hello.", EOFError()])

    def read(_: str) -> str:
        line = next(lines)
        if isinstance(line, BaseException):
            raise line
        return line

    shown = io.StringIO()
    talk(partner, ChatView(Console(file=shown), read))
    assert "(/quit ends)" in shown.getvalue()
    assert "Answer 4." in shown.getvalue()


@pytest.mark.parametrize("source", ["run", "out"])
def test_the_command_reads_plain_lines(folder: Path, source: str) -> None:
    options = ["--scripted", str(folder / "questions.jsonl")]
    if source == "out":
        options += ["--catalogue", str(folder / "basket.py")]
    code, said = tirkit(folder, "Buy tea.\ny\nWhat did I buy?\n", source, *options, stage="prepare")
    assert code == 0
    assert "← 1 in the basket" in said
    assert '← ["tea"]' in said
    assert "you>" not in said
    assert "\x1b" not in said


def test_an_untrained_model_does_no_harm(folder: Path) -> None:
    code, said = tirkit(folder, "Buy tea.\n/quit\n", "out")
    assert code == 0
    assert said.startswith("shop: 3 tools")
    assert "no answer: m" in said  # malformed or max_tokens: random weights say nothing that can be read


def tirkit(folder: Path, typed: str, source: str, *options: str, stage: str = "") -> tuple[int, str]:
    command = [sys.executable, "-m", "tirkit", "chat", str(folder / source), *options]
    if source == "run":
        command += ["--stage", stage]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, input=typed, capture_output=True, text=True, timeout=300, env=environment)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


def test_tools_of_an_export_are_run_as_a_named_catalogue_says(folder: Path, tmp_path: Path) -> None:
    found = load_partner(folder / "out", scripted=folder / "questions.jsonl", catalogue=str(folder / "basket.py"))
    with found.toolbox:
        shown = talked(found, "Buy tea.", yes=True)
    assert "← 1 in the basket" in shown
    assert "--catalogue" not in shown
    with pytest.raises(ConfigError, match="is neither a run nor an export"):
        load_partner(tmp_path)


@pytest.mark.parametrize("catalogue", ["foreign.py", "python_search"])
def test_what_an_export_names_is_never_run(folder: Path, tmp_path: Path, catalogue: str) -> None:
    out, foreign = tmp_path / "out", tmp_path / "foreign.py"
    shutil.copytree(folder / "out", out)
    foreign.write_text(f"open({str(tmp_path / 'opened')!r}, 'w')\n{BASKET}")
    settings = json.loads((out / "run.json").read_text())
    settings["config"]["catalogue"]["path"] = catalogue.replace("foreign.py", str(foreign))
    (out / "run.json").write_text(json.dumps(settings))
    tools = json.loads((out / "tools.json").read_text())
    for tool in tools["tools"]:
        tool["origin"] = {"kind": "python", "source": str(foreign), "function": f"Basket.{tool['name']}"}
    (out / "tools.json").write_text(json.dumps(tools))
    assert all(tool.origin is None for tool in read_tools(out)[1].values())
    lost = load_partner(out, scripted=folder / "questions.jsonl")
    assert not lost.toolbox.functions
    shown = talked(lost, "Buy tea.", yes=True)
    assert "give --catalogue with a catalogue you trust" in " ".join(shown.split())
    assert "← [unavailable] tool 'add' cannot be run here" in shown
    assert not (tmp_path / "opened").exists()
