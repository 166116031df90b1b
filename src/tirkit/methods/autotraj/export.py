"""Datasets in TRL's columns, as Hugging Face datasets and Parquet files.

SFT: prompt, completion (messages), tools, and input_ids with labels, which are -100 wherever nothing is learnt: SFT on
`labels` trains exactly what our mask says, tool turns left out. Preferences: prompt, chosen, rejected (messages),
tools, and chosen_ids, rejected_ids, which TRL's RewardTrainer takes as they are. The rest says where a row came from.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tirkit.methods.autotraj.pairs import Example, Preference
from tirkit.text.masks import TokenRow
from tirkit.types import Message, Task, ToolSchema, Trajectory, UserError

if TYPE_CHECKING:
    from datasets import Dataset

RowFn = Callable[[Trajectory, Task], TokenRow]
"""Our one rendering: a trajectory as ids and masks, the documents in its prompt included."""
DocumentsFn = Callable[[Task], Sequence[ToolSchema]]


class ExportError(UserError):
    """A dataset cannot be made here; the message says what to install."""


def sft_rows(
    examples: Sequence[Example], tasks: Mapping[str, Task], row: RowFn, documents: DocumentsFn
) -> list[dict[str, Any]]:
    """One dict of columns an example."""
    rows: list[dict[str, Any]] = []
    for example in examples:
        task, ids = tasks[example.task_id], row(example.trajectory, tasks[example.task_id])
        labels = [id_ if mask else -100 for id_, mask in zip(ids.completion_ids, ids.tool_mask, strict=True)]
        rows.append(
            {
                "prompt": _messages(example.trajectory.prompt),
                "completion": _completion(example.trajectory),
                "tools": _tools(documents(task)),
                "input_ids": [*ids.prompt_ids, *ids.completion_ids],
                "labels": [-100] * len(ids.prompt_ids) + labels,
                **example.model_dump(mode="json", exclude={"trajectory"}),
            }
        )
    return rows


def preference_rows(
    pairs: Sequence[Preference], tasks: Mapping[str, Task], row: RowFn, documents: DocumentsFn
) -> list[dict[str, Any]]:
    """One dict of columns a pair."""
    rows: list[dict[str, Any]] = []
    for pair in pairs:
        task = tasks[pair.task_id]
        chosen, rejected = row(pair.chosen, task), row(pair.rejected, task)
        rows.append(
            {
                "prompt": _messages(pair.chosen.prompt),
                "chosen": _completion(pair.chosen),
                "rejected": _completion(pair.rejected),
                "tools": _tools(documents(task)),
                "chosen_ids": [*chosen.prompt_ids, *chosen.completion_ids],
                "rejected_ids": [*rejected.prompt_ids, *rejected.completion_ids],
                **pair.model_dump(mode="json", exclude={"chosen", "rejected"}),
            }
        )
    return rows


def to_dataset(rows: Sequence[Mapping[str, Any]]) -> "Dataset":
    """The rows as a Hugging Face dataset. Raises ExportError where `datasets` is not installed or there are no rows."""
    try:
        from datasets import Dataset, disable_progress_bars
    except ImportError as error:
        raise ExportError("exporting datasets needs the datasets library: pip install datasets") from error
    if not rows:
        raise ExportError("there is nothing to export: no example passed")
    disable_progress_bars()  # stages show their own progress
    return Dataset.from_list([dict(row) for row in rows])


def write_parquet(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The rows as a Parquet file, absent or whole. Raises ExportError as `to_dataset` does."""
    dataset = to_dataset(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    dataset.to_parquet(str(part))
    part.replace(path)


def _messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [message.model_dump() for message in messages]


def _completion(trajectory: Trajectory) -> list[dict[str, str]]:
    messages: list[Message] = []
    for turn in trajectory.turns:
        messages += [Message(role="assistant", content=turn.text), *turn.reply]
    return _messages(messages)


def _tools(documents: Sequence[ToolSchema]) -> str:
    """As JSON text, which TRL reads: rows with tools of different shapes fit into one column."""
    schemas = [tool.model_dump(include={"name", "description", "parameters"}) for tool in documents]
    return json.dumps([{"type": "function", "function": schema} for schema in schemas], ensure_ascii=False)
