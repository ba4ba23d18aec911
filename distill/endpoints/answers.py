"""Reads one chat completion from a server, streamed or in one piece, within limits of time.

    connect        `LISTING_TIMEOUT_S`
    first event    a server may queue a request, or work through a long prompt, for `first_event_s`
    stall          once an answer has begun, no more than `stall_s` pass between two events

A stream has no limit of its own, so a thought of an hour lives; comments that keep a connection alive do not count as
events, so a model that is gone behind a proxy is noticed. A server that ignores `stream` and answers in one piece has
three times `first_event_s` for it. The pieces of a stream are put together into what the server would have sent in one.
An answer that has given its finish reason is whole, whatever becomes of its stream afterwards.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from httpx2 import URL, AsyncClient, Headers, HTTPError, ReadError, ReadTimeout, Request, Response, Timeout

from toolkit.formats.message_fields import content_parts, reasoning_of
from toolkit.generation.bounded_response import DONE, WHOLE, each_event, read_body, silence_s, with_body
from toolkit.generation.endpoint import LISTING_TIMEOUT_S, printable

STALL_S = 120.0
AFTER_END_S = 10.0
"""How long the count of tokens, or the end of the stream, is awaited behind an answer's finish reason."""
EVENT_STREAM = "text/event-stream"
EVENT_BEGINS = (b"data:", b"event:", b": ")


class StreamError(ReadError):
    """A server reports an error within a stream that it began well."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a server may be silent."""

    first_event_s: float = field(default_factory=silence_s)
    stall_s: float = STALL_S


class AnswerReader:
    """Posts bodies to one server's chat completions; what all requests have in common is prepared once."""

    def __init__(self, client: AsyncClient, url: str, patience: Patience) -> None:
        self._client, self._patience = client, patience
        self._address = URL(f"{url}/chat/completions")
        self._headers = Headers([*client.headers.raw, (b"Content-Type", b"application/json")])
        waits = Timeout(None, connect=LISTING_TIMEOUT_S, write=patience.first_event_s)
        self._extensions = {"timeout": waits.as_dict()}

    async def post(
        self, body: Mapping[str, Any], pieces: StreamedAnswer, began: Callable[[float], None]
    ) -> Response | dict[str, Any]:
        """Return a completion, put together from its stream if it came as one, or else the response as it came.

        `pieces` takes the stream; `began` is called with the seconds until the answer began. Raises `httpx2.HTTPError`
        or `TooLarge`, and errors of a wrong type or key if an event is no piece of a completion.
        """
        request = Request(
            "POST", self._address, headers=self._headers, content=json.dumps(body).encode(), extensions=self._extensions
        )
        sent = time.monotonic()
        try:
            async with asyncio.timeout(self._patience.first_event_s) as limit:
                response = await self._client.send(request, stream=True)
                try:
                    if response.status_code == 200 and _is_stream(response):
                        return await self._streamed(response, pieces, limit, sent, began)
                    limit.reschedule((limit.when() or 0.0) + (WHOLE - 1) * self._patience.first_event_s)
                    content = await read_body(response)
                finally:
                    await response.aclose()
        except (TimeoutError, HTTPError) as error:
            if pieces.has_ended and not isinstance(error, StreamError):  # it is paid for, and only its count is lost
                return pieces.whole()
            if isinstance(error, TimeoutError):
                raise ReadTimeout("the server sent nothing in time", request=request) from error
            raise
        if response.status_code == 200:
            began(time.monotonic() - sent)
            with suppress(ValueError, RecursionError):  # what is no JSON object is no completion
                if isinstance(completion := json.loads(content), dict):
                    return completion
            if content.lstrip().startswith(EVENT_BEGINS):  # a stream under the name of another content
                async for kind, data in each_event(with_body(response, content)):
                    pieces.take(kind, data)
                return pieces.whole()
        return with_body(response, content)

    async def _streamed(
        self,
        response: Response,
        pieces: StreamedAnswer,
        limit: asyncio.Timeout,
        sent: float,
        began: Callable[[float], None],
    ) -> dict[str, Any]:
        loop, stall_s = asyncio.get_running_loop(), self._patience.stall_s
        is_first = True
        async for kind, data in each_event(response):
            if is_first:
                is_first = False
                began(time.monotonic() - sent)
            pieces.take(kind, data)
            limit.reschedule(loop.time() + (min(stall_s, AFTER_END_S) if pieces.has_ended else stall_s))
        return pieces.whole()


class StreamedAnswer:
    """Puts the events of a stream together into one chat completion."""

    def __init__(self) -> None:
        self.count = 0
        """The pieces so far, each of at least one token."""
        self._reasoning: list[str] = []
        self._content: list[tuple[bool, list[str]]] = []
        """(Whether it is a thought, its pieces)."""
        self._refusal: list[str] = []
        self._message: dict[str, Any] = {"role": "assistant"}
        self._logprobs: list[Any] = []
        self._finish_reason: Any = None
        self._usage: Any = None
        self._is_chat = self._is_done = False

    @property
    def has_ended(self) -> bool:
        """Whether the answer has given its finish reason."""
        return self._finish_reason is not None

    @property
    def size_bytes(self) -> int:
        """The bytes of the texts so far."""
        texts = [*self._reasoning, *(text for _, pieces in self._content for text in pieces)]
        return sum(len(text.encode(errors="replace")) for text in texts)

    def take(self, kind: str, data: str) -> None:
        """Take one event; raises `StreamError` if it reports an error, others if it is no piece of a completion."""
        if data == DONE:
            self._is_done = True
            return
        event = json.loads(data)
        if kind == "error" or event.get("error"):
            raise StreamError(f"the server broke off: {printable(data)}")
        if event.get("usage"):
            self._usage = event["usage"]
        choices = event.get("choices")
        self._is_chat |= isinstance(choices, list) and bool(choices)
        for choice in choices or ():
            if choice.get("index") in (0, None):
                self._take_choice(choice)

    def whole(self) -> dict[str, Any]:
        """Return the completion; raises `ReadError` if the stream ended before the answer did."""
        if self._finish_reason is None and not self._is_done:
            raise ReadError("the stream ended before the answer did")
        if not self._is_chat:
            raise LookupError("no event of the stream has choices")
        message = dict(self._message)
        if self._reasoning:
            message["reasoning_content"] = _joined(self._reasoning)
        if any(is_thought for is_thought, _ in self._content):
            message["content"] = [
                {"type": "thinking" if is_thought else "text", "text": _joined(texts)}
                for is_thought, texts in self._content
            ]
        else:
            message["content"] = _joined([text for _, texts in self._content for text in texts]) or None
        if self._refusal:
            message["refusal"] = _joined(self._refusal)
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": self._finish_reason}
        if self._logprobs:
            choice["logprobs"] = {"content": self._logprobs}
        return {"choices": [choice]} | ({"usage": self._usage} if self._usage else {})

    def _take_choice(self, choice: Mapping[str, Any]) -> None:
        if choice.get("finish_reason"):
            self._finish_reason = choice["finish_reason"]
        logprobs = choice.get("logprobs")
        if isinstance(logprobs, dict) and isinstance(logprobs.get("content"), list):
            self._logprobs += [*(logprobs.get("reasoning_content") or ()), *logprobs["content"]]
        delta = choice.get("delta") or {}
        if thought := reasoning_of(delta):
            self._reasoning.append(thought)
        for is_thought, text in content_parts(delta):
            if not self._content or self._content[-1][0] != is_thought:
                self._content.append((is_thought, []))
            self._content[-1][1].append(text)
        if isinstance(delta.get("refusal"), str):
            self._refusal.append(delta["refusal"])
        for name in ("tool_calls", "function_call"):
            if delta.get(name):
                self._message[name] = delta[name]  # that there is one is all that is asked of it
        self.count += 1


def _is_stream(response: Response) -> bool:
    return EVENT_STREAM in response.headers.get("Content-Type", "").lower()


def _joined(pieces: list[str]) -> str:
    """Join pieces of a text; a character whose surrogates came in two pieces is whole again."""
    text = "".join(pieces)
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
