import random
from itertools import combinations

from tirkit.embedded import phrases, templates
from tirkit.embedded.values import SPLITS


def test_no_word_is_in_two_synonym_groups():
    words = [word for plain, others in phrases.SYNONYMS.items() for word in (plain, *others)]
    assert len(words) == len(set(words))
    assert len(phrases.ASPECTS) * len(phrases.THINGS) >= 1000


def test_templates_are_apart_by_split():
    for sentences in (templates.SINGLE, templates.TWO_STEP, templates.ADD, templates.REMARKS):
        for one, other in combinations(SPLITS, 2):
            assert sentences[one]
            assert not set(sentences[one]) & set(sentences[other])


def test_a_held_out_sentence_has_no_new_word():
    for sentences in (templates.SINGLE, templates.TWO_STEP, templates.ADD):
        known = {word for text in sentences["train"] for word in text.split()}
        for split in SPLITS[1:]:
            assert {word for text in sentences[split] for word in text.split()} <= known


def test_keys_name_one_kind_only():
    keys = [key for kind in phrases.KINDS for key in kind.keys] + list(phrases.SUBJECT_KEYS)
    assert len(keys) == len(set(keys))


def test_a_phrase_says_its_value():
    rng = random.Random(0)
    by_key = {kind.keys[0]: kind for kind in phrases.KINDS}
    assert by_key["hour"].say(rng, 15) in {"at 3 pm", "from 3 pm", "around 3 pm", "by 3 pm"}
    assert by_key["km"].say(rng, 2.5).endswith("2.5 km")
    assert by_key["tax"].say(rng, False) in {"without tax", "excluding tax"}
    assert {by_key["days"].say(rng, 21) for _ in range(50)} >= {"during 21 days", "during twenty-one days"}
