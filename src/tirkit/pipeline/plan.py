"""What a run will take, before it starts: tokens counted on its own data, time from a short measurement."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tirkit.config import RunConfig, TrainConfig
from tirkit.evaluation.terminal import Progress, duration
from tirkit.methods.tinr.tokens import grow_vocabulary
from tirkit.pipeline.context import Context, Loaded
from tirkit.pipeline.sources import load_model, load_tokenizer
from tirkit.pipeline.train import alignment_rows, use_rows, use_tasks
from tirkit.store import RunFolder
from tirkit.text.index import ToolIndex
from tirkit.text.render import Renderer
from tirkit.training.sft import WeightedRow

SAMPLE_TASKS = 48
EFFICIENCY = 0.4  # share of the measured matrix-product speed that training a large model reaches (an assumption)
BYTES_A_PARAMETER = 16  # fp32 weight, gradient and two optimiser moments


@dataclass(frozen=True)
class StagePlan:
    """One stage: what it processes and how long that takes."""

    stage: str
    work: str
    tokens: float
    seconds: float
    endpoint_tokens: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Speed:
    """Tokens a second, and where the numbers are from."""

    train: float
    generate: float
    source: str


def plan_run(config: RunConfig) -> RenderableType:
    """A table: steps, tokens, time, endpoint tokens and money stage by stage; memory below."""
    with tempfile.TemporaryDirectory() as folder:
        ctx = Context(config, RunFolder.open(Path(folder), config), Progress())
        loaded, parameters = _model(ctx)
        num_train = len(ctx.sft_tasks)
        ctx = _with_few_tasks(ctx)
        parts = alignment_rows(ctx, loaded), use_rows(ctx, loaded, use_tasks(ctx))
        rows = [row for part in parts for row in part[:SAMPLE_TASKS]]
        speed = _measured(ctx, loaded.model, rows) if loaded.model.device.type != "meta" else _estimated(parameters)
        stages = _stages(ctx, rows, speed, num_train)
        ctx.folder.close()
    return _table(config, stages, speed, parameters)


def _model(ctx: Context) -> tuple[Loaded, int]:
    """The model with its grown vocabulary; a large one without its weights."""
    config, tools = ctx.config, ctx.sources.tools
    index = ctx.index or ToolIndex("name", ())
    if config.model.scratch or config.model.path == "embedded":
        model, tokenizer = load_model(config, tools, ctx.sources.tasks["train"])
    else:
        tokenizer = load_tokenizer(config.model.path)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config.model.path))
    if model.device.type == "meta":
        tokenizer.add_tokens(list(index.tokens))
    else:
        grow_vocabulary(model, tokenizer, index, tools)
    return Loaded(model, tokenizer, Renderer(tokenizer, ctx.index)), model.num_parameters()


def _with_few_tasks(ctx: Context) -> Context:
    """A sample of the training questions is enough to know how long rows are."""
    few = dict(ctx.sources.tasks) | {"train": ctx.sources.tasks["train"][:SAMPLE_TASKS]}
    ctx.config = ctx.config.model_copy(update={"tasks": ctx.config.tasks.model_copy(update={"num_rl": 0})})
    ctx.sources = type(ctx.sources)(ctx.sources.tools, few, ctx.sources.seen, ctx.sources.functions)
    return ctx


def _lengths(rows: Sequence[WeightedRow]) -> tuple[float, float]:
    """(mean tokens, mean trained tokens) of a row."""
    total = mean(len(row.row.prompt_ids) + len(row.row.completion_ids) for row in rows)
    return total, mean(sum(row.row.tool_mask) for row in rows)


def _measured(ctx: Context, model: PreTrainedModel, rows: Sequence[WeightedRow]) -> Speed:
    """Forward and backward of rows of the usual length, then a few decoding steps of a full batch."""
    length, trained = map(round, _lengths(rows))
    ids = torch.zeros(ctx.config.warmup.batch_size, length, dtype=torch.long)

    def train_step() -> None:
        hidden = model.base_model(ids).last_hidden_state
        model.get_output_embeddings()(hidden[:, -trained:]).mean().backward()  # pyright: ignore[reportOptionalCall]

    train = ids.numel() / min(_timed(train_step) for _ in range(3))
    model.zero_grad()
    with torch.no_grad():
        past = model(ids, use_cache=True).past_key_values
        steps = [_timed(lambda: model(ids[:, :1], past_key_values=past, use_cache=True)) for _ in range(5)]
    return Speed(train, len(ids) / min(steps), "measured here on this run's own rows")


def _estimated(parameters: int) -> Speed:
    """6 FLOPs a parameter and token to train, 2 to read; decoding is taken as reading at a fifth of the speed."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.randn(2048, 2048, device=device)
    seconds = min(_timed(lambda: (a @ a).sum().item()) for _ in range(3))
    flops = EFFICIENCY * 2 * 2048**3 / seconds
    source = f"from FLOPs at {EFFICIENCY:.0%} of the matrix-product speed measured here ({device})"
    return Speed(flops / (6 * parameters), flops / (10 * parameters), source)


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _stages(ctx: Context, rows: Sequence[WeightedRow], speed: Speed, num_train: int) -> list[StagePlan]:
    config, (length, trained) = ctx.config, _lengths(rows)
    plans: list[StagePlan] = []
    if config.internalise.enabled:
        plans.append(_training("internalise", config.internalise, length, speed))
    if config.synthesise.enabled:
        plans.append(_synthesis(ctx, length, trained, num_train))
    if config.warmup.enabled:
        plans.append(_training("warmup", config.warmup, length, speed))
    if config.rl.enabled:
        attempts = config.rl.steps * config.rl.batch_size * config.rl.num_generations
        tokens = attempts * (length + trained)
        seconds = attempts * (trained / speed.generate + length / speed.train)
        plans.append(StagePlan("rl", f"{config.rl.steps} steps, {attempts} attempts", tokens, seconds))
    if config.evaluate.enabled:
        tests = len(ctx.sources.tasks["test"]) * (2 if config.rl.enabled else 1)
        seconds = tests * (trained / speed.generate + length / (3 * speed.train))
        plans.append(StagePlan("evaluate", f"{tests} attempts", tests * length, seconds))
    return plans


def _training(stage: str, section: TrainConfig, length: float, speed: Speed) -> StagePlan:
    tokens = section.steps * section.batch_size * length
    work = f"{section.steps} steps of {section.batch_size} rows"
    return StagePlan(stage, work, tokens, tokens / speed.train)


def _synthesis(ctx: Context, length: float, trained: float, num_train: int) -> StagePlan:
    s = ctx.config.synthesise
    attempts = num_train * s.num_samples
    if s.teacher == "scripted":
        return StagePlan("synthesise", f"{attempts} attempts, scripted", attempts * length, attempts * 0.01)
    # Every candidate's document stands in the prompt of each of the (about two) turns.
    documents = s.num_candidates * mean(len(tool.model_dump_json()) for tool in ctx.sources.tools) / 4
    return StagePlan(
        "synthesise",
        f"{attempts} attempts by {s.teacher}",
        attempts * length,
        attempts * 2 * s.seconds_a_request / s.concurrency,
        (attempts * 2 * (documents + length), attempts * trained),
    )


def _table(config: RunConfig, stages: Sequence[StagePlan], speed: Speed, parameters: int) -> RenderableType:
    table = Table(title=f"plan of {config.name} (config {config.digest})", title_justify="left")
    for head in ("stage", "work", "tokens", "time", "endpoint cost"):
        table.add_column(head, justify="left" if head in ("stage", "work") else "right")
    for plan in stages:
        read, written = plan.endpoint_tokens
        cost = (read * config.synthesise.price_in + written * config.synthesise.price_out) / 1e6
        money = f"{read + written:,.0f} tokens, {cost:,.2f}" if read else "–"
        table.add_row(plan.stage, plan.work, f"{plan.tokens:,.0f}", duration(plan.seconds), money)
    total = duration(sum(plan.seconds for plan in stages))
    lines = (
        f"about {total} in all; {parameters:,} parameters",
        f"memory: about {parameters * BYTES_A_PARAMETER / 2**30:.2f} GiB for weights, gradients and optimiser, "
        "activations on top",
        f"speed: {speed.train:,.0f} tokens/s training, {speed.generate:,.0f} tokens/s decoding, {speed.source}",
        "cost: prices are synthesise.price_in and price_out, per million tokens",
    )
    return Group(table, *(Text(line, "dim") for line in lines))
