"""What every stage of a run works with: config, folder, tools, tasks, models of earlier stages."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tirkit.config import TRAINING, RunConfig
from tirkit.evaluation.terminal import Progress
from tirkit.methods.autotool.refine import Refined
from tirkit.methods.tinr.grow import Grown
from tirkit.methods.tinr.think import candidates
from tirkit.methods.tinr.tokens import add_lora
from tirkit.pipeline.sources import (
    SPLITS,
    Sources,
    load_folder,
    load_sources,
    load_tokenizer,
    load_toolbox,
    stored_sources,
)
from tirkit.rollout.allow import AllOf, Constraint, SelectionAutomaton
from tirkit.rollout.call_grammar import CallGrammar
from tirkit.rollout.loop import Prompts, RolloutSettings, rollout
from tirkit.rollout.policy import Policy, RolloutRequest
from tirkit.rollout.transformers_policy import TransformersPolicy
from tirkit.store import RunFolder, save_folder
from tirkit.text.dialects import Dialect
from tirkit.text.index import ToolIndex, build_index
from tirkit.text.masks import TokenRow, token_row
from tirkit.text.render import Renderer, encode
from tirkit.tools.origin import functions_digest
from tirkit.tools.retrieve import ToolRetriever
from tirkit.tools.runtime import PythonToolbox
from tirkit.types import Task, ToolSchema, Trajectory

STAGE_ORDER = ("prepare", *TRAINING, "grow", "evaluate", "report")
WORKERS = 16  # real tool calls at a time
FORCED = ", forced "
MODEL_STAGES = ("prepare", "internalise", "warmup", "finetune", "rl", "grow")  # those that leave a model of tasks


@dataclass
class Loaded:
    """A model on its device, its tokenizer and the renderer that knows its tool tokens."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    renderer: Renderer

    @property
    def pad_id(self) -> int:
        """Token id that fills up short rows."""
        return self.renderer.pad_id


def constraints(kind: str, loaded: Loaded, dialect: Dialect, tools: Sequence[ToolSchema]) -> list[Constraint]:
    """What a policy is held to in its blocks; `kind` as rollout.constrain has it."""
    parts: list[Constraint] = []
    if kind in ("selection", "both") and dialect.selects:
        parts.append(SelectionAutomaton(loaded.renderer, dialect))
    if kind in ("calls", "both"):
        parts.append(CallGrammar(loaded.tokenizer, loaded.renderer, dialect, tools))
    return parts


def result_stage(stage: str, mode: str | None = None) -> str:
    """What a test result has as its stage: the one whose model was asked, and the mode it was forced into."""
    return f"{stage}{FORCED}{mode}" if mode else stage


def attempt_records(stage: str) -> str:
    """Where the attempts behind a test result are kept; `stage` as the result has it."""
    return "test_" + stage.replace(FORCED, "_")


def rollout_settings(config: RunConfig) -> RolloutSettings:
    """Limits of an attempt and what stands in its prompt."""
    r = config.rollout
    return RolloutSettings(
        r.max_turns,
        r.max_calls,
        r.max_new_tokens,
        r.max_tokens,
        r.prompt,
        r.retrieve_k,
        # The embedded tools take microseconds, and without threads a run can be repeated bit for bit.
        workers=0 if config.catalogue.path == "embedded" else WORKERS,
    )


def run_index(folder: RunFolder, config: RunConfig, tools: Sequence[ToolSchema]) -> ToolIndex | None:
    """How a run writes its `tools`: as their catalogue says, or, where tools were added later, as they came to be."""
    kind = config.catalogue.indexing
    if kind == "none":
        return None
    grown = next(folder.read_records("growth", Grown), None)
    return build_index(tools, kind) if grown is None else grown.index(kind)


class Context:
    """One run under way, or one that is looked at."""

    def __init__(self, config: RunConfig, folder: RunFolder, progress: Progress) -> None:
        self.config = config
        self.folder = folder
        self.progress = progress
        self._constraints: dict[Renderer, list[Constraint]] = {}

    @cached_property
    def sources(self) -> Sources:
        """Tools and questions; once prepared they come from the run folder, whatever became of the files."""
        if self.folder.mark("prepare") is None:
            return load_sources(self.config)
        tools = tuple(self.folder.read_records("catalogue", ToolSchema))
        tasks = {split: tuple(self.folder.read_records(f"tasks_{split}", Task)) for split in SPLITS}
        return stored_sources(self.config, tools, tasks)

    @cached_property
    def tools(self) -> dict[str, ToolSchema]:
        """The catalogue by name."""
        return {tool.name: tool for tool in self.sources.tools}

    @cached_property
    def index(self) -> ToolIndex | None:
        """How tools are written; None where they are not internalised."""
        return run_index(self.folder, self.config, self.sources.tools)

    @cached_property
    def dialect(self) -> Dialect:
        """What the policy writes."""
        r = self.config.rollout
        return Dialect(self.index, two_step=r.two_step, think=r.think, modes=r.modes)

    @property
    def plain_dialect(self) -> Dialect:
        """The same without mode tags: what teachers and scripts write, before `tagged`."""
        return replace(self.dialect, modes=False)

    @cached_property
    def toolbox(self) -> PythonToolbox | None:
        """What runs the tools; None where calls are all that is asked for.

        Functions of the user whose documents are not those the run was prepared with stop it (`ConfigError`). A file
        that changed otherwise is only named: a mistake in a tool can be put right without training anew.
        """
        toolbox, prepared = load_toolbox(self.config, self.sources.tools), self.folder.mark("prepare")
        if prepared and prepared.facts.get("functions", "") != functions_digest(self.sources.tools):
            self.progress.say(
                f"{self.config.catalogue.path} was changed since the run was prepared; it runs as it is now"
            )
        return toolbox

    @cached_property
    def rollout_settings(self) -> RolloutSettings:
        """Limits of an attempt and what stands in its prompt."""
        return rollout_settings(self.config)

    @cached_property
    def train_tasks(self) -> tuple[Task, ...]:
        """Training questions; where all documents stand in the prompt, training sees those of some candidates only.

        A whole catalogue in every training prompt would leave that baseline too few examples for its training time.
        """
        tasks, tools = self.sources.tasks["train"], self.tools
        if self.config.rollout.prompt != "documents":
            return tasks
        retriever, size = ToolRetriever(self.sources.tools), self.config.synthesise.num_candidates
        chosen = [task.tools or candidates(task, retriever, tools, size, self.config.seed) for task in tasks]
        return tuple(task.model_copy(update={"tools": names}) for task, names in zip(tasks, chosen, strict=True))

    @property
    def sft_tasks(self) -> tuple[Task, ...]:
        """Training questions of phases 1 and 2: all but those kept for RL."""
        return self.train_tasks[: max(0, len(self.train_tasks) - self.config.tasks.num_rl)]

    @property
    def rl_pool(self) -> tuple[Task, ...]:
        """Training questions of RL, and of the stages that prepare it: those kept for it, else all."""
        return self.train_tasks[-self.config.tasks.num_rl :]  # [-0:] is all

    @property
    def rl_tasks(self) -> tuple[Task, ...]:
        """What RL trains on: its pool, or what refinement has left of it."""
        if not self.enabled("refine"):
            return self.rl_pool
        kept = {one.task_id for one in self.folder.read_records("refined", Refined) if one.kept}
        return tuple(task for task in self.rl_pool if task.id in kept)

    @property
    def candidate_tasks(self) -> dict[str, Task]:
        """The questions AutoTraj's candidates are attempts at, by id: a log's, else RL's or the first so many of them.

        Phases 1 and 2 have not been trained on them where some are kept for RL.
        """
        config = self.config.candidates
        logged = self.folder.read_records("tasks_candidates", Task) if config.log else None
        tasks = self.rl_pool[: config.num_tasks or None] if logged is None else logged
        return {task.id: task for task in tasks}

    @cached_property
    def prompts(self) -> Prompts:
        """Which documents stand in a task's prompt."""
        return Prompts(self.tools, self.rollout_settings)

    def enabled(self, stage: str) -> bool:
        """Whether the config asks for the stage."""
        section = getattr(self.config, stage, None)
        return getattr(section, "enabled", True)

    def stage_before(self, stage: str) -> str:
        """The newest enabled stage before `stage` that leaves a model."""
        earlier = STAGE_ORDER[: STAGE_ORDER.index(stage)]
        return next(name for name in reversed(earlier) if name in MODEL_STAGES and self.enabled(name))

    @cached_property
    def renderer(self) -> Renderer:
        """The run's rendering, which no stage after `prepare` changes."""
        return Renderer(load_tokenizer(self.folder.model("prepare")), self.index)

    @property
    def device(self) -> str:
        """Where models are."""
        device = self.config.model.device
        return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device

    def load(self, stage: str) -> Loaded:
        """The model that `stage` left."""
        model, tokenizer = load_folder(self.folder.model(stage))
        model.to(self.device)  # pyright: ignore[reportArgumentType]
        return Loaded(model, tokenizer, Renderer(tokenizer, self.index))

    def save(self, loaded: Loaded, stage: str) -> None:
        """Leave a model for later stages."""

        def write(folder: Path) -> None:
            loaded.model.save_pretrained(folder)
            loaded.tokenizer.save_pretrained(folder)

        save_folder(self.folder.model(stage), write)

    def trainable(self, loaded: Loaded) -> torch.nn.Module:
        """What a training stage trains: all of the model, or LoRA factors and the rows that were added to it."""
        if not self.config.model.lora_rank:
            return loaded.model
        prepared = self.folder.mark("prepare")
        new_ids: Any = prepared.facts["new_token_ids"] if prepared else []
        return add_lora(loaded.model, new_ids, self.config.model.lora_rank)

    def merged(self, loaded: Loaded, trained: torch.nn.Module) -> Loaded:
        """The plain model after training."""
        if trained is loaded.model:
            return loaded
        return Loaded(trained.merge_and_unload(), loaded.tokenizer, loaded.renderer)  # pyright: ignore

    def row(self, renderer: Renderer, trajectory: Trajectory, task: Task | None = None) -> TokenRow:
        """A trajectory as ids and masks, the documents that belong in its task's prompt included."""
        return token_row(encode(renderer, trajectory, self.prompts.documents(task) if task else ()))

    def policy(self, loaded: Loaded, temperature: float, model: PreTrainedModel | None = None) -> TransformersPolicy:
        """The model as a policy; `model` may be the one that a trainer is working on."""
        r = self.config.rollout
        constraint = AllOf(self._constraint_parts(loaded)) if r.constrain != "none" else None
        return TransformersPolicy(model or loaded.model, loaded.renderer, temperature, r.max_batch, constraint)

    def _constraint_parts(self, loaded: Loaded) -> list[Constraint]:
        """What policies are held to in their blocks; made once for a renderer, as it takes longer than many a step."""
        if loaded.renderer not in self._constraints:
            made = constraints(self.config.rollout.constrain, loaded, self.dialect, self.sources.tools)
            self._constraints[loaded.renderer] = made
        return self._constraints[loaded.renderer]

    @property
    def loose(self) -> dict[str, str]:
        """Tools called so far whose arguments no policy is held to their schema, and why (see CallGrammar)."""
        grammars = (part for parts in self._constraints.values() for part in parts if isinstance(part, CallGrammar))
        return {name: why for grammar in grammars for name, why in grammar.loose.items()}

    def rollout(
        self, renderer: Renderer, policy: Policy, dialect: Dialect | None = None
    ) -> Callable[[Sequence[RolloutRequest]], list[Trajectory]]:
        """The tool loop, ready to be given requests. dialect: where it is not the run's own."""
        return partial(
            rollout,
            policy=policy,
            renderer=renderer,
            dialect=dialect or self.dialect,
            tools=self.tools,
            toolbox=self.toolbox,
            settings=self.rollout_settings,
        )
