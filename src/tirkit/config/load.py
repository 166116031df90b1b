"""Configs are read from TOML plus `section.key=value` overrides, checked, and compared with each other."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from tirkit.config.check import check
from tirkit.config.run import RunConfig
from tirkit.config.sections import ConfigError


def load_config(path: Path, overrides: Sequence[str] = (), arm: str = "") -> RunConfig:
    """Read a TOML config, apply one of its arms, then `section.key=value` overrides.

    Raises `ConfigError` for an unreadable file, an unknown key, a wrong type or an arm that is not there.
    """
    data = _read_toml(path)
    arms = _arms(data.pop("arms", {}), path)
    if arm:
        if arm not in arms:
            raise ConfigError(f"{path}: no arm {arm!r}; it has: {', '.join(arms) or 'none'}")
        for key, value in arms[arm].items():
            _assign(data, key, value)
        data["name"] = arm
    return parse_config(override(data, overrides), str(path))


def override(data: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """`data` with each `section.key=value` set in it. Raises `ConfigError` for one of another form."""
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"override {setting!r}: expected section.key=value")
        _assign(data, key.strip(), _toml_value(value.strip()))
    return data


def arm_names(path: Path) -> list[str]:
    """Names of the arms a config file defines, in the file's order."""
    return list(_arms(_read_toml(path).get("arms", {}), path))


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a TOML config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def parse_config(data: Mapping[str, Any], origin: str) -> RunConfig:
    """Validate a nested mapping; `origin` (a file name) begins every error message."""
    try:
        config = RunConfig.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        reasons = "\n".join(f"  {_explain(item)}" for item in error.errors())
        raise ConfigError(f"{origin}: {error.error_count()} setting(s) cannot be used\n{reasons}") from error
    check(config, origin)
    return config


def differences(left: RunConfig, right: RunConfig) -> dict[str, str]:
    """`left → right` by `section.key`, for every setting in which the two differ."""
    a, b = _flat(left.model_dump()), _flat(right.model_dump())
    return {key: f"{a[key]} → {b[key]}" for key in a if a[key] != b[key]}


def _arms(value: Any, path: Path) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict) or not all(isinstance(arm, dict) for arm in value.values()):  # pyright: ignore
        raise ConfigError(f'{path}: arms must be tables of overrides, like [arms.name] "section.key" = value')
    return value  # pyright: ignore


def _assign(data: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):  # pyright: ignore
            raise ConfigError(f"override {key}: {section} is a value, not a section")
    data[last] = value


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(item: Any) -> str:
    path = [str(part) for part in item["loc"]]
    key = ".".join(path)
    if item["type"] != "extra_forbidden":
        return f"{key}: {item['msg']} (got {item.get('input')!r})"
    section: Any = RunConfig
    for part in path[:-1]:
        if not part.isdigit():  # a place in a list of sections
            section = section.model_fields[part].annotation
            section = get_args(section)[0] if get_origin(section) is tuple else section
    where = f"[{'.'.join(path[:-1])}]" if path[:-1] else "the top level"
    return f"{key}: unknown; {where} takes {', '.join(section.model_fields)}"


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}  # pyright: ignore
    return flat
