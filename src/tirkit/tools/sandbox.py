"""Run Python code that nobody has read, in a sandbox made of Linux namespaces (bubblewrap) and resource limits.

Inside there is no network, no other process and nothing of the machine's files but the system's programs, Python and
its installed packages, all read-only; a small /tmp in memory ends with the call. Nothing inside outlives the call.
"""

import functools
import itertools
import os
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from tirkit.types import UserError

CHILD = Path(__file__).with_name("sandbox_child.py").read_text(encoding="utf-8")
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/alternatives")
# One thread for each library that would start one a core: the code gets a share of the machine.
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8"} | {
    f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")
}
INSTALL = (
    "install bubblewrap (Debian, Ubuntu: apt-get install bubblewrap; Fedora: dnf install bubblewrap; Arch: pacman -S "
    "bubblewrap), or accept that the code can do whatever you can do: isolation='unsafe_subprocess'"
)
PERMIT = (
    "unprivileged user namespaces must be permitted: on Ubuntu 24.04 set sysctl "
    "kernel.apparmor_restrict_unprivileged_userns=0, in Docker add --security-opt seccomp=unconfined --cap-add "
    "SYS_ADMIN. Or accept that the code can do whatever you can do: isolation='unsafe_subprocess'"
)
FIRST_UID, NUM_UIDS = 61184, 4000  # kept free for such users by the Linux conventions
_uids = itertools.count(os.getpid())

SandboxIsolation = Literal["bubblewrap", "unsafe_subprocess"]


class SandboxError(UserError):
    """No sandbox can be made on this machine; the message says why and what to do."""


@dataclass(frozen=True)
class SandboxLimits:
    """What one run may use. `wall_s` counts from the start of its processes, waiting for its turn left out.

    `cpu_s`, `memory_mb` (address space) and `disk_mb` (a file's size; also that of /tmp) are for each of at most
    `processes` processes and threads (before Linux 5.14 all of the user's count). Output beyond `output_mb` ends it.
    """

    wall_s: float = 5.0
    cpu_s: int = 5
    memory_mb: int = 1024
    processes: int = 32
    disk_mb: int = 64
    output_mb: int = 16


@dataclass(frozen=True)
class Output:
    """What a run wrote: all of it is `head` where nothing was cut, else `num_bytes` with a gap between head and tail.

    `end`: it ended by itself, raised an error (whose text is the end of the output), ran out of wall time or CPU time,
    wrote too much, or was killed otherwise.
    """

    head: bytes
    tail: bytes
    num_bytes: int
    end: Literal["done", "raised", "wall", "cpu", "output", "killed"]


class Sandbox:
    """Runs code, at most `slots` at a time (default: the CPUs there are); further callers wait for their turn.

    isolation: "unsafe_subprocess" is a plain process with the limits on its own use, and nothing else: its code reads
    and writes your files, uses your network and may leave processes behind. keep_bytes: of the output's head, and as
    many of its tail. Raises `SandboxError` where bubblewrap is not there or not permitted.
    """

    def __init__(
        self,
        limits: SandboxLimits | None = None,
        isolation: SandboxIsolation = "bubblewrap",
        slots: int = 0,
        keep_bytes: int = 1 << 16,
    ) -> None:
        self.limits, self.isolation, self.keep_bytes = limits or SandboxLimits(), isolation, keep_bytes
        self._turns = _Turns(slots or len(os.sched_getaffinity(0)))
        self._bwrap = shutil.which("bwrap") if isolation == "bubblewrap" else None
        if isolation == "bubblewrap" and not self._bwrap:
            raise SandboxError(f"Python code cannot be run safely: bwrap was not found; {INSTALL}")

    def run(self, code: str) -> Output:
        """Run `code`; may be called from several threads at once."""
        # Files, not pipes, for what is given and for complaints: neither can block, whatever their size.
        with self._turns, tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as complaints:
            given.write(code.encode("utf-8", "replace"))
            given.seek(0)
            process = subprocess.Popen(
                self._command(),
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=complaints,
                env=ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
            try:
                return self._watch(process, complaints)
            finally:
                _end(process)

    def _watch(self, process: subprocess.Popen[bytes], complaints: IO[bytes]) -> Output:
        deadline = time.monotonic() + self.limits.wall_s
        assert process.stdout is not None
        cut = _Cut(self.keep_bytes)
        stopped = _read(process.stdout.fileno(), cut, deadline, self.limits.output_mb << 20)
        if stopped is None:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                stopped = "wall"
        if stopped:
            return cut.output(stopped)
        code = process.returncode
        complaints.seek(0)
        if code and (said := complaints.read(2000).decode("utf-8", "replace").strip()):
            raise SandboxError(f"Python code cannot be run safely: {said}; {PERMIT}")
        signalled = -code if code < 0 else code - 128  # bwrap reports a signal as 128 + its number
        if signalled == signal.SIGXCPU:
            return cut.output("cpu")
        return cut.output("done" if code == 0 else "raised" if code == 1 else "killed")

    def _command(self) -> list[str]:
        """The command line of one run."""
        limits, wrapper, uid = self.limits, [], 0
        if self._bwrap:
            wrapper = _bubblewrap(self._bwrap, limits.disk_mb)
            if os.geteuid() == 0:
                uid = FIRST_UID + next(_uids) % NUM_UIDS  # of its own: the kernel counts processes by user
        numbers = (limits.cpu_s, limits.memory_mb, limits.processes, limits.disk_mb, uid)
        python = os.path.realpath(sys.executable)
        # Isolated, and without `site`, which takes as long as all the rest.
        return [*wrapper, python, "-I", "-S", "-X", "utf8", "-c", CHILD, *map(str, numbers), _packages()]


class _Turns:
    """Lets a few threads in at a time, in the order they came; a semaphore lets in whoever is quick, time and again."""

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._waiting: deque[threading.Lock] = deque()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
                return
            gate = threading.Lock()
            gate.acquire()
            self._waiting.append(gate)
        gate.acquire()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._free += 1


class _Cut:
    """The beginning and the end of what is added."""

    def __init__(self, keep: int) -> None:
        self.keep, self.num_bytes = keep, 0
        self._head, self._tail = bytearray(), bytearray()

    def add(self, data: bytes) -> None:
        self.num_bytes += len(data)
        room = self.keep - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        if len(self._tail) > 2 * self.keep:
            del self._tail[: -self.keep]

    def output(self, end: Literal["done", "raised", "wall", "cpu", "output", "killed"]) -> Output:
        return Output(bytes(self._head), bytes(self._tail[-self.keep :]), self.num_bytes, end)


def _read(source: int, cut: _Cut, deadline: float, most: int) -> Literal["wall", "output"] | None:
    """Read until the end of the output (None), the deadline, or more than `most` bytes."""
    poll = select.poll()
    poll.register(source, select.POLLIN | select.POLLHUP)
    while cut.num_bytes <= most:
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not poll.poll(1000 * left_s):
            return "wall"
        data = os.read(source, 1 << 16)
        if not data:
            return None
        cut.add(data)
    return "output"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what still runs: of a sandbox everything, of a plain process what did not leave its group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()  # the leader is gone already, or about to be
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


@functools.cache
def _packages() -> str:
    """Where Python's installed packages are."""
    return sysconfig.get_path("purelib")


@functools.cache
def _help(bwrap: str) -> str:
    return subprocess.run([bwrap, "--help"], capture_output=True, text=True).stdout


@functools.cache
def _bubblewrap(bwrap: str, disk_mb: int) -> list[str]:
    """The part of the command line that makes the sandbox."""
    # Root needs no user namespace, and in one would still be root to the kernel: it becomes somebody else instead.
    if os.geteuid() == 0:
        user = ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        user = ["--unshare-user", *(["--disable-userns"] if "--disable-userns" in _help(bwrap) else [])]
    command = [bwrap, *user, "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    command += ["--new-session", "--die-with-parent", "--hostname", "sandbox"]
    for path in SYSTEM:
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            command += ["--ro-bind", path, path]
    for path in dict.fromkeys((sys.base_prefix, sysconfig.get_path("platlib"), _packages())):
        if not path.startswith("/usr/"):
            for parent in reversed(Path(path).parents[:-1]):  # open to all, unlike a home that bwrap would imitate
                command += ["--perms", "0755", "--dir", str(parent)]
            command += ["--ro-bind", path, path]
    size = ["--size", str(disk_mb << 20)] if "--size" in _help(bwrap) else []  # older versions cannot
    command += ["--dev", "/dev", *size, "--perms", "1777", "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
    command += [*size, "--perms", "1777", "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp"]
    return [*command, "--"]
