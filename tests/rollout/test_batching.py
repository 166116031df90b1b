import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tirkit.rollout import batching
from tirkit.rollout.batching import BatchingSession, common
from tirkit.rollout.group import group_requests
from tirkit.rollout.loop import RolloutSettings, rollout
from tirkit.rollout.policy import GenerateRequest, Generation
from tirkit.rollout.transformers_policy import RecomputingSession, TransformersPolicy
from tirkit.types import Message, Task, Trajectory

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
QWEN3 = {**SHAPE, "head_dim": 16}
MODELS: dict[str, Callable[[int], PreTrainedModel]] = {
    "qwen3": lambda v: Qwen3ForCausalLM(Qwen3Config(vocab_size=v, **QWEN3)),
    "qwen2": lambda v: Qwen2ForCausalLM(Qwen2Config(vocab_size=v, **SHAPE)),
    "llama": lambda v: LlamaForCausalLM(LlamaConfig(vocab_size=v, **SHAPE)),
    "mistral, window 7": lambda v: MistralForCausalLM(MistralConfig(vocab_size=v, sliding_window=7, **SHAPE)),
    "qwen3, window 7 in the second layer": lambda v: Qwen3ForCausalLM(
        Qwen3Config(vocab_size=v, use_sliding_window=True, sliding_window=7, max_window_layers=1, **QWEN3)
    ),
}


def ask(ids: list[int], seed: int = 0, limit: int = 12) -> GenerateRequest:
    return GenerateRequest(Task(id="t", prompt=()), (), (), tuple(ids), seed, limit)


def random_ids(length: int, seed: int) -> list[int]:
    return torch.randint(50, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def sharp(model: PreTrainedModel) -> PreTrainedModel:
    """Far from uniform, so that greedy choices are far from ties."""
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(30)
        model.get_output_embeddings().weight.mul_(20)
    return model.eval()


def logits_of(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """(T, V), one forward over everything."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("max_batch", [3, 16])
def test_greedy_over_turns_equals_hf_generate(tiny: SimpleNamespace, kind: str, max_batch: int) -> None:
    torch.manual_seed(1)
    model = sharp(MODELS[kind](len(tiny.tokenizer)))
    policy = TransformersPolicy(model, tiny.renderer, temperature=0, max_batch=max_batch)
    head = random_ids(20, 99)
    prompts = [[*head, *random_ids(length, length)] for length in (1, 3, 30, 3, 17)] + [random_ids(5, 0)]
    with policy.session() as session:
        assert type(session) is BatchingSession
        for turn in range(3):
            for key, ids in enumerate(prompts):
                session.submit(key, ask(ids, limit=6 + key))
            done: dict[int, Generation] = {}
            while len(done) < len(prompts):
                done |= dict(session.advance())
            for key, ids in enumerate(prompts):
                assert list(done[key].ids) == hf_greedy(tiny, model, ids, 6 + key)
                logps = logits_of(model, [*ids, *done[key].ids])[len(ids) - 1 : -1].log_softmax(-1)
                expected = logps.gather(1, torch.tensor(done[key].ids)[:, None])[:, 0]
                assert done[key].logps == pytest.approx(expected.tolist(), abs=1e-4)
                prompts[key] = [*ids, *done[key].ids, *random_ids(1 + 4 * key, 10 * turn + key)]


def hf_greedy(tiny: SimpleNamespace, model: PreTrainedModel, ids: list[int], limit: int) -> list[int]:
    end = {"eos_token_id": tiny.renderer.end_of_turn_id, "pad_token_id": tiny.renderer.pad_id}
    theirs = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=limit, **end)
    return theirs[0, len(ids) :].tolist()


def test_a_turn_that_is_given_up_makes_room(tiny: SimpleNamespace) -> None:
    policy = TransformersPolicy(tiny.model, tiny.renderer, max_batch=2)
    requests = [ask(random_ids(5, key), seed=key, limit=9) for key in range(5)]
    alone = policy.generate(requests)
    done: dict[int, Generation] = {}
    with policy.session() as session:
        for key, request in enumerate(requests):
            session.submit(key, request)
        session.advance()
        session.forget(0)  # being read
        session.forget(3)  # waiting
        while len(done) < 2:
            done |= dict(session.advance())
            for key, ids in session.written():
                assert tuple(ids) == alone[key].ids[: len(ids)]
                if key == 1 and len(ids) == 3:
                    session.forget(1)  # being written
        assert not session.advance()
        assert not session.written()
    assert {key: generation.ids for key, generation in done.items()} == {key: alone[key].ids for key in (2, 4)}


@pytest.mark.parametrize("policys", [0.0, 1.0])
def test_a_request_has_its_own_temperature(tiny: SimpleNamespace, policys: float) -> None:
    temperatures = [0.0, 1.0, 0.5, None]
    requests = [replace(ask(random_ids(5, 0), seed=3), temperature=temperature) for temperature in temperatures]
    together = TransformersPolicy(tiny.model, tiny.renderer, policys).generate(requests)
    for generation, temperature in zip(together, temperatures, strict=True):
        own = policys if temperature is None else temperature
        (alone,) = TransformersPolicy(tiny.model, tiny.renderer, own).generate([ask(random_ids(5, 0), seed=3)])
        assert generation.ids == alone.ids
        assert generation.logps == pytest.approx(alone.logps, abs=1e-5)


def test_a_model_that_cannot_be_cached_is_recomputed(
    tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    requests = [ask(random_ids(length, length), seed=length) for length in (3, 9, 20)]
    cached = TransformersPolicy(tiny.model, tiny.renderer, 1.0).generate(requests)
    monkeypatch.setattr(type(tiny.model), "_supports_attention_backend", False)
    policy = TransformersPolicy(tiny.model, tiny.renderer, 1.0, max_batch=2)
    assert "Qwen3ForCausalLM does not use the attention interface" in caplog.text
    assert isinstance(policy.session(), RecomputingSession)
    for one, other in zip(policy.generate(requests), cached, strict=True):
        assert one.ids == other.ids
        assert one.logps == pytest.approx(other.logps, abs=1e-4)


def test_copies_and_shared_heads_are_read_once(tiny: SimpleNamespace) -> None:
    head = random_ids(40, 1)
    one, other = [*head, *random_ids(10, 2)], [*head, *random_ids(8, 3)]
    policy = TransformersPolicy(tiny.model, tiny.renderer, 1.0)
    requests = [ask(one, seed, limit=1) for seed in range(8)] + [ask(other, seed, limit=1) for seed in range(8)]
    policy.generate(requests)
    # The first 49 tokens of one; then what the other does not share, but for its last: 48 - 40 - 1 = 7. Those last ones
    # are read by the step, one for each row.
    assert (policy.counts.prefilled, policy.counts.decoded, policy.counts.forwards) == (49 + 7, 16, 3)
    # The same with room for two rows at a time: what a slot still holds is not read again.
    narrow = TransformersPolicy(tiny.model, tiny.renderer, 1.0, max_batch=2)
    narrow.generate(requests)
    assert narrow.counts.prefilled == 49 + 7


def test_after_a_reply_only_the_new_tokens_are_read(tiny: SimpleNamespace) -> None:
    policy = TransformersPolicy(tiny.model, tiny.renderer, 1.0)
    with policy.session() as session:
        ids = random_ids(30, 0)
        session.submit(7, ask(ids, limit=5))
        done = [pair for _ in range(6) for pair in session.advance()]
        assert policy.counts.prefilled == 29
        assert policy.counts.decoded == len(done[0][1].ids)
        ids += [*done[0][1].ids, *random_ids(9, 1)]
        session.submit(7, ask(ids, limit=1))
        session.advance()
        # The last token that was sampled and the reply, but for the reply's last token.
        assert policy.counts.prefilled == 29 + 1 + 9 - 1


def play(tiny: SimpleNamespace, policy: TransformersPolicy, workers: int = 0) -> list[Trajectory]:
    """Twelve attempts that open in a selection, so that documents are handed back; the tools are never reached."""
    prompt = (Message(role="user", content="2 + 3?"),)
    tasks = [Task(id=str(i), prompt=prompt, calls_only=True) for i in range(3)]
    settings = RolloutSettings(max_turns=4, max_new_tokens=20, workers=workers)
    return rollout(group_requests(tasks, 4, 0), policy, tiny.renderer, tiny.dialect, tiny.tools, None, settings)


class Picky:
    """A constraint under which every turn is a selection of one tool, whatever the model is like."""

    start = 1  # rows in state 0 are not masked

    def __init__(self, tiny: SimpleNamespace):
        self.ids = [-1, *tiny.renderer.completion_ids(tiny.dialect.print_selection(("mul",)))]

    def begin(self, request: GenerateRequest) -> int:
        return self.start

    def next(self, state: int, token: int) -> int:
        return state + 1

    def mask(self, logps_BV: torch.Tensor, states: list[int]) -> torch.Tensor:
        masked = torch.full_like(logps_BV, -math.inf)
        for row, state in enumerate(states):
            masked[row, self.ids[state]] = 0
        return masked


def test_a_rollout_reads_a_group_once_and_then_replies_only(tiny: SimpleNamespace) -> None:
    picky = Picky(tiny)
    policy = TransformersPolicy(tiny.model, tiny.renderer, 1.0, allow=picky)
    trajectories = play(tiny, policy)
    prompt = len(trajectories[0].prompt_ids)
    replies = sum(len(turn.reply_ids) for t in trajectories for turn in t.turns)
    resumed = sum(len(t.turns) - 1 for t in trajectories)
    # All three tasks have the same prompt. Each later turn reads the end of the turn before it and the reply, one of
    # these tokens in a step.
    assert policy.counts.prefilled == prompt - 1 + replies
    assert policy.counts.decoded == sum(len(turn.ids) for t in trajectories for turn in t.turns)
    assert (resumed, replies > 0) == (12, True)


@pytest.mark.parametrize("max_batch", [1, 5])
def test_rollouts_do_not_depend_on_the_room_there_is(tiny: SimpleNamespace, max_batch: int) -> None:
    picky = Picky(tiny)
    wide = TransformersPolicy(tiny.model, tiny.renderer, 1.0, allow=picky)
    narrow = TransformersPolicy(tiny.model, tiny.renderer, 1.0, max_batch, picky)
    for one, other in zip(play(tiny, wide), play(tiny, narrow), strict=True):
        assert [turn.ids for turn in one.turns] == [turn.ids for turn in other.turns]
        for a, b in zip(one.turns, other.turns, strict=True):
            assert a.logps == pytest.approx(b.logps, abs=1e-4)


def test_a_repeated_rollout_has_the_same_bits(tiny: SimpleNamespace) -> None:
    policy = TransformersPolicy(tiny.model, tiny.renderer, 2.0)
    assert play(tiny, policy) == play(tiny, policy)


def test_long_prompts_are_read_in_pieces(tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [ask(random_ids(length, length), seed=length) for length in (3, 40, 45, 100)]
    whole = TransformersPolicy(tiny.model, tiny.renderer, 1.0).generate(requests)
    monkeypatch.setattr(batching, "PIECE", 16)
    policy = TransformersPolicy(tiny.model, tiny.renderer, 1.0)
    pieces = policy.generate(requests)
    assert policy.counts.prefilled == 2 + 39 + 44 + 99
    for one, other in zip(whole, pieces, strict=True):
        assert one.ids == other.ids
        assert one.logps == pytest.approx(other.logps, abs=1e-4)


def test_a_parked_conversation_gives_up_its_slot_and_is_read_again(tiny: SimpleNamespace) -> None:
    policy = TransformersPolicy(tiny.model, tiny.renderer, 0, max_batch=1)
    first, second = random_ids(10, 1), random_ids(10, 2)
    with policy.session() as session:
        turns: list[Generation] = []
        for key, ids in ((0, first), (1, second)):
            session.submit(key, ask(ids, limit=4))
            while not (done := session.advance()):
                pass
            turns.append(done[0][1])
        session.submit(0, ask([*first, *turns[0].ids, 60], limit=4))  # its slot was taken by the other
        while not (done := session.advance()):
            pass
    assert done[0][1].ids == policy.generate([ask([*first, *turns[0].ids, 60], limit=4)])[0].ids


def test_sampled_sequences_have_the_models_distribution() -> None:
    # A vocabulary of 6, three tokens each: 216 sequences at most, their exact probabilities from the full model.
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=6, **{**QWEN3, "num_hidden_layers": 1})).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(30)
    renderer = SimpleNamespace(end_of_turn_id=5, pad_id=0, decode=str)
    policy = TransformersPolicy(model, renderer, temperature=1.5, max_batch=300)  # type: ignore[arg-type]
    n, prompts = 3000, [[1, 2], [3]]
    drawn = policy.generate([ask(prompts[i % 2], seed=i, limit=3) for i in range(2 * n)])
    for i, prompt in enumerate(prompts):
        counts = Counter(generation.ids for generation in drawn[i::2])
        chances = sequence_chances(model, prompt, 3, 1.5)
        assert sum(chances.values()) == pytest.approx(1, abs=1e-5)
        often = [ids for ids in chances if n * chances[ids] >= 5]
        rest = n - sum(counts[ids] for ids in often), n * (1 - sum(chances[ids] for ids in often))
        chi2 = sum((counts[ids] - n * chances[ids]) ** 2 / (n * chances[ids]) for ids in often)
        chi2 += (rest[0] - rest[1]) ** 2 / rest[1]
        # chi² with k = len(often) degrees of freedom: mean k, standard deviation √(2k); four of them.
        assert chi2 < len(often) + 4 * math.sqrt(2 * len(often))


def sequence_chances(model: PreTrainedModel, ids: list[int], left: int, temperature: float) -> dict[tuple, float]:
    """The probability of every completion of at most `left` tokens; token 5 ends one."""
    chances: dict[tuple, float] = {}
    for token, p in enumerate((logits_of(model, ids)[-1] / temperature).softmax(-1).tolist()):
        if token == 5 or left == 1:
            chances[(token,)] = p
        else:
            rest = sequence_chances(model, [*ids, token], left - 1, temperature)
            chances |= {(token, *tail): p * q for tail, q in rest.items()}
    return chances


def test_common() -> None:
    assert common([], (1,)) == 0
    assert common([1, 2, 3], (1, 2)) == 2
    assert common([1, 2, 3], (1, 2, 4)) == 2
