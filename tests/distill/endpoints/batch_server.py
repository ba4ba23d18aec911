"""A chat server with OpenAI's batch API, whose batches take a while and may expire, fail or refuse a field."""

from __future__ import annotations

import json
import threading
import time
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any

from tests.http_server import HttpServer, QuietHandler


class BatchServer(HttpServer):
    """Answers "What is N plus N?" in batches."""

    def __init__(
        self,
        *,
        takes_s: float = 0.0,
        expires: int = 0,
        refuses: str = "",
        fails: str = "",
        wrong: tuple[str, ...] = (),
        has_batches: bool = True,
        running: str = "in_progress",
        torn: int = 0,
    ) -> None:
        """`expires`: how many requests of the first batch get no answer; `refuses`: a field; `wrong`: questions with a
        status of 400; `running`: the word for a batch that is not over; `torn`: how many lines of the first output are
        no JSON."""
        self.takes_s, self.expires, self.refuses, self.fails, self.wrong = takes_s, expires, refuses, fails, wrong
        self.has_batches, self.running, self.torn = has_batches, running, torn
        self.lost: set[str] = set()
        """Files and batches that the server no longer has."""
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        """The question of each request that was taken."""
        self.open = threading.Event()
        """Batches end when it is set."""
        self.open.set()
        self.lock = threading.Lock()

    def put(self, content: bytes) -> str:
        name = f"file-{len(self.files)}"
        self.files[name] = content
        return name

    def create(self, values: dict[str, Any]) -> dict[str, Any]:
        lines = [json.loads(line) for line in self.files[values["input_file_id"]].splitlines()]
        assert values["endpoint"] == "/v1/chat/completions" and values["completion_window"] == "24h"
        batch: dict[str, Any] = {
            "id": f"batch-{len(self.batches)}",
            "status": self.running,
            "metadata": values["metadata"],
            "ends": time.monotonic() + self.takes_s,
        }
        self.batches[batch["id"]] = batch
        if self.fails:
            return batch | {"ends": 0.0}
        expired, self.expires = (lines[: self.expires], 0) if self.expires else ([], 0)
        good: list[dict[str, Any]] = []
        bad: list[dict[str, Any]] = []
        for line in lines[len(expired) :]:
            assert (line["method"], line["url"]) == ("POST", "/v1/chat/completions")
            code, body = self.answer(line["body"])
            kind = good if code == 200 else bad
            kind.append(
                {"custom_id": line["custom_id"], "response": {"status_code": code, "body": body}, "error": None}
            )
        for line in expired:
            bad.append({"custom_id": line["custom_id"], "response": None, "error": {"code": "batch_expired"}})
        lines_out = [json.dumps(row, ensure_ascii=False).encode() for row in reversed(good)]
        self.torn, torn = 0, self.torn
        lines_out = [line[: len(line) // 2] if n < torn else line for n, line in enumerate(lines_out)]
        batch["output_file_id"] = self.put(b"".join(line + b"\n" for line in lines_out))
        if bad:
            batch["error_file_id"] = self.put(b"".join(json.dumps(row).encode() + b"\n" for row in bad))
        batch["final"] = "expired" if expired else "completed"
        return batch

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        assert "stream" not in body
        question = body["messages"][-1]["content"]
        if self.refuses in body:
            return 400, {"error": {"message": f"Unsupported parameter: {self.refuses}", "param": self.refuses}}
        self.asked.append(question)
        if question in self.wrong:
            return 400, {"error": {"message": "not this one"}}
        message = {
            "role": "assistant",
            "reasoning_content": "Twice.\u2028It is.\x85",
            "content": f"{2 * int(question.split()[2])}",
        }
        return 200, {
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 6},
        }

    def state(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self.fails:
            return batch | {"status": "failed", "errors": {"data": [{"message": self.fails}]}}
        is_over = self.open.is_set() and time.monotonic() >= batch["ends"]
        shown = {name: value for name, value in batch.items() if name not in ("ends", "final")}
        if not is_over:
            return {name: value for name, value in shown.items() if not name.endswith("file_id")}
        return shown | {"status": batch["final"]}


class _Handler(QuietHandler):
    owner: BatchServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].removeprefix("/v1/")
        with self.owner.lock:
            if any(name in path for name in self.owner.lost):
                self.send_error(404)
            elif path == "models":
                self._send({"data": [{"id": "batched"}]})
            elif path == "batches":
                self._send({"data": [self.owner.state(batch) for batch in self.owner.batches.values()]})
            elif path.startswith("batches/"):
                self._send(self.owner.state(self.owner.batches[path.removeprefix("batches/")]))
            else:
                self._send_bytes(self.owner.files[path.removeprefix("files/").removesuffix("/content")])

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        with self.owner.lock:
            if not self.owner.has_batches:
                self.send_error(404)
            elif self.path == "/v1/files":
                head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
                message = BytesParser(policy=HTTP).parsebytes(head + content)
                parts: dict[Any, Any] = {
                    part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
                    for part in message.walk()
                    if not part.is_multipart()
                }
                assert parts["purpose"].strip() == b"batch"
                self._send({"id": self.owner.put(parts["file"])})
            else:
                assert self.path == "/v1/batches"
                self._send(self.owner.state(self.owner.create(json.loads(content))))

    def _send(self, values: dict[str, Any]) -> None:
        self._send_bytes(json.dumps(values).encode())

    def _send_bytes(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


BatchServer.handler = _Handler
