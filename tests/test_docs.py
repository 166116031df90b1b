"""README.md and docs/ say what is true: every block and every command named in them is held against the code.

Commands are parsed by the real command line, configs and their settings by the strict config; Python is run where it
needs no server; blocks without a language are output, and not run. What costs nothing is run as it stands.
"""

import ast
import importlib.util
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from tirkit.cli import app
from tirkit.config import ConfigError, RunConfig, arm_names, load_config
from tirkit.evaluation.benchmarks.registry import BENCHMARKS
from tirkit.pipeline.run import STAGES
from tirkit.types import Task, ToolCall

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CLI: Any = typer.main.get_command(app)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SHELL, OUTPUT = {"bash", "sh", "indented"}, {"", "text"}
FILE_ENDINGS = {"html", "json", "jsonl", "md", "py", "svg", "toml"}
# Programs of others, whose arguments are theirs to know.
OTHERS = re.compile(r"\.|cat|cd|curl|docker|echo|export|git|kill|llama-(cli|server)|python3|shuf|source|vllm|wait")
OURS = re.compile(r"^(?:\.venv/bin/)?(?:tirkit|python|make|pip)\b(?= \S|$)")
PLACEHOLDER = re.compile(r"…|\b[A-Z][A-Z_0-9]+\b")
SEPARATORS, REDIRECTION = {"&&", "||", "|", "&", ";"}, re.compile(r"^\d?>")


@dataclass(frozen=True)
class Snippet:
    """Code in a page: a block in its language, or what stands `inline` in a sentence."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def snippets(page: Path) -> Iterator[Snippet]:
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text()):
        line = token.map[0] + 1 if token.map else 0
        if token.type in ("fence", "code_block"):
            language = token.info.split(" ")[0] if token.type == "fence" else "indented"
            yield Snippet(page, line, language, token.content)
        for child in token.children or ():
            if child.type == "code_inline":
                yield Snippet(page, line, "inline", child.content)


ALL = [snippet for page in PAGES for snippet in snippets(page)]
BLOCKS = [snippet for snippet in ALL if snippet.language != "inline"]
INLINE = [snippet for snippet in ALL if snippet.language == "inline"]


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a shell block as words, without what redirects them; bodies of here-documents are left out.

    >>> list(commands("A=1 tirkit plan x  # why\\nmake demo > log &"))
    [['tirkit', 'plan', 'x'], ['make', 'demo']]
    """
    text = re.sub(r"<<-?\s*'?(\w+)'?(.*)\n(?:.*\n)*?\1\n", r"\2\n", text.replace("\\\n", " "))
    pending = ""
    for line in text.splitlines():
        pending = f"{pending}\n{line}" if pending else line
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # a quoted text goes on
            continue
        pending = ""
        found: list[str] = []
        for word in [*words, ";"]:
            if word not in SEPARATORS:
                found.append(word)
                continue
            while found and re.match(r"[A-Z_]+=", found[0]):
                found.pop(0)
            end = next((at for at, one in enumerate(found) if REDIRECTION.match(one)), len(found))
            if found[:end]:
                yield found[:end]
            found = []
    assert not pending, f"a quotation does not end: {pending}"


def check(words: list[str]) -> None:
    """Hold one command against the code. AssertionError where it could not be given."""
    program, *rest = words
    program = program.removeprefix(".venv/bin/")
    if program == "tirkit":
        check_tirkit(rest)
    elif program == "python":
        check_python(rest)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(rest) <= set(targets), f"the Makefile has no target {rest}; it has {targets}"
    elif program == "pip":
        extras = {name for word in rest for names in re.findall(r"\[(.+)\]", word) for name in names.split(",")}
        assert extras <= set(PROJECT["optional-dependencies"]), f"pyproject.toml has not all of the extras {extras}"
    else:
        assert OTHERS.fullmatch(program), f"{program!r} is no command that is known here: see OTHERS"


def parsed(words: list[str]) -> tuple[str, dict[str, Any]]:
    """The command's name and its parameters. AssertionError where the command line refuses them."""
    command, context, names = CLI, CLI.context_class(CLI, info_name="tirkit"), []
    try:
        while hasattr(command, "commands"):
            name, command, words = command.resolve_command(context, words)
            names.append(name)
            if hasattr(command, "commands"):
                context = command.context_class(command, info_name=name, parent=context)
        return " ".join(names), command.make_context(names[-1], list(words), parent=context).params
    except typer.exceptions.TyperException as error:
        raise AssertionError(f"tirkit {' '.join(words)}: {error.format_message()}") from None


def check_tirkit(words: list[str]) -> None:
    name, given = parsed(words)
    settings = [word for word in given.get("overrides") or () if not PLACEHOLDER.match(word) and word != "key=value"]
    config = given.get("config")
    if config is not None and not PLACEHOLDER.search(str(config)):
        path = ROOT / config
        load_config(path, settings, given.get("arm", ""))
        arms = {arm for arm in given.get("arms", "").split(",") if arm}
        assert arms <= {"all", "method", *arm_names(path)}, f"{config} has not all of the arms {arms}"
    elif settings:
        load_config(ROOT / "configs/tinr_u/qwen.toml", settings)
    if not PLACEHOLDER.search(stages := given.get("stages") or "") and stages != "a,b":
        assert set(filter(None, stages.split(","))) <= set(STAGES), f"no stage of that name: {stages}"
    if not PLACEHOLDER.search(named := given.get("benchmark") or ""):
        assert set(filter(None, named.split(","))) <= set(BENCHMARKS), f"{name}: no benchmark {named}"


def check_python(words: list[str]) -> None:
    """A module or a script of ours, and options that it takes."""
    if words[0] == "-c" or (words[0] == "-m" and importlib.util.find_spec(words[1].split(".")[0]) is not None):
        own = words[1].split(".")[0] in ("tirkit", "benchmarks", "examples")
        if not own:
            return
    path = words[1].replace(".", "/") if words[0] == "-m" else words[0].removesuffix(".py")
    places = [root / f"{path}{end}" for root in (ROOT, ROOT / "src") for end in (".py", "/__main__.py")]
    source = next((place.read_text() for place in places if place.is_file()), None)
    assert source is not None, f"no module or script {path}"
    for option in (word for word in words if word.startswith("--")):
        as_parameter = f"{option[2:].replace('-', '_')}: "  # typer makes the option of it
        assert f'"{option}"' in source or as_parameter in source, f"{path} takes no {option}"


def refused(snippet: Snippet, words: list[str]) -> str:
    """What is wrong with a command of a page, or nothing."""
    try:
        check(words)
    except Exception as error:
        return f"{snippet.place}: {shlex.join(words)}\n    {error}"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_blocks_can_be_given(page: Path) -> None:
    shell = [block for block in BLOCKS if block.page == page and block.language in SHELL]
    wrong = [why for block in shell for words in commands(block.text) if (why := refused(block, words))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_sentences_can_be_given(page: Path) -> None:
    """`tirkit run` alone names a command; brackets mark what may be left out; `… --option` goes on with the last."""
    wrong: list[str] = []
    last: list[str] = []
    for snippet in (one for one in INLINE if one.page == page and (OURS.match(one.text) or one.text[:4] == "… --")):
        words = shlex.split(re.sub(r"[\[\]]", "", snippet.text) if "tirkit" in snippet.text[:16] else snippet.text)
        words = [*last[:2], *words] if words[0] == "…" else words
        last = words
        is_name = words[0].endswith("tirkit") and " ".join(words[1:]) in names_of(CLI)
        if not is_name and (why := refused(snippet, words)):
            wrong.append(why)
    assert not wrong, "\n".join(wrong)


def names_of(command: Any, before: str = "") -> dict[str, Any]:
    """Every command and group by its whole name."""
    found: dict[str, Any] = {}
    for name, child in getattr(command, "commands", {}).items():
        found |= {f"{before}{name}": child} | names_of(child, f"{before}{name} ")
    return found


def test_the_readme_names_every_command() -> None:
    said = [snippet.text for snippet in INLINE if snippet.page.name == "README.md"]
    leaves = [name for name, command in names_of(CLI).items() if not hasattr(command, "commands")]
    missing = [name for name in leaves if not any(re.match(rf"tirkit {name}\b", text) for text in said)]
    assert not missing, f"README.md's table of commands lacks {missing}"


def options_of(command: Any) -> set[str]:
    own = {text for parameter in command.params for text in (*parameter.opts, *parameter.secondary_opts)}
    return own.union(*(options_of(child) for child in getattr(command, "commands", {}).values()))


def test_options_named_alone_exist() -> None:
    """`--retries` in a sentence is an option of some command, or of a script."""
    scripts = [path for folder in ("examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    known = (
        options_of(CLI) | {o for path in scripts for o in re.findall(r'"(--[\w-]+)"', path.read_text())} | {"--help"}
    )
    named = {(s.place, s.text.split(" ")[0]) for s in INLINE if re.match(r"--[a-z]", s.text)}
    assert {(place, option) for place, option in named if option not in known} == set()


def test_settings_functions_and_files_named_in_sentences_exist() -> None:
    """`rl.steps` and `rl.steps = 3`: a section's key; `masks.coloured`: a module's; `configs/…`: in the repository."""
    keys = {name: set(getattr(field.annotation, "model_fields", ())) for name, field in RunConfig.model_fields.items()}
    modules: dict[str, str] = {}
    for path in (ROOT / "src").rglob("*.py"):
        modules[path.stem] = modules.get(path.stem, "") + path.read_text()
    wrong: list[str] = []
    for snippet in INLINE:
        if dotted := re.fullmatch(r"([a-z_]+)\.([A-Za-z_]+)(?: ?= ?.*|\(.*\))?", snippet.text):
            first, name = dotted.groups()
            if name in FILE_ENDINGS:
                continue
            defined = re.search(rf"(?:def|class) {name}\b|^ *{name}\b *[:=]", modules.get(first, ""), re.MULTILINE)
            if (first in keys or first in modules) and not (name in keys.get(first, ()) or defined):
                wrong.append(f"{snippet.place}: {first} has no {name}")
        path = re.fullmatch(r"(?:src|tests|docs|configs|examples|results|benchmarks)/[\w./-]+", snippet.text)
        if path and not (ROOT / path[0]).exists():
            wrong.append(f"{snippet.place}: there is no {path[0]}")
    assert not wrong, "\n".join(wrong)


def test_every_block_has_a_language_that_is_checked() -> None:
    known = SHELL | OUTPUT | {"python", "json", "jsonl", "toml"}
    assert [f"{block.place}: {block.language}" for block in BLOCKS if block.language not in known] == []


def test_data_can_be_read() -> None:
    for block in BLOCKS:
        if block.language == "toml":
            tomllib.loads(block.text)
        elif block.language in ("json", "jsonl"):
            for text in block.text.splitlines() if block.language == "jsonl" else [block.text]:
                json.loads(text)
    (question,) = (snippet.text for snippet in INLINE if snippet.text.startswith('{"id": "q1"'))
    assert Task.model_validate_json(question).gold_calls == (ToolCall(name="get_weather", arguments={"city": "Oslo"}),)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page, one after the other; of one that speaks to a server, its syntax and its imports."""
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"__name__": "page"}
    for block in (one for one in BLOCKS if one.page == page and one.language == "python"):
        tree = ast.parse(block.text, block.place)
        if "http://" in block.text or "https://" in block.text:
            tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(tree, block.place, "exec"), space)


TOOLS = '''
from tirkit.tools.functions import read_only

@read_only
def ferry_fare(to: str, day: int) -> int:
    """Tells the fare of the ferry.

    Args:
        to: where it goes
        day: of the month
    """
    return len(to) * day

def book(seats: int) -> str:
    """Books seats on the ferry.

    Args:
        seats: how many
    """
    return f"{seats} booked"
'''


def test_own_tools_come_in_as_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its block up to training, which is only prepared, with the embedded model in the place of a fetched one."""
    (tmp_path / "my_tools.py").write_text(TOOLS)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    block = next(block for block in BLOCKS if block.page.name == "README.md" and "tools import" in block.text)
    given = [words[1:] for words in commands(block.text)]
    assert [words[0] for words in given[:3]] == ["tools", "questions", "run"]
    given[2] += ["--stages", "prepare", f"model.path={RunConfig().model.path}"]
    for words in given[:3]:
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, f"tirkit {' '.join(words)}\n{done.output}"
    assert len((tmp_path / "my_questions.jsonl").read_text().splitlines()) == 400
    assert (tmp_path / "runs" / "mine" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("tirkit train x", "No such command"),
        ("tirkit tools forget RUN", "No such command"),
        ("tirkit run configs/tinr_u/embedded.toml --outt x", "No such option"),
        ("tirkit contaminate TRAIN", "Missing argument"),
        ("tirkit questions CATALOGUE --out FILE --num many", "a valid integer"),
        ("tirkit run configs/tinr_u/gone.toml", "cannot be read"),
        ("tirkit run configs/tinr_u/embedded.toml --arm gone", "no arm 'gone'"),
        ("tirkit run configs/tinr_u/embedded.toml rl.stepz=1", "rl.stepz: unknown"),
        ("tirkit run CONFIG rl.steps=many", "rl.steps"),
        ("tirkit tools add RUN CATALOGUE grow.stepz=1", "grow.stepz: unknown"),
        ("tirkit compare configs/tinr_u/embedded.toml --arms method,gone", "not all of the arms"),
        ("tirkit run configs/tinr_u/embedded.toml --stages prepare,train", "no stage"),
        ("tirkit eval RUN --benchmark gone", "no benchmark gone"),
        ("make tea", "no target"),
        ("pip install 'tirkit[tea]'", "extras"),
        ("python -m benchmarks --only x --tea", "takes no --tea"),
        ("python examples/gone.py", "no module or script"),
        ("teapot", "no command that is known"),
    ],
)
def test_what_is_not_true_is_found(text: str, reason: str) -> None:
    (words,) = commands(text)
    with pytest.raises((AssertionError, ConfigError), match=re.escape(reason)):
        check(words)
