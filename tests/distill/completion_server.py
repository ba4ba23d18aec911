"""A real server with a real model, with as much of OpenAI's chat completions as a teacher needs.

It misbehaves on demand: the n-th response is the n-th of `faults` (a status, a body, or a cut); None is no fault.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from tests.http_server import HttpServer, QuietHandler
from toolkit.formats.chat_format import OPEN, ChatFormat, split_completion
from toolkit.generation.generate import Decoder, Sampling, complete

Style = Literal["reasoning_content", "reasoning", "thinking", "tags", "half"]
"""Where the thought goes: a field, or the content between both tags or before the closing one."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A response in place of an answer; status 0 cuts the connection."""

    status: int
    body: str = ""
    headers: tuple[tuple[str, str], ...] = ()


class CompletionServer(HttpServer):
    """Serves one decoder on a free port while it is open."""

    def __init__(
        self,
        decoder: Decoder,
        chat_format: ChatFormat,
        *,
        style: Style = "reasoning_content",
        models: Sequence[str] = ("tiny",),
        faults: Sequence[Fault | None] = (),
    ) -> None:
        self.style, self.models, self.faults = style, list(models), list(faults)
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.hold = threading.Event()
        """Answers wait until it is set."""
        self.hold.set()
        self.open_now = self.most_open = 0
        self._decoder, self._chat_format = decoder, chat_format
        self._turn, self._count = threading.Lock(), threading.Lock()

    def __exit__(self, *error: object) -> None:
        self.hold.set()
        super().__exit__(*error)

    def admit(self, body: dict[str, Any], headers: dict[str, str]) -> Fault | None:
        with self._count:
            self.open_now += 1
            self.most_open = max(self.most_open, self.open_now)
            self.bodies.append(body)
            self.headers.append(headers)
            return self.faults.pop(0) if self.faults else None

    def leave(self) -> None:
        with self._count:
            self.open_now -= 1

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        self.hold.wait()
        prompt = self._chat_format.prompt_ids(body["messages"])
        sampling = Sampling(
            temperature=body["temperature"], top_p=body["top_p"], max_new_tokens=body["max_tokens"], seed=body["seed"]
        )
        with self._turn:
            (sampled,) = complete(self._decoder, [prompt], sampling, self._chat_format.stop_ids)
        text = self._chat_format.decode(sampled.ids)
        message: dict[str, Any] = {"role": "assistant"}
        if self.style == "tags":
            message["content"] = f"{OPEN}\n{text}"
        elif self.style == "half":
            message["content"] = text
        else:
            parts = split_completion(text, opened=True)
            message |= {"content": parts.answer or None, self.style: parts.reasoning}
        return {
            "choices": [{"index": 0, "message": message, "finish_reason": sampled.finish_reason}],
            "usage": {"prompt_tokens": len(prompt), "completion_tokens": len(sampled.ids)},
        }


class _Handler(QuietHandler):
    owner: CompletionServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.owner.headers.append(dict(self.headers))
        self._send(200, json.dumps({"object": "list", "data": [{"id": name} for name in self.owner.models]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/chat/completions"
        fault = self.owner.admit(body, dict(self.headers))
        try:
            if fault is None:
                with suppress(BrokenPipeError):  # who asked may have left meanwhile
                    self._send(200, json.dumps(self.owner.answer(body)))
            elif fault.status:
                self._send(fault.status, fault.body, fault.headers)
            else:
                self.close_connection = True
        finally:
            self.owner.leave()

    def _send(self, status: int, body: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        content = body.encode()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


CompletionServer.handler = _Handler
