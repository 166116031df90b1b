"""Rollouts: 3 turns after a long prompt, and whole steps with slow tools.

Peer: the tool loop of TRL's GRPOTrainer, which generates with transformers, at its defaults but in fp32, and tuned by
its own options: no gradient checkpointing, and in a whole step one row a micro-batch (its tools run one rollout after
another, async ones too; on a CPU a static cache does not help it, and continuous batching is slower by far). All arms
write the same tokens turn by turn, whatever the random weights say: ours by a constraint, theirs by a logits processor,
both over the full sampling path. The prompt holds the one tool's document in all.
"""

import copy
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Qwen3ForCausalLM,
)

from benchmarks.harness import Arm, Result, compare
from benchmarks.peers import SHAPES, TRL, qwen3, tuned
from tirkit.embedded.model import build_tokenizer
from tirkit.rollout.loop import RolloutSettings, rollout, stable_seed
from tirkit.rollout.policy import GenerateRequest, RolloutRequest
from tirkit.rollout.transformers_policy import TransformersPolicy
from tirkit.text.dialects import Dialect
from tirkit.text.render import Renderer
from tirkit.tools.runtime import PythonToolbox
from tirkit.training.base import training_arguments
from tirkit.training.rl import RLSettings, RLTrainer
from tirkit.types import Message, RewardBreakdown, RewardTerm, StopReason, Task, ToolCall, ToolSchema, Trajectory

G, NUM_CALLING, V = 8, 14, 4096
LATENCIES: list[float] = []  # seconds that the tool takes, by its argument
WAIT = ToolSchema(
    name="wait",
    description="Look up item i.",
    parameters={"type": "object", "properties": {"i": {"type": "integer"}}, "required": ["i"]},
)


def wait(i: int) -> str:
    """Look up item i.

    Args:
        i: Which item.
    """
    time.sleep(LATENCIES[i])
    return f"item {i} is there"


def run(repeats: int) -> list[Result]:
    tail = np.random.default_rng(0).lognormal(np.log(0.1), 1.2, NUM_CALLING).clip(max=2.0)
    tail[int(tail.argmax())] = 2.0
    return [
        *(three_turns(name, 2048, G, repeats) for name in SHAPES),
        slow_tools("16 rollouts, 14 calls of 0.2 s", [0.2] * NUM_CALLING, repeats),
        slow_tools("16 rollouts, 14 calls, log-normal with a tail of 2 s", tail.tolist(), repeats),
    ]


def three_turns(shape: str, num_prompt: int, size: int, repeats: int) -> Result:
    """Two calls of an instant tool and an answer, `size` copies of one prompt: the rollout alone."""
    bench, requests = three_turn_bench(shape, num_prompt, size)
    tuned_trl, trl = bench.trl_trainer(size, gradient_checkpointing=False), bench.trl_trainer(size)
    arms = [
        Arm("tirkit", lambda: bench.rollout(requests)),
        Arm("TRL tuned", lambda: bench.trl_rollout(tuned_trl, size)),
        Arm("TRL", lambda: bench.trl_rollout(trl, size)),
    ]
    setting = f"{shape}, 3 turns of 48 tokens, P={num_prompt}, {size} copies"
    timings = compare(f"rollout, {setting}", arms, repeats)
    return Result("rollout", setting, timings, notes=" ".join((__doc__ or "").split()))


def three_turn_bench(shape: str, num_prompt: int, size: int) -> tuple["Bench", list[RolloutRequest]]:
    LATENCIES[:] = [0.0] * size
    bench = Bench(shape, num_prompt, [[True] * size, [True] * size, [False] * size], length=48)
    return bench, [RolloutRequest(bench.task(0), i, seed=i) for i in range(size)]


def slow_tools(setting: str, latencies: Sequence[float], repeats: int) -> Result:
    """A whole step, two prompts of 8: all but two rollouts call the slow tool once, then answer.

    Limit: the critical path, that is our own step with instant tools and the longest call. What is above it: calls that
    end one by one bring their rows back one by one, so replies are read and second turns decoded in smaller batches.
    """
    size = 2 * G
    bench = Bench("H128 L2", 512, [[row < NUM_CALLING for row in range(size)], [False] * size], length=32)
    ours, tuned_trl, trl = bench.trainer(), bench.trl_trainer(size, **tuned(size)), bench.trl_trainer(size)

    def step(train: Any, seconds: Sequence[float]) -> None:
        LATENCIES[:] = seconds
        bench.script.call = 0
        train()

    instant = [0.0] * size
    arms = [
        Arm("tirkit", lambda: step(ours.train, latencies)),
        Arm("TRL tuned", lambda: step(tuned_trl.train, latencies)),
        Arm("TRL", lambda: step(trl.train, latencies)),
        Arm("tirkit, instant tools", lambda: step(ours.train, instant)),
    ]
    timings = compare(f"slow tools, {setting}", arms, repeats)
    limit_s = timings[-1].median_s + max(latencies)
    return Result("slow tools", setting, timings, limit_s=limit_s, notes=" ".join((slow_tools.__doc__ or "").split()))


@dataclass
class Script:
    """The ids to write: `ids[turn][row]`. `call` is the turn that HF's generate writes next."""

    ids: list[list[list[int]]]
    call: int = 0


class Bench:
    """Model, tokenizer and script, and the two ways to play it.

    calls: for each turn, whether each row calls the tool (else it answers); a row takes part until it has answered.
    """

    def __init__(self, shape: str, num_prompt: int, calls: Sequence[Sequence[bool]], length: int):
        words = ["user assistant tool look up item there is so wait name arguments i function type integer"]
        self.tokenizer = build_tokenizer(words, 600)
        self.renderer, self.dialect = Renderer(self.tokenizer), Dialect()
        self.prompt = (Message(role="user", content="so " * (num_prompt // 2)),)
        self.script = Script([[self._turn(row, on, length) for row, on in enumerate(turn)] for turn in calls])
        end, pad = self.renderer.end_of_turn_id, self.renderer.pad_id
        config = qwen3(shape, V, tie_word_embeddings=True, eos_token_id=end, pad_token_id=pad)
        torch.manual_seed(0)
        self.model = ScriptedModel(config)
        self.model.script = self.script
        self.output = tempfile.mkdtemp()

    def _turn(self, row: int, calls: bool, length: int) -> list[int]:
        """A turn of about `length` tokens."""
        call = [ToolCall(name="wait", arguments={"i": row})]

        def written(think: str) -> list[int]:
            text = self.dialect.print_calls(call, think) if calls else self.dialect.print_answer("there", think)
            return self.renderer.completion_ids(text)

        return written("so" + " so" * max(0, length - len(written("so"))))

    def task(self, number: int) -> Task:
        return Task(id=str(number), prompt=self.prompt)

    def rollout(self, requests: Sequence[RolloutRequest]) -> list[Trajectory]:
        """Ours; a policy has nothing to remember between calls."""
        policy = TransformersPolicy(self.model, self.renderer, allow=Forced(self.script, requests))
        toolbox = PythonToolbox({"wait": wait}, [WAIT], isolation="inline")
        settings = RolloutSettings(prompt="documents", max_tokens=10**5)
        trajectories = rollout(requests, policy, self.renderer, self.dialect, {"wait": WAIT}, toolbox, settings)
        assert all(t.stop is StopReason.ANSWERED for t in trajectories)
        return trajectories

    def trainer(self) -> RLTrainer:
        args = training_arguments(self.output, max_steps=1, per_device_train_batch_size=2, learning_rate=1e-6)
        settings = RLSettings(num_generations=G)
        tasks = [self.task(0), self.task(1)]
        return RLTrainer(self.model, args, settings, tasks, self.rollout, _by_seed, pad_id=self.renderer.pad_id)

    def trl_trainer(self, size: int, **options: Any) -> Any:
        """TRL at its defaults, but for a length limit that fits, and for `options` of GRPOConfig."""
        import trl
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer
        from trl.chat_template_utils import add_response_schema

        template = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=self.tokenizer.backend_tokenizer,
            eos_token=self.tokenizer.eos_token,
            pad_token=self.tokenizer.pad_token,
        )
        tokenizer.chat_template = template.read_text()
        copies = min(size, G) if size > 1 else 2
        settings = {
            "max_steps": 1,
            "per_device_train_batch_size": max(size, copies),
            "num_generations": copies,
            "max_completion_length": 2048,
        }
        config = GRPOConfig(self.output, **TRL | settings | options)
        prompt = [{"role": "user", "content": self.prompt[0].content}]
        model = copy.deepcopy(self.model)  # both trainers replace its forward
        model.script = self.script
        trainer = GRPOTrainer(
            model,
            reward_funcs=_by_place,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": prompt}] * 4),
            processing_class=add_response_schema(tokenizer),
            tools=[wait],
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def trl_rollout(self, trainer: Any, size: int) -> None:
        """The part of TRL's step that rolls out."""
        self.script.call = 0
        trainer._sync_tool_dicts, trainer._async_tool_dicts = [{"wait": wait}] * size, [{}] * size
        trainer._generate([[{"role": "user", "content": self.prompt[0].content}]] * size)
        assert self.script.call == len(self.script.ids)


def _by_seed(trajectory: Trajectory, task: Task) -> RewardBreakdown:
    return RewardBreakdown(terms=(RewardTerm(name="any", value=float(trajectory.copy_index)),))


def _by_place(completions: Sequence[Any], **_: Any) -> list[float]:
    return [float(i) for i in range(len(completions))]


class Forced:
    """A constraint: row n of the requests writes row n of the script."""

    start = None

    def __init__(self, script: Script, requests: Sequence[RolloutRequest]):
        turns = range(len(script.ids))
        seeds = {stable_seed(request.seed, turn): (row, turn) for row, request in enumerate(requests) for turn in turns}
        self._script, self._seeds = script.ids, seeds

    def begin(self, request: GenerateRequest) -> tuple[tuple[int, ...], int]:
        row, turn = self._seeds[request.seed]
        return tuple(self._script[turn][row]), 0

    def next(self, state: tuple[tuple[int, ...], int], token: int) -> tuple[tuple[int, ...], int]:
        return state[0], state[1] + 1

    def mask(self, logps_BV: Tensor, states: Sequence[tuple[tuple[int, ...], int]]) -> Tensor:
        return _only(logps_BV, [ids[place] for ids, place in states])


def _only(scores_BV: Tensor, tokens: Sequence[int]) -> Tensor:
    tokens_B1 = torch.tensor(tokens, device=scores_BV.device)[:, None]
    kept_B1 = scores_BV.gather(1, tokens_B1)
    return scores_BV.fill_(float("-inf")).scatter_(1, tokens_B1, kept_B1)


class ScriptedModel(Qwen3ForCausalLM):
    """`generate` writes turn after turn of `script`; the rows of a turn are the script's first, or all alike."""

    script: Script

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        turn, self.script.call = self.script.ids[self.script.call], self.script.call + 1
        force = _Force(turn, kwargs["input_ids"].shape[1])
        return super().generate(*args, logits_processor=LogitsProcessorList([force]), **kwargs)


class _Force(LogitsProcessor):
    def __init__(self, turn: list[list[int]], start: int):
        self.turn, self.start = turn, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        place = input_ids.shape[1] - self.start
        rows = self.turn[: len(input_ids)]
        return _only(scores, [ids[min(place, len(ids) - 1)] for ids in rows])
