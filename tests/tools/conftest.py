import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass
class Service:
    """A service on this machine: what it was asked (method, path with query, headers, body), and how it answers."""

    url: str = ""
    asked: list[tuple[str, str, dict[str, str], str]] = field(default_factory=list)
    answer: Callable[[BaseHTTPRequestHandler], None] | None = None
    over: threading.Event = field(default_factory=threading.Event)


class Handler(BaseHTTPRequestHandler):
    server: Any

    def handle_any(self) -> None:
        service: Service = self.server.service
        body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
        headers = {name.lower(): value for name, value in self.headers.items()}
        service.asked.append((self.command, self.path, headers, body))
        if service.answer is not None:
            service.answer(self)
        else:
            self.reply(json.dumps({"path": self.path}))

    def reply(self, body: str | bytes, status: int = 200, kind: str = "application/json", **headers: str) -> None:
        data = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        for name, value in {"content-type": kind, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def start_service() -> Iterator[Callable[[], Service]]:
    running: list[tuple[ThreadingHTTPServer, Service]] = []

    def start() -> Service:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        service = Service(f"http://127.0.0.1:{server.server_address[1]}")
        vars(server)["service"] = service
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        running.append((server, service))
        return service

    yield start
    for server, service in running:
        service.over.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def service(start_service: Callable[[], Service]) -> Service:
    return start_service()
