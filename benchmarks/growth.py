"""Growth: seconds against tokens that must be computed.

The update with the size of the group and with the length of the prompt, rollouts with how many are in flight. Tokens
are those that enter our model, counted there, padding included: the same ones for all arms. The exponent a of seconds ~
tokens^a is fitted by least squares in log-log: 1 is linear. Attention grows with the square of the prompt, in the limit
(the library's own forward and backward over as many tokens as are distinct, and the head's) too; steps that cost the
same whatever their size, as those of decoding nearly do, pull a below 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.harness import Arm, Result, compare
from benchmarks.rollout import three_turn_bench
from benchmarks.update import Setting, limit, ours, trl

PEER_TOKENS = 40_000  # beyond these a TRL step takes minutes: the curves go on without it


def run(repeats: int) -> list[Result]:
    one = Setting("H128 L2")
    by_group = [update(replace(one, group=g), repeats, "group size G", g) for g in (2, 4, 8, 16, 32)]
    by_prompt = [update(replace(one, num_prompt=p), repeats, "prompt tokens P", p) for p in (128, 512, 2048, 8192)]
    return [
        *with_exponents(by_group),
        *with_exponents(by_prompt),
        *with_exponents([rollouts(n, repeats) for n in (1, 4, 16, 64)]),
    ]


def update(setting: Setting, repeats: int, x_label: str, x: int) -> Result:
    model = setting.model()
    step = ours(model, setting.attempts(), shared_prefix=True)
    num_tokens = entering(model, step)
    arms = [Arm("tirkit", step)]
    if setting.group * (setting.num_prompt + setting.num_completion) <= PEER_TOKENS:
        arms.append(Arm("TRL tuned", trl(setting.model(), setting.attempts(), 1, gradient_checkpointing=False)))
    timings = compare(f"growth, {setting}", arms, repeats)
    limit_s = sum(timing.median_s for timing in compare("limit", limit(setting), repeats))
    return Result(
        f"growth of the update with {x_label}",
        f"{setting}: {num_tokens:,} tokens",
        timings,
        limit_s=limit_s,
        x=float(x),
        x_label=x_label,
        items=num_tokens,
        unit="tokens",
    )


def rollouts(size: int, repeats: int) -> Result:
    bench, requests = three_turn_bench("H128 L2", 256, size)
    num_tokens = entering(bench.model, lambda: bench.rollout(requests))
    trainer = bench.trl_trainer(size, gradient_checkpointing=False)
    arms = [
        Arm("tirkit", lambda: bench.rollout(requests)),
        Arm("TRL tuned", lambda: bench.trl_rollout(trainer, size)),
    ]
    timings = compare(f"growth, {size} rollouts", arms, repeats)
    return Result(
        "growth of rollouts",
        f"H128 L2, 3 turns of 48 tokens, P=256, {size} in flight: {num_tokens:,} tokens",
        timings,
        x=float(size),
        x_label="rollouts in flight",
        items=num_tokens,
        unit="tokens",
    )


def entering(model: PreTrainedModel, run: Callable[[], object]) -> int:
    """How many tokens `run` gives to the model."""
    count = 0

    def add(_module: object, _inputs: object, embedded: Tensor) -> None:
        nonlocal count
        count += embedded.shape[:-1].numel()

    hook = model.get_input_embeddings().register_forward_hook(add)
    run()
    hook.remove()
    return count


def with_exponents(results: Sequence[Result]) -> list[Result]:
    """The same, each with a note of the exponents of all arms that ran in every setting, and of the limit."""
    names = [timing.name for timing in results[0].timings if all(timing.name in _seconds(r) for r in results)]
    curves = {name: [_seconds(result)[name] for result in results] for name in names}
    if limits := [result.limit_s for result in results if result.limit_s]:
        curves["the limit"] = limits
    tokens = [result.items for result in results]
    told = ", ".join(f"{name} tokens^{exponent(tokens, seconds):.2f}" for name, seconds in curves.items())
    note = f"Seconds grow as: {told}. {' '.join((__doc__ or '').split())}"
    return [replace(result, notes=note) for result in results]


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """a of y ~ x^a, by least squares over the logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def _seconds(result: Result) -> dict[str, float]:
    return {timing.name: timing.median_s for timing in result.timings}
