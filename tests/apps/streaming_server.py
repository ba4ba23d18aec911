"""A server that streams answers written ahead, as OpenAI-compatible servers do; it notices when its client leaves."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

from tests.http_server import HttpServer, QuietHandler


class StreamingServer(HttpServer):
    """Answers each question with the same events; if it `hangs`, it then waits until its client leaves."""

    def __init__(self, events: Sequence[dict[str, Any] | str], *, hangs: bool = False, status: int = 200) -> None:
        self.events, self.hangs, self.status = list(events), hangs, status
        self.bodies: list[dict[str, Any]] = []
        self.client_left = threading.Event()


def delta(finish_reason: str | None = None, **fields: Any) -> dict[str, Any]:
    """One chunk."""
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish_reason}]}


def usage(tokens: int) -> dict[str, Any]:
    return {"choices": [], "usage": {"completion_tokens": tokens}}


class _Handler(QuietHandler):
    owner: StreamingServer

    def do_GET(self) -> None:
        content = json.dumps({"data": [{"id": "far", "max_model_len": 2048}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        self.owner.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.owner.status)
        self.end_headers()
        for event in self.owner.events:
            text = event if isinstance(event, str) else f"data: {json.dumps(event)}"
            self.wfile.write(f"{text}\n\n".encode())
        if self.owner.hangs:
            assert self.connection.recv(1) == b""
            self.owner.client_left.set()


StreamingServer.handler = _Handler
