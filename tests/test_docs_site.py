"""The documentation builds as a site, without a warning, and asks nothing of other machines."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytest.importorskip("material", reason="mkdocs-material is not installed: pip install 'tirkit[docs]'")


def build(folder: Path, out: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    return done.returncode, done.stdout + done.stderr


def test_the_site_builds_without_a_warning_and_works_offline(tmp_path: Path) -> None:
    code, said = build(ROOT, tmp_path)
    assert code == 0, f"{said}\nA page that is not in the navigation belongs into mkdocs.yml."
    for page in (ROOT / "docs").rglob("*.md"):
        assert (tmp_path / page.relative_to(ROOT / "docs").with_suffix(".html")).is_file()
    start = (tmp_path / "index.html").read_text()
    assert "<h2 id=" in start
    assert 'href="results/embedded.json"' in start
    assert (tmp_path / "results" / "embedded.json").read_bytes() == (ROOT / "results" / "embedded.json").read_bytes()
    fetched = re.compile(
        r'<(?:script|img|iframe)[^>]+src="?(?:https?:)?//|<link rel="?(?!canonical)[^>]+href="?https?:'
    )
    assert [page.name for page in tmp_path.rglob("*.html") if fetched.search(page.read_text())] == []


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    for path in ROOT.iterdir():
        if path.name != "docs":
            (tmp_path / path.name).symlink_to(path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    (tmp_path / "docs" / "forgotten.md").write_text(
        "# Forgotten\n\nSee [the log](lost.md) and [a number](../results/lost.json).\n"
    )
    code, said = build(tmp_path, tmp_path / "out")
    assert code != 0
    for missing in ("- forgotten.md", "'lost.md'", "'results/lost.json'"):
        assert missing in said
