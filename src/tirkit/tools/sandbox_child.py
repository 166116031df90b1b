"""What runs inside a sandbox: set the limits, then run the Python code that stands on standard input.

Standard library only, and little of it: each import costs every call milliseconds. What goes wrong before the code
starts is written to standard error; from then on everything goes to standard output.
"""

import _ast
import os
import resource
import sys
from types import ModuleType

NAME = "<code>"


def limit(cpu_s: int, memory_mb: int, processes: int, disk_mb: int) -> None:
    """Set the limits for good: nothing that is started from here on can raise them."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    resource.setrlimit(resource.RLIMIT_FSIZE, (disk_mb << 20, disk_mb << 20))
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))


def become(uid: int) -> None:
    """Be user `uid`, without groups: the kernel bounds processes and denies access for everyone but root."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def run(code: str) -> None:
    """Run `code` as the main module and, as in a notebook, print the value of a last expression."""
    module = sys.modules["__main__"] = ModuleType("__main__")
    tree: _ast.Module = compile(code, NAME, "exec", _ast.PyCF_ONLY_AST)  # pyright: ignore
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], _ast.Expr) else None
    exec(compile(tree, NAME, "exec"), module.__dict__)
    if isinstance(last, _ast.Expr):
        value = eval(compile(_ast.Expression(last.value), NAME, "eval"), module.__dict__)
        if value is not None:
            print(repr(value))


def report(error: BaseException, code: str) -> None:
    """Print the traceback of `error`, as far as it is the code's own."""
    import linecache
    import traceback

    linecache.cache[NAME] = (len(code), None, code.splitlines(keepends=True), NAME)
    at = error.__traceback__
    while at is not None and at.tb_frame.f_code.co_filename != NAME:
        at = at.tb_next
    traceback.print_exception(type(error), error, at, file=sys.stdout)


def main() -> None:
    """Arguments: cpu_s memory_mb processes disk_mb uid (0 = stay) packages. Exits with 1 where the code raised."""
    *numbers, packages = sys.argv[1:]
    cpu_s, memory_mb, processes, disk_mb, uid = map(int, numbers)
    sys.argv, sys.path = [NAME], [*sys.path, packages]
    code = sys.stdin.buffer.read().decode("utf-8", "replace")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    limit(cpu_s, memory_mb, processes, disk_mb)
    if uid:
        become(uid)
    os.dup2(1, 2)
    # What was printed is seen, whatever happens next.
    sys.stdout.reconfigure(errors="replace", line_buffering=True)  # pyright: ignore
    try:
        run(code)
    except SystemExit as error:
        if error.code not in (None, 0):
            print(f"SystemExit: {error.code}")
            sys.exit(1)
    except BaseException as error:
        report(error, code)
        sys.exit(1)


if __name__ == "__main__":
    main()
