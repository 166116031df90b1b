"""The command line: parse, call one function, print what it says."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tirkit.cli.shared import Arm, Config, Overrides, Run, Scripted, Stage, asked_for, listed, numbers, out
from tirkit.cli.tools import tools_app
from tirkit.types import UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Train a model to use your tools: catalogue + questions + model in, tool-calling model out.\n\n"
    "Start with `tirkit run configs/tinr_u/embedded.toml --out runs/first` (offline, CPU, minutes), then "
    "`tirkit report runs/first`. `tirkit plan CONFIG` says what a run will cost before it starts.",
)
app.add_typer(tools_app, name="tools")
FOR_QUESTIONS = {"questions", "prompt"}  # options of `eval`; all others are for both
FOR_BENCHMARKS = {
    "data", "documents", "categories", "held_out", "official", "max_new_tokens", "robustness", "paraphrases",
    "out_folder",
}  # fmt: skip
FOR_ENDPOINTS = {"base_url", "concurrency", "tokenizer"}


@app.command()
def run(
    config: Config,
    overrides: Overrides = None,
    out_folder: Annotated[Path | None, typer.Option("--out", help="run folder; the same one again continues")] = None,
    arm: Arm = "",
    stages: Annotated[str, typer.Option(help="only these, comma-separated; all if empty")] = "",
    source: Annotated[
        Path | None, typer.Option("--from", help="a run whose stages are taken over as far as the settings agree")
    ] = None,
) -> None:
    """Train: run a config's stages in order. Killed or stopped, the same command goes on where it was."""
    from tirkit.config import load_config
    from tirkit.pipeline.branch import branch
    from tirkit.pipeline.run import run_stages

    settings = load_config(config, overrides or (), arm)
    folder = out_folder or Path("runs") / f"{settings.name}-{settings.digest}"
    if source is not None and (taken := branch(source, settings, folder)):
        out.print(f"taken from {source}: {', '.join(taken)}", soft_wrap=True)
    run_stages(settings, folder, listed(stages))


@app.command()
def compare(
    config: Config,
    overrides: Overrides = None,
    out_folder: Annotated[Path, typer.Option("--out", help="folder of the runs")] = Path("runs/compare"),
    arms: Annotated[str, typer.Option(help="comma-separated; 'method' is the config itself; 'all'")] = "all",
    seeds: Annotated[str, typer.Option(help="comma-separated")] = "0",
    jobs: Annotated[int, typer.Option(help="runs at a time, one CPU thread each")] = 2,
) -> None:
    """Run a config beside its arms (baselines, ablations) and report them together."""
    from tirkit.pipeline.compare import compare_arms

    compare_arms(config, overrides or [], listed(arms), numbers(seeds, "--seeds"), out_folder, jobs)


@app.command()
def plan(config: Config, overrides: Overrides = None, arm: Arm = "") -> None:
    """Say what a run will take, stage by stage, before anything runs: time, memory, tokens, endpoint cost."""
    from tirkit.config import load_config
    from tirkit.pipeline.plan import plan_run

    out.print(plan_run(load_config(config, overrides or (), arm)))


@app.command("eval")
def evaluate(
    ctx: typer.Context,
    run_folder: Annotated[Path | None, typer.Argument(help="a run folder, or give --model", show_default=False)] = None,
    questions: Annotated[Path | None, typer.Option(help="question file; default: the run's test questions")] = None,
    stage: Stage = "",
    prompt: Annotated[str, typer.Option(help="none, documents or retrieve; the run's own if empty")] = "",
    limit: Annotated[int, typer.Option(min=0, help="first so many questions; so many cases a category; 0 = all")] = 0,
    benchmark: Annotated[str, typer.Option(help="public benchmarks instead of questions, comma-separated")] = "",
    data: Annotated[Path, typer.Option(help="folder of the benchmarks' data")] = Path("data"),
    documents: Annotated[str, typer.Option(help="benchmarks: all, pool, retrieve, none; empty: the run's own")] = "",
    categories: Annotated[str, typer.Option(help="benchmarks: only these, comma-separated")] = "",
    held_out: Annotated[
        bool, typer.Option(help="benchmarks: no case that training questions equal or resemble")
    ] = False,
    official: Annotated[bool, typer.Option(help="benchmarks: the authors' scorer decides, where there is one")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="benchmarks: tokens of one turn")] = 512,
    robustness: Annotated[
        str, typer.Option(help="benchmarks: also masked, renamed, distractors, paraphrased, poisoned; or every")
    ] = "",
    paraphrases: Annotated[Path | None, typer.Option(help="JSON, {description: paraphrase}; else by rule")] = None,
    out_folder: Annotated[Path | None, typer.Option("--out", help="benchmarks: records; again: goes on")] = None,
    model: Annotated[str, typer.Option(help="benchmarks: an endpoint's model, key in OPENAI_API_KEY")] = "",
    base_url: Annotated[str, typer.Option(help="the endpoint's address; OpenAI's if empty")] = "",
    concurrency: Annotated[int, typer.Option(min=1, help="requests to the endpoint in flight")] = 8,
    tokenizer: Annotated[str, typer.Option(help="counts the endpoint's tokens; the embedded one if empty")] = "",
) -> None:
    """Measure a run's model on questions, or it or an endpoint's on public benchmarks: accuracy, tokens, stop reasons.

    A benchmark that was killed goes on with the same command; the table also says what training shares with it.
    """
    from tirkit.pipeline.benchmarks import BenchmarkOptions, Endpoint, benchmark_endpoint, benchmark_run
    from tirkit.pipeline.run import evaluate_run

    _check_options(ctx, run_folder is not None, bool(benchmark))
    names, kinds = listed(benchmark), listed(categories)
    options = BenchmarkOptions(
        names,
        data,
        documents,
        limit,
        kinds,
        official,
        max_new_tokens,
        out_folder,
        listed(robustness),
        paraphrases,
        held_out,
    )
    if run_folder is None:
        shown = benchmark_endpoint(Endpoint(model, base_url, concurrency, tokenizer), options)
    elif names:
        shown = benchmark_run(run_folder, stage, options)
    else:
        out.print(evaluate_run(run_folder, questions, stage, prompt, limit))
        return
    out.print(shown, markup=False, highlight=False, soft_wrap=True)


def _check_options(ctx: typer.Context, is_run: bool, benchmarks: bool) -> None:
    """UserError where something was asked for that would change nothing."""
    if is_run == bool(ctx.params["model"]) or not (is_run or benchmarks):
        raise UserError("give either a run folder, or --model NAME with --benchmark NAMES")
    if benchmarks and (wrong := asked_for(ctx, FOR_QUESTIONS if is_run else {*FOR_QUESTIONS, "stage"})):
        raise UserError(f"{wrong} is for a run's questions: leave it out, or leave --benchmark out")
    if not benchmarks and (wrong := asked_for(ctx, FOR_BENCHMARKS)):
        raise UserError(f"{wrong} is for benchmarks: leave it out, or name some with --benchmark")
    if is_run and (wrong := asked_for(ctx, FOR_ENDPOINTS)):
        raise UserError(f"{wrong} is for an endpoint: leave it out, or give --model in the place of the run")


@app.command()
def contaminate(
    train: Annotated[str, typer.Argument(help="questions, a run folder or a benchmark", show_default=False)],
    bench: Annotated[str, typer.Argument(help="questions or a benchmark", show_default=False)],
    data: Annotated[Path | None, typer.Option(help="folder of the benchmarks' data", show_default=False)] = None,
) -> None:
    """Say what evaluation questions share with training questions: exact, 13 words in a row, tool names.

    Exit code 1 where a question is shared.
    """
    from tirkit.pipeline.benchmarks import contaminate as compared

    found = compared(train, bench, data)
    lines = [*(f"{name}: {why}" for name, why in (found.equal | found.similar).items()), str(found)]
    out.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1 if found.equal or found.similar else 0)


@app.command()
def report(
    folders: Annotated[
        list[Path], typer.Argument(help="runs, or evaluations; the first holds the report", show_default=False)
    ],
    inspect_logs: Annotated[bool, typer.Option(help="evaluations: also as logs of inspect-ai")] = False,
) -> None:
    """Write the HTML report of one run, or of several side by side; or of evaluations by `eval --benchmark`.

    Two evaluations are compared case by case: paired intervals, a sign test, which cases changed side.
    """
    from tirkit.evaluation.benchmarks.folder import is_evaluation
    from tirkit.evaluation.benchmarks.inspect_log import write_inspect_logs
    from tirkit.evaluation.benchmarks.report import report_evaluations
    from tirkit.pipeline.report import report_runs

    write = report_evaluations if is_evaluation(folders[0]) else report_runs
    out.print(f"report: {write(folders, folders[0] / 'report')}")
    for path in (path for folder in folders for path in write_inspect_logs(folder)) if inspect_logs else ():
        out.print(f"log: {path}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def inspect(
    run_folder: Run,
    records: Annotated[
        str, typer.Option(help="which: test, synthesise, candidates, repairs (original beside repaired), rl")
    ] = "test",
    count: Annotated[int, typer.Option(help="how many")] = 3,
    task: Annotated[str, typer.Option(help="only of this task id")] = "",
) -> None:
    """Show trajectories in the terminal, each token coloured by its mask: prompt, trained, not trained."""
    from tirkit.pipeline.inspect import inspect_run

    for item in inspect_run(run_folder, records, count, task):
        out.print(item)


@app.command()
def score(
    file: Annotated[Path, typer.Argument(help="trajectories: ours, OpenAI chat JSON or ShareGPT", show_default=False)],
    tasks: Annotated[Path | None, typer.Option(help="their tasks; without, what the file says of success")] = None,
) -> None:
    """Score trajectories: verdict, quality S, what to keep and repair; bad lines are named, the rest is scored."""
    from tirkit.evaluation.score_file import print_scores

    raise typer.Exit(print_scores(file, tasks, out))


@app.command()
def serve(
    source: Annotated[str, typer.Argument(help="a run, an export, a model folder or 'embedded'", show_default=False)],
    stage: Stage = "",
    scripted: Scripted = None,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines in")] = "127.0.0.1",
    port: Annotated[int, typer.Option()] = 8000,
    key_env: Annotated[str, typer.Option(help="environment variable with the key that clients must send")] = "",
    key_file: Annotated[Path | None, typer.Option(help="or a file with it")] = None,
    allow_anyone: Annotated[bool, typer.Option("--allow-anyone", help="other machines, without a key")] = False,
    max_body_bytes: Annotated[int, typer.Option(min=1, help="of a request")] = 1_000_000,
    max_request_s: Annotated[float, typer.Option(min=0.1, help="from a request to the end of its answer")] = 300.0,
    max_waiting: Annotated[int, typer.Option(min=1, help="answers being written or waiting")] = 256,
    max_connections: Annotated[int, typer.Option(min=1)] = 512,
    read_s: Annotated[float, typer.Option(min=0.1, help="what a client may take to send, or leave unread")] = 20.0,
) -> None:
    """Serve a model as an OpenAI-compatible endpoint: as NAME with tool calls, as NAME:text in its own words.

    A run's reward model is served beside it, at /score.
    """
    from tirkit.pipeline.serve import Access, serve_model
    from tirkit.serving.limits import Limits

    access = Access(host, port, key_env, key_file, allow_anyone)
    limits = Limits(max_body_bytes, max_request_s, max_waiting, max_connections, read_s)
    serve_model(source, stage, scripted, access, limits)


@app.command()
def chat(
    source: Annotated[Path, typer.Argument(help="a run or an export", show_default=False)],
    stage: Stage = "",
    scripted: Scripted = None,
    catalogue: Annotated[str, typer.Option(help="an export's tools and how they are run, if not at the run's")] = "",
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 = the likeliest token, as measured")] = 0.0,
    yes: Annotated[bool, typer.Option("--yes", help="make calls that may change something without asking")] = False,
) -> None:
    """Talk to a model in the terminal; its calls are really made. Shows thoughts, selections, calls, tokens, seconds.

    Without a terminal each line of the input is a message, or the answer to a question whether a call may be made.
    """
    from tirkit.pipeline.chat import chat as talk

    talk(source, stage, scripted, catalogue, temperature, yes)


@app.command()
def export(
    run_folder: Run,
    out_folder: Annotated[Path, typer.Option("--out", help="the folder to make", show_default=False)],
    stage: Stage = "",
    gguf: Annotated[Path | None, typer.Option(help="a checkout of llama.cpp: makes a GGUF file with it too")] = None,
    gguf_type: Annotated[str, typer.Option(help="f32, f16, bf16 or q8_0")] = "f16",
) -> None:
    """Export a run's model as a plain Hugging Face folder: chat template, tools, vLLM parser, model card."""
    from tirkit.pipeline.export import export_run

    export_run(run_folder, out_folder, stage, gguf, gguf_type)
    out.print(f"exported: {out_folder}")


@app.command()
def questions(
    catalogue: Annotated[str, typer.Argument(help="tools: a catalogue, or a .py of functions", show_default=False)],
    file: Annotated[Path, typer.Option("--out", help="JSONL; again: goes on", show_default=False)],
    num: Annotated[int, typer.Option(min=1, help="questions in the file in all")] = 400,
    seed: int = 0,
    teacher: Annotated[str, typer.Option(help="an endpoint's model, key in OPENAI_API_KEY; without: templates")] = "",
    base_url: Annotated[str, typer.Option(help="the endpoint's address; OpenAI's if empty")] = "",
    prompt: Annotated[Path | None, typer.Option(help="Jinja file in the place of the built-in prompt")] = None,
    several: Annotated[float, typer.Option(min=0, max=1, help="share that needs two tools")] = 0.25,
    no_tool: Annotated[float, typer.Option(min=0, max=1, help="share that needs none")] = 0.15,
    hard: Annotated[float, typer.Option(min=0, max=1, help="share that is hard to read")] = 0.5,
    allow: Annotated[str, typer.Option(help="functions to run beside the @read_only ones, comma-separated; *")] = "",
    concurrency: Annotated[int, typer.Option(min=1, help="requests to the endpoint in flight")] = 8,
    max_requests: Annotated[int, typer.Option(min=0, help="in all; 0 = no limit, here and below")] = 0,
    max_tokens: Annotated[int, typer.Option(min=0, help="read and written")] = 0,
    max_money: Annotated[float, typer.Option(min=0, help="by the two prices")] = 0.0,
    price_in: Annotated[float, typer.Option(min=0, help="of a million prompt tokens")] = 0.0,
    price_out: Annotated[float, typer.Option(min=0, help="of a million written tokens")] = 0.0,
) -> None:
    """Write training questions for a catalogue: by a teacher, or from the documents alone; killed, it goes on.

    Every question is checked against the schemas, against those before, and run where its tools may be run.
    """
    from tirkit.config import EndpointSection
    from tirkit.methods.autotraj.budget import Caps
    from tirkit.methods.questions.slots import Shares
    from tirkit.pipeline.questions import QuestionOptions, write_questions

    caps = Caps(max_requests or None, max_tokens or None, max_money or None, price_in, price_out)
    endpoint = EndpointSection(base_url=base_url, concurrency=concurrency)
    shares = Shares(several, no_tool, hard)
    options = QuestionOptions(num, seed, shares, tuple(listed(allow)), teacher, endpoint, prompt, caps=caps)
    outcome = write_questions(catalogue, file, options)
    out.print("\n".join(outcome.lines(caps)), markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1 if outcome.stopped else 0)


def main() -> None:
    """Entry point: a `UserError` is printed without a traceback and ends with exit code 2."""
    try:
        app()
    except UserError as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(2) from None
