"""A whole RL step against the number of tools: tools in the weights, or their documents in the prompt.

Two questions of eight rollouts each, on the embedded model's shape. Every rollout writes the gold turns, so the arms
differ only in what they read and write: in the weights, a tool token, whose document comes back, then the call; with
documents, the call. Prompts of more than 12,000 tokens are not run.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from statistics import median

import torch
from torch import Tensor
from transformers import Qwen3ForCausalLM

from benchmarks.harness import Arm, Result, compare, peak_memory
from tirkit.embedded.model import build_tokenizer, new_model
from tirkit.methods.tinr.tokens import grow_vocabulary
from tirkit.rollout.loop import RolloutSettings, rollout
from tirkit.rollout.policy import GenerateRequest, RolloutRequest, oracle
from tirkit.rollout.transformers_policy import TransformersPolicy
from tirkit.text.dialects import Dialect, print_document
from tirkit.text.index import build_index
from tirkit.text.render import Renderer
from tirkit.tools.catalogue import SEAL_TOOLS_SAMPLE, load_catalogue
from tirkit.tools.questions import load_tasks
from tirkit.training.base import training_arguments
from tirkit.training.rl import RLSettings, RLTrainer
from tirkit.types import RewardBreakdown, RewardTerm, StopReason, Task, ToolSchema, Trajectory

SIZES = (10, 30, 80, 1000, 4000)
MODES = ("internalised", "documents")
G, NUM_TASKS, VOCABULARY, LONGEST = 8, 2, 2048, 12_000


def run(repeats: int) -> list[Result]:
    return [step_at(size, repeats) for size in SIZES]


def step_at(size: int, repeats: int) -> Result:
    settings = {mode: Setting(mode, size) for mode in MODES}
    lengths = {mode: setting.prompt_tokens() for mode, setting in settings.items()}
    modes = [mode for mode in MODES if lengths[mode] <= LONGEST]
    timings = compare(f"internalised, {size} tools", [Arm(mode, settings[mode].trainer()) for mode in modes], repeats)
    memory = {mode: peak_memory("benchmarks.internalised:once", mode, size) for mode in modes}
    setting = f"{size:,} tools: prompts of {lengths['internalised']:,} and {lengths['documents']:,} tokens"
    note = " ".join((__doc__ or "").split())
    return Result("internalised", setting, timings, memory, notes=note, x=float(size), x_label="tools")


def once(mode: str, size: int) -> None:
    """One step of one arm: what its process takes at most."""
    Setting(mode, int(size)).trainer()()


class Setting:
    """A catalogue of `size` tools (the sample's, over and over under new names), two tasks, a new model."""

    def __init__(self, mode: str, size: int):
        sample = load_catalogue(SEAL_TOOLS_SAMPLE / "tools.jsonl").tools
        every = load_tasks(SEAL_TOOLS_SAMPLE / "questions.jsonl", {tool.name for tool in sample}).tasks
        self.tasks = [task for task in every if len(task.gold_calls or ()) == 1][:NUM_TASKS]
        self.tools = {tool.name: tool for tool in _catalogue(sample, self.tasks, size)}
        internalised = mode == "internalised"
        index = build_index(list(self.tools.values())) if internalised else None
        tokenizer = build_tokenizer(map(print_document, sample), VOCABULARY)
        self.model: Qwen3ForCausalLM = new_model(tokenizer)
        if index:
            grow_vocabulary(self.model, tokenizer, index, list(self.tools.values()))
        self.renderer, self.dialect = Renderer(tokenizer, index), Dialect(index)
        self.settings = RolloutSettings(max_tokens=10**6, prompt="none" if internalised else "documents")

    def prompt_tokens(self) -> int:
        documents = () if self.dialect.index else tuple(self.tools.values())
        return int(median(len(self.renderer.prompt_ids(task.prompt, documents)) for task in self.tasks))

    def rollout(self, requests: Sequence[RolloutRequest]) -> list[Trajectory]:
        policy = TransformersPolicy(self.model, self.renderer, allow=_Gold(self.renderer, self.dialect))
        trajectories = rollout(requests, policy, self.renderer, self.dialect, self.tools, None, self.settings)
        assert all(t.stop is StopReason.CALLS_COMPLETE for t in trajectories)
        return trajectories

    def trainer(self) -> Callable[[], object]:
        """One RL step, ready to be run again and again."""
        args = training_arguments(
            tempfile.mkdtemp(), max_steps=1, per_device_train_batch_size=NUM_TASKS, learning_rate=1e-6
        )
        settings = RLSettings(num_generations=G)
        pad_id = self.renderer.pad_id
        return RLTrainer(self.model, args, settings, self.tasks, self.rollout, _by_copy, pad_id=pad_id).train


@dataclass(frozen=True)
class _Gold:
    """A constraint: every turn is the gold one. A state is what is left to write."""

    renderer: Renderer
    dialect: Dialect
    start = ()

    def begin(self, request: GenerateRequest) -> tuple[int, ...]:
        return tuple(self.renderer.completion_ids(oracle(self.dialect)(request.task, request.turns)))

    def next(self, state: tuple[int, ...], token: int) -> tuple[int, ...]:
        return state[1:]

    def mask(self, logps_BV: Tensor, states: Sequence[tuple[int, ...]]) -> Tensor:
        for logps_V, state in zip(logps_BV, states, strict=True):
            kept = logps_V[state[0]].clone()
            logps_V.fill_(-torch.inf)[state[0]] = kept
        return logps_BV


def _by_copy(trajectory: Trajectory, task: Task) -> RewardBreakdown:
    return RewardBreakdown(terms=(RewardTerm(name="any", value=float(trajectory.copy_index)),))


def _catalogue(sample: Sequence[ToolSchema], tasks: Sequence[Task], size: int) -> list[ToolSchema]:
    """`size` tools, those that the tasks need among them."""
    needed = {call.name for task in tasks for call in task.gold_calls or ()}
    rest = [tool for tool in sample if tool.name not in needed]
    more = enumerate(islice(cycle(rest), size - len(needed)))
    renamed = [tool.model_copy(update={"name": f"{tool.name}{i // len(rest) or ''}"}) for i, tool in more]
    return [tool for tool in sample if tool.name in needed] + renamed
