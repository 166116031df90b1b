"""A run that begins where its settings begin to differ from another run's: what comes before is taken from there."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from tirkit.config import RunConfig, differences
from tirkit.pipeline.context import STAGE_ORDER
from tirkit.pipeline.sources import SPLITS
from tirkit.store import RunFolder, save_folder, write_atomic

FIRST_READER = {  # section of a config, or one key of it → the first stage that reads it; "prepare" for all others
    "warmup": "warmup",
    "label": "label",
    "candidates": "candidates",
    "quality": "candidates",
    "repair": "repair",
    "pairs": "pairs",
    "finetune": "finetune",
    "reward_model": "reward_model",
    "refine": "refine",
    "rl": "refine",
    "evaluate.enabled": "evaluate",
    "evaluate.earlier": "evaluate",
    "evaluate.forced": "evaluate",
}
RECORDS: dict[str, tuple[str, ...]] = {  # beside validation_STAGE and knowledge_STAGE
    "prepare": ("catalogue", *(f"tasks_{split}" for split in SPLITS), "growth", "attempts"),
    "synthesise": ("synthesis_chunks", "synthesis"),
    "label": ("attempted", "targets"),
    "candidates": ("candidates", "tasks_candidates"),
    "repair": ("repairs",),
    "pairs": ("sft_examples", "preferences"),
    "reward_model": ("pair_report",),
    "refine": ("rounds", "refined"),
    "rl": ("rl",),
}


def shared_stages(one: RunConfig, other: RunConfig) -> tuple[str, ...]:
    """The stages, in order, that come out the same under both configs; evaluation never does: it names its arm."""
    keys = [key for key in differences(one, other) if key != "name"]
    first = [FIRST_READER.get(key, FIRST_READER.get(key.split(".")[0], "prepare")) for key in keys]
    return STAGE_ORDER[: min(map(STAGE_ORDER.index, [*first, "evaluate"]))]


def branch(source: Path, config: RunConfig, root: Path) -> tuple[str, ...]:
    """Make the run folder `root` of `config`, with the shared stages that the run in `source` has completed.

    Returns them. A folder that is already a run is left as it is: it is to be continued. Raises `StoreError` where
    `source` is no run folder, or `root` holds something else.
    """
    if (root / "manifest.json").exists():
        return ()
    RunFolder.check_free(root)
    run = RunFolder.read(source)
    taken = [stage for stage in shared_stages(run.manifest.config, config) if run.mark(stage) is not None]

    def fill(folder: Path) -> None:
        for name in _outputs(taken):
            found = run.root / name
            if found.is_dir():
                shutil.copytree(found, folder / name)
            elif found.exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(found, folder / name)
        for stage in taken:
            mark = run.mark(stage)
            assert mark is not None
            mark = mark.model_copy(update={"facts": mark.facts | {"taken_from": str(source)}})
            write_atomic(folder / "stages" / f"{stage}.json", mark.model_dump_json(indent=2))
        RunFolder.begin(folder, config)

    save_folder(root, fill)
    return tuple(taken)


def _outputs(stages: Sequence[str]) -> list[Path]:
    """Paths in a run folder that these stages leave, present or not."""
    names = [name for s in stages for name in (*RECORDS.get(s, ()), f"validation_{s}", f"knowledge_{s}")]
    records = [Path("records", f"{name}.jsonl") for name in names]
    return [*records, *(Path("models", stage) for stage in stages), *([Path("datasets")] if "pairs" in stages else [])]
