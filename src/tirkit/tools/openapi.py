"""OpenAPI 3.0 and 3.1 documents → tools: one for each operation, or a reason why there is none.

An operation's path, query and header parameters are the tool's arguments, its body is the argument `body`; where two
have the same name, the later ones say where they go: `id`, `id_query`. Response schemas are not read.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from tirkit.tools.catalogue import CatalogueError
from tirkit.tools.http_secrets import HEADER_NAME
from tirkit.tools.http_tool import HOLE
from tirkit.tools.imports import Imported, Remark, imported
from tirkit.tools.openapi_document import is_address, read_document
from tirkit.tools.openapi_schema import SchemaReader, UnusableError, clean_name, make_tool, remarks_on
from tirkit.types import HttpOrigin, Place, ToolSchema

METHODS = ("get", "head", "post", "put", "patch", "delete", "options", "trace")
READ_ONLY = {"GET", "HEAD"}
# What the client itself says of a request (and OpenAPI has ignored), and what would change whom it is for.
OWN = """accept content-type authorization accept-encoding host content-length transfer-encoding connection cookie te
trailer upgrade expect proxy-authorization"""
OWN_HEADERS = set(OWN.split())
STYLES = {"spaceDelimited": "space", "pipeDelimited": "pipe", "deepObject": "deep"}
FORM = "application/x-www-form-urlencoded"


def load_openapi(source: str, server: str = "", headers: Mapping[str, str] | None = None) -> Imported:
    """The operations of a document, a file or an address, in its order.

    server: address that stands for all that the document names. headers: templates (see HttpOrigin) sent with every
    call; operations on another host than the document's first server, or this `server`, are left out then.
    Raises CatalogueError where the document cannot be read or holds nothing that can be imported.
    """
    document = read_document(source)
    try:
        reader = _Operations(source, document, server, dict(headers or {}))
    except ValueError as error:
        raise CatalogueError(f"{source}: {error}") from error
    tools, skipped, remarks = [], [], []
    for operation in reader.operations():
        try:
            tools.append(reader.tool(operation))
            name = str(operation.spec.get("operationId") or "")
            remarks += remarks_on(operation.title, name, _description(operation))
        except UnusableError as error:
            skipped.append(Remark(operation.title, error.why, error.detail))
        except (TypeError, AttributeError, ValueError) as error:  # a list where a mapping belongs, and the like
            skipped.append(Remark(operation.title, "it is not as OpenAPI has it", str(error)[:200]))
    if not tools:
        reason = f"first reason: {skipped[0]}" if skipped else "it has no paths"
        raise CatalogueError(f"{source} holds no operation that can be imported; {reason}")
    return imported(reader.source, tools, skipped, remarks)


@dataclass(frozen=True)
class _Operation:
    method: str
    path: str
    item: Mapping[str, Any]
    spec: Mapping[str, Any]

    @property
    def title(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class _Arguments:
    """A tool's arguments as they come together."""

    properties: dict[str, Any] = field(default_factory=dict)
    required: list[str] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)
    media: str = ""

    def add(self, name: str, schema: dict[str, Any], required: bool, at: str, style: str = "repeat") -> None:
        argument = name
        while argument in self.properties:
            argument = f"{argument}_{at}"
        self.properties[argument] = schema
        self.required += [argument] if required else []
        place = {"at": at, "name": name if argument != name else "", "style": style}
        self.places[argument] = Place.model_validate(place)


class _Operations:
    """Reads one document's operations."""

    def __init__(self, source: str, document: Mapping[str, Any], server: str, headers: dict[str, str]) -> None:
        self.base = source if is_address(source) else ""
        address = urlsplit(source)
        # Without its query: keys are put there.
        self.source = f"openapi:{address.netloc + address.path if self.base else Path(source).as_posix()}"
        self.document, self.server, self.headers = document, server, headers
        self.schemas = SchemaReader(document)
        self.main = self._server(document) if headers else ""

    def operations(self) -> Iterator[_Operation]:
        paths = self.document.get("paths")
        for path, item in paths.items() if isinstance(paths, Mapping) else ():
            try:
                item = self.schemas.find(item)
            except UnusableError:
                item = {"get": item}  # the same reason again, where it is told
            if isinstance(item, Mapping):
                for method in METHODS:
                    if method in item:
                        spec = item[method] if isinstance(item[method], Mapping) else {}
                        yield _Operation(method.upper(), str(path), item, spec)

    def tool(self, operation: _Operation) -> ToolSchema:
        """The operation as a tool. Raises UnusableError."""
        if operation.method in ("OPTIONS", "TRACE"):
            raise UnusableError(f"{operation.method} asks about the service, not for it")
        self.schemas.find(operation.spec)
        url = self._url(operation)
        arguments = _Arguments()
        for parameter in self._parameters(operation):
            self._add_parameter(arguments, parameter, HOLE.findall(operation.path))
        if missing := [h for h in HOLE.findall(operation.path) if h not in _path_names(arguments)]:
            raise UnusableError("its path has a placeholder that is no parameter", missing[0][:40])
        self._add_body(arguments, operation.spec)
        parameters = {"type": "object", "properties": arguments.properties, "required": arguments.required}
        tool = make_tool(_name(operation), _description(operation), parameters, self.source)
        origin = HttpOrigin(
            kind="http",
            method=operation.method,
            url=url,
            places=arguments.places,
            headers=self.headers | ({"content-type": arguments.media} if arguments.media else {}),
            read_only=operation.method in READ_ONLY,
        )
        return tool.model_copy(update={"origin": origin})

    def _url(self, operation: _Operation) -> str:
        owner = next((x for x in (operation.spec, operation.item) if x.get("servers")), self.document)
        server, path = self._server(owner), operation.path
        if self.headers and _site(server) != _site(self.main):
            raise UnusableError("its server is not the one that the header is for", f"{server} instead of {self.main}")
        fixed = HOLE.sub("x", path)
        while (plain := unquote(fixed)) != fixed:
            fixed = plain
        if not path.startswith("/") or re.search(r"[?#\\\s\x00-\x1f{}]", fixed) or {".", ".."} & set(fixed.split("/")):
            raise UnusableError("its path is none that can be called", path[:100])
        return server + path

    def _server(self, owner: Mapping[str, Any]) -> str:
        """The address that paths are appended to. Raises UnusableError."""
        listed = owner.get("servers")
        first = listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], Mapping) else {}
        url, variables = str(first.get("url") or "/"), first.get("variables")
        for name, variable in variables.items() if isinstance(variables, Mapping) else ():
            url = url.replace(f"{{{name}}}", str(variable.get("default", "")) if isinstance(variable, Mapping) else "")
        url = self.server or urljoin(self.base, url)
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UnusableError("its server is no address: give one with --server", url[:100])
        if "@" in parts.netloc or parts.query or parts.fragment or re.search(r"[{}\\\s]", url):
            raise UnusableError("its server's address can't be used: give one with --server", url[:100])
        if self.headers and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            raise UnusableError("its server is not encrypted: headers with secrets go to https only", url[:100])
        return url.rstrip("/")

    def _parameters(self, operation: _Operation) -> list[Mapping[str, Any]]:
        """The parameters of the path, then the operation's own, which replace those of the same place and name."""
        found: dict[tuple[str, str], Mapping[str, Any]] = {}
        for owner in (operation.item, operation.spec):
            for node in owner.get("parameters") or ():
                parameter = self.schemas.find(node)
                if not isinstance(parameter, Mapping) or not isinstance(parameter.get("name"), str):
                    raise UnusableError("a parameter of it has no name")
                found[str(parameter.get("in")), parameter["name"]] = parameter
        return list(found.values())

    def _add_parameter(self, arguments: _Arguments, parameter: Mapping[str, Any], holes: list[str]) -> None:
        name, where = str(parameter["name"]), parameter.get("in")
        required = parameter.get("required") is True or where == "path"
        if where not in ("path", "query", "header", "cookie"):
            raise UnusableError("a parameter of it goes to an unknown place", f"{name} in {where}")
        if where == "header" and name.lower() in {"accept", "content-type", "authorization"}:
            return  # OpenAPI says so
        auth = {header.lower() for header in self.headers}
        if where == "cookie" or (where == "header" and not _may_send(name, auth)):
            if required and name.lower() not in auth:
                raise UnusableError(f"it needs a {where} that calls can't set", name[:40])
            return
        if where == "path" and name not in holes:
            return
        content = parameter.get("content")
        schema, style = parameter.get("schema", {}), str(parameter.get("style", ""))
        if isinstance(content, Mapping) and content:
            schema, style = (next(iter(content.values())) or {}).get("schema", {}), "content"
        if style in ("label", "matrix"):
            raise UnusableError("a parameter of its path has a style that is not supported", style)
        read = self.schemas.read(schema)
        if text := self.schemas.read({"description": parameter.get("description")}):
            read = {**read, **text}
        explode = parameter.get("explode", style in ("", "form"))
        arguments.add(name, read, required, where, _style(style, where, explode is not False))

    def _add_body(self, arguments: _Arguments, spec: Mapping[str, Any]) -> None:
        body = self.schemas.find(spec.get("requestBody"))
        content = body.get("content") if isinstance(body, Mapping) else None
        if not isinstance(content, Mapping) or not content:
            return
        kinds = {str(kind).partition(";")[0].strip().lower(): value for kind, value in content.items()}
        json_kinds = [k for k in kinds if k in ("application/json", "*/*")] or [k for k in kinds if k.endswith("+json")]
        kind = next((k for k in (*json_kinds, FORM) if k in kinds), None)
        if kind is None:
            raise UnusableError(f"its body is {next(iter(kinds))[:60]}: JSON and forms can be sent")
        schema = self.schemas.read((kinds[kind] or {}).get("schema", {}))
        arguments.add("body", schema, body.get("required") is True, "form_body" if kind == FORM else "json_body")
        arguments.media = kind if kind.endswith("+json") else ""


def _style(style: str, where: str, explode: bool) -> str:
    if style == "content":
        return "json"
    if where != "query":
        return "comma"
    if style == "deepObject" or (style in STYLES and not explode):
        return STYLES[style]
    return "repeat" if explode else "comma"


def _may_send(header: str, auth: set[str]) -> bool:
    return header.lower() not in OWN_HEADERS | auth and HEADER_NAME.fullmatch(header) is not None


def _path_names(arguments: _Arguments) -> set[str]:
    return {place.name or argument for argument, place in arguments.places.items() if place.at == "path"}


def _name(operation: _Operation) -> str:
    given = operation.spec.get("operationId")
    return clean_name(given if isinstance(given, str) else "") or clean_name(
        f"{operation.method.lower()}{operation.path}"
    )


def _description(operation: _Operation) -> str:
    """The summary, then the description where it says more."""
    summary, description = (str(operation.spec.get(key) or "").strip() for key in ("summary", "description"))
    if not summary or description.startswith(summary.rstrip(".")):
        return description or summary
    return f"{summary.rstrip('.')}. {description}" if description else summary


def _site(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port
