"""Where a run's tools, questions and starting model come from."""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from tirkit.config import CatalogueConfig, ConfigError, RunConfig, TasksConfig
from tirkit.embedded.model import build_tokenizer, load_base, new_model
from tirkit.embedded.values import Split
from tirkit.embedded.world import TaskKind, ToolChoice, World
from tirkit.methods.autotraj.pairs import contaminated
from tirkit.pipeline.split import seen_tools, split_tasks
from tirkit.serving.export import TOOL_FILE
from tirkit.text.dialects import print_document
from tirkit.tools.catalogue import SEAL_TOOLS_SAMPLE, load_catalogue
from tirkit.tools.functions import load_functions
from tirkit.tools.lines import FileIssue
from tirkit.tools.origin import check_copies, make_toolbox
from tirkit.tools.python import PYTHON_SCHEMA, PythonTool
from tirkit.tools.questions import load_tasks
from tirkit.tools.runtime import PythonToolbox
from tirkit.tools.sandbox import Sandbox, SandboxLimits
from tirkit.tools.search import SEARCH_SCHEMA, Bm25Searcher, SearchTool
from tirkit.types import Task, ToolSchema

TOOL_KINDS: tuple[TaskKind, ...] = ("single", "two_step")
OTHER_KINDS: tuple[TaskKind, ...] = ("no_tool", "arithmetic_easy", "arithmetic_hard")
PYTHON_SEARCH = "python_search"
Tasks = dict[str, tuple[Task, ...]]
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Sources:
    """Tools, questions by split, and the tools that training questions use."""

    tools: tuple[ToolSchema, ...]
    tasks: Tasks
    seen: frozenset[str]
    issues: tuple[str, ...] = ()


def load_sources(config: RunConfig) -> Sources:
    """Tools and questions as the config names them; the same config gives the same ones.

    Raises a `UserError` where a file cannot be used at all; its bad lines are named in `issues`.
    """
    if config.catalogue.path == "embedded":
        try:
            return _embedded(config.catalogue.num_tools, config.tasks)
        except ValueError as error:
            raise ConfigError(f"catalogue.num_tools = {config.catalogue.num_tools}: {error}") from error
    tools, bad_tools = load_tools(config.catalogue)
    questions = load_tasks(_file(config.tasks.path, "questions.jsonl"), {tool.name for tool in tools})
    # The split is part of the question, not of the run: every seed trains and tests on the same questions.
    t = config.tasks
    parts = split_tasks(questions.tasks, t.num_validation, t.num_test, t.min_seen_test, seed=0)
    tasks, said = _decontaminated(config.tasks, {split: tuple(part) for split, part in parts.items()})
    issues = tuple(str(issue) for issue in (*bad_tools, *questions.issues, *said))
    return Sources(tools, tasks, seen_tools(tasks["train"]), issues)


def load_tools(config: CatalogueConfig) -> tuple[tuple[ToolSchema, ...], Sequence[FileIssue]]:
    """The catalogue's tools, and what was wrong with its file. Raises a `UserError` where it can't be used at all."""
    if config.path == PYTHON_SEARCH:
        return (PYTHON_SCHEMA, SEARCH_SCHEMA) if config.corpus else (PYTHON_SCHEMA,), ()
    catalogue = load_functions(config.path) if config.functions else load_catalogue(_file(config.path, "tools.jsonl"))
    return catalogue.tools, catalogue.issues


def load_toolbox(
    config: RunConfig, tools: Sequence[ToolSchema], allow: Sequence[str] | None = None
) -> PythonToolbox | None:
    """What runs the tools, which are the run's `tools`; None: calls can't be run.

    allow: tools beside those that are read-only; None: what the config allows in training.

    Raises a `UserError` where there is no sandbox, the corpus can't be read, or a tool of the catalogue can't be run as
    its origin says (see `make_toolbox`).
    """
    r, catalogue = config.rollout, config.catalogue
    if catalogue.path not in ("embedded", PYTHON_SEARCH):
        if allow is None and catalogue.state == "attempt":
            check_copies(tools, catalogue.allow)
        limits = (r.tool_timeout_s, r.max_result_chars, catalogue.state, catalogue.max_states)
        return make_toolbox(tools, catalogue.allow if allow is None else allow, *limits)
    # The embedded world's functions are ours and take microseconds, the sandbox and search keep limits of their own.
    own: dict[str, Any] = {"timeout_s": r.tool_timeout_s, "max_chars": r.max_result_chars, "isolation": "inline"}
    return PythonToolbox(_known_functions(config), tools, **own)


def _known_functions(config: RunConfig) -> Mapping[str, Callable[..., Any]]:
    """The embedded world's functions, or Python in a sandbox and search."""
    if config.catalogue.path == "embedded":
        return dict(World(config.catalogue.num_tools).functions)
    r, corpus = config.rollout, config.catalogue.corpus
    uncut = r.max_result_chars  # the toolbox cuts what is longer, to head and tail
    sandbox = Sandbox(SandboxLimits(wall_s=r.tool_timeout_s))
    functions: dict[str, Callable[..., Any]] = {"python": PythonTool(sandbox, uncut, uncut)}
    if corpus:
        functions["search"] = SearchTool(Bm25Searcher.load(Path(corpus)))
    return functions


def _decontaminated(config: TasksConfig, tasks: Tasks) -> tuple[Tasks, list[str]]:
    """Without the training questions that resemble an evaluation question, where the config asks for it; what to say.

    Raises `ConfigError` where none is left.
    """
    if not config.decontaminate:
        return tasks, []
    bad = contaminated(tasks["train"], (*tasks["validation"], *tasks["test"]))
    train = tuple(task for task in tasks["train"] if task.id not in bad)
    if not train:
        raise ConfigError("tasks.decontaminate leaves no training question: all resemble validation or test questions")
    names = ", ".join(f"{task} {why}" for task, why in list(bad.items())[:3])
    said = [f"{len(bad)} training questions are left out (tasks.decontaminate): {names}"] if bad else []
    return tasks | {"train": train}, said


def _file(path: str, sample: str) -> Path:
    return SEAL_TOOLS_SAMPLE / sample if path == "seal_tools_sample" else Path(path)


def _embedded(num_tools: int, tasks: TasksConfig) -> Sources:
    world = World(num_tools)
    sizes: dict[Split, int] = {
        "train": tasks.num_train,
        "validation": tasks.num_validation,
        "test": tasks.num_test,
    }
    seeds: dict[Split, int] = {"train": 0, "validation": 0, "test": tasks.test_seed}
    asked: Tasks = {
        split: tuple(world.tasks(split, n, seed=seeds[split], kinds=tasks.kinds))
        if tasks.kinds
        else _mix(world, split, n, seeds[split])
        for split, n in sizes.items()
    }
    seen = frozenset(tool.name for tool in world.catalogue if tool.name not in world.held_out)
    parts, said = _decontaminated(tasks, asked)
    return Sources(world.catalogue, parts, seen, tuple(said))


def _mix(world: World, split: Split, n: int, seed: int) -> tuple[Task, ...]:
    """A third each: questions about seen tools, about unseen ones (in training seen ones again), and without tools."""
    third, other = n // 3, "seen" if split == "train" else "unseen"
    asks: tuple[tuple[int, tuple[TaskKind, ...], ToolChoice, int], ...] = (
        (third, TOOL_KINDS, "seen", 0),
        (third, TOOL_KINDS, other, 1),
        (n - 2 * third, OTHER_KINDS, "seen", 2),
    )
    parts = [
        world.tasks(split, size, seed=len(asks) * seed + s, kinds=kinds, tools=which) for size, kinds, which, s in asks
    ]
    # Taken in turn, so that the first n questions have every kind.
    order = sorted(
        (place / len(part), number, task) for number, part in enumerate(parts) for place, task in enumerate(part)
    )
    return tuple(task for _, _, task in order)


def stored_sources(config: RunConfig, tools: tuple[ToolSchema, ...], tasks: Tasks) -> Sources:
    """The sources of a run that has stored its tools and tasks."""
    if config.catalogue.path != "embedded":
        return Sources(tools, tasks, seen_tools(tasks["train"]))
    held_out = World(config.catalogue.num_tools).held_out
    return Sources(tools, tasks, frozenset(tool.name for tool in tools) - held_out)


def scripted_tasks(path: Path, known: Container[str] | None = None) -> Sequence[Task]:
    """Tasks whose gold is played in a model's place (`--scripted`); `known`: see `load_tasks`.

    Raises a UserError where they cannot be read or one of them is bad.
    """
    loaded = load_tasks(path, known)
    if loaded.issues:
        raise ConfigError(f"--scripted holds {len(loaded.issues)} bad tasks: {loaded.issues[0]}")
    return loaded.tasks


def load_model(
    config: RunConfig, tools: Sequence[ToolSchema], train: Sequence[Task]
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model a run starts from, before its vocabulary grows. Raises `ConfigError` where there is none."""
    settings = config.model
    if settings.scratch:
        texts = [print_document(tool) for tool in tools]
        texts += [message.content for task in train for message in task.prompt]
        tokenizer = build_tokenizer(texts, settings.vocab_size)
        return new_model(tokenizer, config.seed), tokenizer
    if settings.path == "embedded":
        return load_base()
    if (Path(settings.path) / TOOL_FILE).exists():
        raise ConfigError(
            f"model.path = {settings.path!r} is an exported model, whose vocabulary and chat template are those of "
            "its own tools: start from the model that its run started from, or serve it with `tirkit serve`"
        )
    return load_folder(settings.path)


def load_folder(path: Path | str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A model in float32 and its tokenizer, from a folder or, by name, from the hub.

    Raises `ConfigError` where there is none.
    """
    tokenizer = load_tokenizer(path)
    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), tokenizer
    except (OSError, ValueError) as error:
        raise _no_model(path, error) from error


def load_tokenizer(path: Path | str) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder or name. Raises `ConfigError` where there is none."""
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise _no_model(path, error) from error


def _no_model(path: Path | str, error: Exception) -> ConfigError:
    reason = str(error).splitlines()[0]
    return ConfigError(
        f"model.path = {str(path)!r} is neither a model folder nor a model that can be downloaded ({reason}); "
        "give a folder with config.json, tokenizer and weights, or a Hugging Face name with the network on"
    )
