"""Run Python code that nobody has read, in a sandbox made of Linux namespaces (bubblewrap) and resource limits.

Inside there is no network, no other process and nothing of the machine's files but the system's programs, Python and
its installed packages, all read-only; a small /tmp in memory ends with the call. Nothing inside outlives the call.

Starting a sandbox takes longer than most code, so after each run the next one's is started, and waits: a caller finds
it ready. Each is used for one run only.
"""

import contextlib
import functools
import itertools
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import weakref
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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

LOOK_S = 0.1  # between two looks at the memory of a run

SandboxIsolation = Literal["bubblewrap", "unsafe_subprocess"]
Stop = Literal["wall", "output", "memory"]
End = Literal["done", "raised", "cpu", "killed"] | Stop


class SandboxError(UserError):
    """No sandbox can be made on this machine; the message says why and what to do."""


@dataclass(frozen=True)
class SandboxLimits:
    """What one run may use. `wall_s` counts from when it is given its code, waiting for its turn left out.

    `cpu_s`, `memory_mb` (address space) and `disk_mb` (a file's size; also that of /tmp) are for each of at most
    `processes` processes and threads (before Linux 5.14 all of the user's count). `memory_mb` is also what all of them
    may hold together, looked at ten times a second (where Linux tells a process's children, as it mostly does). Output
    beyond `output_mb` ends it.
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

    `end`: it ended by itself, raised an error (whose text is the end of the output), ran out of wall time, CPU time or
    memory, wrote too much, or was killed otherwise.
    """

    head: bytes
    tail: bytes
    num_bytes: int
    end: End


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
        # One thread starts them all: bubblewrap dies with the thread that started it, and callers' threads come and go.
        self._starter = ThreadPoolExecutor(1, "sandbox")
        self._spares: deque[Future[_Process]] = deque()
        weakref.finalize(self, _end_spares, self._spares)

    def run(self, code: str) -> Output:
        """Run `code`; may be called from several threads at once."""
        with self._turns:
            process = self._take()
            try:
                process.give(code)
                return self._watch(process)
            finally:
                process.end()
                with contextlib.suppress(RuntimeError):  # Python is shutting down
                    self._spares.append(self._start())

    def _start(self) -> "Future[_Process]":
        return self._starter.submit(_Process, self._command())

    def _take(self) -> "_Process":
        """A process that waits for its code: one that was started ahead, or a new one."""
        while self._spares:
            with contextlib.suppress(IndexError, OSError):  # another thread was quicker; it could not be started
                spare = self._spares.popleft().result()
                if spare.popen.poll() is None:
                    return spare
                spare.end()
        return self._start().result()

    def _watch(self, process: "_Process") -> Output:
        cut, popen = _Cut(self.keep_bytes), process.popen
        guard = _Guard(popen.pid, self.limits)
        stopped = _read(process.output, cut, guard)
        while stopped is None and popen.returncode is None:
            try:
                popen.wait(LOOK_S)
            except subprocess.TimeoutExpired:
                stopped = guard.reached(cut.num_bytes)
        if stopped:
            return cut.output(stopped)
        code = popen.returncode
        if code and (said := process.complaints()):
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


class _Process:
    """A started process that waits for its code."""

    def __init__(self, command: list[str]) -> None:
        # A file, not a pipe: complaints cannot block, whatever their size.
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 (`end` closes it)
        pipe = subprocess.PIPE
        self.popen = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self._complaints, env=ENVIRONMENT, cwd="/", start_new_session=True
        )
        assert self.popen.stdout is not None
        self.output = self.popen.stdout.fileno()

    def give(self, code: str) -> None:
        """Let it run `code`: it reads all of it first, so this cannot block for long."""
        assert self.popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it could not start, and has complained
            self.popen.stdin.write(code.encode("utf-8", "replace"))
        with contextlib.suppress(BrokenPipeError):
            self.popen.stdin.close()

    def complaints(self) -> str:
        """What went wrong before its code began."""
        self._complaints.seek(0)
        return self._complaints.read(2000).decode("utf-8", "replace").strip()

    def end(self) -> None:
        """Kill what still runs: of a sandbox everything, of a plain process what did not leave its group."""
        try:
            os.killpg(self.popen.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self.popen.kill()  # the leader is gone already, or about to be
        self.popen.wait()
        for file in (self.popen.stdin, self.popen.stdout, self._complaints):
            with contextlib.suppress(BrokenPipeError):
                file.close()  # type: ignore[union-attr]


def _end_spares(spares: deque[Future[_Process]]) -> None:
    while spares:
        with contextlib.suppress(OSError):  # it could not be started
            spares.popleft().result().end()


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

    def output(self, end: End) -> Output:
        return Output(bytes(self._head), bytes(self._tail[-self.keep :]), self.num_bytes, end)


class _Guard:
    """Says which limit a run has reached."""

    def __init__(self, pid: int, limits: SandboxLimits) -> None:
        self._pid, self._limits = pid, limits
        self._next_look = time.monotonic() + LOOK_S
        self._deadline = time.monotonic() + limits.wall_s

    @property
    def left_s(self) -> float:
        """Wall time that is left."""
        return max(0.0, self._deadline - time.monotonic())

    def reached(self, num_bytes: int) -> Stop | None:
        """The limit, None where all is well. num_bytes: of output so far."""
        if num_bytes > self._limits.output_mb << 20:
            return "output"
        if not self.left_s:
            return "wall"
        if (now := time.monotonic()) >= self._next_look:
            self._next_look = now + LOOK_S
            if _memory(self._pid) > self._limits.memory_mb << 20:
                return "memory"
        return None


def _memory(pid: int) -> int:
    """Bytes that a process and all that it started hold for themselves; 0 for one that has ended meanwhile."""
    at = Path("/proc") / str(pid)
    try:
        resident, shared = map(int, (at / "statm").read_text().split()[1:3])
        children = [child for task in (at / "task").iterdir() for child in (task / "children").read_text().split()]
    except OSError:
        return 0
    return (resident - shared) * resource.getpagesize() + sum(_memory(int(child)) for child in children)


def _read(source: int, cut: _Cut, guard: _Guard) -> Stop | None:
    """Read until the end of the output (None) or a limit."""
    poll = select.poll()
    poll.register(source, select.POLLIN | select.POLLHUP)
    while (stopped := guard.reached(cut.num_bytes)) is None:
        if poll.poll(1000 * min(LOOK_S, guard.left_s)):
            data = os.read(source, 1 << 16)
            if not data:
                return None
            cut.add(data)
    return stopped


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
    size = ["--size", str(disk_mb << 20)] if "--size" in _help(bwrap) else []  # older versions cannot
    # Before the packages, which may lie in the real /tmp.
    command += [*size, "--perms", "1777", "--tmpfs", "/tmp"]
    for path in dict.fromkeys((sys.base_prefix, sysconfig.get_path("platlib"), _packages())):
        if not path.startswith("/usr/"):
            for parent in reversed(Path(path).parents[:-1]):  # open to all, unlike a home that bwrap would imitate
                command += ["--perms", "0755", "--dir", str(parent)]
            command += ["--ro-bind", path, path]
    command += ["--dev", "/dev", *size, "--perms", "1777", "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
    return [*command, "--remount-ro", "/", "--chdir", "/tmp", "--"]
