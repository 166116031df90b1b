"""What one window of reinforcement learning is made of: draws of tasks → scored rows → micro-batches.

Letters: N scored tokens of a micro-batch in one line, R its rows, K entropy terms.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import TrainingArguments

from tirkit.methods.autotool.decoupled import EntropyControl, EntropyTerm
from tirkit.text.masks import TokenRow, token_row
from tirkit.training.base import rows_of_step
from tirkit.training.prefix import ScoredBatch
from tirkit.types import Mode, Task, Trajectory

MODES: tuple[Mode, ...] = ("think", "no_think")


@dataclass(frozen=True)
class Draw:
    """A task and its place in the endless stream of shuffled epochs, which no other draw of the run shares."""

    place: int
    task: Task


class Windows(Dataset[list[Draw]]):
    """Item s = the draws of this process, `size` of them, for optimiser step s."""

    def __init__(self, tasks: Sequence[Task], args: TrainingArguments, size: int, iterations: int, shuffle: bool):
        self.tasks, self.args, self.size, self.iterations, self.shuffle = tasks, args, size, iterations, shuffle

    def __len__(self) -> int:
        return self.args.max_steps

    def __getitem__(self, step: int) -> list[Draw]:
        window, batch = step // self.iterations, self.size * self.args.world_size
        indices = rows_of_step(window, len(self.tasks), batch, self.args.seed, self.shuffle)
        start = self.args.process_index * self.size
        return [Draw(window * batch + k, self.tasks[indices[k]]) for k in range(start, start + self.size)]


@dataclass(frozen=True)
class ScoredRow(TokenRow):
    """A trajectory ready for training. `forced`: it did not choose its mode. `well_formed`: no turn has problems."""

    advantage: float
    mode: Mode | None = None
    forced: bool = False
    well_formed: bool = False

    def covered_by(self, term: EntropyTerm) -> bool:
        """Whether an entropy term counts it; its mode token is its first one."""
        return term.covers(self.mode, self.well_formed, self.tool_mask[:1] == (1,))


def scored_row(trajectory: Trajectory, advantage: float, forced: bool) -> ScoredRow:
    """The row of a trajectory; ValueError as `token_row`."""
    well_formed = not any(turn.problems for turn in trajectory.turns)
    row = token_row(trajectory)
    return ScoredRow(**vars(row), advantage=advantage, mode=trajectory.mode, forced=forced, well_formed=well_formed)


@dataclass
class MicroBatch:
    """`old_logps_N` is set by the window's first pass; the policy has not moved before that."""

    scored: ScoredBatch
    advantages_N: Tensor
    weights_N: Tensor
    sampled_logps_N: Tensor  # 0 where unknown
    mode_R: Tensor  # index into MODES, -1 for none
    covered_KR: Tensor  # see EntropyTerm.covers
    num_rows: Tensor  # trajectories of the whole step, over all processes
    old_logps_N: Tensor | None = None

    def to(self, device: torch.device | str) -> "MicroBatch":
        """The same on `device`."""
        moved: dict[str, Any] = {k: v if v is None else v.to(device) for k, v in vars(self).items()}
        return MicroBatch(**moved)


def micro_batch(
    rows: Sequence[ScoredRow],
    scored: ScoredBatch,
    *,
    num_tokens: int,
    num_rows: int,
    by_token: bool,
    control: EntropyControl | None,
) -> MicroBatch:
    """Tensors of `rows`, laid out as `scored`; the loss is a mean over the step's `num_tokens`, or `num_rows`."""
    weights = [1 / num_tokens if by_token else 1 / (max(1, sum(row.tool_mask)) * num_rows) for row in rows]
    logps = [logp for row in rows for logp, on in zip(row.old_logps, row.tool_mask, strict=True) if on]
    terms = control.terms if control else ()
    covered = [[row.covered_by(term) for row in rows] for term in terms]
    return MicroBatch(
        scored,
        advantages_N=torch.tensor([row.advantage for row in rows])[scored.row_N],
        weights_N=torch.tensor(weights)[scored.row_N],
        sampled_logps_N=torch.tensor(logps),
        mode_R=torch.tensor([MODES.index(row.mode) if row.mode else -1 for row in rows]),
        covered_KR=torch.tensor(covered, dtype=torch.bool),
        num_rows=torch.tensor(num_rows),
    )
