"""What is compared: ten arms, each with up to three candidate settings, and two that take the best bonus apart.

Every arm had the same search: three candidates, `TUNING_SEEDS`, reward on validation problems. `CHOSEN` is what won.
A plain arm is tried at three learning rates. An arm with a controller is tried at the rate that won for plain with std,
as published, ten times and a hundred times as strong: the coefficient at the start, the step of the controller and its
maximum alike (our floor on the mode token, which nobody published, from a tenth of the library's setting). The three
static bonuses are each other's candidates.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from examples.micro_world.training import Objective

from tirkit.methods.autotool.decoupled import (
    EntropyControl,
    EntropyTerm,
    bonus,
    decoupled,
    mode_floor,
    skywork,
    unified,
)

LR = 5e-4
SCALES = (1.0, 10.0, 100.0)


@dataclass(frozen=True)
class Arm:
    """One row of the table. `candidates`: the settings it was tried with, by name."""

    title: str
    candidates: Mapping[str, Objective]


def scaled(control: EntropyControl, scale: float) -> EntropyControl:
    """The control with its coefficients, the steps they move by and their maximum times `scale`."""
    return EntropyControl(
        tuple(
            dataclasses.replace(
                term, coefficient=term.coefficient * scale, rate=term.rate * scale, maximum=term.maximum * scale
            )
            for term in control.terms
        )
    )


def _plain(title: str, std: bool) -> Arm:
    return Arm(title, {f"lr {lr:g}": Objective(std, None, lr) for lr in (LR / 2, LR, 2 * LR)})


def _controlled(title: str, control: EntropyControl, std: bool = True) -> Arm:
    return Arm(title, {f"x{scale:g}": Objective(std, scaled(control, scale), LR) for scale in SCALES})


def _fixed(title: str, control: EntropyControl | None) -> Arm:
    return Arm(title, {"fixed": Objective(True, control, LR)})


def _static(coefficient: float) -> Arm:
    return _fixed(f"static, β = {coefficient:g}", bonus(coefficient))


ARMS: Mapping[str, Arm] = {
    "std": _plain("plain, divided by std", True),
    "no_std": _plain("plain, not divided", False),
    "static_0.001": _static(1e-3),
    "static_0.01": _static(1e-2),
    "static_0.1": _static(1e-1),
    "unified": _controlled("unified, adaptive", unified()),
    "skywork": _controlled("Skywork-OR1", skywork()),
    "decoupled": _controlled("decoupled, β_s = 0", decoupled()),
    "decoupled_short": _controlled("decoupled, β_s > 0", decoupled(short=1e-2)),
    "static_think": _fixed("static, β = 0.1, thinking only", EntropyControl((EntropyTerm("think", coefficient=0.1),))),
    "static_gated": _fixed("static, β = 0.1, gated as decoupled", decoupled(short=0.1, long=0.1, rate=0.0)),
    "mode_floor": _controlled("mode-token floor", mode_floor(coefficient=0.01, rate=5e-3, maximum=0.1)),
}
CHOSEN: Mapping[str, str] = {
    "std": "lr 0.0005",
    "no_std": "lr 0.00025",
    "static_0.001": "fixed",
    "static_0.01": "fixed",
    "static_0.1": "fixed",
    "unified": "x10",
    "skywork": "x10",
    "decoupled": "x1",
    "decoupled_short": "x1",
    "static_think": "fixed",
    "static_gated": "fixed",
    "mode_floor": "x100",
}
SEEDS, TUNING_SEEDS = (0, 1, 2, 3, 4), (100,)  # seeds draw the world too: tuning sees others
