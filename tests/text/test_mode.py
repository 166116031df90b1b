from tirkit.text.mode import read_mode, split_mode, with_mode


def test_mode_is_read_from_the_tag_alone() -> None:
    assert read_mode("[think]\n<think>x</think>") == "think"
    assert read_mode("\n [no_think] x") == "no_think"
    assert read_mode("<think>x</think> [think]") is None
    assert split_mode(" x") == (None, " x")


def test_forcing_a_mode_replaces_the_tag() -> None:
    assert with_mode("<answer>1</answer>", "no_think") == "[no_think]\n<answer>1</answer>"
    assert with_mode("[think]\nx", "no_think") == "[no_think]\nx"
