import json
import math
from dataclasses import replace

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, TrainerCallback

from tirkit.methods.tinr.tokens import add_lora
from tirkit.store import StoreError
from tirkit.training.base import rows_of_step
from tirkit.training.callbacks import ProgressCallback, last_checkpoint
from tirkit.training.sft import SFTSettings, WeightedRow, train_sft

SETTINGS = SFTSettings(lr=0.01, batch_size=4, max_steps=6, schedule="constant", warmup=0.0, log_steps=1)


@pytest.fixture
def rows(make_row):
    """Ten ragged rows of two kinds, weights 1 and 0.3, every third with a turn that was not sampled."""
    shapes = [(3, 4), (9, 2), (5, 12), (20, 8), (4, 1), (7, 7), (2, 30), (11, 5), (6, 6), (15, 3)]
    return [
        WeightedRow(make_row(i, p, c, masked=2 if i % 3 == 2 else 0, prompt_seed=i), 0.3 if i % 2 else 1.0, "ab"[i % 2])
        for i, (p, c) in enumerate(shapes)
    ]


class Watch(TrainerCallback):
    """Keeps the gradients of every step, and can stop the run."""

    def __init__(self, stop_at=None):
        self.gradients, self.stop_at = [], stop_at

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop |= state.global_step == self.stop_at


def mean_loss(model, row):
    """Mean over the trained tokens of -log p, by the library's own forward."""
    logps = model(torch.tensor([[*row.prompt_ids, *row.completion_ids]])).logits[0].log_softmax(-1)
    start = len(row.prompt_ids) - 1
    each = [-logps[start + t, row.completion_ids[t]] for t, on in enumerate(row.tool_mask) if on]
    return sum(each) / len(each)


def test_loss_is_the_weighted_mean_over_rows_of_means_over_tokens(make_model, rows, tmp_path, gradients):
    model, watch = make_model(), Watch()
    batch = [rows[i] for i in rows_of_step(0, len(rows), 4, seed=0)]
    loss = sum(row.weight * mean_loss(model, row.row) for row in batch) / 4
    by_kind = {kind: [mean_loss(model, row.row).item() for row in batch if row.kind == kind] for kind in "ab"}
    want = gradients(model, loss)
    model.zero_grad()
    report = train_sft(
        model, rows, replace(SETTINGS, max_steps=1, max_grad_norm=0), tmp_path, pad_id=0, callbacks=[watch]
    )
    for got, (name, gradient) in zip(watch.gradients[0], want.items(), strict=True):
        torch.testing.assert_close(got, gradient, atol=1e-6, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    line = report.curve[0]
    assert line["loss"] == pytest.approx(loss.item(), abs=1e-5)
    for kind, losses in by_kind.items():
        assert line[f"loss_{kind}"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert report.tokens == sum(sum(row.row.tool_mask) for row in batch)


def test_how_rows_are_cut_and_packed_does_not_matter(make_model, rows, tmp_path):
    runs = []
    for number, (packing, max_tokens) in enumerate(
        [(True, 10_000), (True, 40), (True, 1), (False, 10_000), (False, 1)]
    ):
        watch = Watch()
        settings = replace(SETTINGS, packing=packing, max_tokens=max_tokens, max_steps=3)
        train_sft(make_model(), rows, settings, tmp_path / str(number), pad_id=0, callbacks=[watch])
        runs.append(watch.gradients)
    for other in runs[1:]:
        for step, want in zip(other, runs[0], strict=True):
            for a, b in zip(step, want, strict=True):
                torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-4)


def test_activations_that_are_recomputed_give_the_same_gradients(make_model, rows, tmp_path):
    runs, forwards = [], []
    for again in (False, True):
        watch, model, count = Watch(), make_model(), []
        for layer in model.model.layers:
            layer.mlp.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        settings = replace(SETTINGS, gradient_checkpointing=again, max_steps=3)
        train_sft(model, rows, settings, tmp_path / str(again), pad_id=0, callbacks=[watch])
        runs.append(watch.gradients)
        forwards.append(len(count))
    assert forwards[1] == 2 * forwards[0]
    for other, want in zip(runs[1], runs[0], strict=True):
        for a, b in zip(other, want, strict=True):
            torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-4)


def test_no_padding_and_no_shared_prefix_is_computed_twice(make_model, make_row, tmp_path):
    # Four rows with one prompt of 9 tokens and completions of 4, 6, 20, 5, the last token of which predicts nothing:
    # 9 + 3 + 5 + 19 + 4 = 40 tokens. Padded: 4 rows of 29.
    rows = [WeightedRow(make_row(i, 9, c)) for i, c in enumerate((4, 6, 20, 5))]
    computed = []
    for packing in (True, False):
        model = make_model()
        model.get_input_embeddings().register_forward_hook(lambda module, args, out: computed.append(args[0].numel()))
        settings = replace(SETTINGS, packing=packing, max_steps=1)
        train_sft(model, rows, settings, tmp_path / str(packing), pad_id=0)
    assert computed == [40, 4 * 29]


def test_a_model_that_cannot_pack_is_trained_on_padded_rows(make_model, rows, tmp_path, gradients, caplog):
    model = make_model(Gemma2Config, Gemma2ForCausalLM, attn_implementation="eager")
    watch = Watch()
    batch = [rows[i] for i in rows_of_step(0, len(rows), 4, seed=0)]
    want = gradients(model, sum(row.weight * mean_loss(model, row.row) for row in batch) / 4)
    model.zero_grad()
    settings = replace(SETTINGS, max_steps=1, max_grad_norm=0)
    train_sft(model, rows, settings, tmp_path, pad_id=0, callbacks=[watch])
    for got, gradient in zip(watch.gradients[0], want.values(), strict=True):
        torch.testing.assert_close(got, gradient, atol=1e-6, rtol=1e-4)
    assert "padded, not packed" in caplog.text


@pytest.mark.parametrize("tied", [True, False])
def test_lora_with_tool_tokens_trains(make_model, rows, tmp_path, gradients, tied):
    """The rows of the tool tokens train whole, through the head too; TRL's fused head cannot do this."""
    tool_ids = [40, 41, 49]
    model, watch = add_lora(make_model(tie_word_embeddings=tied), tool_ids, rank=2), Watch()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = [rows[i] for i in rows_of_step(0, len(rows), 4, seed=0)]
    want = gradients(model, sum(row.weight * mean_loss(model, row.row) for row in batch) / 4)
    model.zero_grad()
    settings = replace(SETTINGS, max_grad_norm=0, max_steps=40)
    report = train_sft(model, rows, settings, tmp_path, pad_id=0, callbacks=[watch])
    for got, (name, gradient) in zip(watch.gradients[0], want.items(), strict=True):
        torch.testing.assert_close(got, gradient, atol=1e-6, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    assert report.curve[-1]["loss_a"] < 0.9 * report.curve[0]["loss_a"]
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all("lora_" in name or "trainable_tokens_delta" in name for name in changed)
    table = model.merge_and_unload().get_output_embeddings().weight
    same = torch.isclose(table, make_model(tie_word_embeddings=tied).get_output_embeddings().weight).all(1)
    assert (~same).nonzero()[:, 0].tolist() == tool_ids


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_killed_run_goes_on_exactly(make_model, rows, tmp_path, optimizer):
    settings = replace(SETTINGS, optimizer=optimizer, schedule="cosine", warmup=0.2, save_steps=2)
    whole = make_model()
    report = train_sft(whole, rows, settings, tmp_path / "whole", pad_id=0)
    killed = make_model()
    train_sft(killed, rows, settings, tmp_path / "parts", pad_id=0, callbacks=[Watch(stop_at=3)])
    (tmp_path / "parts" / "checkpoint-5").mkdir()  # one that was being written when the run died
    (tmp_path / "parts" / "checkpoint-5" / "trainer_state.json").write_text('{"epoch": 0.')
    assert last_checkpoint(tmp_path / "parts").endswith("checkpoint-2")
    resumed = make_model()
    again = train_sft(resumed, rows, settings, tmp_path / "parts", pad_id=0)
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert (again.steps, again.tokens) == (report.steps, report.tokens)
    assert [line["loss"] for line in again.curve] == pytest.approx([line["loss"] for line in report.curve], abs=1e-7)


def test_a_finished_run_is_not_done_twice(make_model, rows, tmp_path):
    settings = replace(SETTINGS, save_steps=3)
    first = make_model()
    train_sft(first, rows, settings, tmp_path, pad_id=0)
    watch, second = Watch(), make_model()
    report = train_sft(second, rows, settings, tmp_path, pad_id=0, callbacks=[watch])
    assert report.steps == 6
    assert not watch.gradients
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_it_learns_and_reports(make_model, rows, tmp_path):
    lines = []
    settings = replace(SETTINGS, max_steps=None, epochs=20, schedule="linear", log_steps=5, optimizer="muon")
    progress = ProgressCallback(lambda *line: lines.append(line))
    report = train_sft(make_model(), rows, settings, tmp_path, pad_id=0, callbacks=[progress])
    assert report.steps == 50  # 20 epochs of 10 rows, 4 a step
    assert report.curve[-1]["loss_a"] < 0.2 * report.curve[0]["loss_a"]
    assert [(step, total) for step, total, _, _ in lines] == [(step, 50) for step in range(5, 51, 5)]
    assert lines[-1][3] == 0.0  # nothing left
    assert all(math.isfinite(value) for _, _, metrics, _ in lines for value in metrics.values())
    assert not list(tmp_path.glob("checkpoint-*"))


def test_the_clock_ends_a_run(make_model, rows, tmp_path):
    settings = replace(SETTINGS, max_steps=None, max_seconds=0.5, schedule="linear", log_steps=1)
    report = train_sft(make_model(), rows, settings, tmp_path, pad_id=0)
    assert 0.5 <= report.seconds < 2
    rates = [line["learning_rate"] for line in report.curve]
    assert rates[0] > 0.008
    assert rates[-1] < 0.005
    assert rates == sorted(rates, reverse=True)


def test_the_best_weights_are_kept(make_model, rows, tmp_path):
    seen = []

    def validate(model):
        assert not model.training
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"score": -abs(len(seen) - 2)}  # best the second time

    model = make_model()
    settings = replace(SETTINGS, validate_steps=2, keep_best=True)
    report = train_sft(model, rows, settings, tmp_path, pad_id=0, validate=validate)
    assert [line["validate_score"] for line in report.curve if "validate_score" in line] == [-1, 0, -1]
    assert all(torch.equal(value, seen[1][name]) for name, value in model.state_dict().items())


def test_every_row_comes_once_an_epoch_and_the_order_follows_from_the_seed():
    stream = [i for step in range(5) for i in rows_of_step(step, 10, 4, seed=3)]
    assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10))
    assert stream[:10] != stream[10:]
    assert stream == [i for step in range(5) for i in rows_of_step(step, 10, 4, seed=3)]
    assert stream != [i for step in range(5) for i in rows_of_step(step, 10, 4, seed=4)]


def test_what_cannot_be_trained_is_refused(make_model, rows, make_row, tmp_path):
    silent = WeightedRow(replace(make_row(1, 3, 2), tool_mask=(0, 0)), kind="use")
    for bad_rows, settings, match in (
        ([], SETTINGS, "no rows"),
        ([*rows, silent], SETTINGS, r"row 10 \(use\) has no trained token"),
        (rows, replace(SETTINGS, max_steps=None), "nothing ends this training"),
        (rows, replace(SETTINGS, keep_best=True), "validate"),
    ):
        with pytest.raises(ValueError, match=match):
            train_sft(make_model(), bad_rows, settings, tmp_path, pad_id=0)


def test_checkpoints_hold_the_clock(make_model, rows, tmp_path):
    report = train_sft(make_model(), rows, replace(SETTINGS, save_steps=6), tmp_path, pad_id=0)
    state = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["Clock"]["attributes"]["num_tokens"] == report.tokens


@pytest.mark.parametrize("packing", [True, False])
def test_rows_that_spare_tokens_learn_nothing_about_them(make_model, rows, tmp_path, packing):
    model, spared = make_model(), 5
    clean = [row for row in rows if spared not in row.completion_ids][:4]
    assert len(clean) == 4
    plain = replace(SETTINGS, max_steps=1, packing=packing)
    sparing = replace(plain, spared_ids=(spared,))
    with torch.no_grad():  # the row that spares, by the library's forward and a softmax without the token
        row = clean[0].row
        logits = model(torch.tensor([[*row.prompt_ids, *row.completion_ids]])).logits[0]
        logits[:, spared] = -math.inf
        start = len(row.prompt_ids) - 1
        each = [-logits[start + t].log_softmax(-1)[row.completion_ids[t]] for t, on in enumerate(row.tool_mask) if on]
        others = [mean_loss(model, one.row) for one in clean[1:]]
    marked = [replace(clean[0], weight=1.0, kind="own", spares=True)]
    marked += [replace(one, weight=1.0, kind="others") for one in clean[1:]]
    report = train_sft(model, marked, sparing, tmp_path / "run", pad_id=0)
    assert report.curve[0]["loss_own"] == pytest.approx((sum(each) / len(each)).item(), abs=1e-5)
    assert report.curve[0]["loss_others"] == pytest.approx(sum(others).item() / 3, abs=1e-5)


def test_a_row_cannot_spare_what_it_is_trained_on(make_model, rows, tmp_path):
    token = rows[0].completion_ids[0]
    with pytest.raises(ValueError, match=r"row 0 .* spares"):
        train_sft(
            make_model(), [replace(rows[0], spares=True)], replace(SETTINGS, spared_ids=(token,)), tmp_path, pad_id=0
        )


def test_a_full_disk_ends_the_run_with_the_remedy(make_model, rows, tmp_path, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")

    monkeypatch.setattr("transformers.Trainer._save_optimizer_and_scheduler", full)
    with pytest.raises(StoreError, match="free disk space"):
        train_sft(make_model(), rows, replace(SETTINGS, save_steps=2), tmp_path, pad_id=0)
