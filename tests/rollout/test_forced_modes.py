"""A mode forced by its tag: who chose it, what is trained, and that decoding goes on from it as from any token."""

from types import SimpleNamespace

import pytest
import torch

from tirkit.rollout.endpoint import EndpointPolicy, EndpointSettings
from tirkit.rollout.loop import RolloutSettings, rollout
from tirkit.rollout.policy import GenerateRequest, RolloutError, RolloutRequest, ScriptedPolicy, oracle
from tirkit.rollout.transformers_policy import RecomputingSession, TransformersPolicy
from tirkit.text.control import MODE_TAGS
from tirkit.text.dialects import Dialect
from tirkit.text.masks import token_row
from tirkit.tools.runtime import PythonToolbox
from tirkit.types import Message, Mode, StopReason, Task, ToolCall, Trajectory

ASK = Task(id="q", prompt=(Message(role="user", content="what is the sum of two integers"),), calls_only=True)
SUM = Task(
    id="s",
    prompt=(Message(role="user", content="2 + 3?"),),
    gold_rounds=((ToolCall(name="add", arguments={"a": 2, "b": 3}),),),
    answer="5",
    thoughts=("Sum.", "Done."),
)


def tag(tiny: SimpleNamespace, mode: Mode) -> int:
    return tiny.tokenizer.convert_tokens_to_ids(MODE_TAGS[mode])


def attempts(tiny: SimpleNamespace, requests: list[RolloutRequest], temperature: float = 1.0, **changes):
    policy = TransformersPolicy(tiny.model, tiny.renderer, temperature, **changes)
    settings = RolloutSettings(max_new_tokens=10)
    return rollout(requests, policy, tiny.renderer, Dialect(tiny.index, modes=True), tiny.tools, settings=settings)


def own_logps(tiny: SimpleNamespace, trajectory: Trajectory) -> list[float]:
    ids = [*trajectory.prompt_ids, *trajectory.turns[0].ids]
    with torch.no_grad():
        logps = tiny.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    start = len(trajectory.prompt_ids)
    return [logps[at - 1, ids[at]].item() for at in range(start, len(ids))]


@pytest.mark.parametrize("mode", ["think", "no_think"])
@pytest.mark.parametrize("trained", [False, True])
def test_the_tag_is_the_first_token_and_is_trained_only_where_asked(
    tiny: SimpleNamespace, mode: Mode, trained: bool
) -> None:
    [attempt] = attempts(tiny, [RolloutRequest(ASK, 0, 7, mode=mode, trains_mode=trained)])
    turn, row = attempt.turns[0], token_row(attempt)
    assert attempt.mode == mode
    assert turn.ids[0] == tag(tiny, mode)
    assert turn.text.startswith(MODE_TAGS[mode])
    assert turn.given == (0 if trained else 1)
    assert row.tool_mask == (int(trained), *[1] * (len(turn.ids) - 1))
    assert attempt.num_sampled == len(turn.ids) == 10  # the tag counts among the tokens of a turn, forced or not
    # Old log-probs are the policy's own, the tag's too.
    assert turn.logps == pytest.approx(own_logps(tiny, attempt), abs=1e-4)
    assert turn.logps[0] < -1  # it would hardly ever have chosen it


def test_the_engine_goes_on_from_a_forced_tag_as_from_its_prompt(tiny: SimpleNamespace) -> None:
    """Greedy, so that both ways must agree token by token; forced and free rows beside each other, cache or none."""
    modes: tuple[Mode | None, ...] = ("think", None, "no_think", None, "think")
    requests = [RolloutRequest(ASK, copy, copy, mode=mode) for copy, mode in enumerate(modes)]
    together = attempts(tiny, requests, temperature=0)
    alone = [attempts(tiny, [request], temperature=0)[0] for request in requests]
    assert [a.turns[0].ids for a in together] == [a.turns[0].ids for a in alone]
    policy = TransformersPolicy(tiny.model, tiny.renderer, 0)
    for mode, attempt in zip(modes, together, strict=True):
        begin = (tag(tiny, mode),) if mode else ()
        request = GenerateRequest(ASK, (), (), (*attempt.prompt_ids, *begin), 0, 10 - len(begin))
        assert attempt.turns[0].ids == (*begin, *policy.generate([request])[0].ids)
    uncached = TransformersPolicy(tiny.model, tiny.renderer, 0)
    uncached._session = RecomputingSession
    settings = RolloutSettings(max_new_tokens=10)
    again = rollout(requests, uncached, tiny.renderer, Dialect(tiny.index, modes=True), tiny.tools, settings=settings)
    assert [a.turns[0].ids for a in again] == [a.turns[0].ids for a in together]


def test_forcing_what_the_policy_chose_anyway_changes_nothing(tiny: SimpleNamespace) -> None:
    """Each token is drawn with its own uniform, so the forced tag leaves the others theirs."""
    bias, think = torch.zeros(tiny.model.config.vocab_size), tag(tiny, "think")
    bias[think] = 30.0
    hook = tiny.model.get_output_embeddings().register_forward_hook(lambda *args: args[2] + bias)
    try:
        free, forced = attempts(
            tiny, [RolloutRequest(ASK, 0, 7), RolloutRequest(ASK, 0, 7, mode="think", trains_mode=True)]
        )
    finally:
        hook.remove()
    assert free.turns[0].ids[0] == think
    assert free == forced


def play(tiny: SimpleNamespace, texts: list[str] | None, mode: Mode | None = None) -> Trajectory:
    """The attempt at SUM of a policy that writes `texts`, or the gold."""
    dialect = Dialect(modes=True)
    script = oracle(dialect) if texts is None else lambda _, turns: texts[len(turns)]
    policy = ScriptedPolicy(script, tiny.renderer)
    toolbox = PythonToolbox({"add": lambda a, b: a + b}, tiny.tools.values(), isolation="inline")
    return rollout([RolloutRequest(SUM, mode=mode)], policy, tiny.renderer, dialect, tiny.tools, toolbox)[0]


def test_a_script_is_forced_in_its_first_turn_only(tiny: SimpleNamespace) -> None:
    attempt = play(tiny, None, "think")
    assert attempt.stop is StopReason.ANSWERED
    assert [turn.text.startswith("[think]") for turn in attempt.turns] == [True, False]
    assert [turn.given for turn in attempt.turns] == [1, 0]
    row = token_row(attempt)
    assert row.tool_mask[:2] == (0, 1)
    assert sum(row.tool_mask) == attempt.num_sampled - 1


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>'
THOUGHT = "<think>\nSum.\n</think>\n"


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        ([f"[no_think]\n{CALL}", "<answer>5</answer>"], None),
        ([f"[think]\n{THOUGHT}{CALL}", f"{THOUGHT}<answer>5</answer>"], None),
        ([f"[think]\n{THOUGHT}{CALL}", "<answer>5</answer>"], None),
        ([CALL], "no mode tag at the start"),
        ([f"\n[no_think]\n{CALL}"], "no mode tag at the start"),  # its first token would not be the decision
        ([f"[no_think]\n{THOUGHT}{CALL}"], "thinking where there must be none"),
        ([f"[think]\n{CALL}"], "no thinking where it is required"),
        ([f"[no_think]\n{CALL}", f"{THOUGHT}<answer>5</answer>"], "thinking in an attempt without"),
        ([f"[no_think]\n{CALL}", "[no_think]\n<answer>5</answer>"], "a mode tag after the first turn"),
    ],
)
def test_a_mode_holds_for_the_whole_attempt(tiny: SimpleNamespace, texts: list[str], problem: str | None) -> None:
    attempt = play(tiny, texts)
    assert attempt.stop is (StopReason.MALFORMED if problem else StopReason.ANSWERED)
    assert attempt.turns[-1].problems == ((problem,) if problem else ())


def test_an_endpoint_cannot_be_forced(tiny: SimpleNamespace) -> None:
    policy = EndpointPolicy("http://localhost:1/v1", "none", tiny.renderer, EndpointSettings("m"))
    request = GenerateRequest(ASK, (), (), (1,), 0, 5, begin=(2,))
    with pytest.raises(RolloutError, match="instructions"):
        policy.session().submit(0, request)
