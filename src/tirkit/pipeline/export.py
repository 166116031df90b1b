"""Export a run's model as a plain Hugging Face folder, with a card that says what the run measured."""

import json
from pathlib import Path

import tirkit
from tirkit.evaluation.run import EvaluationResult
from tirkit.evaluation.tables import HEADLINE, duration
from tirkit.pipeline.context import Context
from tirkit.pipeline.run import STAGES, model_stage, open_run
from tirkit.pipeline.sources import load_tokenizer
from tirkit.serving.export import RUN_FILE, Exportable, export_folder, tool_file, unbreakable
from tirkit.serving.gguf_file import Converter
from tirkit.serving.model_card import Card, Number
from tirkit.text.render import Renderer


def export_run(root: Path, out: Path, stage: str = "", llama_cpp: Path | None = None, gguf_type: str = "f16") -> None:
    """Write the model that `stage` left (the run's last one if empty) to the folder `out`, which must not be there.

    llama_cpp: a checkout of llama.cpp, whose converter makes a GGUF file of `gguf_type` in the folder too.
    Raises ConfigError where the run has no such model, ExportError or GgufError where it cannot be exported.
    """
    converter = Converter.find(llama_cpp, gguf_type) if llama_cpp is not None else None
    ctx = open_run(root)
    stage = model_stage(ctx, stage)
    tokenizer = load_tokenizer(ctx.folder.model(stage))
    exportable = Exportable(
        ctx.folder.model(stage),
        tokenizer,
        Renderer(tokenizer, ctx.index),
        ctx.dialect,
        ctx.tools,
        ctx.config.rollout.max_new_tokens,
        ctx.config.name,
    )
    gguf = converter.file_name(ctx.config.name) if converter is not None else ""
    files = {
        "README.md": make_card(ctx, exportable, stage, out.name, gguf).text(),
        RUN_FILE: ctx.folder.manifest.model_dump_json(indent=1),
    }
    export_folder(exportable, out, files, converter)


def make_card(ctx: Context, exportable: Exportable, stage: str, folder: str, gguf: str = "") -> Card:
    """The model card. `folder` is how the reader is to write the exported folder's path, `gguf` a file in it."""
    config, tools = ctx.config, tool_file(exportable)
    embedded = config.model.path == "embedded"
    own = "a model made from scratch" if config.model.scratch else f"`{config.model.path}`"
    marks = [(name, ctx.folder.mark(name)) for name in STAGES]
    weights = json.loads((exportable.model / "config.json").read_text(encoding="utf-8"))
    return Card(
        name=config.name,
        folder=folder,
        version=tirkit.__version__,
        base="tirkit's embedded base model" if embedded and not config.model.scratch else own,
        base_id="" if embedded or config.model.scratch or Path(config.model.path).exists() else config.model.path,
        license="apache-2.0" if embedded or config.model.scratch else "",
        catalogue=config.catalogue.path,
        tasks=config.tasks.path,
        stage=stage,
        seed=config.seed,
        prompt=config.rollout.prompt,
        constrain=config.rollout.constrain,
        dtype=weights.get("dtype") or "float32",
        num_tools=len(ctx.tools),
        num_test=len(ctx.sources.tasks["test"]),
        index=tools["index"],
        selection=tools["selection"],
        example=tools["tools"][0]["token"],
        numbers=tuple(_numbers(ctx)),
        stages=tuple((name, duration(mark.duration_s)) for name, mark in marks if mark is not None),
        retired=len(tools["retired"]),
        gguf=gguf,
        unbreakable=unbreakable(exportable.tokenizer.get_added_vocab()),
    )


def _numbers(ctx: Context) -> list[Number]:
    """The report's headline numbers of each model that was measured."""
    numbers: list[Number] = []
    for result in ctx.folder.read_records("test_results", EvaluationResult):
        for column in HEADLINE:
            value = result.estimate(column.metric, column.group)
            if value is not None:
                scale = 100 if column.share else 1
                mean, low, high = (f"{scale * number:.4g}" for number in (value.mean, value.low, value.high))
                numbers.append(Number(result.stage, column.head, mean, f"{low} – {high}", value.n))
    return numbers
