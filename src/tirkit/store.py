"""The run folder: everything a run leaves behind, safe against a kill at any moment.

    run/
      manifest.json          schema version, resolved config, seed, versions, git revision
      stages/NAME.json       written last of all by a stage: it is complete
      records/NAME.jsonl     append-only records (trajectories, tasks, rows), one JSON object a line
      models/NAME/           model folders
      work/NAME/             checkpoints of a stage under way, removed when it is complete
      report/                the HTML report

A file is either absent or whole: it is written beside itself, synced and renamed (model folders: renamed).
An append-only file may end in a torn line after a kill; it is cut off when the file is opened again.
"""

import errno
import fcntl
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from tirkit.config import RunConfig, differences
from tirkit.types import UserError

SCHEMA_VERSION = 1
FULL_DISK = re.compile(r"No space left|inline_container.*(unexpected pos|write failed)")  # safetensors, torch.save
RecordT = TypeVar("RecordT", bound=BaseModel)


class StoreError(UserError):
    """The run folder cannot be used; the message says why and what to do."""


class Manifest(BaseModel):
    """What a run is: written once, when its folder is made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    config: RunConfig
    config_digest: str
    seed: int
    created: str
    git_rev: str
    versions: dict[str, str]
    machine: str


class StageMark(BaseModel):
    """Says that a stage is complete, how long it took (seconds, of the process that ended it) and what it measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    duration_s: float
    facts: dict[str, JsonValue] = {}


class RunFolder:
    """One run's folder. Use `open` to make or continue it and `read` to look at it."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root = root
        self.manifest = manifest
        self._lock: IO[str] | None = None

    @classmethod
    def open(cls, root: Path, config: RunConfig) -> "RunFolder":
        """Make the folder, or continue the one that is there.

        Raises `StoreError` if it holds a run with another config, or if another process is writing in it.
        """
        root.mkdir(parents=True, exist_ok=True)
        if (root / "manifest.json").exists():
            folder = cls.read(root)
            if folder.manifest.config != config:
                changed = "\n  ".join(f"{k}: {v}" for k, v in differences(folder.manifest.config, config).items())
                raise StoreError(
                    f"{root} holds a run with other settings:\n  {changed}\nGive those back, or another --out folder"
                )
        else:
            cls.check_free(root)
            folder = cls.begin(root, config)
        folder._acquire()
        return folder

    @staticmethod
    def check_free(root: Path) -> None:
        """Raises `StoreError` where another thing than a run is in the way of a new one."""
        if root.exists() and any(path.name not in (".lock", ".manifest.json.part") for path in root.iterdir()):
            raise StoreError(f"{root} is not empty and not a run folder; give another --out folder")

    @classmethod
    def begin(cls, root: Path, config: RunConfig) -> "RunFolder":
        """Write the manifest of a new run."""
        folder = cls(root, _new_manifest(config))
        write_atomic(root / "manifest.json", folder.manifest.model_dump_json(indent=2))
        return folder

    @classmethod
    def read(cls, root: Path) -> "RunFolder":
        """Look at a run without writing in it. Raises `StoreError` if there is none."""
        path = root / "manifest.json"
        try:
            return cls(root, Manifest.model_validate_json(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise StoreError(
                f"{root} is not a run folder (no manifest.json); make one with `tirkit run CONFIG --out {root}`"
            ) from error
        except ValidationError as error:
            raise StoreError(f"{path} was written by another version of tirkit or damaged: {error}") from error

    def _acquire(self) -> None:
        self._lock = (self.root / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreError(
                f"another process is working in {self.root}; wait for it or give another --out folder"
            ) from error

    def close(self) -> None:
        """Let another process continue this run."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def mark(self, stage: str) -> StageMark | None:
        """The completion mark of a stage, None while it is not complete."""
        path = self.root / "stages" / f"{stage}.json"
        return StageMark.model_validate_json(path.read_text(encoding="utf-8")) if path.exists() else None

    def complete(self, stage: str, duration_s: float, facts: dict[str, JsonValue]) -> StageMark:
        """Write the completion mark, then drop the stage's checkpoints."""
        mark = StageMark(stage=stage, duration_s=duration_s, facts=facts)
        write_atomic(self.root / "stages" / f"{stage}.json", mark.model_dump_json(indent=2))
        shutil.rmtree(self.work(stage), ignore_errors=True)
        return mark

    def work(self, stage: str) -> Path:
        """Where a stage keeps its checkpoints while it is under way."""
        return self.root / "work" / stage

    def model(self, stage: str) -> Path:
        """Where a stage leaves its model."""
        return self.root / "models" / stage

    def records(self, name: str) -> Path:
        """Path of an append-only record file."""
        return self.root / "records" / f"{name}.jsonl"

    def write_records(self, name: str, records: Iterable[BaseModel]) -> None:
        """Replace a record file as a whole."""
        write_atomic(self.records(name), "".join(record.model_dump_json() + "\n" for record in records))

    def append_records(self, name: str, records: Iterable[BaseModel]) -> None:
        """Append to a record file and sync it; a torn last line, left by a kill, is cut off first."""
        append_lines(self.records(name), (record.model_dump_json() for record in records))

    def read_records(self, name: str, kind: type[RecordT]) -> Iterator[RecordT]:
        """Read a record file; an absent one is empty, a torn last line is left out.

        Raises `StoreError` naming file and line for a line that is whole but not a `kind`.
        """
        path = self.records(name)
        for number, line in enumerate(whole_lines(path), start=1):
            try:
                yield kind.model_validate_json(line)
            except ValidationError as error:
                raise StoreError(f"{path}:{number}: not a {kind.__name__}: {error.errors()[0]['msg']}") from error


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that a kill or a full disk leaves the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> StoreError:
    return StoreError(f"{path} cannot be written ({error.strerror}); free disk space and run the same command again")


@contextmanager
def writing_to(path: Path) -> Generator[None]:
    """Turns what a library raises on a full disk into a `StoreError` that says what to do."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _cannot_write(path, error) from error
        if FULL_DISK.search(str(error)):
            raise _cannot_write(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) from error
        raise


def save_folder(path: Path, save: Callable[[Path], Any]) -> None:
    """Let `save` fill a folder beside `path` and then rename it, so that a model folder is absent or whole."""
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    with writing_to(path):
        part.mkdir(parents=True)
        save(part)
        shutil.rmtree(path, ignore_errors=True)
        part.replace(path)


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Append lines and sync, after cutting off a torn last line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("ab+") as file:
            _end_last_line(file)
            file.write("".join(line + "\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _cannot_write(path, error) from error


def whole_lines(path: Path) -> Iterator[str]:
    """The complete lines of a file of JSON objects; none if it does not exist."""
    if not path.exists():
        return
    with path.open("rb") as file:  # a torn line may end inside a character, so lines are decoded one by one
        for line in file:
            if line.endswith(b"\n") or _is_object(line):
                yield line.decode()


def _is_object(line: bytes) -> bool:
    # A part of an object is never an object: such a last line is whole, written by an editor that adds no newline.
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _end_last_line(file: IO[bytes]) -> None:
    """End a last line that lacks only its newline; cut one off that is torn."""
    block, end = 1 << 16, file.seek(0, os.SEEK_END)
    tail = b""
    while end > 0 and b"\n" not in tail:
        start = max(0, end - block)
        file.seek(start)
        tail, end = file.read(end - start) + tail, start
    last = tail[tail.rfind(b"\n") + 1 :]
    if last and _is_object(last):
        file.write(b"\n")  # the file is open for appending
    elif last:
        file.truncate(file.seek(0, os.SEEK_END) - len(last))
    file.seek(0, os.SEEK_END)


def _new_manifest(config: RunConfig) -> Manifest:
    packages = ("tirkit", "torch", "transformers", "accelerate", "peft", "pydantic")
    return Manifest(
        schema_version=SCHEMA_VERSION,
        config=config,
        config_digest=config.digest,
        seed=config.seed,
        created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        git_rev=_git_rev(),
        versions={name: importlib.metadata.version(name) for name in packages},
        machine=f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    )


def _git_rev() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
