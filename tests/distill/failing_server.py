"""A chat server that fails in every known way: some questions always in the same way, others now and then.

A question's fate depends only on the question and the seed, so a test knows it in advance. The server records, in
order, which questions it was asked and which it answered completely.
"""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from tests.http_server import HttpServer, QuietHandler

Fate = str
"""A status, or one of: answer, surrogate, no usage, error, html, empty, torn, cut, silent."""
LASTING: Mapping[Fate, str] = {
    "400": "HTTP 400",
    "413": "HTTP 413",
    "500": "HTTP 500",
    "429": "HTTP 429",
    "error": "no chat completion",
    "html": "no chat completion",
    "empty": "no chat completion",
    "torn": "no chat completion",
    "cut": "connection lost",
    "silent": "connection lost",
}
"""The lasting failures of a question, with the reason that is recorded."""
PASSING: tuple[Fate, ...] = ("500", "429", "cut", "silent")
"""Failures that any request may have before it is answered."""
THOUGHT = "Twice the number is the number and itself."


class FailingServer(HttpServer):
    """Answers "What is N plus N?"; of 20 questions 4 always fail, and of 8 requests one."""

    def __init__(self, seed: int, *, slowest_s: float = 0.004, fates: Mapping[str, Fate] | None = None) -> None:
        """`fates` replaces chance: the fate of each question; all others are answered."""
        self._seed, self._slowest_s, self.fates = seed, slowest_s, fates
        self.bodies: list[dict[str, Any]] = []
        self._chance, self._lock = random.Random(seed), threading.Lock()
        self.asked: list[str] = []
        self.answered: list[str] = []

    def fate(self, question: str) -> Fate:
        if self.fates is not None:
            return self.fates.get(question, "answer")
        chance = random.Random(f"{self._seed}:{question}")
        if chance.random() < 0.2:
            return chance.choice(list(LASTING))
        return chance.choices(["answer", "surrogate", "no usage"], [8, 1, 1])[0]

    def take(self, body: dict[str, Any]) -> tuple[Fate, float]:
        """Decide what happens to one request, and how long it takes."""
        question: str = body["messages"][-1]["content"]
        with self._lock:
            self.bodies.append(body)
            self.asked.append(question)
            wait_s = self._chance.random() * self._slowest_s
            passing = self._chance.choice(PASSING) if self._chance.random() < 1 / 8 and self.fates is None else None
        lasting = self.fate(question)
        return (lasting if lasting in LASTING or passing is None else passing), wait_s

    def refuses(self, body: dict[str, Any]) -> tuple[int, str] | None:
        """Return a status and a body for requests with fields that a test's own server refuses."""
        return None

    def said(self, question: str) -> str:
        return f"It is {2 * int(question.split()[2])}." + ("\ud800" if self.fate(question) == "surrogate" else "")

    def completion(self, question: str, fate: Fate) -> dict[str, Any]:
        message = {"role": "assistant", "reasoning_content": THOUGHT, "content": self.said(question)}
        usage = {} if fate == "no usage" else {"usage": {"prompt_tokens": 9, "completion_tokens": 12}}
        return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], **usage}


class _Handler(QuietHandler):
    owner: FailingServer
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # who asked was killed
            super().handle()

    def do_GET(self) -> None:
        self._send(200, json.dumps({"object": "list", "data": [{"id": "failing"}]}))

    def do_POST(self) -> None:
        content = self.rfile.read(length := int(self.headers["Content-Length"]))
        if len(content) < length:
            raise ConnectionResetError
        body = json.loads(content)
        question = body["messages"][-1]["content"]
        fate, wait_s = self.owner.take(body)
        time.sleep(wait_s)
        if refusal := self.owner.refuses(body):
            self._send(*refusal)
            return
        whole = json.dumps(self.owner.completion(question, fate))
        match fate:
            case status if status.isdigit():
                self._send(int(status), '{"error": {"message": "not this one"}}')
            case "error":
                self._send(200, '{"error": {"message": "upstream is gone", "code": 502}}')
            case "html":
                self._send(200, "<html><title>Sign in</title></html>")
            case "empty":
                self._send(200, "")
            case "torn":
                self._send(200, whole[:-20])
            case "cut":
                self._send(200, whole, left_out=20)
            case "silent":
                self._hang_up()
            case _:
                self._send(200, whole)
                self.owner.answered.append(question)

    def _send(self, status: int, body: str, *, left_out: int = 0) -> None:
        content = body.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) - left_out])
        if left_out:
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


FailingServer.handler = _Handler
