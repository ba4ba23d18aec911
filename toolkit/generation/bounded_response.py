"""A server's answer within bounds of size and time: in one piece, or as a stream of events.

    one piece    bytes as they are unpacked, and seconds from the request to the end
    events       bytes of their data, and seconds from one to the next; comments and blanks are none

Event streams are read by the rules of the HTML standard, as httpx2 does, up to OpenAI's `[DONE]`.
Source: https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable

from httpx2 import AsyncClient, EventSource, ReadTimeout, Request, Response

from toolkit.errors import InputError

TIMEOUT_VARIABLE = "TOOLKIT_TIMEOUT_S"
"""Environment variable with the seconds that a server may send nothing, in place of `SILENCE_S`."""
SILENCE_S = 600.0
"""A slow server that works through a queue sends nothing for long."""
WHOLE = 3
"""Times the silence, that an answer in one piece may take: some servers send blanks while they think."""
MOST_BODY_BYTES = 16_000_000
"""Of an answer in one piece."""
MOST_STREAM_BYTES = 256_000_000
"""Of all events of an answer: some hundred for each token."""
UNPACKED = ("content-encoding", "content-length", "transfer-encoding")
"""Headers that are no longer true of a body that was read."""


class TooLarge(InputError):
    """A body beyond `MOST_BODY_BYTES`."""


def silence_s() -> float:
    """Seconds that a server may send nothing; raises `InputError` where `TOOLKIT_TIMEOUT_S` is no number of seconds."""
    text = os.environ.get(TIMEOUT_VARIABLE, "").strip()
    try:
        seconds = float(text or SILENCE_S)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InputError(f"{TIMEOUT_VARIABLE} ({text!r}) must be a number of seconds above 0")
    return seconds


async def send_bounded(client: AsyncClient, request: Request, seconds: float) -> Response:
    """One whole answer within so many seconds; raises `httpx2.HTTPError`, or `TooLarge`."""
    try:
        async with asyncio.timeout(seconds):
            response = await client.send(request, stream=True)
            try:
                return await read_whole(response)
            finally:
                await response.aclose()
    except TimeoutError as error:
        raise ReadTimeout(f"the answer must be whole within {seconds:g} s", request=request) from error


async def read_whole(response: Response) -> Response:
    """A response with its body, read to the end and unpacked; raises `TooLarge`."""
    content = bytearray()
    async for piece in response.aiter_bytes():  # at most a megabyte, however well it was packed
        content += piece
        if len(content) > MOST_BODY_BYTES:
            raise TooLarge(f"{response.url} must answer with at most {MOST_BODY_BYTES} bytes; it sends more")
    kept = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in UNPACKED]
    return Response(
        response.status_code,
        headers=kept,
        content=bytes(content),
        request=response.request,
        extensions=response.extensions,
    )


async def read_events(response: Response, take: Callable[[str, str], None]) -> None:
    """Hand on the kind and the data of each event; raises `InputError` where events are too many or too slow."""
    response.headers["Content-Type"] = "text/event-stream; charset=utf-8-sig"  # which it is, whatever a server calls it
    silence, size = silence_s(), 0
    try:
        async with asyncio.timeout(silence) as patience:
            async for event in EventSource(response):
                if not event.data.strip():
                    continue
                patience.reschedule(asyncio.get_running_loop().time() + silence)
                if event.data.strip() == "[DONE]":
                    return
                size += len(event.data)
                if size > MOST_STREAM_BYTES:
                    raise InputError(f"{response.url} must send at most {MOST_STREAM_BYTES} bytes of events")
                take(event.event, event.data)
    except TimeoutError as error:
        raise InputError(
            f"{response.url} must send an event within {silence:g} s; set {TIMEOUT_VARIABLE} where it needs longer"
        ) from error
