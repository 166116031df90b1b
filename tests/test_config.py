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
    assert differences(left, right) == {"rl.lr": f"{left.rl.lr} → 0.5"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[tasks]\npath = "q.jsonl"\n', ["'embedded' tools go with 'embedded' questions"]),
        ('[model]\npath = "other"\n[warmup]\ngeneral = 0.1\n', ["warmup.general > 0", "set it to 0"]),
        ("[repair]\nenabled = true\n", ["repair.enabled needs candidates.enabled = true"]),
        ("[finetune]\nenabled = true\n", ["finetune.enabled needs pairs.enabled = true"]),
        ("[reward_model]\nenabled = true\n", ["reward_model.enabled needs pairs.enabled = true"]),
        ("[candidates]\nenabled = true\n[pairs]\nenabled = true\n", ['pairs.repairs = "use" needs repair.enabled']),
        (
            '[candidates]\nenabled = true\n[pairs]\nenabled = true\nrepairs = "none"\n[reward_model]\nenabled = true\n',
            ["needs preference pairs", "pairs.outcomes = true"],
        ),
        (
            '[candidates]\nenabled = true\n[repair]\nenabled = true\nrepairer = "rules"\nrules = false\n',
            ["leaves nobody to repair"],
        ),
        (
            '[candidates]\nenabled = true\n[repair]\nenabled = true\nrepairer = "gpt"\n',
            ["repair.repairer is an endpoint", 'catalogue.indexing = "none"', "rollout.prompt"],
        ),
        ('[candidates]\nenabled = true\npolicy = "gpt"\n', ["candidates.policy is an endpoint"]),
        ('[rl]\nreward = "trajectory"\n', ["reward_model.enabled = true", "rl.bonus_weight = 0"]),
    ],
)
def test_settings_that_make_no_sense_together_are_said_before_anything_runs(tmp_path, text, expected) -> None:
    with pytest.raises(ConfigError, match="make no sense together") as caught:
        load_config(write(tmp_path, text))
    for part in expected:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        '[rl]\nreward = "trajectory"\nbonus_weight = 0.0\n',
        '[candidates]\nenabled = true\npolicy = "gpt"\nlog = "attempts.jsonl"\n',  # the log is read, nobody asked
        '[rl]\nenabled = false\nreward = "trajectory"\n',
        '[model]\npath = "other"\n[warmup]\nenabled = false\ngeneral = 0.1\n',
    ],
)
def test_settings_of_what_is_switched_off_do_not_matter(tmp_path, text) -> None:
    load_config(write(tmp_path, text))


CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.toml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_configs_and_their_arms_can_be_loaded(path: Path) -> None:
    for arm in ["", *arm_names(path)]:
        load_config(path, arm=arm)
