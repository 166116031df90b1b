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

So is every public method of a class that is marked `@stateful`: each attempt has an instance of its own, made without
arguments, in a process of its own, which ends with the attempt.

A function that cannot be read is named with its line and the reason; the others are kept.
"""

import asyncio
import functools
import hashlib
import importlib
import importlib.util
import inspect
import pickle
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any, TypeVar

from pydantic import PydanticUserError, validate_call

from tirkit.tools.catalogue import read_tool
from tirkit.tools.lines import FileIssue
from tirkit.tools.process import Worker
from tirkit.tools.state import StatefulTool
from tirkit.types import PythonOrigin, ToolSchema, UserError

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
ClassT = TypeVar("ClassT", bound=type)
MARK = "__tirkit_read_only__"
STATEFUL = "__tirkit_stateful__"
UNBOUND = (staticmethod, classmethod)
BY_KEYWORD = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class FunctionError(UserError):
    """Functions cannot be imported; the message says from where, why, and what to do."""


def read_only(function: FunctionT) -> FunctionT:
    """Mark a function as one that changes nothing: training may call it as often as it likes."""
    setattr(function, MARK, True)
    return function


def stateful(cls: ClassT) -> ClassT:
    """Mark a class whose public methods are tools. What an attempt changes in its instance, no other attempt sees.

    The process ends with the attempt, so module variables are its own, too; files and services are not.
    """
    setattr(cls, STATEFUL, cls.__qualname__)  # a subclass must be marked itself
    return cls


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
class ImportedClass:
    """The class `name` of a file or module, whose state is an instance in a worker process. See `StateSource`."""

    source: str
    name: str

    def make(self, timeout_s: float, memory_mb: int) -> Worker:
        """A new instance. Raises ToolboxError where the class can't be imported or made."""
        return Worker(pickle.dumps(self), timeout_s, memory_mb)

    def __reduce__(self) -> tuple[Any, ...]:
        return _instance_methods, (self.source, self.name)


@dataclass(frozen=True)
class FunctionTools:
    """The tools of a file or module in the order of their definition; `issues` names the functions that are none."""

    source: str
    tools: tuple[ToolSchema, ...]
    read_only: frozenset[str]
    issues: tuple[FileIssue, ...] = ()

    def functions(self, allowed: Collection[str] = ()) -> dict[str, ImportedFunction | StatefulTool]:
        """What a PythonToolbox may run: the read-only tools and the `allowed` ones; "*" allows all.

        Raises FunctionError where one is allowed that is no tool.
        """
        names = [tool.name for tool in self.tools]
        origins = {tool.name: tool.origin for tool in self.tools if isinstance(tool.origin, PythonOrigin)}
        if unknown := sorted(set(allowed) - {*names, "*"}):
            raise FunctionError(f"{self.source} has no tool {unknown[0]!r} to allow; it has {', '.join(names)}")
        runnable = self.read_only | (set(names) if "*" in allowed else set(allowed))
        return {name: self._runner(origins[name].function) for name in names if name in runnable}

    def _runner(self, function: str) -> ImportedFunction | StatefulTool:
        owner, _, method = function.rpartition(".")
        if owner:
            return StatefulTool(ImportedClass(self.source, owner), method)
        return ImportedFunction(self.source, method)


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
    for path, function in _public(module, source):
        owner, _, name = path.rpartition(".")
        try:
            if owner:
                _check_method(getattr(module, owner), name)
            if any(tool.name == name for tool in tools):
                raise ValueError("another tool of the file has its name; rename it")
            tool = _document(name, function, f"python:{given}")
            origin = PythonOrigin(kind="python", source=given, function=path)
            tools.append(tool.model_copy(update={"origin": origin}))
        except ValueError as error:
            issues.append(FileIssue(str(module.__file__), _line(function), f"function {path!r}: {error}"))
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


def _instance_methods(source: str, name: str) -> "_Methods":
    """What to call of a new instance of the class."""
    cls = getattr(_import(source), name, None)
    if cls is None:
        raise FunctionError(f"{source} has no class {name!r} any more; import the catalogue again")
    return _Methods(cls())


class _Methods(dict[str, Callable[..., Any]]):
    """What to call of an instance; looked at when first called, since some methods may be no tools."""

    def __init__(self, instance: object) -> None:
        self._instance = instance

    def __missing__(self, name: str) -> Callable[..., Any]:
        made = self[name] = _callable(getattr(self._instance, name))
        return made


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
        remedy = "give a file of Python functions, or go to the folder from which its tools were imported"
        raise FunctionError(f"{source} cannot be read ({error.strerror}); {remedy}") from error
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
    """The functions that are meant as tools, and methods as `Class.method`. FunctionError for others in `__all__`."""
    if (chosen := getattr(module, "__all__", None)) is not None:
        for name in chosen:
            if not inspect.isfunction(getattr(module, name, None)) and not _is_stateful(getattr(module, name, None)):
                raise FunctionError(f"__all__ of {source} names {name!r}, which is no function; leave it out")
        found = [(name, getattr(module, name)) for name in chosen]
        return [item for name, value in found for item in _functions_of(name, value)]
    found = inspect.getmembers_static(module, lambda value: inspect.isfunction(value) or _is_stateful(value))
    own = [(n, f) for n, f in found if not n.startswith("_") and f.__module__ == module.__name__ and f is not read_only]
    return sorted((item for name, value in own for item in _functions_of(name, value)), key=lambda item: _line(item[1]))


def _is_stateful(value: object) -> bool:
    return isinstance(value, type) and getattr(value, STATEFUL, "") == value.__qualname__


def _functions_of(name: str, value: Any) -> list[tuple[str, Callable[..., Any]]]:
    """A function, or the public methods of a class as if they were bound."""
    if not isinstance(value, type):
        return [(name, value)]
    members = inspect.getmembers_static(value, lambda member: inspect.isfunction(member) or isinstance(member, UNBOUND))
    methods = [(n, member.__func__ if isinstance(member, UNBOUND) else member) for n, member in members]
    return [(f"{name}.{n}", MethodType(method, object())) for n, method in methods if not n.startswith("_")]


def _check_method(cls: type, name: str) -> None:
    """Raises ValueError where the method has no state, or its class can't be made without arguments."""
    if isinstance(inspect.getattr_static(cls, name), UNBOUND):
        raise ValueError("a static or class method has no state; make it a method, or a function outside of the class")
    try:
        inspect.signature(cls).bind()
    except TypeError as error:
        raise ValueError(f"its class must be made without arguments, but there is {error}") from error


def _line(function: Callable[..., Any]) -> int:
    return inspect.unwrap(function).__code__.co_firstlineno


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
