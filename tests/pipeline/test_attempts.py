import pytest

from tirkit.evaluation.metrics import Item
from tirkit.pipeline.attempts import why_wrong
from tirkit.types import StopReason


@pytest.mark.parametrize(
    ("metrics", "problems", "why"),
    [
        ({"id_em": 0.0, "call_em": 0.0}, ("unknown tool 'x'", "no answer"), "unknown tool '…'"),
        ({"id_em": 0.0, "call_em": 0.0}, (), "other tools"),
        ({"id_em": 1.0, "call_em": 0.0}, (), "other arguments"),
        ({"id_em": 1.0, "call_em": 1.0}, (), "other answer"),
        ({}, (), "other answer"),  # calls are not judged
    ],
)
def test_the_first_thing_that_is_wrong_is_named(
    metrics: dict[str, float | None], problems: tuple[str, ...], why: str
) -> None:
    item = Item(task_id="t", metrics=metrics, stop=StopReason.ANSWERED, problems=problems)
    assert why_wrong(item) == why
