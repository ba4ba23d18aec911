"""Reads a server's answer within bounds of size and time, in one piece or as a stream of events.

    one piece    bounds the unpacked bytes, and the seconds from the request to the end
    events       bound the bytes of their data, and the seconds between them; comments and blanks do not count

Event streams are read by the rules of the HTML standard, as httpx2 reads them, up to OpenAI's `[DONE]`.
Source: https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator, Callable

from httpx2 import AsyncClient, EventSource, ReadTimeout, Request, Response

from toolkit.errors import InputError

TIMEOUT_VARIABLE = "TOOLKIT_TIMEOUT_S"
"""Environment variable with the seconds for which a server may send nothing, instead of `SILENCE_S`."""
SILENCE_S = 600.0
"""A slow server that works through a queue may send nothing for a long time."""
WHOLE = 3
"""An answer in one piece may take this many times the silence: some servers send blanks while they think."""
MOST_BODY_BYTES = 16_000_000
"""The most bytes of an answer in one piece."""
MOST_STREAM_BYTES = 256_000_000
"""The most bytes of all events of an answer, of which each token takes some hundred."""
DONE = "[DONE]"
"""The data of the event that ends a stream."""
UNPACKED = ("content-encoding", "content-length", "transfer-encoding")
"""Headers that no longer hold once the body is read and unpacked."""


class TooLarge(InputError):
    """A body is larger than `MOST_BODY_BYTES`, or a stream than `MOST_STREAM_BYTES`."""


def silence_s() -> float:
    """Return the seconds for which a server may send nothing; raises `InputError` if `TOOLKIT_TIMEOUT_S` is wrong."""
    text = os.environ.get(TIMEOUT_VARIABLE, "").strip()
    try:
        seconds = float(text or SILENCE_S)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InputError(f"{TIMEOUT_VARIABLE} ({text!r}) must be a number of seconds above 0; correct or unset it")
    return seconds


async def send_bounded(client: AsyncClient, request: Request, seconds: float) -> Response:
    """Send a request and read its whole answer within so many seconds; raises `httpx2.HTTPError` or `TooLarge`."""
    try:
        async with asyncio.timeout(seconds):
            response = await client.send(request, stream=True)
            try:
                return with_body(response, await read_body(response))
            finally:
                await response.aclose()
    except TimeoutError as error:
        raise ReadTimeout(f"the answer was not complete within {seconds:g} s", request=request) from error


async def read_body(response: Response) -> bytes:
    """Read a response's body to its end and unpack it; raises `TooLarge`."""
    content = bytearray()
    async for piece in response.aiter_bytes():  # at most a megabyte, however well it was packed
        content += piece
        if len(content) > MOST_BODY_BYTES:
            raise TooLarge(f"{response.url} sends more than {MOST_BODY_BYTES} bytes in one answer; ask for less")
    return bytes(content)


def with_body(response: Response, content: bytes) -> Response:
    """Return a response whose body has been read and unpacked."""
    kept = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in UNPACKED]
    read = Response(
        response.status_code,
        headers=kept,
        content=content,
        request=response.request,
        extensions=response.extensions,
    )
    read.encoding = "utf-8"  # as JSON is; a charset may name what decodes no text
    return read


async def read_events(response: Response, take: Callable[[str, str], None]) -> None:
    """Pass each event's kind and data to `take`; raises `InputError` if events are too many or too slow."""
    silence = silence_s()
    try:
        async with asyncio.timeout(silence) as patience:
            async for kind, data in each_event(response):
                patience.reschedule(asyncio.get_running_loop().time() + silence)
                if data != DONE:
                    take(kind, data)
    except TimeoutError as error:
        raise InputError(
            f"{response.url} sent no event for {silence:g} s; set {TIMEOUT_VARIABLE} if it needs longer"
        ) from error


async def each_event(response: Response) -> AsyncIterator[tuple[str, str]]:
    """Yield each event's kind and data, up to and with `DONE`; raises `TooLarge` if events are too many."""
    response.headers["Content-Type"] = "text/event-stream; charset=utf-8-sig"
    size = 0
    async for event in EventSource(response):
        data = event.data.strip()
        if not data:
            continue
        size += len(event.data)
        if size > MOST_STREAM_BYTES:
            raise TooLarge(
                f"{response.url} sends more than {MOST_STREAM_BYTES} bytes of events in an answer; ask for less"
            )
        yield event.event, DONE if data == DONE else event.data
        if data == DONE:
            return
