import pytest
import torch

from tirkit.text.masks import TokenRow
from tirkit.training.prefix import cut_rows, cut_trees, plain_batch, tree_batch


def row(prompt, completion, mask=None):
    return TokenRow(tuple(prompt), tuple(completion), tuple(mask or [1] * len(completion)), (0.0,) * len(completion))


def test_plain_batch_points_at_what_it_says():
    # rows of 6: p p p c c pad and p p p c c c, whose second completion token was not sampled
    batch = plain_batch([row([1, 2, 3], [4, 5]), row([1, 2, 3], [6, 7, 8], [1, 0, 1])], pad_id=0)
    assert batch.ids_RL.tolist() == [[1, 2, 3, 4, 5, 0], [1, 2, 3, 6, 7, 8]]
    assert batch.source_N.tolist() == [2, 3, 6 + 2, 6 + 4]
    assert batch.target_N.tolist() == [4, 5, 6, 8]
    assert batch.row_N.tolist() == [0, 0, 1, 1]


def test_tree_batch_by_hand():
    # 1 2 ┬ 3 ┬ 4 (5)     row 0: prompt 1 2, the last token predicts nothing
    #     │   └ 6 (7)     row 2: parts from it after 3
    #     └ 8 (9)         row 1: parts from both behind the prompt
    # 1 (3)               row 3: another prompt, the first token of the tree's; its mask leaves out the rest
    rows = [row([1, 2], [3, 4, 5]), row([1, 2], [8, 9]), row([1, 2], [3, 6, 7], [1, 0, 1]), row([1], [3, 8], [1, 0])]
    batch = tree_batch(rows)
    assert batch.ids_RL.tolist() == [[1, 2, 3, 4, 6, 8]]
    assert batch.positions_RL.tolist() == [[0, 1, 2, 3, 3, 2]]
    assert batch.end_L.tolist() == [6, 6, 5, 4, 5, 6]
    assert batch.source_N.tolist() == [1, 2, 3, 1, 5, 1, 4, 0]
    assert batch.target_N.tolist() == [3, 4, 5, 8, 9, 3, 7, 3]
    assert batch.row_N.tolist() == [0, 0, 0, 1, 1, 2, 2, 3]


@pytest.mark.parametrize("seed", range(5))
def test_every_position_sees_its_row_and_nothing_else(make_branching, seed):
    rows = make_branching(seed, num_rows=12)
    batch = tree_batch(rows)
    ids, positions, end = batch.ids_RL[0], batch.positions_RL[0], batch.end_L
    order = [(r, t) for r, one in enumerate(rows) for t, on in enumerate(one.tool_mask) if on]
    for (r, t), source, target, of in zip(order, batch.source_N, batch.target_N, batch.row_N, strict=True):
        seen = (torch.arange(len(ids)) <= source) & (source < end)
        assert ids[seen].tolist() == [*rows[r].prompt_ids, *rows[r].completion_ids[:t]]
        assert positions[seen].tolist() == list(range(int(seen.sum())))
        assert (target, of) == (rows[r].completion_ids[t], r)
    prefixes = {
        (*one.prompt_ids, *one.completion_ids[:t])[: n + 1]
        for one in rows
        for t in [max((t for t, on in enumerate(one.tool_mask) if on), default=0)]
        for n in range(len(one.prompt_ids) + t)
    }
    assert len(ids) == len(prefixes)  # each distinct prefix exactly once


def test_a_group_costs_its_prompt_once():
    rows = [row(range(100, 200), range(first, first + 10)) for first in range(8)]
    assert tree_batch(rows).ids_RL.shape == (1, 100 + 8 * 9)
    assert plain_batch(rows, 0).ids_RL.shape == (8, 110)


@pytest.mark.parametrize("cut", [cut_rows, cut_trees])
@pytest.mark.parametrize("max_tokens", [1, 40, 120, 10_000])
def test_micro_batches_hold_every_row_once_and_respect_the_bound(make_branching, cut, max_tokens):
    rows = [one for seed in range(3) for one in make_branching(seed, num_rows=6)]
    pieces = cut(rows, max_tokens)
    assert sorted(map(id, (one for piece in pieces for one in piece))) == sorted(map(id, rows))
    batch = tree_batch if cut is cut_trees else lambda piece: plain_batch(piece, 0)
    assert all(len(piece) == 1 or batch(piece).ids_RL.numel() <= max_tokens for piece in pieces)
    if max_tokens == 10_000:
        assert len(pieces) == 1


def test_groups_that_fit_stay_together_and_larger_ones_are_split():
    rows = [row([prompt] * 500, range(first, first + 6)) for prompt in (100, 101, 102) for first in range(4)]
    # A group takes 500 + 4 * 5 = 520 tokens: one, not two, fit into 1039; two into 1040; half a group into 510.
    for limit, want in ((1039, [4, 4, 4]), (1040, [4, 8]), (510, [2] * 6)):
        pieces = cut_trees(rows, limit)
        assert sorted(map(len, pieces)) == want
        assert all(len({one.prompt_ids for one in piece}) == -(-len(piece) // 4) for piece in pieces)
    assert cut_trees([], 10) == cut_rows([], 10) == []


def test_rows_that_make_no_sense_are_refused():
    for batch in (lambda rows: plain_batch(rows, 0), tree_batch):
        with pytest.raises(ValueError, match="empty prompt"):
            batch([row([], [1, 2])])
        with pytest.raises(ValueError, match="mask of 1"):
            batch([row([1], [1, 2], [1])])
