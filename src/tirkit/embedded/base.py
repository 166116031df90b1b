"""Makes the base model: tokenizer, generic skills, evaluation, record.

    python -m tirkit.embedded.base --out src/tirkit/data/base_model

The loop is the plainest that works (Muon for the matrices, AdamW for the rest); the trainers of the pipeline are not
used, so that this package stands below them.
"""

import argparse
import hashlib
import itertools
import json
import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from tirkit.embedded import phrases
from tirkit.embedded.model import build_tokenizer, load_base, new_model, save_half
from tirkit.embedded.skills import SKILLS, draw_sample, repeat
from tirkit.embedded.values import Split
from tirkit.embedded.world import World
from tirkit.text.dialects import print_document
from tirkit.text.masks import TokenRow, token_row
from tirkit.text.render import Renderer, encode
from tirkit.types import Trajectory

IGNORED = -100
WORDS = [word for plain, others in phrases.SYNONYMS.items() for word in (plain, *others)]
COPY_POOLS = 36
POOL = 16  # batches sorted by length together, so that few pad tokens are computed


def texts_of(trajectory: Trajectory) -> Iterator[str]:
    """Every text of a trajectory."""
    yield from (message.content for message in trajectory.prompt)
    for turn in trajectory.turns:
        yield turn.text
        yield from (message.content for message in turn.reply)


def make_tokenizer(samples: int = 6000, seed: int = 0) -> PreTrainedTokenizerFast:
    """The embedded tokenizer, from training samples of the skills and documents of worlds that are never used."""
    rng = random.Random(seed)
    texts = [text for _ in range(samples) for text in texts_of(draw_sample(rng, "train"))]
    texts += [print_document(tool) for tool in World(num_tools=1000, seed=10**6).catalogue]
    texts += [f"the {word}" for word in WORDS] * 200  # common words are whole tokens to any real model
    return build_tokenizer(texts)


def batches(renderer: Renderer, seed: int, batch_tokens: int) -> Iterator[list[TokenRow]]:
    """Endless training batches of about `batch_tokens` tokens, rows of similar length together.

    Copying comes first and alone: nearly all else is copying with something added, and starts several times sooner
    once attention heads that copy exist.
    """
    rng = random.Random(seed)
    for number in itertools.count():
        draw = repeat if number < COPY_POOLS else draw_sample
        rows = [token_row(encode(renderer, draw(rng, "train"))) for _ in range(POOL * batch_tokens // 100)]
        rows.sort(key=length)
        pool: list[list[TokenRow]] = [[]]
        for row in rows:
            if (len(pool[-1]) + 1) * length(row) > batch_tokens:
                pool.append([])
            pool[-1].append(row)
        rng.shuffle(pool)
        yield from pool


def length(row: TokenRow) -> int:
    """Tokens of a row, prompt and completion."""
    return len(row.prompt_ids) + len(row.completion_ids)


def collate(rows: Iterable[TokenRow], pad_id: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-padded input ids, attention mask and labels (IGNORED where nothing is trained), each [rows, longest]."""
    rows = list(rows)
    ids_BT = torch.full((len(rows), max(map(length, rows))), pad_id)
    mask_BT, labels_BT = torch.zeros_like(ids_BT), torch.full_like(ids_BT, IGNORED)
    for i, row in enumerate(rows):
        ids = torch.tensor([*row.prompt_ids, *row.completion_ids])
        trained = torch.tensor([0] * len(row.prompt_ids) + list(row.tool_mask), dtype=torch.bool)
        ids_BT[i, : len(ids)] = ids
        mask_BT[i, : len(ids)] = 1
        labels_BT[i, : len(ids)] = torch.where(trained, ids, IGNORED)
    return ids_BT, mask_BT, labels_BT


def trained_logits(
    model: Qwen3ForCausalLM, rows: Iterable[TokenRow], pad_id: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits [trained tokens, V] that predict the trained tokens, those tokens, and the row each belongs to."""
    ids_BT, mask_BT, labels_BT = collate(rows, pad_id)
    hidden_BTD = model.model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
    targets_BT = labels_BT[:, 1:]
    chosen_BT = targets_BT != IGNORED
    return model.lm_head(hidden_BTD[:, :-1][chosen_BT]), targets_BT[chosen_BT], chosen_BT.nonzero()[:, 0]


def optimizers(model: Qwen3ForCausalLM, muon_lr: float, adamw_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for the embedding and the norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    taken = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in taken]
    return [
        torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=adamw_lr, weight_decay=0.0),
    ]


def train(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    out: Path,
    *,
    steps: int,
    batch_tokens: int = 1600,
    muon_lr: float = 0.003,
    adamw_lr: float = 3e-3,
    seed: int = 0,
    save_every: int = 250,
    log_every: int = 50,
) -> None:
    """Trains on fresh samples for `steps` updates (short warm-up, linear decay to 5 %), saving on the way."""
    renderer = Renderer(tokenizer)
    chain = optimizers(model, muon_lr, adamw_lr)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(opt, lambda step: min((step + 1) / 30, max(0.05, 1 - step / steps)))
        for opt in chain
    ]
    tokens, loss_sum, start = 0, 0.0, time.monotonic()
    for step, rows in zip(range(1, steps + 1), batches(renderer, seed, batch_tokens), strict=False):
        logits_NV, targets_N, _ = trained_logits(model, rows, renderer.pad_id)
        loss = functional.cross_entropy(logits_NV, targets_N)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for part in (*chain, *schedules):
            part.step()
        model.zero_grad()
        tokens, loss_sum = tokens + sum(map(length, rows)), loss_sum + loss.item()
        if step % log_every == 0:
            speed = tokens / (time.monotonic() - start)
            print(f"step {step}/{steps}  loss {loss_sum / log_every:.4f}  {speed:.0f} tokens/s", flush=True)
            loss_sum = 0.0
        if step % save_every == 0 or step == steps:
            save_half(model, tokenizer, out)


@torch.no_grad()
def evaluate(
    model: Qwen3ForCausalLM, renderer: Renderer, split: Split = "test", n: int = 200, seed: int = 1
) -> dict[str, float]:
    """Share of samples per skill that greedy decoding would write exactly.

    Greedy text equals the target exactly where each target token is the most likely one after the target so far, so
    one forward pass decides.
    """
    scores: dict[str, float] = {}
    for skill, (draw, _) in SKILLS.items():
        rng = random.Random(f"{seed} {skill}")
        rows = sorted((token_row(encode(renderer, draw(rng, split))) for _ in range(n)), key=length)
        right = 0
        for at in range(0, n, 25):
            part = rows[at : at + 25]
            logits_NV, targets_N, row_N = trained_logits(model, part, renderer.pad_id)
            wrong_rows = row_N[logits_NV.argmax(-1) != targets_N].unique()
            right += len(part) - len(wrong_rows)
        scores[skill] = round(right / n, 3)
    return scores


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_base(out: Path, steps: int, seed: int = 0) -> dict[str, object]:
    """Trains, writes and evaluates the base model (as stored, in half precision); returns and writes its record."""
    start = time.monotonic()
    tokenizer = make_tokenizer(seed=seed)
    model = new_model(tokenizer, seed)
    out.mkdir(parents=True, exist_ok=True)
    train(model, tokenizer, out, steps=steps, seed=seed)
    stored, tokenizer = load_base(out)
    record: dict[str, object] = {
        "command": f"python -m tirkit.embedded.base --out DIR --steps {steps} --seed {seed}",
        "sha256": file_sha256(out / "model.safetensors"),
        "parameters": stored.num_parameters(),
        "vocabulary": len(tokenizer),
        "seconds": round(time.monotonic() - start),
        "threads": torch.get_num_threads(),
        "test_exact_match": evaluate(stored, Renderer(tokenizer)),
    }
    (out / "record.json").write_text(json.dumps(record, indent=2) + "\n")
    return record


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description="Train the embedded base model: general skills, no tools.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model, tokenizer and record to")
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(json.dumps(make_base(args.out, args.steps, args.seed), indent=2))


if __name__ == "__main__":
    main()
