"""Python functions as tools: a file or module of them → their documents, and what to call.

A tool is every public function that is defined there (all that `__all__` names, where it is given), with type hints and
a docstring in Google's form; transformers' `get_json_schema` reads them:

    @read_only
    def get_weather(city: str, unit: Literal["C", "F"] = "C") -> str:
        \"\"\"Tells today's weather.

        Args:
            city: name of the city
            unit: of the temperature
        \"\"\"

A function that cannot be read is named with its line and the reason; the others are kept.
"""

import asyncio
import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from pydantic import PydanticUserError, validate_call

from tirkit.tools.catalogue import read_tool
from tirkit.tools.lines import FileIssue
from tirkit.types import PythonOrigin, ToolSchema, UserError

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
MARK = "__tirkit_read_only__"
BY_KEYWORD = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class FunctionError(UserError):
    """Functions cannot be imported; the message says from where, why, and what to do."""


def read_only(function: FunctionT) -> FunctionT:
    """Mark a function as one that changes nothing: training may call it as often as it likes."""
    setattr(function, MARK, True)
    return function


@dataclass(frozen=True)
class ImportedFunction:
    """The function `name` of a file or module, for a PythonToolbox. A worker process imports it anew.

    Arguments come as JSON and are converted to what the hints say (members of an Enum, 1.0 to an int); that of an
    `async def` is awaited.
    """

    source: str
    name: str

    def __call__(self, /, **arguments: Any) -> Any:
        """What the function returns."""
        return find_function(self.source, self.name)(**arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return find_function, (self.source, self.name)


@dataclass(frozen=True)
class FunctionTools:
    """The tools of a file or module in the order of their definition; `issues` names the functions that are none."""

    source: str
    tools: tuple[ToolSchema, ...]
    read_only: frozenset[str]
    issues: tuple[FileIssue, ...] = ()

    def functions(self, allowed: Collection[str] = ()) -> dict[str, ImportedFunction]:
        """What a PythonToolbox may run: the read-only tools and the `allowed` ones; "*" allows all.

        Raises FunctionError where one is allowed that is no tool.
        """
        names = [tool.name for tool in self.tools]
        if unknown := sorted(set(allowed) - {*names, "*"}):
            raise FunctionError(f"{self.source} has no tool {unknown[0]!r} to allow; it has {', '.join(names)}")
        runnable = self.read_only | (set(names) if "*" in allowed else set(allowed))
        return {name: ImportedFunction(self.source, name) for name in names if name in runnable}


def load_functions(source: str | Path) -> FunctionTools:
    """The tools of a file (`my_tools.py`) or of a module that can be imported (`my_package.tools`).

    Imports it, so what stands at its top level runs. Raises FunctionError where that fails or leaves no tool.
    """
    given = Path(source).as_posix()
    source = str(Path(source).resolve()) if given.endswith(".py") else given
    module = _import(source)
    tools: list[ToolSchema] = []
    issues: list[FileIssue] = []
    marked: set[str] = set()
    for name, function in _public(module, source):
        try:
            tool = _document(name, function, f"python:{Path(source).name}")
            origin = PythonOrigin(kind="python", source=given, function=name)
            tools.append(tool.model_copy(update={"origin": origin}))
        except ValueError as error:
            line = inspect.unwrap(function).__code__.co_firstlineno
            issues.append(FileIssue(str(module.__file__), line, f"function {name!r}: {error}"))
            continue
        if getattr(function, MARK, False):
            marked.add(name)
    if not tools:
        reason = f"; first reason: {issues[0]}" if issues else "; it defines no public function"
        raise FunctionError(f"{source} holds no tool{reason}")
    return FunctionTools(source, tuple(tools), frozenset(marked), tuple(issues))


def find_function(source: str, name: str) -> Callable[..., Any]:
    """What to call with JSON values for the tool `name`; imports `source` once a process. Raises FunctionError."""
    function = getattr(_import(source), name, None)
    if function is None:
        raise FunctionError(f"{source} has no function {name!r} any more; import the catalogue again")
    return _callable(function)


def _callable(function: Callable[..., Any]) -> Callable[..., Any]:
    converting = validate_call(function)
    if not inspect.iscoroutinefunction(inspect.unwrap(function)):
        return converting
    return lambda **arguments: asyncio.run(converting(**arguments))


@functools.cache
def _import(source: str) -> ModuleType:
    remedy = "its packages must be installed; what it does as a script belongs under `if __name__ == '__main__':`"
    try:
        return _import_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except FileNotFoundError as error:
        raise FunctionError(f"{source} cannot be read ({error.strerror}); give a file of Python functions") from error
    except (Exception, SystemExit) as error:  # a module raises whatever it likes
        raise FunctionError(f"{source} cannot be imported ({type(error).__name__}: {error}); {remedy}") from error


def _import_file(path: Path) -> ModuleType:
    path.open().close()
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # for the modules beside it, as when it runs as a script
    # Under a name of its own: a file called json.py must not be taken for json.
    name = f"{path.stem}_{hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _public(module: ModuleType, source: str) -> list[tuple[str, Callable[..., Any]]]:
    """The functions that are meant as tools. Raises FunctionError where `__all__` names something else."""
    if (chosen := getattr(module, "__all__", None)) is not None:
        for name in chosen:
            if not inspect.isfunction(getattr(module, name, None)):
                raise FunctionError(f"__all__ of {source} names {name!r}, which is no function; leave it out")
        return [(name, getattr(module, name)) for name in chosen]
    found = inspect.getmembers_static(module, inspect.isfunction)
    own = [(n, f) for n, f in found if not n.startswith("_") and f.__module__ == module.__name__ and f is not read_only]
    return sorted(own, key=lambda item: inspect.unwrap(item[1]).__code__.co_firstlineno)


def _document(name: str, function: Callable[..., Any], source: str) -> ToolSchema:
    """The function's document. Raises ValueError with the reason where it has none."""
    from transformers.utils.chat_template_utils import (  # takes seconds
        DocstringParsingException,
        TypeHintParsingException,
        get_json_schema,
    )

    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in BY_KEYWORD:
            raise ValueError(f"its parameter {str(parameter)!r} cannot be given by name")
    try:
        document = get_json_schema(function)["function"]
        _callable(function)
    except (DocstringParsingException, TypeHintParsingException, PydanticUserError) as error:
        raise ValueError(f"{_first_line(error)} (a function that is no tool begins with an underscore)") from error
    except Exception as error:  # a hint that names nothing, choices that are no JSON
        raise ValueError(f"{type(error).__name__}: {_first_line(error)}") from error
    return read_tool({"name": name, **{k: document[k] for k in ("description", "parameters")}, "source": source})


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
