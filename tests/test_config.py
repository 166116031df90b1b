"""Configs are strict: an error names the key and what is allowed."""

from pathlib import Path

import pytest

from tirkit.config import ConfigError, RunConfig, arm_names, differences, load_config


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.toml"
    path.write_text(text)
    return path


def test_file_arm_and_override_are_applied_in_that_order(tmp_path: Path) -> None:
    path = write(tmp_path, 'seed = 3\n[rl]\nsteps = 7\n[arms.no_rl]\n"rl.enabled" = false\n"rl.steps" = 8\n')
    config = load_config(path, ["rl.steps=9", "model.path=some/folder"], arm="no_rl")
    assert (config.seed, config.rl.enabled, config.rl.steps) == (3, False, 9)
    assert (config.model.path, config.name) == ("some/folder", "no_rl")
    assert arm_names(path) == ["no_rl"]


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("[rl]\nstepz = 7\n", [], ["rl.stepz: unknown", "[rl] takes", "num_generations"]),
        ("[rl]\nspare_unseen = true\n", [], ["rl.spare_unseen: unknown"]),  # only what a phase reads can be set
        ("sede = 1\n", [], ["sede: unknown", "the top level takes", "catalogue"]),
        ('[rl]\nsteps = "many"\n', [], ["rl.steps", "integer", "'many'"]),
        ("[rl]\nsteps = 0\n", [], ["rl.steps", "greater than 0"]),
        ("", ["rl.steps"], ["expected section.key=value"]),
        ("seed = 1", ["seed.x=1"], ["seed is a value, not a section"]),
        ("seed = \n", [], ["not valid TOML"]),
        ("arms = 3\n", [], ["arms must be tables"]),
    ],
)
def test_errors_name_the_key_and_what_is_allowed(tmp_path, text, overrides, expected) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text), overrides)
    for part in expected:
        assert part in str(caught.value)


def test_missing_file_and_missing_arm(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"no arm 'b'; it has: a"):
        load_config(write(tmp_path, "[arms.a]\n"), arm="b")


def test_digest_and_differences_follow_every_setting() -> None:
    left = RunConfig()
    right = RunConfig.model_validate_json('{"rl": {"lr": 0.5}}')
    assert left.digest != right.digest
    assert differences(left, right) == [f"rl.lr: {left.rl.lr} → 0.5"]
