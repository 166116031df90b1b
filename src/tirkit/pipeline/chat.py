"""Talk to a trained model in the terminal; its calls are really made."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from tirkit.config import ConfigError, RunConfig
from tirkit.evaluation.chat_view import ChatView
from tirkit.pipeline.context import rollout_settings
from tirkit.pipeline.conversation import Partner, talk
from tirkit.pipeline.exported import open_exported
from tirkit.pipeline.run import model_stage, open_run
from tirkit.pipeline.sources import PYTHON_SEARCH, load_toolbox, load_tools, scripted_tasks
from tirkit.rollout.loop import last_user
from tirkit.rollout.policy import ScriptedPolicy, oracle
from tirkit.serving.export import RUN_FILE, TOOL_FILE
from tirkit.tools.runtime import PythonToolbox
from tirkit.types import Message, Task, ToolSchema

NO_CATALOGUE = (
    "an export does not say how its tools are run: give --catalogue with a catalogue you trust "
    f"({RUN_FILE} names the one of its run)"
)


def chat(
    source: Path,
    stage: str = "",
    scripted: Path | None = None,
    catalogue: str = "",
    temperature: float = 0.0,
    yes: bool = False,
    console: Console | None = None,
) -> None:
    """Talk until the user ends it; see `load_partner`. yes: makes every call without asking."""
    console = console or Console()
    if console.is_terminal:
        with contextlib.suppress(ImportError):  # lets the user edit a line; some systems lack it
            import readline  # noqa: F401  # pyright: ignore[reportUnusedImport]
    partner = load_partner(source, stage, scripted, catalogue, temperature)
    with partner.toolbox:
        talk(partner, ChatView(console), yes)


def load_partner(
    source: Path, stage: str = "", scripted: Path | None = None, catalogue: str = "", temperature: float = 0.0
) -> Partner:
    """A run's model of `stage` (the last one if empty), or an exported model.

    scripted: tasks whose gold is played instead of the model; catalogue: says how an exported model's tools are run;
    without it only those of the built-in world are. Raises a UserError where there is no such model, or its tools can't
    be run.
    """
    hint = ""
    if (source / "manifest.json").exists():
        ctx = open_run(source)
        loaded = ctx.load(model_stage(ctx, stage))
        config, tools, dialect, policy = ctx.config, ctx.tools, ctx.dialect, ctx.policy(loaded, temperature)
    elif (source / TOOL_FILE).exists():
        opened = open_exported(source)
        config, loaded, dialect, policy = opened.config, opened.loaded, opened.dialect, opened.policy(temperature)
        config, tools = _runnable(config, opened.tools, catalogue)
        hint = "" if config.catalogue.path else NO_CATALOGUE
    else:
        raise ConfigError(f"{source} is neither a run nor an export: give a folder that `tirkit run` or `export` made")
    partner = Partner(
        config.name,
        policy,
        loaded.renderer,
        dialect,
        tools,
        _toolbox(config, tools, ("*",)),
        frozenset(_toolbox(config, tools, ()).functions),
        rollout_settings(config),
        getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None) or 0,
        hint,
    )
    return _played(partner, scripted) if scripted else partner


def _runnable(
    config: RunConfig, tools: Mapping[str, ToolSchema], catalogue: str
) -> tuple[RunConfig, Mapping[str, ToolSchema]]:
    """The exported tools as the `catalogue` says they are run, and the config that names it.

    The one that the export names is not opened: an export may be somebody else's, and a catalogue names what to run.
    """
    path = catalogue or ("embedded" if config.catalogue.path == "embedded" else "")
    section = config.catalogue.model_copy(update={"path": path})
    config = config.model_copy(update={"catalogue": section})
    if path in ("", "embedded", PYTHON_SEARCH):
        return config, tools
    known = {tool.name: tool for tool in load_tools(section)[0]}
    ran = {name: known.get(name, tool) for name, tool in tools.items()}
    found = {n: tool.model_copy(update={"origin": ran[n].origin, "source": ran[n].source}) for n, tool in tools.items()}
    return config, found


def _toolbox(config: RunConfig, tools: Mapping[str, ToolSchema], allow: Sequence[str]) -> PythonToolbox:
    return load_toolbox(config, tuple(tools.values()), allow) or PythonToolbox({}, tools.values())


def _played(partner: Partner, scripted: Path) -> Partner:
    """A script in the model's place. Raises a UserError where its tasks are bad."""
    by_question = {last_user(task.prompt): task for task in scripted_tasks(scripted, partner.tools)}

    def task(prompt: Sequence[Message]) -> Task:
        return by_question.get(last_user(prompt), Task(id="chat", prompt=tuple(prompt)))

    dialect = replace(partner.dialect, modes=False)
    policy = ScriptedPolicy(oracle(dialect), partner.renderer)
    return replace(partner, name="scripted", policy=policy, dialect=dialect, task=task)
