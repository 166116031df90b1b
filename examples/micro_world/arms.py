"""What is compared: ten arms, each with up to three candidate settings.

Every arm had the same search: three candidates, `TUNING_SEEDS`, validation problems. `CHOSEN` says which one won.
An arm that adapts or adds entropy is tried as published, ten times and a hundred times as strong: the coefficient at
the start, the step of the controller and its maximum alike. A plain arm is tried at three learning rates.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from examples.micro_world.training import Objective

from tirkit.methods.autotool.decoupled import EntropyControl, bonus, decoupled, mode_floor, skywork, unified

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


def _static(coefficient: float) -> Arm:
    return Arm(f"static, β = {coefficient:g}", {"fixed": Objective(True, bonus(coefficient), LR)})


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
    "mode_floor": _controlled("mode-token floor", mode_floor(coefficient=0.01, rate=5e-3, maximum=0.1)),
}
CHOSEN: Mapping[str, str] = {
    "std": "lr 0.0005",
    "no_std": "lr 0.0005",
    "static_0.001": "fixed",
    "static_0.01": "fixed",
    "static_0.1": "fixed",
    "unified": "x1",
    "skywork": "x1",
    "decoupled": "x1",
    "decoupled_short": "x1",
    "mode_floor": "x1",
}
SEEDS, TUNING_SEEDS = (0, 1, 2, 3, 4), (100, 101)  # seeds draw the world too: tuning sees others
