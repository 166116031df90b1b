"""OpenAPI documents become tools, and calls of those become the requests that the documents ask for."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from tirkit.cli import app
from tirkit.embedded.model import load_base
from tirkit.text.dialects import print_document
from tirkit.text.render import Renderer
from tirkit.tools.catalogue import CatalogueError, load_catalogue
from tirkit.tools.http_secrets import SecretError
from tirkit.tools.imports import Imported, update_catalogue
from tirkit.tools.openapi import load_openapi
from tirkit.tools.openapi_schema import SchemaReader
from tirkit.tools.origin import make_toolbox
from tirkit.types import HttpOrigin, Message, Place, ToolCall, ToolErrorKind, ToolResult, ToolSchema

ZOO = """
openapi: 3.0.3
info: {title: Zoo, version: 1.0.0}
servers:
  - url: "{scheme}://127.0.0.1:PORT/{version}/"
    variables: {scheme: {default: http}, version: {default: v1}}
paths:
  /pets/{id}:
    parameters:
      - {name: id, in: path, required: true, schema: {type: string}, description: of the pet}
      - {$ref: "#/components/parameters/Trace"}
    get:
      operationId: pets/get
      summary: Gets a pet.
      description: Gets a pet. Its food, too.
      parameters:
        - {name: id, in: query, schema: {type: integer, nullable: true}}
        - {name: tags, in: query, schema: {type: array, items: {type: string}}}
        - {name: sizes, in: query, explode: false, schema: {type: array, items: {type: integer}}}
        - {name: near, in: query, style: deepObject, schema: {type: object, properties: {x: {type: number}}}}
        - {name: filter, in: query, content: {application/json: {schema: {type: object}}}}
        - {name: Accept, in: header, schema: {type: string}}
        - {name: session, in: cookie, schema: {type: string}}
    delete: {operationId: delete_pet, description: Deletes a pet.}
    put:
      operationId: put_pet
      requestBody: {required: true, content: {application/json: {schema: {$ref: "#/components/schemas/Pet"}}}}
  /pets:
    post:
      summary: Adds a pet
      requestBody: {$ref: "#/components/requestBodies/Form"}
    trace: {}
  /upload:
    post: {requestBody: {content: {multipart/form-data: {schema: {type: object}}}}}
  /elsewhere:
    get: {parameters: [{$ref: "other.yaml#/x"}]}
  /signed:
    get: {parameters: [{name: s, in: cookie, required: true, schema: {}}]}
  /missing/{what}:
    get: {}
components:
  parameters:
    Trace: {name: X-Trace, in: header, schema: {type: string}}
  requestBodies:
    Form:
      required: true
      content: {application/x-www-form-urlencoded: {schema: {type: object, properties: {name: {type: string}}}}}
  schemas:
    Pet:
      type: object
      required: [id, name, born]
      properties:
        id: {type: integer, readOnly: true}
        name: {type: string, title: Name, example: Rex, enum: [no, yes]}
        born: {type: string, format: date, default: 2020-01-01}
        age: {type: integer, minimum: 0, exclusiveMinimum: true}
        parent: {$ref: "#/components/schemas/Pet"}
        friends: {type: array, items: {$ref: "#/components/schemas/Pet"}}
"""


@pytest.fixture
def zoo(tmp_path: Path, service: SimpleNamespace) -> Path:
    path = tmp_path / "zoo.yaml"
    path.write_text(ZOO.replace("PORT", service.url.rpartition(":")[2]))
    return path


def call(found: Imported, name: str, /, **arguments: Any) -> ToolResult:
    box = make_toolbox(found.tools, allowed=["*"], timeout_s=5)
    assert box is not None
    return box.run(ToolCall(name=name, arguments=arguments))


def tool(found: Imported, name: str) -> ToolSchema:
    return next(tool for tool in found.tools if tool.name == name)


def test_operations_become_documents(zoo: Path, service: SimpleNamespace) -> None:
    found = load_openapi(str(zoo))
    assert [tool.name for tool in found.tools] == ["pets_get", "put_pet", "delete_pet", "post_pets"]
    assert found.read_only == {"pets_get"}
    get = tool(found, "pets_get")
    assert (get.description, get.source) == ("Gets a pet. Its food, too.", f"openapi:{zoo}")
    assert get.parameters == {
        "type": "object",
        "properties": {
            "id": {"type": "string", "description": "of the pet"},
            "X-Trace": {"type": "string"},
            "id_query": {"type": ["integer", "null"]},
            "tags": {"type": "array", "items": {"type": "string"}},
            "sizes": {"type": "array", "items": {"type": "integer"}},
            "near": {"type": "object", "properties": {"x": {"type": "number"}}},
            "filter": {"type": "object"},
        },
        "required": ["id"],
    }
    assert get.origin == HttpOrigin(
        kind="http",
        method="GET",
        url=f"{service.url}/v1/pets/{{id}}",
        places={
            "id": Place(at="path", style="comma"),
            "X-Trace": Place(at="header", style="comma"),
            "id_query": Place(at="query", name="id"),
            "tags": Place(at="query"),
            "sizes": Place(at="query", style="comma"),
            "near": Place(at="query", style="deep"),
            "filter": Place(at="query", style="json"),
        },
        read_only=True,
    )


def test_schemas_become_json_schema_and_recursion_ends(zoo: Path) -> None:
    put = tool(load_openapi(str(zoo)), "put_pet")
    outline = {"type": "object"}  # Pet again, inside of itself
    assert put.parameters["properties"]["body"] == {  # type: ignore[index, call-overload]
        "type": "object",
        "required": ["name", "born"],  # id is for answers only
        "properties": {
            "name": {"type": "string", "enum": ["no", "yes"]},  # no booleans, as in YAML 1.1
            "born": {"type": "string", "format": "date", "default": "2020-01-01"},
            "age": {"type": "integer", "exclusiveMinimum": 0},
            "parent": outline,
            "friends": {"type": "array", "items": outline},
        },
    }
    assert put.parameters["required"] == ["id", "body"]


def test_a_parameter_keeps_a_few_short_examples() -> None:
    given = {"type": "string", "examples": [{"a": 1}, "Pier12", 7, "x" * 61, True, None, "Dune7", "Mill9", "Bay41"]}
    read = SchemaReader({}).read({"properties": {"station": given, "other": {"examples": {"a": {"value": 1}}}}})
    assert read["properties"] == {"station": {"type": "string", "examples": ["Pier12", 7, True, "Dune7"]}, "other": {}}


def test_what_is_no_tool_has_a_reason(zoo: Path) -> None:
    assert [str(remark) for remark in load_openapi(str(zoo)).skipped] == [
        "TRACE /pets: TRACE asks about the service, not for it",
        "POST /upload: its body is multipart/form-data: JSON and forms can be sent",
        "GET /elsewhere: it refers to another document (other.yaml#/x)",
        "GET /signed: it needs a cookie that calls can't set (s)",
        "GET /missing/{what}: its path has a placeholder that is no parameter (what)",
    ]


def test_calls_become_the_requests_that_the_document_asks_for(zoo: Path, service: SimpleNamespace) -> None:
    found = load_openapi(str(zoo))
    arguments = {"id": "a b/c", "id_query": 7, "tags": ["x", "y z"], "sizes": [1, 2], "near": {"x": 1.5}}
    result = call(found, "pets_get", **arguments, filter={"a": [1]}, **{"X-Trace": "t1"})
    method, path, headers, body = service.asked[-1]
    assert (method, body) == ("GET", "")
    assert path == (
        "/v1/pets/a%20b%2Fc?id=7&tags=x&tags=y+z&sizes=1%2C2&near%5Bx%5D=1.5&filter=%7B%22a%22%3A+%5B1%5D%7D"
    )
    assert (headers["x-trace"], headers["accept-encoding"]) == ("t1", "identity")
    assert (json.loads(result.content), result.error) == ({"path": path}, None)
    call(found, "put_pet", id="1", body={"name": "no", "born": "æ"})
    method, path, headers, body = service.asked[-1]
    assert (method, path, json.loads(body)) == ("PUT", "/v1/pets/1", {"name": "no", "born": "æ"})
    assert headers["content-type"] == "application/json"
    call(found, "post_pets", body={"name": "Rex & Co", "tags": ["a", "b"], "at": {"x": True}})
    method, path, headers, body = service.asked[-1]
    assert (method, body) == ("POST", "name=Rex+%26+Co&tags=a&tags=b&at%5Bx%5D=true")
    assert headers["content-type"] == "application/x-www-form-urlencoded"


def test_two_services_with_the_same_names_get_prefixes(zoo: Path, tmp_path: Path, service: SimpleNamespace) -> None:
    catalogue, other = tmp_path / "catalogue.jsonl", tmp_path / "other.yaml"
    other.write_text(zoo.read_text())
    tirkit("tools", "import", zoo, "--out", catalogue)
    assert "has a tool 'pets_get'" in tirkit("tools", "import", other, "--out", catalogue)[1]
    tirkit("tools", "import", other, "--out", catalogue, "--prefix", "other_", "--update")
    tools = load_catalogue(catalogue).tools
    assert [tool.name for tool in tools][3:6] == ["post_pets", "other_pets_get", "other_put_pet"]
    box = make_toolbox(tools)
    assert box is not None
    assert box.run(ToolCall(name="other_pets_get", arguments={"id": "1"})).error is None
    assert service.asked[-1][1] == "/v1/pets/1"


def test_arguments_are_checked_before_anything_is_asked(zoo: Path, service: SimpleNamespace) -> None:
    found = load_openapi(str(zoo))
    for arguments, problem in (
        ({"id": 3}, "id: 3 is not of type 'string'"),
        ({}, "'id' is a required property"),
        ({"id": "1", "other": 1}, "'other' was unexpected"),
    ):
        result = call(found, "pets_get", **arguments)
        assert result.error is ToolErrorKind.INVALID_ARGUMENTS
        assert problem in result.content
    assert not service.asked


def test_only_what_reads_is_run_unless_it_is_allowed(zoo: Path, service: SimpleNamespace) -> None:
    found = load_openapi(str(zoo))
    for allowed, error in (([], ToolErrorKind.UNAVAILABLE), (["delete_pet"], None), (["*"], None)):
        box = make_toolbox(found.tools, allowed)
        assert box is not None
        assert box.run(ToolCall(name="delete_pet", arguments={"id": "1"})).error is error
        assert box.run(ToolCall(name="pets_get", arguments={"id": "1"})).error is None
    assert [method for method, *_ in service.asked] == ["GET", "DELETE", "GET", "DELETE", "GET"]
    with pytest.raises(CatalogueError, match="no tool 'delete' to allow; the tools that can be run: pets_get, put_pet"):
        make_toolbox(found.tools, ["delete"])


def test_secrets_come_from_the_environment_and_are_stored_nowhere(
    zoo: Path, service: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    token = 'tok/en+"1'
    monkeypatch.setenv("ZOO_TOKEN", token)
    found = load_openapi(str(zoo), headers={"Authorization": "Bearer {ZOO_TOKEN}"})
    catalogue = tmp_path / "catalogue.jsonl"
    update_catalogue(catalogue, found.tools, found.source)
    assert token not in catalogue.read_text()
    service.answer = lambda asked: asked.reply(  # a service that shows what it was sent, in several ways
        json.dumps([asked.headers["authorization"], "tok%2Fen%2B%221", "dG9rL2VuKyIx"]) + "tok"
    )
    result = call(found, "pets_get", id="1")
    assert service.asked[-1][2]["authorization"] == f"Bearer {token}"
    assert result.content == '["Bearer [redacted]", "[redacted]", "[redacted]"]tok'
    service.answer = lambda asked: asked.reply(asked.headers["authorization"], 403, "text/plain")
    assert call(found, "pets_get", id="1").content == "HTTP 403: Bearer [redacted]"
    monkeypatch.delenv("ZOO_TOKEN")
    with pytest.raises(SecretError, match="tool 'pets_get' needs the environment variable ZOO_TOKEN, which is not set"):
        make_toolbox(found.tools)


def test_headers_are_for_one_server_and_never_unencrypted(tmp_path: Path) -> None:
    document = {
        "openapi": "3.1.0",
        "servers": [{"url": "https://zoo.example/"}],
        "paths": {
            "/a": {"get": {}},
            "/b": {"get": {"servers": [{"url": "https://thief.example"}]}},
            "/c": {"get": {"servers": [{"url": "http://zoo.example"}]}},
        },
    }
    path = tmp_path / "zoo.json"
    path.write_text(json.dumps(document))
    assert len(load_openapi(str(path)).tools) == 3
    found = load_openapi(str(path), headers={"X-Key": "{KEY}"})
    assert [tool.name for tool in found.tools] == ["get_a"]
    assert [remark.why for remark in found.skipped] == [
        "its server is not the one that the header is for",
        "its server is not encrypted: headers with secrets go to https only",
    ]


def test_an_address_is_read_like_a_file(service: SimpleNamespace) -> None:
    document = {"openapi": "3.1.0", "servers": [{"url": "../v2"}], "paths": {"/a": {"get": {"summary": "A."}}}}
    service.answer = lambda asked: asked.reply(json.dumps(document))
    found = load_openapi(f"{service.url}/docs/openapi.json?key=secret")
    assert found.source == f"openapi:{service.url.removeprefix('http://')}/docs/openapi.json"
    origin = found.tools[0].origin
    assert isinstance(origin, HttpOrigin)
    assert origin.url == f"{service.url}/v2/a"


def test_the_catalogue_file_is_enough(zoo: Path, tmp_path: Path) -> None:
    found, path = load_openapi(str(zoo)), tmp_path / "catalogue.jsonl"
    update_catalogue(path, found.tools, found.source)
    assert load_catalogue(path).tools == found.tools
    assert not update_catalogue(path, load_openapi(str(zoo)).tools, found.source)


def test_models_never_see_origins(zoo: Path) -> None:
    renderer, asked = Renderer(load_base()[1]), (Message(role="user", content="Feed Rex."),)
    tools = load_openapi(str(zoo)).tools
    bare = [tool.model_copy(update={"origin": None, "source": ""}) for tool in tools]
    assert [*map(print_document, tools)] == [*map(print_document, bare)]
    assert renderer.prompt_ids(asked, tools) == renderer.prompt_ids(asked, bare)
    assert "127.0.0.1" not in renderer.decode_all(renderer.prompt_ids(asked, tools))


def tirkit(*arguments: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, [*map(str, arguments)])
    return done.exit_code, f"{done.output}{done.exception or ''}"


def test_importing_again_shows_what_the_service_has_changed(zoo: Path, tmp_path: Path) -> None:
    catalogue = tmp_path / "catalogue.jsonl"
    code, said = tirkit("tools", "import", zoo, "--out", catalogue)
    assert (code, "4 tools (1 read-only), 5 left out" in said) == (1, True)
    assert "POST /upload: its body is multipart/form-data: JSON and forms can be sent\n" in said
    text = zoo.read_text()
    zoo.write_text(text.replace("/v1", "/v2").replace("default: v1", "default: v2").replace("delete_pet", "remove_pet"))
    code, said = tirkit("tools", "import", zoo, "--out", catalogue, "--header", "X-Key: {KEY}")
    assert code == 1
    assert "added    remove_pet" in said
    assert "removed  delete_pet" in said
    assert 'origin.headers.X-Key: nothing → "{KEY}"' in said
    assert '/v1/pets/{id}" → ' in said
    assert "not changed: --update takes it over" in said
    code, said = tirkit("tools", "import", zoo, "--out", catalogue, "--header", "X-Key: abc")
    assert (code, "write it as 'Authorization: Bearer {MY_TOKEN}'" in said) == (1, True)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"swagger": "2.0"}', "is Swagger 2"),
        ("openapi: 3.2.0", "must be 3.0 or 3.1, not '3.2.0'"),
        ("[1]", "is no OpenAPI 3"),
        ("{", "cannot be read as OpenAPI"),
        ("a: b: c", "cannot be read as OpenAPI"),
        ("!!python/object/apply:os.system [x]", "cannot be read as OpenAPI"),
        ('{"openapi": "3.0.0"}', "holds no operation that can be imported; it has no paths"),
        (
            '{"openapi": "3.0.0", "paths": {"/a": {"get": {}}}}',
            "first reason: GET /a: its server is no address: give one with --server",
        ),
    ],
)
def test_what_is_no_document_is_named(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(CatalogueError, match=reason):
        load_openapi(str(path))
    with pytest.raises(CatalogueError, match="cannot be read as OpenAPI"):
        load_openapi(str(tmp_path / "nowhere.json"))
