"""The run folder survives kills, torn lines and a full disk."""

import errno
import os
from pathlib import Path

import pytest

from tirkit.config import RunConfig
from tirkit.store import RunFolder, StoreError, append_lines, save_folder, whole_lines, write_atomic
from tirkit.types import Message


def test_continue_keeps_the_manifest_and_marks(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path / "run", RunConfig())
    folder.work("warmup").mkdir(parents=True)
    assert folder.mark("warmup") is None
    folder.complete("warmup", 1.5, {"loss": 0.25})
    folder.close()
    again = RunFolder.open(tmp_path / "run", RunConfig())
    assert again.manifest == folder.manifest
    mark = again.mark("warmup")
    assert mark is not None
    assert (mark.duration_s, mark.facts) == (1.5, {"loss": 0.25})
    assert not again.work("warmup").exists()


def test_other_settings_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    RunFolder.open(tmp_path / "run", RunConfig()).close()
    with pytest.raises(StoreError, match=r"seed: 0 → 1"):
        RunFolder.open(tmp_path / "run", RunConfig(seed=1))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match="not empty"):
        RunFolder.open(tmp_path / "other", RunConfig())
    with pytest.raises(StoreError, match="not a run folder"):
        RunFolder.read(tmp_path / "other")


def test_two_writers_are_refused(tmp_path: Path) -> None:
    first = RunFolder.open(tmp_path, RunConfig())
    with pytest.raises(StoreError, match="another process"):
        RunFolder.open(tmp_path, RunConfig())
    first.close()
    RunFolder.open(tmp_path, RunConfig()).close()


@pytest.mark.parametrize("cut", [2, 3, 4, 5, 20])
def test_a_torn_last_line_is_cut_and_nothing_else_is_lost(tmp_path: Path, cut: int) -> None:
    folder = RunFolder.open(tmp_path, RunConfig())
    messages = [Message(role="user", content="é" * n) for n in (1, 70000, 3)]
    folder.append_records("m", messages)
    path = folder.records("m")
    os.truncate(path, path.stat().st_size - cut)
    assert list(folder.read_records("m", Message)) == messages[:2]
    folder.append_records("m", messages[2:])
    assert list(folder.read_records("m", Message)) == messages


@pytest.mark.parametrize("text", ['{"id": "a"}', '{"id": "a"}\n{"id": "é' + "x" * 70000 + '"}'])
def test_a_last_line_that_lacks_only_its_newline_is_kept(tmp_path: Path, text: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(text, encoding="utf-8")  # as an editor may leave it
    assert "".join(whole_lines(path)) == text
    append_lines(path, ['{"id": "b"}'])
    assert path.read_text(encoding="utf-8") == text + '\n{"id": "b"}\n'


@pytest.mark.parametrize("torn", ['{"id": "b', "12", '{"id": {}', "[1]", "{" * 99999])
def test_a_last_line_that_is_no_object_is_torn(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"id": "a"}\n' + torn)
    assert list(whole_lines(path)) == ['{"id": "a"}\n']
    append_lines(path, ['{"id": "c"}'])
    assert path.read_text() == '{"id": "a"}\n{"id": "c"}\n'


def test_a_damaged_record_is_named_by_line(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path, RunConfig())
    append_lines(folder.records("m"), ['{"role": "user", "content": "a"}', '{"role": "robot", "content": "a"}'])
    with pytest.raises(StoreError, match=r"m\.jsonl:2: not a Message"):
        list(folder.read_records("m", Message))


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_is_absent_or_whole(tmp_path: Path) -> None:
    def half(part: Path) -> None:
        (part / "one").write_text("1")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        save_folder(tmp_path / "model", half)
    assert not (tmp_path / "model").exists()
    save_folder(tmp_path / "model", lambda part: (part / "one").write_text("2"))
    assert (tmp_path / "model" / "one").read_text() == "2"


def test_lines_of_an_absent_file() -> None:
    assert list(whole_lines(Path("nowhere"))) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),  # torch.save
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),  # safetensors
    ],
)
def test_a_full_disk_is_told_with_its_remedy_whatever_library_meets_it(tmp_path: Path, error: Exception) -> None:
    def fail(_: Path) -> None:
        raise error

    with pytest.raises(StoreError, match="free disk space and run the same command again"):
        save_folder(tmp_path / "model", fail)
    assert not (tmp_path / "model").exists()


def test_other_errors_of_saving_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        save_folder(tmp_path / "model", lambda _: 1 / 0)
