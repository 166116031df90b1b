import gc
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tirkit.tools import sandbox as sandbox_module
from tirkit.tools.python import PYTHON_SCHEMA, PythonTool
from tirkit.tools.runtime import PythonToolbox
from tirkit.tools.sandbox import Sandbox, SandboxError, SandboxIsolation, SandboxLimits, _Turns
from tirkit.types import ToolCall, ToolErrorKind, ToolResult

LIMITS = SandboxLimits(wall_s=20.0, cpu_s=1, memory_mb=400, processes=16, disk_mb=4, output_mb=2)


def why_no_bubblewrap() -> str:
    """Why sandboxes cannot be made here; "" where they can."""
    try:
        Sandbox().run("1")
    except SandboxError as error:
        return str(error)
    return ""


NO_BUBBLEWRAP = why_no_bubblewrap()
needs_bubblewrap = pytest.mark.skipif(bool(NO_BUBBLEWRAP), reason=NO_BUBBLEWRAP)


@pytest.fixture(params=[pytest.param("bubblewrap", marks=needs_bubblewrap), "unsafe_subprocess"])
def box(request: pytest.FixtureRequest) -> PythonToolbox:
    return toolbox(request.param)


@pytest.fixture
def safe() -> PythonToolbox:
    return toolbox("bubblewrap")


def toolbox(isolation: SandboxIsolation, limits: SandboxLimits = LIMITS, slots: int = 0) -> PythonToolbox:
    tool = PythonTool(Sandbox(limits, isolation, slots))
    return PythonToolbox({"python": tool}, [PYTHON_SCHEMA], isolation="inline")


def sandbox(box: PythonToolbox) -> Sandbox:
    return box.functions["python"].sandbox  # type: ignore[attr-defined]


def run(box: PythonToolbox, code: str) -> ToolResult:
    return box.run(ToolCall(name="python", arguments={"code": code}))


@pytest.mark.parametrize(
    ("code", "content"),
    [
        ("print(2 + 3)", "5"),
        ("x = 2\nx ** 10", "1024"),  # a last expression shows its value, as in a notebook
        ("print('a')\n'b'", "a\n'b'"),
        ("x = 1", "(no output)"),
        ("", "(no output)"),
        ("import sys; print(1); sys.stderr.write('e\\n'); print(2)", "1\ne\n2"),
        ("print('é\\ud800')", "é?"),
        ("import sys; sys.exit()", "(no output)"),
        ("from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\nA(1)", "A(x=1)"),
        ("if __name__ == '__main__':\n    print('main')", "main"),
        ("import sys; sys.stdin.read()", "''"),
        ("import sys; sys.argv", "['<code>']"),
    ],
)
def test_what_code_prints_is_the_result(box: PythonToolbox, code: str, content: str) -> None:
    result = run(box, code)
    assert (result.content, result.error, result.truncated) == (content, None, False)


@pytest.mark.parametrize(
    ("code", "end"),
    [
        ("print('so far')\n1 / 0", "ZeroDivisionError: division by zero"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("import sys; sys.exit('no')", "SystemExit: no"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("x = bytearray(10 << 30)", "MemoryError"),
        ("import mmap; mmap.mmap(-1, 10 << 30)", "Cannot allocate memory"),
        ("f = lambda: f()\nf()", "RecursionError: maximum recursion depth exceeded"),
    ],
)
def test_what_code_raises_is_text_for_the_model(box: PythonToolbox, code: str, end: str) -> None:
    result = run(box, code)
    assert result.error == ToolErrorKind.RAISED
    assert result.content.endswith(end)
    assert "sandbox_child" not in result.content
    assert "<string>" not in result.content


def test_the_traceback_shows_the_codes_own_lines(box: PythonToolbox) -> None:
    content = run(box, "def half(x):\n    return 1 / x\nprint('so far')\nhalf(0)").content
    assert content.startswith('so far\nTraceback (most recent call last):\n  File "<code>", line 4, in <module>')
    assert "    return 1 / x" in content


def test_long_output_keeps_200_characters_at_both_ends(box: PythonToolbox) -> None:
    assert run(box, "print('a' * 400)").content == "a" * 400
    result = run(box, "print('a' * 201 + 'b' * 200)")
    assert (result.content, result.truncated) == ("a" * 200 + " … " + "b" * 200, True)
    result = run(box, "print('é' * 70_000)\n1 / 0")
    assert result.content.startswith("é" * 200 + " … ")
    assert result.content.endswith("ZeroDivisionError: division by zero")
    assert len(result.content) == 403


def test_ten_megabytes_are_cut_and_no_error() -> None:
    box = toolbox("unsafe_subprocess", SandboxLimits(wall_s=60, cpu_s=30))  # 16 MB may be written
    result = run(box, "print('a' * 10_000_000 + 'b')")
    assert (result.content, result.error, result.truncated) == ("a" * 200 + " … " + "a" * 199 + "b", None, True)


def test_processes_together_hold_no_more_than_one_may(box: PythonToolbox) -> None:
    # 8 of 100 MB each: every one is within the 400 MB, all together are not.
    code = (
        "import os, time\nfor _ in range(8):\n    if os.fork() == 0:\n        x = bytearray(100 << 20)\n        break\n"
    )
    result = run(box, code + "time.sleep(60)")
    said = "the code and what it started held more than 400 MB of memory"
    assert (result.content, result.error) == (said, ToolErrorKind.CRASHED)
    assert run(box, "x = bytearray(200 << 20); import time; time.sleep(0.3); len(x)").error is None


def test_sleeping_working_and_talking_too_long(box: PythonToolbox) -> None:
    short = toolbox(sandbox(box).isolation, SandboxLimits(wall_s=0.8))
    sleeping = run(short, "import time\nprint('x')\ntime.sleep(60)")
    assert (sleeping.content, sleeping.error) == ("x\nthe code did not finish within 0.8 s", ToolErrorKind.TIMEOUT)
    assert sleeping.duration_s < 10
    assert run(short, "import os, time\nos.close(1); os.close(2)\ntime.sleep(60)").error == ToolErrorKind.TIMEOUT
    working = run(box, "while True: pass")
    assert (working.content, working.error) == ("the code used more than 1 s of computing time", ToolErrorKind.TIMEOUT)
    talking = run(box, "while True: print('y' * 1000)")
    assert talking.error == ToolErrorKind.CRASHED
    assert talking.content.endswith("the code wrote more than 2 MB")


def test_code_that_ends_its_process(box: PythonToolbox) -> None:
    result = run(box, "import os\nprint('x', flush=True)\nos._exit(9)")
    assert (result.content, result.error) == ("x\nthe code ended its process or was killed", ToolErrorKind.CRASHED)
    assert run(box, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)").error == ToolErrorKind.CRASHED
    assert run(box, "import os, signal\nsignal.signal(24, signal.SIG_IGN)\nwhile True: pass").error is not None


def test_a_file_cannot_grow_without_bound(box: PythonToolbox) -> None:
    code = "import tempfile\nwith tempfile.TemporaryFile() as f:\n    f.write(bytes(8 << 20))"
    assert "File too large" in run(box, code).content or "No space" in run(box, code).content


@needs_bubblewrap
@pytest.mark.parametrize("path", [Path.home(), Path(__file__), Path(__file__).parents[2], Path("/etc/passwd")])
def test_the_machines_files_are_not_there(safe: PythonToolbox, path: Path) -> None:
    allowed = f"import os, sys\nprint(os.listdir({str(path)!r}) if os.path.isdir({str(path)!r}) else 'no')"
    seen = run(safe, allowed).content
    # Only the way to Python and its packages may be left of a home, or of a repository that holds its environment.
    python = [Path(prefix) for prefix in (sys.base_prefix, sys.prefix)]
    ways = {prefix.relative_to(path).parts[0] for prefix in python if prefix.is_relative_to(path)}
    assert seen == "no" or set(eval(seen)) <= ways
    assert run(safe, f"open({str(path)!r})").error == ToolErrorKind.RAISED


@needs_bubblewrap
def test_nothing_but_its_own_tmp_can_be_written(safe: PythonToolbox, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    mark.write_text("mine")
    code = f"""
import os, sys
for path in ("/usr/x", "/x", "/dev/x", os.__file__, {str(mark)!r}, sys.base_prefix + "/x", "/etc/x"):
    try:
        open(path, "w")
        print("wrote", path)
    except OSError:
        pass
open("/tmp/x", "w").write("ok")
print(open("/tmp/x").read(), os.getcwd())"""
    assert run(safe, code).content == "ok /tmp"
    assert mark.read_text() == "mine"
    assert run(safe, "import os; os.listdir('/tmp')").content == "[]"
    full = run(safe, "for i in range(9): open(f'/tmp/{i}', 'wb').write(bytes(2 << 20))").content
    if "--size" in subprocess.run(["bwrap", "--help"], capture_output=True, text=True).stdout:
        assert "No space left on device" in full


@needs_bubblewrap
def test_there_is_no_network(safe: PythonToolbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=2)"
        assert run(toolbox("unsafe_subprocess"), code).error is None  # so the test would notice
        assert run(safe, code).content.endswith("Connection refused")
    assert run(safe, "import socket; socket.create_connection(('1.1.1.1', 53), timeout=2)").error is not None


@needs_bubblewrap
def test_other_processes_can_be_neither_seen_nor_killed(safe: PythonToolbox) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        result = run(safe, f"import os, signal\nos.kill({child.pid}, signal.SIGKILL)")
        assert result.content.endswith("ProcessLookupError: [Errno 3] No such process")
        for target in ("os.kill(os.getppid(), 9)", "os.kill(-1, 9)", "os.killpg(0, 9)", "os.kill(1, 9)"):
            run(safe, f"import os\n{target}")
        assert run(safe, "import os; os.path.exists('/proc/1')").content == "False"
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()


@needs_bubblewrap
def test_a_fork_bomb_is_bounded_and_gone_after_the_call(safe: PythonToolbox) -> None:
    bomb = (
        "import os\nn = 0\nwhile True:\n    try:\n        os.fork()\n    except OSError as e:\n        print(e); raise"
    )
    result = run(safe, bomb)
    assert "Resource temporarily unavailable" in result.content
    left = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(77.125)"
    assert run(safe, left).error is None
    assert (
        run(safe, "import subprocess\nsubprocess.Popen(['sleep', '77.125'], start_new_session=True)\n1").error is None
    )
    time.sleep(0.2)
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [command for command in commands if b"77.125" in command]


@needs_bubblewrap
def test_it_is_nobody_in_there(safe: PythonToolbox) -> None:
    code = "import os\nprint(os.getuid() != 0)\nos.setuid(0)"
    assert run(safe, code).content.startswith("True\nTraceback")
    assert run(safe, "import os; sorted(os.environ)").content.count("NUM_THREADS") == 4
    secret = "TIRKIT_TEST_SECRET"
    os.environ[secret] = "1"
    assert run(safe, f"import os; os.environ.get({secret!r})").content == "(no output)"
    del os.environ[secret]


@needs_bubblewrap
def test_installed_packages_can_be_used(safe: PythonToolbox) -> None:
    box = toolbox("bubblewrap", SandboxLimits(wall_s=60, cpu_s=30))
    assert run(box, "import numpy\nnumpy.arange(4).sum().item()").content == "6"


@needs_bubblewrap
def test_packages_in_the_real_tmp_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "found_in_tmp.py").write_text("VALUE = 7\n")
        monkeypatch.setattr(sandbox_module, "_packages", lambda: folder)
        box = toolbox("bubblewrap", SandboxLimits(wall_s=60, cpu_s=30, disk_mb=6))  # command lines are kept by size
        assert run(box, "import found_in_tmp\nfound_in_tmp.VALUE").content == "7"
        assert run(box, "open('/tmp/mine', 'w').write('x')").content == "1"  # the sandbox's own is there beside it


def test_calls_run_at_once_on_as_many_slots_as_there_are(box: PythonToolbox) -> None:
    with ThreadPoolExecutor(6) as pool:
        contents = [result.content for result in pool.map(lambda i: run(box, f"print({i})"), range(12))]
    assert contents == [str(i) for i in range(12)]
    one = Sandbox(LIMITS, sandbox(box).isolation, slots=1)
    spans: list[tuple[float, ...]] = []
    code = "import time\na = time.monotonic(); time.sleep(0.1); print(a, time.monotonic())"
    threads = [
        threading.Thread(target=lambda: spans.append(tuple(map(float, one.run(code).head.split())))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(end <= start for (_, end), (start, _) in zip(sorted(spans), sorted(spans)[1:], strict=False))


def spares(sandbox: Sandbox) -> list[subprocess.Popen[bytes]]:
    return [future.result().popen for future in sandbox._spares]


def test_the_next_run_finds_its_process_started(box: PythonToolbox) -> None:
    caller = threading.Thread(target=run, args=(box, "1"))
    caller.start()
    caller.join()
    (waiting,) = spares(sandbox(box))
    time.sleep(0.2)
    assert waiting.poll() is None  # it outlives the thread that called
    assert run(box, "2").content == "2"
    (new,) = spares(sandbox(box))
    assert waiting.poll() is not None  # one process, one run
    assert new.pid != waiting.pid
    new.kill()
    new.wait()
    assert run(box, "3").content == "3"


def test_waiting_processes_end_with_their_sandbox(box: PythonToolbox) -> None:
    alone = Sandbox(LIMITS, sandbox(box).isolation, slots=4)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(alone.run, ["import time; time.sleep(0.2)"] * 4))
    waiting = spares(alone)
    assert 1 <= len(waiting) <= 4
    del alone
    gc.collect()
    assert all(process.poll() is not None for process in waiting)


def test_callers_get_their_turn_in_the_order_they_came() -> None:
    turns, order, threads = _Turns(1), [], []

    def take(name: str) -> None:
        with turns:
            order.append(name)

    with turns:
        for name in "abcdef":
            threads.append(threading.Thread(target=take, args=(name,)))
            threads[-1].start()
            while len(turns._waiting) < len(threads):
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert "".join(order) == "abcdef"
    with turns:  # all slots came back
        pass


def test_without_bubblewrap_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(SandboxError, match=r"bwrap was not found; install bubblewrap.*isolation='unsafe_subprocess'"):
        PythonTool()


def test_a_sandbox_that_is_not_permitted_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho bwrap: No permissions to create new namespace >&2; exit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(SandboxError, match=r"No permissions to .*; unprivileged user namespaces must"):
        run(toolbox("bubblewrap"), "1")
