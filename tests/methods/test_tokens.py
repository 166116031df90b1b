import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3ForCausalLM

from tirkit.embedded.model import build_tokenizer, tiny_config
from tirkit.methods.tinr.tokens import Growth, add_lora, grow_vocabulary
from tirkit.text.index import ToolIndex, build_index
from tirkit.text.render import Renderer
from tirkit.types import ToolSchema

TOOLS = [ToolSchema(name=name) for name in ("add", "get weather", "get")]
TEXTS = ["add get weather get weather add tool token"]


def make(tied: bool, rows: int = 0) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """A small model with `rows` rows (default: as many as its tokenizer has entries)."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(TEXTS, size=300)
    config = tiny_config(rows or len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    config.num_hidden_layers, config.layer_types, config.tie_word_embeddings = 1, config.layer_types[:1], tied
    return Qwen3ForCausalLM(config), tokenizer


def grow(tied: bool, rows: int = 0) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast, ToolIndex, Growth]:
    model, tokenizer = make(tied, rows)
    index = build_index(TOOLS)
    return model, tokenizer, index, grow_vocabulary(model, tokenizer, index, TOOLS)


def inputs(model: torch.nn.Module) -> torch.Tensor:
    return model.get_input_embeddings().weight  # type: ignore[operator]


def outputs(model: torch.nn.Module) -> torch.Tensor:
    return model.get_output_embeddings().weight  # type: ignore[operator]


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_are_means_of_name_rows(tied: bool) -> None:
    before, tokenizer = make(tied)
    parts = [tokenizer(tool.name)["input_ids"] for tool in TOOLS]
    model, tokenizer, index, growth = grow(tied)
    old = growth.rows_before
    assert growth.added == index.tokens  # the tokenizer has the control strings already
    assert growth.rows_after == inputs(model).shape[0] == outputs(model).shape[0] == -(-len(tokenizer) // 64) * 64
    assert model.config.vocab_size == growth.rows_after
    assert torch.equal(inputs(model)[:old], inputs(before))
    assert torch.equal(outputs(model)[:old], outputs(before))
    assert (inputs(model).data_ptr() == outputs(model).data_ptr()) == tied
    norm = outputs(before).norm(dim=1).mean()
    for token_id, sub in zip(growth.ids, parts, strict=True):
        torch.testing.assert_close(inputs(model)[token_id], inputs(before)[sub].mean(0))
        if not tied:
            mean = outputs(before)[sub].mean(0)
            torch.testing.assert_close(outputs(model)[token_id], mean / mean.norm() * norm)
    # Rows that only pad get the mean: an untrained entry must not stand out.
    torch.testing.assert_close(inputs(model)[-1], inputs(before).mean(0))


def test_padded_vocabularies_never_shrink() -> None:
    model, _, _, growth = grow(tied=True, rows=640)
    assert growth.rows_before == growth.rows_after == inputs(model).shape[0] == 640


def test_padding_rows_do_not_count_in_the_means() -> None:
    model, tokenizer = make(tied=False, rows=640)
    used = len(tokenizer)
    with torch.no_grad():
        outputs(model)[used:] = 1e6
    growth = grow_vocabulary(model, tokenizer, build_index(TOOLS), TOOLS)
    norm = outputs(model)[:used].norm(dim=1).mean()
    torch.testing.assert_close(outputs(model)[growth.ids[0]].norm(), norm)


def test_growing_again_adds_nothing_and_keeps_trained_rows() -> None:
    model, tokenizer, index, growth = grow(tied=True)
    with torch.no_grad():
        inputs(model)[growth.ids[0]] = 7.0
    again = grow_vocabulary(model, tokenizer, index, TOOLS)
    assert again.added == again.ids == ()
    assert (inputs(model)[growth.ids[0]] == 7).all()
    later = [*TOOLS, ToolSchema(name="weather")]
    third = grow_vocabulary(model, tokenizer, build_index(later), later)
    assert third.added == ("<<weather>>",)
    assert (inputs(model)[growth.ids[0]] == 7).all()


@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load_keep_trained_rows_bit_equal(tied: bool, tmp_path: Path) -> None:
    model, tokenizer, index, _ = grow(tied)
    ids = torch.tensor([Renderer(tokenizer, index).completion_ids("<tool_token>\n<<get weather>>\n</tool_token>")])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, loaded_tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
    assert (inputs(loaded).data_ptr() == outputs(loaded).data_ptr()) == tied
    assert loaded_tokenizer.convert_tokens_to_ids(list(index.tokens)) == tokenizer.convert_tokens_to_ids(
        list(index.tokens)
    )
    assert Renderer(loaded_tokenizer, index).completion_ids("<<get>> get") == Renderer(tokenizer, index).completion_ids(
        "<<get>> get"
    )
    # Growing what was loaded is a no-op too, should a recipe do it.
    grow_vocabulary(loaded, loaded_tokenizer, index, TOOLS)
    assert torch.equal(inputs(loaded), inputs(model))
    assert torch.equal(outputs(loaded), outputs(model))


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_that_was_trained_before_can_be_grown_and_trained_on(tied: bool) -> None:
    model, tokenizer = make(tied)
    ids = torch.tensor([[1, 2, 3]])
    loss = model(input_ids=ids, labels=ids).loss  # kept alive on purpose, as a trainer's log may
    loss.backward()
    growth = grow_vocabulary(model, tokenizer, build_index(TOOLS), TOOLS)
    model.zero_grad()
    ids = torch.tensor([growth.ids])
    model(input_ids=ids, labels=ids).loss.backward()
    assert inputs(model).grad.shape == inputs(model).shape  # type: ignore[union-attr]
    assert outputs(model).grad.shape == inputs(model).shape  # type: ignore[union-attr]


def test_tool_tokens_are_not_special() -> None:
    _, tokenizer, index, growth = grow(tied=True)
    assert tokenizer.decode(list(growth.ids), skip_special_tokens=True) == "".join(index.tokens)


@pytest.mark.parametrize("tied", [True, False])
def test_lora_trains_new_rows_and_merges_into_a_plain_model(tied: bool, tmp_path: Path) -> None:
    model, tokenizer, index, growth = grow(tied)
    start = copy.deepcopy(model.state_dict())
    lora = add_lora(model, growth.ids, rank=4)
    ids = torch.tensor([Renderer(tokenizer, index).completion_ids("<tool_token>\n<<get weather>>\n</tool_token>")])
    optimizer = torch.optim.AdamW([p for p in lora.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        lora(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    expected = lora(input_ids=ids).logits
    plain = lora.merge_and_unload()
    assert type(plain) is Qwen3ForCausalLM
    assert set(plain.state_dict()) == set(start)
    torch.testing.assert_close(plain(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)
    others = [row for row in range(growth.rows_after) if row not in growth.ids]
    for table, before in (
        (inputs(plain), start["model.embed_tokens.weight"]),
        (outputs(plain), start["lm_head.weight"]),
    ):
        assert not torch.equal(table[list(growth.ids)], before[list(growth.ids)])
        assert torch.equal(table[others], before[others])
    plain.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(inputs(loaded), inputs(plain))
    assert torch.equal(outputs(loaded), outputs(plain))
    assert (inputs(loaded).data_ptr() == outputs(loaded).data_ptr()) == tied


def test_shared_tokens_start_from_all_their_tools() -> None:
    model, tokenizer = make(tied=True)
    index = build_index(TOOLS, "hierarchical")  # 3 tools: groups of 2, by the alphabet: add, get | get weather
    group = tokenizer("add get")["input_ids"]
    growth = grow_vocabulary(model, tokenizer, index, TOOLS)
    row = growth.ids[growth.added.index(index.surface("add").partition(">>")[0] + ">>")]
    torch.testing.assert_close(inputs(model)[row], inputs(model)[group].mean(0))


def test_an_index_of_other_tools_is_refused() -> None:
    model, tokenizer = make(tied=True)
    with pytest.raises(ValueError, match="get weather"):
        grow_vocabulary(model, tokenizer, build_index(TOOLS), TOOLS[:1])
