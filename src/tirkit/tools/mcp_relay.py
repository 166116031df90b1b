"""Runs a command and passes its lines on, up to a length: `python -I mcp_relay.py MAX_BYTES COMMAND …`.

The MCP client reads a line to its end, however long; this ends a server that writes one without end. What the command
reads is our own standard input. Imports nothing but the standard library: it runs as a script.
"""

import subprocess
import sys


def relay(max_bytes: int, command: list[str]) -> int:
    """Pass lines on until the command closes its output or writes a longer one; its exit code."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            while line := process.stdout.readline(max_bytes):
                if len(line) == max_bytes:
                    break
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
        except BrokenPipeError:
            pass
        process.terminate()
        return process.wait()


if __name__ == "__main__":
    sys.exit(relay(int(sys.argv[1]), sys.argv[2:]))
