"""A chat server of a known rate, in a process of its own: streams each answer at so many tokens a second.

`python -m tests.distill.paced_server '{"tokens": 100, "rate": 20}'` prints its port. Options and their defaults are in
`Script`. GET /v1/stats returns what it has seen. Faults come by chance, so the same request succeeds when it is sent
again.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.request import urlopen

from tests.house.modules import ROOT

FAULTS = ("429", "500", "503", "cut before", "cut within", "error event", "stall")


@dataclass(kw_only=True)
class Script:
    """How the server behaves."""

    tokens: int = 100
    rate: float = 20.0
    """Tokens a second of each stream; 0: all at once."""
    per_event: int = 1
    faults: float = 0.0
    """The share of requests that fail, in all ways of `FAULTS`."""
    slots: int = 1_000_000
    """Requests beyond so many wait in a queue before their answer begins."""
    most: int = 1_000_000
    """Requests beyond so many in flight are refused with 429."""
    retry_after: str = ""
    dies_after: int = 1_000_000
    """Requests after which the server ends."""
    model: str = "paced"
    logprobs: int = 0
    counts: bool = True
    """Whether a stream ends with its count of tokens."""
    status: int = 0
    """A status with which all requests are refused."""
    seed: int = 0
    seen: Counter[str] = field(default_factory=Counter)


class PacedServer:
    def __init__(self, script: Script) -> None:
        self.script, self._chance = script, random.Random(script.seed)
        self._slots = asyncio.Semaphore(script.slots)
        text = " word" * script.per_event
        self._event = _chunk({"content": text}, _logprobs(script.logprobs))
        self._thought = _chunk({"reasoning_content": text}, _logprobs(script.logprobs))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                lines = head.split(b"\r\n")
                length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
                body = await reader.readexactly(length)
                if head.startswith(b"get"):
                    seen = dict(self.script.seen) if b"/stats" in lines[0] else {"data": [{"id": self.script.model}]}
                    writer.write(_whole(200, seen))
                elif not await self._answer(writer, is_streamed=b'"stream": true' in body or b'"stream":true' in body):
                    break
                await writer.drain()
        writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, *, is_streamed: bool) -> bool:
        """Answer one request; return whether the connection lives on."""
        script, seen = self.script, self.script.seen
        seen["asked"] += 1
        if seen["asked"] > script.dies_after:
            os._exit(0)  # as a crash: connections break in mid-answer
        fault = self._chance.choice(FAULTS) if self._chance.random() < script.faults else ""
        if script.status:
            fault = str(script.status)
        elif seen["open"] >= script.most:
            fault = "429"
        seen[fault or "answered"] += 1
        if fault.isdigit():
            writer.write(_whole(int(fault), {"error": {"message": "not now"}}, script.retry_after))
            return True
        if fault == "cut before":
            return False
        seen["open"] += 1
        seen["most open"] = max(seen["most open"], seen["open"])
        try:
            async with self._slots:
                return await (self._stream(writer, fault) if is_streamed else self._whole(writer, fault))
        finally:
            seen["open"] -= 1

    async def _stream(self, writer: asyncio.StreamWriter, fault: str) -> bool:
        script = self.script
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        begun, events = time.perf_counter(), script.tokens // script.per_event
        for number in range(1, events + 1):
            writer.write(self._thought if number < events else self._event)
            if fault and number > events // 2:
                return await _break(writer, fault)
            if script.rate and (wait_s := begun + number * script.per_event / script.rate - time.perf_counter()) > 0:
                await asyncio.sleep(wait_s)
        usage = {"prompt_tokens": 20, "completion_tokens": script.tokens}
        counts = _data({"choices": [], "usage": usage}) if script.counts else b""
        writer.write(_chunk({}, None, "stop") + counts + _framed(b"data: [DONE]\n\n"))
        writer.write(b"0\r\n\r\n")
        return True

    async def _whole(self, writer: asyncio.StreamWriter, fault: str) -> bool:
        """Answer in one piece, after the time that a stream would take."""
        script = self.script
        if script.rate:
            await asyncio.sleep(script.tokens / script.rate)
        if fault:
            return False
        message = {"role": "assistant", "reasoning_content": " word" * script.tokens, "content": "It is 4."}
        usage = {"prompt_tokens": 20, "completion_tokens": script.tokens, "total_tokens": 20 + script.tokens}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        told = {"id": "x", "object": "chat.completion", "created": 0, "model": script.model}
        writer.write(_whole(200, told | {"choices": [choice], "usage": usage}))
        return True


async def _break(writer: asyncio.StreamWriter, fault: str) -> bool:
    if fault == "error event":
        writer.write(_data({"error": {"message": "out of memory"}}) + b"0\r\n\r\n")
        return True
    await writer.drain()
    if fault == "stall":
        await asyncio.sleep(60)
    return False


def _chunk(delta: dict[str, Any], logprobs: Any, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs}
    return _data({"id": "x", "object": "chat.completion.chunk", "choices": [choice]})


def _logprobs(count: int) -> Any:
    if not count:
        return None
    top = [{"token": f" word{n}" if n else " word", "logprob": -0.1 - n, "bytes": None} for n in range(count)]
    return {"content": [{**top[0], "top_logprobs": top}]}


def _data(event: dict[str, Any]) -> bytes:
    return _framed(b"data: " + json.dumps(event).encode() + b"\n\n")


def _framed(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


def _whole(status: int, body: dict[str, Any], retry_after: str = "") -> bytes:
    content = json.dumps(body).encode()
    more = f"Retry-After: {retry_after}\r\n" if retry_after else ""
    head = f"HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\n{more}Content-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


@contextmanager
def paced_server(**script: Any) -> Iterator[str]:
    """Run a server in a process of its own; yield its address."""
    words = [sys.executable, "-m", "tests.distill.paced_server", json.dumps(script)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.kill()


def stats(url: str) -> dict[str, int]:
    """Return what a server has seen: requests asked, answered, open and failed in each way."""
    with urlopen(f"{url}/stats") as response:
        return dict(json.load(response))


async def main() -> None:
    server = PacedServer(Script(**json.loads(sys.argv[1])))
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, backlog=4096)
    print(listening.sockets[0].getsockname()[1], flush=True)
    await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
