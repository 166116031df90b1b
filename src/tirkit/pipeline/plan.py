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

from tirkit.config import EndpointSection, RunConfig, TrainConfig
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
    prices: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Counts:
    """Training questions of phases 1 and 2, those that candidates are sampled on, and RL's."""

    supervised: int
    candidates: int
    rl: int


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
        counts = Counts(len(ctx.sft_tasks), len(ctx.rl_pool[: config.candidates.num_tasks or None]), len(ctx.rl_pool))
        ctx = _with_few_tasks(ctx)
        parts = alignment_rows(ctx, loaded), use_rows(ctx, loaded, use_tasks(ctx))
        rows = [row for part in parts for row in part[:SAMPLE_TASKS]]
        speed = _measured(ctx, loaded.model, rows) if loaded.model.device.type != "meta" else _estimated(parameters)
        stages = _stages(ctx, rows, speed, counts)
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
    ctx.sources = type(ctx.sources)(ctx.sources.tools, few, ctx.sources.seen)
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


def _stages(ctx: Context, rows: Sequence[WeightedRow], speed: Speed, counts: Counts) -> list[StagePlan]:
    config, (length, trained) = ctx.config, _lengths(rows)
    work = _Work(length, trained, speed, mean(len(tool.model_dump_json()) for tool in ctx.sources.tools) / 4)
    made = {
        "internalise": lambda: _training("internalise", config.internalise, length, speed),
        "synthesise": lambda: _synthesis(config, work, counts),
        "warmup": lambda: _training("warmup", config.warmup, length, speed),
        "label": lambda: _label(config, work, counts),
        "candidates": lambda: _candidates(config, work, counts),
        "repair": lambda: _repair(config, work, counts),
        "finetune": lambda: _training("finetune", config.finetune, length, speed),
        "reward_model": lambda: _reward_model(config, work, counts),
        "refine": lambda: _rl(config, work, "refine", -(-config.refine.rounds * counts.rl // config.rl.batch_size)),
        "rl": lambda: _rl(config, work, "rl", config.rl.steps),
        "evaluate": lambda: _evaluation(config, work, len(ctx.sources.tasks["test"])),
    }
    return [make() for stage, make in made.items() if ctx.enabled(stage)]


@dataclass(frozen=True)
class _Work:
    """A row's mean tokens and trained tokens, the speed, and the mean tokens of a tool's document."""

    length: float
    trained: float
    speed: Speed
    document: float

    def attempts(self, stage: str, said: str, number: float) -> StagePlan:
        """Attempts by the run's own model."""
        seconds = number * (self.trained / self.speed.generate + self.length / (3 * self.speed.train))
        return StagePlan(stage, said, number * self.length, seconds)

    def requests(self, stage: str, said: str, number: float, documents: int, section: EndpointSection) -> StagePlan:
        """Attempts by an endpoint, of about two turns each; every document stands in the prompt of each of them."""
        return StagePlan(
            stage,
            said,
            number * self.length,
            number * 2 * section.seconds_a_request / section.concurrency,
            (number * 2 * (documents * self.document + self.length), number * self.trained),
            (section.price_in, section.price_out),
        )


def _label(config: RunConfig, work: _Work, counts: Counts) -> StagePlan:
    c = config.label
    attempts = 2 * c.samples * min(counts.rl, c.num_tasks or counts.rl)
    asked = [who for who in (c.no_think, c.think) if who != "model"]
    if not asked:
        return work.attempts("label", f"{attempts} attempts", attempts)
    # Where only one of the two is an endpoint the other's time is small beside it.
    requests = attempts * len(asked) / 2
    return work.requests("label", f"{requests:.0f} attempts by {', '.join(asked)}", requests, _shown(config), c)


def _candidates(config: RunConfig, work: _Work, counts: Counts) -> StagePlan:
    c = config.candidates
    if c.log:
        return StagePlan("candidates", f"read from {c.log}", 0, 0)
    attempts = counts.candidates * c.samples
    if c.policy == "model":
        return work.attempts("candidates", f"{attempts} attempts", attempts)
    return work.requests("candidates", f"{attempts} attempts by {c.policy}", attempts, _shown(config), c)


def _repair(config: RunConfig, work: _Work, counts: Counts) -> StagePlan:
    """The worst case, for which a budget should be made: nobody knows yet how many attempts are poor or wrong."""
    r = config.repair
    attempts = counts.candidates * config.candidates.samples * (1 if r.repairer == "rules" else 1 + r.retries)
    said = f"at most {attempts} attempts by {r.repairer}"
    if r.repairer in ("rules", "scripted"):
        return StagePlan("repair", said, attempts * work.length, attempts * 0.01)
    return work.requests("repair", said, attempts, _shown(config), r)


def _reward_model(config: RunConfig, work: _Work, counts: Counts) -> StagePlan:
    pairs = counts.candidates * min(config.candidates.samples, config.pairs.max_per_query)
    tokens = 2 * pairs * config.reward_model.epochs * work.length
    return StagePlan("reward_model", f"about {pairs} pairs at most", tokens, tokens / work.speed.train)


def _rl(config: RunConfig, work: _Work, stage: str, steps: int) -> StagePlan:
    attempts = steps * config.rl.batch_size * config.rl.num_generations
    seconds = attempts * (work.trained / work.speed.generate + work.length / work.speed.train)
    return StagePlan(stage, f"{steps} steps, {attempts} attempts", attempts * (work.length + work.trained), seconds)


def _evaluation(config: RunConfig, work: _Work, num_test: int) -> StagePlan:
    tests = num_test * (1 + config.rl.enabled + config.finetune.enabled + 2 * config.rollout.modes)
    return work.attempts("evaluate", f"{tests} attempts", tests)


def _shown(config: RunConfig) -> int:
    """Documents in a prompt."""
    return config.rollout.retrieve_k if config.rollout.prompt == "retrieve" else config.synthesise.num_candidates


def _training(stage: str, section: TrainConfig, length: float, speed: Speed) -> StagePlan:
    tokens = section.steps * section.batch_size * length
    work = f"{section.steps} steps of {section.batch_size} rows"
    return StagePlan(stage, work, tokens, tokens / speed.train)


def _synthesis(config: RunConfig, work: _Work, counts: Counts) -> StagePlan:
    s = config.synthesise
    attempts = counts.supervised * s.num_samples
    if s.teacher == "scripted":
        return StagePlan("synthesise", f"{attempts} attempts, scripted", attempts * work.length, attempts * 0.01)
    return work.requests("synthesise", f"{attempts} attempts by {s.teacher}", attempts, s.num_candidates, s)


def _table(config: RunConfig, stages: Sequence[StagePlan], speed: Speed, parameters: int) -> RenderableType:
    table = Table(title=f"plan of {config.name} (config {config.digest})", title_justify="left")
    for head in ("stage", "work", "tokens", "time", "endpoint cost"):
        table.add_column(head, justify="left" if head in ("stage", "work") else "right")
    for plan in stages:
        read, written = plan.endpoint_tokens
        cost = (read * plan.prices[0] + written * plan.prices[1]) / 1e6
        money = f"{read + written:,.0f} tokens, {cost:,.2f}" if read else "–"
        table.add_row(plan.stage, plan.work, f"{plan.tokens:,.0f}", duration(plan.seconds), money)
    total = duration(sum(plan.seconds for plan in stages))
    lines = (
        f"about {total} in all; {parameters:,} parameters",
        f"memory: about {parameters * BYTES_A_PARAMETER / 2**30:.2f} GiB for weights, gradients and optimiser, "
        "activations on top",
        f"speed: {speed.train:,.0f} tokens/s training, {speed.generate:,.0f} tokens/s decoding, {speed.source}",
        "cost: by price_in and price_out of the stage's section, per million tokens",
    )
    return Group(table, *(Text(line, "dim") for line in lines))
