import random
from itertools import combinations

from tirkit.embedded import phrases
from tirkit.embedded.values import SPLITS


def test_no_word_is_in_two_synonym_groups():
    words = [word for plain, others in phrases.SYNONYMS.items() for word in (plain, *others)]
    assert len(words) == len(set(words))
    assert len(phrases.ASPECTS) * len(phrases.THINGS) >= 1000


def test_templates_are_apart_by_split():
    for templates in (phrases.SINGLE, phrases.TWO_STEP, phrases.ADD, phrases.REMARKS):
        for one, other in combinations(SPLITS, 2):
            assert not set(templates[one]) & set(templates[other])
    for kind in phrases.KINDS:
        for one, other in combinations(SPLITS, 2):
            assert not set(kind.phrases[one]) & set(kind.phrases[other]), kind.keys


def test_keys_name_one_kind_only():
    keys = [key for kind in phrases.KINDS for key in kind.keys] + list(phrases.SUBJECT_KEYS)
    assert len(keys) == len(set(keys))


def test_a_phrase_says_its_value():
    rng = random.Random(0)
    by_key = {kind.keys[0]: kind for kind in phrases.KINDS}
    assert by_key["hour"].say(rng, 15, "test") == "by 3 pm"
    assert by_key["km"].say(rng, 2.5, "test") == "in a range of 2.5 km"
    assert by_key["tax"].say(rng, False, "test") == "without any tax"
    assert {by_key["days"].say(rng, 21, "test") for _ in range(50)} == {"during 21 days", "during twenty-one days"}
