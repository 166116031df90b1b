"""Public benchmarks put to a run's model or to an endpoint, and what their questions share with training questions."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from tirkit.config import ConfigError, EndpointSection, RunConfig
from tirkit.embedded.model import load_base
from tirkit.evaluation.benchmarks.base import Benchmark, BenchmarkError, Case
from tirkit.evaluation.benchmarks.changes import KINDS, Kind, applies
from tirkit.evaluation.benchmarks.folder import BenchmarkSetting, Documents, Outcome
from tirkit.evaluation.benchmarks.overlap import Overlap, overlap
from tirkit.evaluation.benchmarks.registry import BENCHMARKS, benchmark
from tirkit.evaluation.benchmarks.report import report_evaluations
from tirkit.evaluation.benchmarks.robustness import robustness_table
from tirkit.evaluation.benchmarks.runner import Asking, run_benchmarks
from tirkit.evaluation.benchmarks.show import categories_table, outcomes_table
from tirkit.evaluation.terminal import Progress
from tirkit.pipeline.policies import make_endpoint, need_key
from tirkit.pipeline.run import model_stage, open_run
from tirkit.pipeline.sources import load_tokenizer
from tirkit.store import write_atomic
from tirkit.text.dialects import Dialect
from tirkit.text.render import Renderer
from tirkit.tools.questions import load_tasks

RUN_DOCUMENTS: dict[str, Documents] = {"none": "none", "documents": "all", "retrieve": "retrieve"}
TURNS = 8  # full turns that fit into an attempt
TABLE = "results.md"


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible endpoint's model; its key is in OPENAI_API_KEY.

    tokenizer: folder or name, of what counts its tokens; the embedded model's if empty, which takes more of them.
    """

    model: str
    base_url: str = ""
    concurrency: int = 8
    tokenizer: str = ""


@dataclass(frozen=True)
class BenchmarkOptions:
    """What is asked of a model.

    documents: see `BenchmarkSetting`; "" = as the run was trained, "all" for an endpoint. limit: cases a category.
    out: folder that is gone on with; None = a folder of its own within the run's, or within runs/benchmarks.
    changes: ways to ask otherwise, each run besides; paraphrases: see `make_change`. held_out: see `BenchmarkSetting`.
    """

    names: Sequence[str]
    data: Path
    documents: str = ""
    limit: int = 0
    categories: Sequence[str] = ()
    official: bool = False
    max_new_tokens: int = 512
    out: Path | None = None
    changes: Sequence[str] = ()
    paraphrases: Path | None = None
    held_out: bool = False


def benchmark_run(root: Path, stage: str, options: BenchmarkOptions) -> str:
    """The tables of a run's model of `stage` (the last one if empty), as Markdown; also in the output folder.

    With documents in the prompt tools are called by plain names, whatever the run's index: they are the benchmark's,
    not those in the weights. Raises a `UserError` for an unknown benchmark, stage or category, and for missing data.
    """
    chosen = _chosen(options)
    ctx = open_run(root)
    stage = model_stage(ctx, stage)
    documents = _documents(options.documents or RUN_DOCUMENTS[ctx.config.rollout.prompt])
    if documents == "none" and ctx.config.catalogue.indexing == "none":
        raise ConfigError(f"{root} has no tools in its weights: give --documents all, pool or retrieve")
    if documents != "none":
        data = ctx.config.model_dump()
        data["catalogue"]["indexing"] = data["rollout"]["constrain"] = "none"
        ctx.config = RunConfig.model_validate(data)
    model = ctx.load(stage)
    asking = Asking(
        ctx.policy(model, 0.0),
        model.renderer,
        ctx.dialect,
        ctx.sources.tools,
        ctx.sources.tasks["train"],
        ctx.progress.stage,
    )
    manifest = ctx.folder.manifest
    setting = _setting(options, f"{ctx.config.name} ({stage}, {manifest.config_digest})", documents, ctx.config)
    return _run(asking, chosen, options, setting, root / "benchmarks" / stage, ctx.progress)


def benchmark_endpoint(endpoint: Endpoint, options: BenchmarkOptions) -> str:
    """The tables of an endpoint's model, as Markdown. Raises as `benchmark_run`, and `ConfigError` without a key."""
    chosen, documents = _chosen(options), _documents(options.documents or "all")
    if documents == "none":
        raise ConfigError("an endpoint knows no tool but those it is shown: give --documents all, pool or retrieve")
    need_key(f"--model {endpoint.model}")
    tokenizer = load_tokenizer(endpoint.tokenizer) if endpoint.tokenizer else load_base()[1]
    section = EndpointSection(base_url=endpoint.base_url, concurrency=endpoint.concurrency)
    policy, progress = make_endpoint(endpoint.model, section, Renderer(tokenizer), temperature=0.0), Progress()
    asking = Asking(policy, policy.renderer, Dialect(), progress=progress.stage)
    setting = _setting(options, f"{endpoint.model} at {policy.base_url}", documents)
    folder = Path("runs/benchmarks") / re.sub(r"[^\w.-]+", "_", endpoint.model)
    return _run(asking, chosen, options, setting, folder, progress)


def _chosen(options: BenchmarkOptions) -> list[Benchmark]:
    _kinds(options)
    chosen = [benchmark(name) for name in dict.fromkeys(options.names)]
    known = [category for one in chosen for category in one.categories]
    if unknown := [category for category in options.categories if category not in known]:
        raise BenchmarkError(f"no category {unknown[0]!r} in {', '.join(options.names)}; there are {', '.join(known)}")
    return chosen


def _documents(name: str) -> Documents:
    for known in get_args(Documents):
        if name == known:
            return known
    raise ConfigError(f"--documents {name!r}: give {', '.join(get_args(Documents))}")


def _setting(
    options: BenchmarkOptions, arm: str, documents: Documents, config: RunConfig | None = None
) -> BenchmarkSetting:
    return BenchmarkSetting(
        arm=arm,
        documents=documents,
        k=(config or RunConfig()).rollout.retrieve_k,
        limit=options.limit,
        held_out=options.held_out,
        categories=tuple(options.categories),
        official=options.official,
        max_new_tokens=options.max_new_tokens,
        max_tokens=TURNS * options.max_new_tokens,
    )


def _run(
    asking: Asking,
    chosen: Sequence[Benchmark],
    options: BenchmarkOptions,
    setting: BenchmarkSetting,
    folder: Path,
    progress: Progress,
) -> str:
    parts = [folder.name, setting.documents, *([f"limit{setting.limit}"] if setting.limit else [])]
    out = options.out or folder.with_name("-".join(parts))
    progress.say(f"{setting.arm}: {out}")
    with progress:
        outcomes = run_benchmarks(asking, chosen, options.data, out, setting)
        changed: dict[Kind, list[Outcome]] = {
            kind: _changed(asking, chosen, options, setting, kind, out) for kind in _kinds(options)
        }
    text = _tables(outcomes)
    if changed:
        text = f"{text}\n\n**robustness**\n\n{robustness_table(outcomes, changed)}"
    write_atomic(out / TABLE, f"{text}\n")
    progress.say(f"report: {report_evaluations([out], out / 'report')}")
    return text


def _kinds(options: BenchmarkOptions) -> list[Kind]:
    """The changes asked for. ConfigError for one there is not."""
    names = KINDS if "every" in options.changes else options.changes
    if unknown := [name for name in names if name not in KINDS]:
        raise ConfigError(f"--robustness {unknown[0]!r}: give some of {', '.join(KINDS)}, or every")
    return [kind for kind in KINDS if kind in names]


def _changed(
    asking: Asking,
    chosen: Sequence[Benchmark],
    options: BenchmarkOptions,
    setting: BenchmarkSetting,
    kind: Kind,
    out: Path,
) -> list[Outcome]:
    """The outcomes of one change, in a folder of its own, for the benchmarks that it applies to."""
    paraphrases = str(options.paraphrases) if kind == "paraphrased" and options.paraphrases else ""
    changed = setting.model_copy(update={"change": kind, "paraphrases": paraphrases})
    fitting = [one for one in chosen if applies(kind, one, setting.documents)]
    return run_benchmarks(asking, fitting, options.data, out / kind, changed)


def _tables(outcomes: Sequence[Outcome]) -> str:
    """Markdown: all benchmarks, then each by category. BenchmarkError where the model could be asked nothing."""
    foreign = [o.benchmark.name for o in outcomes if o.summary.left_out and not o.results]
    if foreign and len(foreign) == len(outcomes):
        raise BenchmarkError(
            f"the model remembers no tool that {', '.join(foreign)} is about: give --documents all, pool or retrieve"
        )
    details = (f"**{o.benchmark.name} by category**\n\n{categories_table(o)}" for o in outcomes if o.results)
    return "\n\n".join([outcomes_table(outcomes), *details])


def contaminate(train: str, bench: str, data: Path | None) -> Overlap:
    """What the questions of `bench` share with those of `train`: each a question file, a benchmark, or, for `train`,
    a run folder, whose training questions and catalogue are meant. data: folder of all benchmarks' data.

    Raises a `UserError` where there is no such thing.
    """
    if (Path(train) / "manifest.json").exists():
        sources = open_run(Path(train)).sources
        return overlap(_cases(bench, data), sources.tasks["train"], sources.tools)
    cases = _cases(train, data)
    tools = [tool for case in cases for tool in case.tools]
    return overlap(_cases(bench, data), [case.task for case in cases], tools)


def _cases(source: str, data: Path | None) -> Sequence[Case]:
    if source in BENCHMARKS:
        if data is None:
            raise ConfigError(f"{source} is a benchmark: give the folder of its data with --data")
        return benchmark(source).load(data).cases
    if not Path(source).exists():
        raise ConfigError(f"{source!r} is neither a file of questions nor a benchmark: {', '.join(BENCHMARKS)}")
    return [Case(task) for task in load_tasks(source).tasks]
