"""Imports go one way, TRL stays out of the package's import, pure modules do no I/O."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "tirkit"
LAYERS = [
    {"types"},
    {"config"},
    {"store", "text"},
    {"scoring", "losses"},
    {"tools"},
    {"embedded"},
    {"rollout"},
    {"methods"},
    {"training", "evaluation", "serving"},
    {"pipeline"},
    {"cli"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
PURE = ("types", "text", "scoring", "losses")
IO_MODULES = {"os", "subprocess", "socket", "shutil", "httpx", "openai", "tempfile", "io"}
MODULES = sorted(SRC.rglob("*.py"))


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def layer(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def test_every_top_level_module_has_a_layer() -> None:
    assert {layer(path) for path in MODULES} - {"__init__", "__main__"} <= set(RANK)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))
def test_imports_go_one_way(path: Path) -> None:
    own = layer(path)
    if own in {"__init__", "__main__"}:
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "tirkit" and len(parts) > 1 and parts[1] in RANK and parts[1] != own:
            assert RANK[parts[1]] < RANK[own], f"{own} must not import {name}"


@pytest.mark.parametrize("path", [p for p in MODULES if layer(p) in PURE], ids=lambda p: str(p.relative_to(SRC)))
def test_pure_modules_do_no_io(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & IO_MODULES


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))
def test_trl_is_not_imported_by_the_package(path: Path) -> None:
    assert "trl" not in {name.split(".")[0] for name in imports(path)} or layer(path) == "training"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno + 1 <= 60, f"{node.name} is too long"
