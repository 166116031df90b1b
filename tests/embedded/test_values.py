import random

import pytest

from tirkit.embedded import values


def test_number_words():
    assert [values.spell_integer(n) for n in (0, 13, 20, 21, 99)] == [
        *("zero", "thirteen", "twenty", "twenty-one", "ninety-nine"),
    ]
    with pytest.raises(ValueError, match="0 to 99"):
        values.spell_integer(100)


def test_twelve_hour_clock():
    assert [values.say_hour(h) for h in (0, 1, 11, 12, 13, 23)] == ["12 am", "1 am", "11 am", "12 pm", "1 pm", "11 pm"]


@pytest.mark.parametrize(("a", "b"), [(5, 7), (99, 1), (999, 999), (120, 45), (0, 0)])
def test_column_addition_carries_and_ends_in_the_sum(a: int, b: int):
    assert values.add_by_columns(a, b).split(" ; ")[-1] == str(a + b)


def test_column_addition_by_hand():
    # 8 + 5 = 13, carry 1; 5 + 7 + 1 = 13, carry 1; no third column: 133
    assert values.add_by_columns(58, 75) == "58 + 75 : 8 + 5 = 13 ; 5 + 7 + 1 = 13 ; 133"


def test_splits_partition_the_values_and_do_not_depend_on_the_process():
    shares = [sum(values.split_of(n) == split for n in range(5000)) / 5000 for split in values.SPLITS]
    assert shares == pytest.approx([0.6, 0.2, 0.2], abs=0.03)


def test_draws_stay_in_their_split():
    rng = random.Random(0)
    for split in values.SPLITS:
        for _ in range(50):
            assert values.split_of(values.draw_name(rng, split)) == split
            assert values.split_of(values.draw_number(rng, split)) == split
            integer = values.draw_integer(rng, 1, 99, split)
            assert integer < 10 or values.split_of(integer) == split
