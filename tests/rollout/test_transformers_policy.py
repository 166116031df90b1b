import math
from types import SimpleNamespace

import pytest
import torch

from tirkit.rollout.allow import SelectionAutomaton
from tirkit.rollout.policy import GenerateRequest, RolloutError
from tirkit.rollout.sampling import sample
from tirkit.rollout.transformers_policy import TransformersPolicy
from tirkit.text.dialects import Dialect
from tirkit.types import Message, Task


def request(tiny: SimpleNamespace, text: str, seed: int = 0, limit: int = 12, suffix: str = "") -> GenerateRequest:
    """A question; `suffix` is what the assistant has written of its turn already."""
    messages = (Message(role="user", content=text),)
    ids = tiny.renderer.prompt_ids(messages) + tiny.renderer.completion_ids(suffix)[:-1]
    return GenerateRequest(Task(id=text, prompt=messages), (), messages, tuple(ids), seed, limit)


QUESTIONS = ("2 + 3?", "what is the product of 12 and 13?", "add", "what is the sum of 1 and 2 and 3 and 4?", "add")


def test_greedy_equals_hf_generate(tiny: SimpleNamespace) -> None:
    requests = [request(tiny, text, limit=20) for text in QUESTIONS]
    ours = TransformersPolicy(tiny.model, tiny.renderer, temperature=0).generate(requests)
    for one, generation in zip(requests, ours, strict=True):
        theirs = tiny.model.generate(
            torch.tensor([one.ids]),
            attention_mask=torch.ones(1, len(one.ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=20,
            eos_token_id=tiny.renderer.end_of_turn_id,
            pad_token_id=tiny.renderer.pad_id,
        )[0, len(one.ids) :]
        assert list(generation.ids) == theirs.tolist()


def test_log_probs_are_those_of_a_full_forward_at_the_temperature(tiny: SimpleNamespace) -> None:
    requests = [request(tiny, text, seed=i) for i, text in enumerate(QUESTIONS)]
    for one, generation in zip(
        requests, TransformersPolicy(tiny.model, tiny.renderer, temperature=0.7).generate(requests), strict=True
    ):
        ids = torch.tensor([one.ids + generation.ids])
        with torch.no_grad():
            logits = tiny.model(input_ids=ids).logits[0, len(one.ids) - 1 : -1]
        expected = (logits / 0.7).log_softmax(-1).gather(1, torch.tensor(generation.ids)[:, None])[:, 0]
        assert generation.logps == pytest.approx(expected.tolist(), abs=1e-5)


def test_results_do_not_depend_on_the_batch(tiny: SimpleNamespace) -> None:
    # The fifth question is the second again with another seed: a prompt shared inside the batch.
    requests = [request(tiny, QUESTIONS[i % 4], seed=i) for i in range(9)]
    together = TransformersPolicy(tiny.model, tiny.renderer, 1.0).generate(requests)
    apart = TransformersPolicy(tiny.model, tiny.renderer, 1.0, max_batch=2).generate(requests[::-1])[::-1]
    alone = [TransformersPolicy(tiny.model, tiny.renderer, 1.0).generate([one])[0] for one in requests]
    assert [g.ids for g in together] == [g.ids for g in apart] == [g.ids for g in alone]
    assert together[1].ids != together[5].ids  # same question, other seed
    for one, other in zip(together, alone, strict=True):
        assert one.logps == pytest.approx(other.logps, abs=1e-5)


def test_a_longer_limit_only_goes_on_further(tiny: SimpleNamespace) -> None:
    policy = TransformersPolicy(tiny.model, tiny.renderer, 1.0)
    short, long = policy.generate([request(tiny, "add", 5, limit=4), request(tiny, "add", 5, limit=30)])
    assert short.ids == long.ids[:4]


def test_finish_and_text(tiny: SimpleNamespace) -> None:
    requests = [request(tiny, text, seed=i, limit=40) for i in range(12) for text in QUESTIONS]
    ends = set()
    for generation in TransformersPolicy(tiny.model, tiny.renderer, 2.0).generate(requests):
        ended = generation.ids[-1] == tiny.renderer.end_of_turn_id
        assert generation.finish == ("stop" if ended else "length")
        assert ended or len(generation.ids) == 40
        assert tiny.renderer.end_of_turn_id not in generation.ids[:-1]
        assert generation.text == tiny.renderer.decode(generation.ids)
        ends.add(ended)
    assert ends == {True, False}


def test_training_mode_is_kept_and_dropout_is_off_meanwhile(tiny: SimpleNamespace) -> None:
    tiny.model.train()
    try:
        TransformersPolicy(tiny.model, tiny.renderer, 0).generate([request(tiny, "add")])
        assert tiny.model.training
    finally:
        tiny.model.eval()


def test_sample_inverts_the_distribution() -> None:
    # p = (.2, 0, .5, .3): u in [0, .2) → 0, [.2, .7) → 2, [.7, 1) → 3; the impossible token 1 never, even at its edge.
    logps = torch.tensor([[0.2, 0.0, 0.5, 0.3]]).log().expand(6, -1)
    uniforms = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 1 - 1e-12], dtype=torch.float64)
    assert sample(logps, uniforms).tolist() == [0, 0, 2, 2, 3, 3]


def test_sampled_frequencies_are_the_model_probabilities(tiny: SimpleNamespace) -> None:
    policy = TransformersPolicy(tiny.model, tiny.renderer, temperature=4.0, max_batch=1000)
    drawn = policy.generate([request(tiny, "add", seed, limit=1) for seed in range(4000)])
    chances = {g.ids[0]: math.exp(g.logps[0]) for g in drawn}
    for token, chance in chances.items():
        if chance > 0.02:  # standard error below .008 at n = 4000: six of them
            assert sum(g.ids[0] == token for g in drawn) / 4000 == pytest.approx(chance, abs=0.048)


def test_allow_list_keeps_selections_inside_the_grammar(tiny: SimpleNamespace) -> None:
    allow = SelectionAutomaton(tiny.renderer, tiny.dialect)
    requests = [request(tiny, "add", seed, limit=60) for seed in range(30)]
    start = tiny.renderer.completion_ids("<tool_token>")[:-1]
    # Ask for a selection: the automaton only sees what is generated, so start each row inside by hand.
    policy = TransformersPolicy(tiny.model, tiny.renderer, 3.0, allow=allow)
    allow.start = allow.next(0, start[0])
    for generation in policy.generate(requests):
        block, closed, _ = generation.text.partition("</tool_token>")
        parsed = tiny.dialect.parse(f"<tool_token>{block}</tool_token>")
        if closed:
            assert parsed.selected
            assert not [p for p in parsed.problems if "twice" not in p]
        else:
            assert set(block.split()) <= set(tiny.index.tokens)


@pytest.mark.parametrize("kind", ["atomic", "name"])
def test_automaton_accepts_what_the_dialect_prints(tiny: SimpleNamespace, kind: str) -> None:
    from tirkit.text.index import build_index

    index = build_index(list(tiny.tools.values()), kind)
    dialect = Dialect(index)
    allow = SelectionAutomaton(tiny.renderer, dialect, names=("add", "fail"))

    def accepts(names: tuple[str, ...]) -> bool:
        state = 0
        for token in tiny.renderer.completion_ids(dialect.print_selection(names)):
            allowed = allow.mask(torch.zeros(1, len(tiny.tokenizer)), [state])[0, token] == 0
            if not allowed:
                return False
            state = allow.next(state, token)
        return state == 0

    assert accepts(("add",))
    assert accepts(("fail", "add"))
    assert not accepts(("mul",))  # known, but not allowed here


def test_automaton_refuses_a_dialect_without_tool_tokens(tiny: SimpleNamespace) -> None:
    with pytest.raises(RolloutError, match="index"):
        SelectionAutomaton(tiny.renderer, Dialect())
