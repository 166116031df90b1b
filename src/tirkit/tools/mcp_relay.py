"""Runs a command and passes its lines on, up to a length: `python -I mcp_relay.py MAX_BYTES COMMAND …`.

The MCP client reads a line to its end, however long; this ends a server that writes one without end. It also ends the
command when it is ended itself, or when who started it is gone. What the command reads is our own standard input.
Imports nothing but the standard library: it runs as a script.
"""

import os
import signal
import subprocess
import sys
import threading
import time

GRACE_S = 2.0  # from SIGTERM to SIGKILL


def relay(max_bytes: int, command: list[str]) -> int:
    """Pass lines on until the command closes its output or writes a longer one; its exit code."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        threading.Thread(target=_end_with, args=(os.getppid(), process), daemon=True).start()
        try:
            while line := process.stdout.readline(max_bytes):
                if len(line) == max_bytes:
                    break
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
        except BrokenPipeError:
            pass
        finally:
            _end(process)
        return process.wait()


def _end_with(parent: int, process: subprocess.Popen[bytes]) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(relay(int(sys.argv[1]), sys.argv[2:]))
