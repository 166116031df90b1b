"""What watches a run: the clock that can end it, the progress line, and where to go on from."""

import json
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from tirkit.methods.autotool.decoupled import EntropyState
from tirkit.methods.autotool.diagnose import ModeProbe, collapse_warning
from tirkit.types import Mode

ProgressFn = Callable[[int, int, Mapping[str, float], float], None]
"""Called as progress(step, total steps, metrics, seconds left); every metric is a number."""


class Clock(TrainerCallback, ExportableState):
    """Seconds spent and tokens trained, over all resumed parts of a run; ends the run at `max_seconds`."""

    def __init__(self, max_seconds: float | None = None):
        self.max_seconds = max_seconds
        self.num_tokens = 0
        self._before = 0.0
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds of training so far; what ran under `paused` is not counted."""
        return self._before + (time.monotonic() - self._started if self._started is not None else 0.0)

    @contextmanager
    def paused(self) -> Generator[None]:
        """Measuring is not training: nothing is counted meanwhile."""
        self._stop()
        yield
        self._started = time.monotonic()

    def _stop(self) -> None:
        self._before, self._started = self.seconds, None

    def progress(self, step: float, total: int) -> float:
        """Share of the run that is over, in [0, 1], by steps or by seconds, whichever is further."""
        by_time = self.seconds / self.max_seconds if self.max_seconds else 0.0
        return min(1.0, max(step / max(total, 1), by_time))

    def eta(self, step: int, total: int) -> float:
        """Seconds left at the speed so far; infinite before the first step."""
        by_steps = self.seconds / step * (total - step) if step else float("inf")
        return min(by_steps, max(0.0, self.max_seconds - self.seconds)) if self.max_seconds else by_steps

    def state(self) -> dict[str, Any]:
        """What trainer_state.json keeps."""
        return {"args": {}, "attributes": {"seconds": self.seconds, "num_tokens": self.num_tokens}}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start, from where the checkpoint stopped."""
        states = cast(dict[str, Any], state.stateful_callbacks)
        saved = states.setdefault(type(self).__name__, self.state())["attributes"]
        self._before, self.num_tokens = saved["seconds"], saved["num_tokens"]
        self._started = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """End the run when its time is over, with a last log line."""
        if self.max_seconds is not None and self.seconds >= self.max_seconds:
            control.should_training_stop = control.should_log = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop counting."""
        self._stop()


class ModeState(TrainerCallback, ExportableState):
    """What steps hand on about modes, in checkpoints too: the entropy coefficients and the newest think rate."""

    def __init__(self, entropy: EntropyState):
        self.entropy = entropy
        self.think_rate: float | None = None

    def state(self) -> dict[str, Any]:
        """What trainer_state.json keeps."""
        kept = {"coefficients": list(self.entropy.coefficients), "think_rate": self.think_rate}
        return {"args": {}, "attributes": kept}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Go on from where the checkpoint stopped."""
        states = cast(dict[str, Any], state.stateful_callbacks)
        saved = states.setdefault(type(self).__name__, self.state())["attributes"]
        self.entropy, self.think_rate = EntropyState(tuple(saved["coefficients"])), saved["think_rate"]


class ModeWatch(TrainerCallback, ExportableState):
    """Every `every` steps measures what rollouts come to that are forced into a mode; says when thinking is unlearnt.

    accuracy: mode → share of right ones among `num_forced` such rollouts of the policy as it is (see
    `rollout.group.forced`). warn: hears `collapse_warning` once each time that it begins to hold. Main process only;
    every step that is measured must have a log line.
    """

    def __init__(
        self, accuracy: Callable[[Mode], float], num_forced: int, warn: Callable[[str], None], every: int = 10
    ):
        self.accuracy, self.num_forced, self.warn, self.every = accuracy, num_forced, warn, every
        self.history: list[ModeProbe] = []

    def state(self) -> dict[str, Any]:
        """What trainer_state.json keeps."""
        return {"args": {}, "attributes": {"history": [asdict(probe) for probe in self.history]}}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Go on from where the checkpoint stopped."""
        states = cast(dict[str, Any], state.stateful_callbacks)
        saved = states.setdefault(type(self).__name__, self.state())["attributes"]
        self.history = [ModeProbe(**probe) for probe in saved["history"]]

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Measure and compare."""
        if not (state.is_world_process_zero and logs and "think_rate" in logs and state.global_step % self.every == 0):
            return
        think, no_think = self.accuracy("think"), self.accuracy("no_think")
        before = collapse_warning(self.history)
        self.history.append(ModeProbe(state.global_step, logs["think_rate"], think, self.num_forced, no_think))
        if (warning := collapse_warning(self.history)) and not before:
            self.warn(warning)


class ProgressCallback(TrainerCallback):
    """Hands every log line to a plain function; the trainers put `seconds` and `eta_s` in it."""

    def __init__(self, progress: ProgressFn):
        self.progress = progress

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """One line of numbers, on the main process only. The total is a forecast where seconds end the run."""
        if state.is_world_process_zero and logs and "eta_s" in logs:
            step, eta = state.global_step, logs["eta_s"]
            total = min(state.max_steps, step + round(eta * step / max(logs["seconds"], 1e-9)))
            self.progress(step, total, logs, eta)


def last_checkpoint(folder: str | Path) -> str | None:
    """The newest complete checkpoint in `folder`; one whose writing was cut short has no readable state file.

    The state file is the last thing written, so a checkpoint that has it has everything.
    """
    candidates = sorted(Path(folder).glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
    for path in reversed(candidates):
        try:
            json.loads((path / "trainer_state.json").read_text())
        except (OSError, json.JSONDecodeError):
            continue
        return str(path)
    return None
