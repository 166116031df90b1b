import json
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tirkit.tools.catalogue import SEAL_TOOLS_SAMPLE, Catalogue, CatalogueError, load_catalogue, read_parameters
from tirkit.tools.questions import load_tasks
from tirkit.types import ToolSchema

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def bare(name: str, description: str = "", **more: object) -> dict[str, object]:
    return {"name": name, "description": description, "parameters": CITY} | more


def load(path: Path, *lines: object, **options: object) -> Catalogue:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return load_catalogue(path, **options)  # type: ignore[arg-type]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tools.jsonl"


def names(catalogue: Catalogue) -> list[str]:
    return [tool.name for tool in catalogue.tools]


def test_every_form_gives_the_same_document(file: Path) -> None:
    seal = {
        "api_name": "c",
        "api_description": "d",
        "field": "x",
        "parameters": {"city": {"type": "str"}},
        "required": ["city"],
        "responses": {},
    }
    bfcl = {
        "name": "b",
        "description": "d",
        "parameters": {"type": "dict", "properties": {"city": {"type": "String"}}, "required": ["city"]},
    }
    catalogue = load(file, {"type": "function", "function": bare("a", "d")}, bfcl, seal, {"id": 1, "function": [bfcl]})
    assert catalogue.tools == tuple(ToolSchema(name=n, description="d", parameters=CITY) for n in "abc")  # type: ignore[arg-type]
    assert (catalogue.merged, catalogue.issues) == (1, ())


def test_array_and_lines_are_the_same(file: Path) -> None:
    tools = [bare("a"), bare("b")]
    expected = load(file, *tools)
    for text in (json.dumps(tools), json.dumps(tools, indent=2), "\ufeff  " + json.dumps(tools)):
        file.write_text(text, encoding="utf-8")
        assert load_catalogue(file) == expected
    assert load(file, bare("a")).tools == expected.tools[:1]


def test_issues_name_the_line_an_array_element_begins_on(file: Path) -> None:
    file.write_text('[\n  {"name": "a"},\n\n  {"nam": "b"}, 7,\n  {"name": "c"}\n]')
    catalogue = load_catalogue(file)
    assert names(catalogue) == ["a", "c"]
    assert [(i.file, i.line) for i in catalogue.issues] == [(str(file), 4), (str(file), 4)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"name": "x"', "not JSON"),
        ("7", "not a JSON object"),
        ("{}", 'no "name"'),
        ({"name": 3}, 'no "name"'),
        ({"name": "  "}, 'no "name"'),
        ({"name": "a\nb"}, "control character"),
        ({"name": "a>>b"}, "'>'"),
        ({"name": "n" * 300}, "at most 256"),
        ({"name": "x", "description": 3}, "description must be text"),
        ({"name": "x", "parameters": [1]}, "must be a JSON Schema object"),
        ({"name": "x", "parameters": {"city": {"type": "string"}}}, '"type": "object"'),
        ({"name": "x", "parameters": {"type": "array"}}, "type object"),
        ({"name": "x", "parameters": {"type": "object", "properties": {"a": {"type": "wibble"}}}}, "'wibble'"),
        ({"name": "x", "parameters": {"type": "object", "properties": [1]}}, "not valid JSON Schema"),
        ({"name": "x", "parameters": {"type": "object", "required": "a"}}, "not valid JSON Schema"),
        ({"name": "x", "parameters": {"type": "object", "required": ["a"]}}, "'a' is not among"),
        ({"name": "x", "parameters": {"properties": {"a": {"pattern": 5}}}}, "not valid JSON Schema"),
        ('{"name": "x", "parameters": {"type": "object", "properties": {"a": {"default": NaN}}}}', "finite"),
        ('{"name": "x\\ud800"}', "unicode"),
        ('{"name": "x", "parameters": {"properties": {"a": {"default": "\\ud800"}}}}', ""),
        ("[" * 100_000, "nested too deeply"),
        ('{"name": "x", "parameters": ' + '{"items": ' * 5000 + "{}" + "}" * 5001, ""),
    ],
)
def test_a_bad_line_is_named_and_the_rest_is_kept(file: Path, line: object, reason: str) -> None:
    catalogue = load(file, bare("before"), "", line, bare("after"))
    assert names(catalogue) == ["before", "after"]
    (issue,) = catalogue.issues
    assert (issue.file, issue.line) == (str(file), 3)
    assert reason in issue.reason
    assert "\n" not in issue.reason


def test_bytes_that_are_no_text_cost_one_line(file: Path) -> None:
    file.write_bytes(json.dumps(bare("a")).encode() + b'\n{"name": "\xff\xfe"}\r\n' + json.dumps(bare("b")).encode())
    catalogue = load_catalogue(file)
    assert names(catalogue) == ["a", "b"]
    assert [(i.line, i.reason) for i in catalogue.issues] == [(2, "not JSON: text that is not valid UTF-8")]


def test_duplicates_merge_and_collisions_are_suffixed(file: Path) -> None:
    catalogue = load(
        file,
        bare("a", "one"),
        bare("a", "two"),
        bare("a", "one"),  # the first again
        bare("a", "one", source="elsewhere"),  # another source: another tool
        bare("a_2", "really called so"),
        bare("a", "four"),
        bare("a", "one", parameters=dict(reversed(CITY.items()))),  # the first, its keys in another order
    )
    # a_2 is taken by the tool that came with that name, so the second "a" becomes a_3.
    assert [(t.name, t.description, t.original_name) for t in catalogue.tools] == [
        ("a", "one", ""),
        ("a_3", "two", "a"),
        ("a_4", "one", "a"),
        ("a_2", "really called so", ""),
        ("a_5", "four", "a"),
    ]
    assert (catalogue.merged, catalogue.renamed) == (2, 3)
    found = catalogue.get("a_3")
    assert found is not None
    assert found.description == "two"
    assert catalogue.get("a_9") is None


def test_type_words_are_read_all_the_way_down() -> None:
    words = {
        "any": {},
        "tuple": {"type": "array"},
        "list[float]": {"type": "array", "items": {"type": "number"}},
        "HashMap": {"type": "object"},
        "long": {"type": "integer"},
        "BOOLEAN": {"type": "boolean"},
        "DATE (YYYY-MM-DD)": {"type": "string"},
    }
    for word, expected in words.items():
        schema = {"type": "dict", "properties": {"type": {"anyOf": [{"type": word}], "items": {"type": word}}}}
        assert read_parameters(schema)["properties"] == {"type": {"anyOf": [expected], "items": expected}}


def test_files_are_read_in_the_order_given(tmp_path: Path) -> None:
    paths = [tmp_path / "z.json", tmp_path / "a.json"]
    for path in paths:
        path.write_text(json.dumps([bare(path.stem), bare("both")]))
    catalogue = load_catalogue(paths)
    assert names(catalogue) == ["z", "both", "a"]
    assert catalogue.merged == 1


def test_a_catalogue_without_tools_stops_the_run(file: Path) -> None:
    with pytest.raises(CatalogueError, match=r"tools\.jsonl cannot be read .* give the path"):
        load_catalogue(file)
    with pytest.raises(CatalogueError, match="cannot be read"):
        load_catalogue(file.parent)
    for text in ("", " \n\n", "[]", "null"):
        file.write_text(text)
        with pytest.raises(CatalogueError, match=r'no usable tool in .*\n.*"name"'):
            load_catalogue(file)
    file.write_text("<html>")
    with pytest.raises(CatalogueError, match=r"first reason: .*tools\.jsonl:1: not JSON"):
        load_catalogue(file)


def test_a_broken_array_is_searched_line_by_line(file: Path) -> None:
    text = '[\n{"name": "a"}\n{"name": "b"}\n]'  # a comma is missing
    file.write_text(text)
    catalogue = load_catalogue(file, format="json")
    assert names(catalogue) == ["a", "b"]
    assert [(i.line, i.reason) for i in catalogue.issues][1] == (3, "not JSON: ',' or ']' expected (column 1)")
    file.write_text(json.dumps([bare("a"), bare("b")], indent=1).replace('"b"', "b"))
    with pytest.raises(CatalogueError, match=r"first reason: .*:18: not JSON: Expecting value \(column 11\)"):
        load_catalogue(file)


KEYS = ["name", "description", "parameters", "type", "function", "properties", "required", "items", "api_name", "anyOf"]
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.sampled_from(["str", "object", "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)
BYTES = st.binary(max_size=60).map(lambda data: data.replace(b"\n", b" "))
JUNK = BYTES | JSON_VALUES.map(lambda value: json.dumps(value).encode())


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk=st.lists(JUNK, max_size=6), places=st.sets(st.integers(0, 6)))
def test_no_junk_costs_a_good_line_or_raises(tmp_path: Path, junk: list[bytes], places: set[int]) -> None:
    good = {place: f"good tool {place}" for place in places}
    lines: list[bytes] = []
    for place in range(7):
        lines += [json.dumps(bare(good[place])).encode()] if place in good else []
        lines += junk[place : place + 1]
    path = tmp_path / "fuzz.jsonl"
    path.write_bytes(b"\n".join(lines))
    try:
        catalogue = load_catalogue(path)
    except CatalogueError:
        assert not good
    else:
        assert set(good.values()) <= set(names(catalogue))
        assert len(set(names(catalogue))) == len(catalogue.tools)
        for tool in catalogue.tools:
            assert ToolSchema.model_validate_json(tool.model_dump_json()) == tool


def test_the_sample_is_whole() -> None:
    catalogue = load_catalogue(SEAL_TOOLS_SAMPLE / "tools.jsonl")
    tasks = load_tasks(SEAL_TOOLS_SAMPLE / "questions.jsonl", known=catalogue.by_name)
    assert (len(catalogue.tools), catalogue.issues, catalogue.merged, catalogue.renamed) == (200, (), 0, 0)
    assert (len(tasks.tasks), tasks.issues) == (155, ())
    numbers = [len(task.gold_calls or ()) for task in tasks.tasks]
    assert {n: numbers.count(n) for n in set(numbers)} == {1: 99, 2: 2, 3: 47, 4: 7}
    assert {call.name for task in tasks.tasks for call in task.gold_calls or ()} == set(names(catalogue))
    assert "Apache License" in (SEAL_TOOLS_SAMPLE / "LICENSE").read_text()


def test_all_of_seal_tools_and_of_the_shared_catalogue(shared_data: Path) -> None:
    catalogue = load_catalogue(shared_data / "seal_tools" / "tool.jsonl")
    assert (len(catalogue.tools), catalogue.issues) == (4076, ())
    tasks = load_tasks(shared_data / "seal_tools" / "dev.jsonl", known=catalogue.by_name)
    assert (len(tasks.tasks), tasks.issues) == (700, ())
    catalogue = load_catalogue(shared_data / "tool_catalogue" / "catalogue.jsonl")
    assert (len(catalogue.tools), catalogue.issues) == (8471, ())


def test_ten_thousand_tools_load_quickly(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = [json.loads(line) for line in (SEAL_TOOLS_SAMPLE / "tools.jsonl").read_text().splitlines()]
    file.write_text("".join(json.dumps(sample[i % 200] | {"api_name": f"tool{i}"}) + "\n" for i in range(10_000)))
    start = time.perf_counter()
    assert len(load_catalogue(file).tools) == 10_000
    with capsys.disabled():
        print(f"\n10,000 tools loaded in {time.perf_counter() - start:.2f} s (aim: under 3 s)")
