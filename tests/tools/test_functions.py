import json
import subprocess
import sys
from pathlib import Path

import pytest

from tirkit.tools.catalogue import CatalogueError, load_catalogue
from tirkit.tools.functions import FunctionError, FunctionTools, load_functions
from tirkit.tools.imports import update_catalogue
from tirkit.tools.runtime import PythonToolbox
from tirkit.types import ToolCall, ToolErrorKind, ToolResult

MY_TOOLS = '''
import enum
import json as _json
from os.path import join  # not ours
from typing import Literal

import beside
from tirkit.tools.functions import read_only


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


@read_only
def get_weather(city: str, days: int = 1, unit: Literal["C", "F"] = "C") -> str:
    """Tells the weather.

    Args:
        city: name of the city
        days: how many
        unit: of the temperature (choices: ["C", "F"])
    """
    return f"{city}: {beside.DEGREES} {unit}" + " ." * days


@read_only
async def area(size: Size) -> dict[str, float]:
    """Tells the area.

    Args:
        size: of the shirt
    """
    return {"area": 1.5, "size": size.name}


def delete(name: str) -> str:
    """Deletes a file.

    Args:
        name: of the file
    """
    return f"deleted {name}"


def _helper(x):
    return x


def no_docstring(x: int) -> int:
    return x


def no_hint(x):
    """Says x.

    Args:
        x: what
    """


def undescribed(x: int, y: int):
    """Says x.

    Args:
        x: what
    """


def any_number(*values: int):
    """Adds.

    Args:
        values: to add
    """


def unknown_hint(x: "Nowhere"):
    """Says x.

    Args:
        x: what
    """
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("DEGREES = 21\n")
    path = tmp_path / "json.py"  # a name that Python itself uses
    path.write_text(MY_TOOLS)
    return path


def run(found: FunctionTools, name: str, /, *allowed: str, **arguments: object) -> ToolResult:
    with PythonToolbox(found.functions(allowed), found.tools, timeout_s=60) as box:
        return box.run(ToolCall.model_validate({"name": name, "arguments": arguments}))


def test_functions_become_documents(file: Path) -> None:
    found = load_functions(file)
    assert [tool.name for tool in found.tools] == ["get_weather", "area", "delete"]
    weather = found.tools[0]
    assert (weather.description, weather.source) == ("Tells the weather.", f"python:{file}")
    assert weather.parameters == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "name of the city"},
            "days": {"type": "integer", "description": "how many"},
            "unit": {"type": "string", "enum": ["C", "F"], "description": "of the temperature"},
        },
        "required": ["city"],
    }
    assert found.tools[1].parameters["properties"]["size"]["enum"] == ["small", "large"]  # type: ignore[index, call-overload]
    assert found.read_only == {"get_weather", "area"}
    assert sys.modules["json"] is json  # and Python's is still Python's


def test_what_cannot_be_read_is_named_with_line_and_reason(file: Path) -> None:
    issues = load_functions(file).issues
    lines = MY_TOOLS.split("\n")
    reasons = {
        "no_docstring": "has no docstring! (a function that is no tool begins with an underscore)",
        "no_hint": "is missing a type hint",
        "undescribed": "no description for the argument 'y'",
        "any_number": "its parameter '*values: int' cannot be given by name",
        "unknown_hint": "name 'Nowhere' is not defined",
    }
    assert len(issues) == len(reasons)
    for issue, (name, reason) in zip(issues, reasons.items(), strict=True):
        assert issue.file == str(file)
        assert lines[issue.line - 1].startswith(f"def {name}(")
        assert issue.reason.startswith(f"function {name!r}: ")
        assert reason in issue.reason


def test_tools_run_in_worker_processes(file: Path) -> None:
    found = load_functions(file)
    assert run(found, "get_weather", city="Oslo", days=2.0).content == "Oslo: 21 C . ."  # 2.0 is an integer in JSON
    assert json.loads(run(found, "area", size="large").content) == {"area": 1.5, "size": "LARGE"}
    assert run(found, "area", size="huge").error == ToolErrorKind.INVALID_ARGUMENTS
    assert run(found, "get_weather", town="Oslo").error == ToolErrorKind.INVALID_ARGUMENTS


def test_only_read_only_and_allowed_functions_run(file: Path) -> None:
    found = load_functions(file)
    refused = run(found, "delete", name="x")
    assert (refused.content, refused.error) == ("tool 'delete' cannot be run here", ToolErrorKind.UNAVAILABLE)
    assert run(found, "delete", "delete", name="x").content == "deleted x"
    assert list(found.functions("*")) == ["get_weather", "area", "delete"]
    with pytest.raises(FunctionError, match="has no tool 'erase' to allow; it has get_weather, area, delete"):
        found.functions(["erase"])


def test_all_names_the_tools_where_it_is_given(file: Path) -> None:
    file.write_text(MY_TOOLS + "\n__all__ = ['delete', 'no_hint']\n")
    found = load_functions(file)
    assert ([tool.name for tool in found.tools], len(found.issues)) == (["delete"], 1)


def test_a_module_is_found_by_its_name(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.rename(file.with_name("my_module.py"))
    monkeypatch.syspath_prepend(str(file.parent))
    found = load_functions("my_module")
    assert (found.tools[0].source, len(found.tools)) == ("python:my_module", 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:", r"cannot be imported \(SyntaxError: invalid syntax .*line 1\)"),
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("import sys; sys.exit(3)", r"SystemExit: 3\); .* belongs under `if __name__"),
        ("x = 1", "holds no tool; it defines no public function"),
        ("def f(x): pass", r"holds no tool; first reason: .*t\.py:1: function 'f': .*no docstring"),
        ("__all__ = ['f']", "__all__ of .* names 'f', which is no function"),
    ],
)
def test_files_that_give_no_tool_are_refused_with_the_reason(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.py").write_text(text)
    with pytest.raises(FunctionError, match=message):
        load_functions(tmp_path / "t.py")


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FunctionError, match=r"nowhere\.py cannot be read"):
        load_functions(tmp_path / "nowhere.py")
    with pytest.raises(FunctionError, match=r"no_such\.module cannot be imported"):
        load_functions("no_such.module")


def tirkit(*arguments: str | Path) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-m", "tirkit", *map(str, arguments)], capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def test_importing_again_shows_the_difference_and_overwrites_nothing(file: Path, tmp_path: Path) -> None:
    catalogue = tmp_path / "catalogue.jsonl"
    code, said = tirkit("tools", "import", file, "--out", catalogue)
    assert code == 1  # five functions could not be read
    assert 'added    get_weather: "Tells the weather."\n' in said
    assert f"3 tools (2 read-only), 5 left out; {catalogue} written" in said
    first = catalogue.read_text()
    file.write_text(MY_TOOLS.replace("how many", "number of days").replace("def delete(", "def remove("))
    code, said = tirkit("tools", "import", file, "--out", catalogue)
    assert code == 1
    shown = """
added    remove: "Deletes a file."
changed  get_weather
         parameters.properties.days.description: "how many" → "number of days"
removed  delete
"""
    assert shown in said
    assert "not changed: --update takes it over" in said
    assert catalogue.read_text() == first
    assert tirkit("tools", "import", file, "--out", catalogue, "--update")[1].endswith("written\n")
    assert [tool.name for tool in load_catalogue(catalogue).tools] == ["get_weather", "area", "remove"]
    assert tirkit("tools", "import", file, "--out", catalogue)[1].endswith("up to date\n")


def test_other_sources_stay_and_names_do_not_clash(file: Path, tmp_path: Path) -> None:
    path, tools, source = tmp_path / "catalogue.jsonl", load_functions(file).tools, f"python:{file}"
    path.write_text('{"name": "mine", "description": "By hand."}\n')
    assert len(update_catalogue(path, tools, source).added) == 3
    assert len(path.read_text().splitlines()) == 1  # shown only
    update_catalogue(path, tools, source, write=True)
    update_catalogue(path, tools[:1], source, write=True)
    assert [tool.name for tool in load_catalogue(path).tools] == ["mine", "get_weather"]
    (tmp_path / "other").mkdir()
    namesake = tmp_path / "other" / file.name
    namesake.write_text('def more() -> int:\n    """Gives more."""\n    return 1\n')
    update_catalogue(path, load_functions(namesake).tools, f"python:{namesake}", write=True)
    assert [tool.name for tool in load_catalogue(path).tools] == ["mine", "get_weather", "more"]
    path.write_text('{"name": "area", "description": "By hand."}\n')
    with pytest.raises(CatalogueError, match="has a tool 'area' of no known source already; rename"):
        update_catalogue(path, tools, source, write=True)
    path.write_text('{"name": "mine"}\n{oops\n')
    with pytest.raises(CatalogueError, match=r"would lose tools when it is written: .*catalogue\.jsonl:2"):
        update_catalogue(path, tools, source, write=True)
