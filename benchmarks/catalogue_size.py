"""What a question costs against the number of tools: internalised, five retrieved documents, all documents.

Measured: prompt tokens, tokens handed back, and seconds until the first call is written, on one thread with the
embedded model's shape and random weights (time does not depend on them). The attempt is the gold one, fed token by
token with a KV cache kept throughout, so all three differ only in what they read and write. Retrieval is timed too.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from transformers import DynamicCache, PreTrainedModel

from tirkit.embedded.model import build_tokenizer, new_model
from tirkit.evaluation.charts import Curve, Panel
from tirkit.evaluation.report import ReportData, Table, write_report
from tirkit.methods.tinr.corpus import use
from tirkit.methods.tinr.tokens import grow_vocabulary
from tirkit.rollout.loop import Prompts, RolloutSettings
from tirkit.text.dialects import Dialect, print_document
from tirkit.text.index import build_index
from tirkit.text.render import Renderer
from tirkit.tools.catalogue import load_catalogue
from tirkit.tools.questions import load_tasks
from tirkit.types import Task, ToolSchema, Trajectory

SIZES = (10, 100, 1000, 4076)
NUM_QUESTIONS = 5
MAX_TIMED = 20_000  # prompt tokens: longer prompts are counted, and not timed (reading them grows with their square)
MODES = {"internalised": "none", "retrieve 5": "retrieve", "all documents": "documents"}


@dataclass(frozen=True)
class Cost:
    """Medians over the questions."""

    mode: str
    num_tools: int
    prompt_tokens: float
    handed_back_tokens: float
    seconds_to_first_call: float | None


def measure_catalogue_sizes(catalogue: Path, questions: Path, out: Path) -> str:
    """Measure, write results/catalogue_size.json and a report with one plot and one table; the table as Markdown."""
    torch.set_num_threads(1)
    every = load_catalogue(catalogue).tools
    tasks = load_tasks(questions, {tool.name for tool in every}).tasks
    costs = [
        cost
        for size in sorted({min(size, len(every)) for size in SIZES})
        for cost in _costs(*_subset(every, tasks, size))
    ]
    out.mkdir(parents=True, exist_ok=True)
    (out / "catalogue_size.json").write_text(json.dumps([asdict(cost) for cost in costs], indent=1) + "\n")
    write_report(out / "catalogue_size", _report(costs))
    rows = [f"| {' | '.join(row)} |" for row in (_HEAD, ("---",) * len(_HEAD), *map(_cells, costs))]
    return "\n".join(rows)


def _subset(tools: Sequence[ToolSchema], tasks: Sequence[Task], size: int) -> tuple[list[ToolSchema], list[Task]]:
    """`size` tools that hold the gold tools of the questions, and these questions."""
    chosen = [task for task in tasks if len(task.gold_calls or ()) == 1][:NUM_QUESTIONS]
    needed = {call.name for task in chosen for call in task.gold_calls or ()}
    rest = [tool for tool in tools if tool.name not in needed]
    return [tool for tool in tools if tool.name in needed] + rest[: size - len(needed)], chosen


def _costs(tools: list[ToolSchema], tasks: list[Task]) -> list[Cost]:
    tokenizer = build_tokenizer((print_document(tool) for tool in tools), 4096)
    model, index = new_model(tokenizer), build_index(tools)
    grow_vocabulary(model, tokenizer, index, tools)
    model.eval()
    renderer, by_name = Renderer(tokenizer, index), {tool.name: tool for tool in tools}
    costs: list[Cost] = []
    for mode, prompt in MODES.items():
        dialect = Dialect(index if prompt == "none" else None)
        settings = RolloutSettings(max_tokens=10**6, max_new_tokens=10**5, prompt=prompt)  # type: ignore[arg-type]
        attempts = [example.trajectory for example in use(tasks, renderer, dialect, by_name, None, settings)]
        prompts = Prompts(by_name, settings)
        prompts.documents(tasks[0])  # builds the retriever's index, once for a catalogue
        timed = max(len(t.prompt_ids) for t in attempts) <= MAX_TIMED
        pairs = zip(attempts, tasks, strict=True) if timed else ()
        seconds = [_seconds(model, attempt, prompts, task) for attempt, task in pairs]
        costs.append(
            Cost(
                mode,
                len(tools),
                median(len(t.prompt_ids) for t in attempts),
                median(sum(len(turn.reply_ids) for turn in t.turns) for t in attempts),
                median(seconds) if seconds else None,
            )
        )
    return costs


@torch.no_grad()
def _seconds(model: PreTrainedModel, attempt: Trajectory, prompts: Prompts, task: Task) -> float:
    """Seconds from the question to the end of the first call: find documents, read, write token by token."""
    started = time.perf_counter()
    prompts.documents(task)
    cache = DynamicCache(config=model.config)
    _read(model, cache, attempt.prompt_ids)
    for turn in attempt.turns:
        for token in turn.ids:
            _read(model, cache, (token,))
        if turn.calls:
            break
        _read(model, cache, turn.reply_ids)
    return time.perf_counter() - started


def _read(model: PreTrainedModel, cache: DynamicCache, ids: Sequence[int]) -> None:
    hidden = model.base_model(torch.tensor([ids]), past_key_values=cache, use_cache=True).last_hidden_state
    model.get_output_embeddings()(hidden[:, -1])


_HEAD = ("tools", "arm", "prompt tokens", "tokens handed back", "s to first call")


def _cells(cost: Cost) -> tuple[str, ...]:
    tokens = f"{cost.prompt_tokens:,.0f}", f"{cost.handed_back_tokens:,.0f}"
    seconds = "not timed" if cost.seconds_to_first_call is None else f"{cost.seconds_to_first_call:.3f}"
    return f"{cost.num_tools:,}", cost.mode, *tokens, seconds


def _report(costs: Sequence[Cost]) -> ReportData:
    def curves(field: str) -> tuple[Curve, ...]:
        return tuple(
            Curve(
                name=mode,
                x=tuple(float(c.num_tools) for c in costs if c.mode == mode and getattr(c, field) is not None),
                y=tuple(getattr(c, field) for c in costs if c.mode == mode and getattr(c, field) is not None),
            )
            for mode in MODES
        )

    panels = (
        Panel(title="Prompt tokens", curves=curves("prompt_tokens"), x_label="tools", log_x=True, log_y=True),
        Panel(
            title="Seconds to the first call",
            curves=curves("seconds_to_first_call"),
            x_label="tools",
            y_label="s",
            log_x=True,
            log_y=True,
        ),
    )
    table = Table(title="Cost of a question", head=_HEAD, rows=tuple(map(_cells, costs)), note="medians")
    return ReportData(title="tirkit: cost against catalogue size", panels=panels, tables=(table,))
