"""No server outlives who asked for it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tirkit.tools import mcp_relay

STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), flush=True)
while True:
    time.sleep(1)
"""
STARTER = """
import subprocess, sys
subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE).wait()
"""


def gone(pid: int, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z"):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at /proc")
@pytest.mark.parametrize(("killed", "number"), [("relay", signal.SIGTERM), ("starter", signal.SIGKILL)])
def test_a_stubborn_server_ends_with_the_relay_and_with_who_started_it(killed: str, number: signal.Signals) -> None:
    relay = [sys.executable, "-I", mcp_relay.__file__, "1000", sys.executable, "-c", STUBBORN]
    command = relay if killed == "relay" else [sys.executable, "-c", STARTER, *relay]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        server = int(process.stdout.readline())
        process.send_signal(number)
        try:
            assert gone(server, 15)
        finally:
            if not gone(server, 0.1):
                os.kill(server, signal.SIGKILL)
