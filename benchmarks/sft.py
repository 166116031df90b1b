"""Supervised fine-tuning on rows of log-normal lengths: one epoch.

Peers: TRL's SFTTrainer at its defaults but in fp32, padded and packed; and tuned by its own options: no gradient
checkpointing, and what is fastest here of packing, length grouping and micro-batches. All steps hold 16 rows (packed:
about as many). Limit: the library's own forward and backward over as many tokens in rows of one length, and of a head
with log-softmax over the completion tokens.
"""

import random
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, PrinterCallback
from trl import SFTConfig, SFTTrainer

from benchmarks.harness import Arm, Result, compare, peak_memory
from benchmarks.peers import SHAPES, TRL
from benchmarks.update import Setting
from tirkit.text.masks import TokenRow
from tirkit.training.sft import SFTSettings, WeightedRow, train_sft

NUM_ROWS, BATCH, LONGEST = 64, 16, 2048
PADDED: dict[str, Any] = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": BATCH // 8}
PACKED: dict[str, Any] = {"per_device_train_batch_size": 1, "packing": True, "max_length": LONGEST}
TUNED: dict[str, dict[str, Any]] = {
    "packed": PACKED,
    **{
        f"micro-batches of {size}": {
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": BATCH // size,
            "train_sampling_strategy": "group_by_length",
        }
        for size in (1, 2, 4)
    },
}


def run(repeats: int) -> list[Result]:
    return [epoch(shape, repeats) for shape in SHAPES]


def epoch(shape: str, repeats: int) -> Result:
    trials = compare(f"settings of TRL, {shape}", [Arm(name, make(f"TRL tuned: {name}", shape)) for name in TUNED], 1)
    tuned = min(trials, key=lambda timing: timing.cpu_s).name
    names = ("tirkit", f"TRL tuned: {tuned}", "TRL packed", "TRL")
    timings = compare(f"sft, {shape}", [Arm(name, make(name, shape)) for name in names], repeats)
    memory = {name: peak_memory("benchmarks.sft:once", name, shape) for name in names}
    limit_s = sum(timing.median_s for timing in compare("limit", limit(shape), repeats))
    num_tokens = sum(map(length, rows()))
    setting = f"{shape}, {NUM_ROWS} rows, {num_tokens:,} tokens"
    note = " ".join((__doc__ or "").split())
    return Result("sft", setting, timings, memory, limit_s, note, items=num_tokens, unit="tokens")


def once(name: str, shape: str) -> None:
    """One epoch of one arm: what its process takes at most."""
    make(name, shape)()


def rows() -> list[WeightedRow]:
    """Random tokens, a third of each row its prompt."""
    rng = random.Random(0)
    made = []
    for _ in range(NUM_ROWS):
        ids = [rng.randrange(2, Setting.vocabulary) for _ in range(min(LONGEST, 16 + int(rng.lognormvariate(5, 1))))]
        prompt, completion = tuple(ids[: len(ids) // 3]), tuple(ids[len(ids) // 3 :])
        made.append(WeightedRow(TokenRow(prompt, completion, (1,) * len(completion), (0.0,) * len(completion))))
    return made


def length(row: WeightedRow) -> int:
    return len(row.prompt_ids) + len(row.completion_ids)


def make(name: str, shape: str) -> Callable[[], object]:
    """One epoch of an arm, ready to be run again and again."""
    model, data = Setting(shape).model(), rows()
    if name == "tirkit":
        settings = SFTSettings(lr=1e-6, batch_size=BATCH, epochs=1)
        return lambda: train_sft(model, data, settings, tempfile.mkdtemp(), pad_id=0)
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<eos>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    by_name = {"TRL": PADDED, "TRL packed": PACKED | {"gradient_accumulation_steps": 2}}
    tuned = {f"TRL tuned: {key}": value | {"gradient_checkpointing": False} for key, value in TUNED.items()}
    trainer = SFTTrainer(
        model,
        args=SFTConfig(
            tempfile.mkdtemp(),
            **{"max_length": LONGEST} | (by_name | tuned)[name],
            num_train_epochs=1,
            **TRL,
        ),
        train_dataset=Dataset.from_list(
            [
                {
                    "input_ids": [*row.prompt_ids, *row.completion_ids],
                    "labels": [*[-100] * len(row.prompt_ids), *row.completion_ids],
                }
                for row in data
            ]
        ),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer.train


def limit(shape: str) -> list[Arm]:
    """Trunk and head over the tokens there are."""
    model, data = Setting(shape).model(), rows()
    mean = sum(map(length, data)) // NUM_ROWS
    num_scored = sum(len(row.completion_ids) for row in data)
    head, hidden = model.get_output_embeddings(), model.config.hidden_size
    ids = torch.randint(Setting.vocabulary, (NUM_ROWS, mean))
    states, targets = torch.randn(num_scored, hidden), torch.randint(Setting.vocabulary, (num_scored,))

    def trunk() -> None:
        for piece in ids.split(max(1, 2048 // mean)):
            out = model.base_model(input_ids=piece, use_cache=False).last_hidden_state
            out.backward(torch.ones_like(out))

    def scores() -> None:
        for piece, wanted in zip(states.split(256), targets.split(256), strict=True):
            torch.nn.functional.cross_entropy(head(piece.requires_grad_()), wanted).backward()

    return [Arm("trunk", trunk), Arm("head", scores)]
