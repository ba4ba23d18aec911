"""Reads a request's body within bounds of size and time, for the chat's door and for the server's routes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

MOST_BODY_BYTES = 4_000_000
BODY_TIMEOUT_S = 30.0


class BodyRefused(Exception):
    """A body was not read to its end; the rest of it is still on the wire, so the connection must close."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


async def read_bounded(receive: Callable[[], Awaitable[MutableMapping[str, Any]]], declared: str) -> bytes:
    """Read the whole body of an ASGI request; `declared` is its Content-Length, 0 if it has none.

    Raises `BodyRefused` if it is too large (413, before it is read if its length is declared) or too slow (408), or if
    the client leaves before its end (400).
    """
    too_large = BodyRefused(f"the body must be at most {MOST_BODY_BYTES} bytes", 413)
    if not declared.isdigit() or int(declared) > MOST_BODY_BYTES:
        raise too_large
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                event = await receive()
                if event["type"] == "http.disconnect":
                    raise BodyRefused("the client left before its body was complete", 400)
                content += event.get("body", b"")
                if len(content) > MOST_BODY_BYTES:
                    raise too_large
                if not event.get("more_body"):
                    return bytes(content)
    except TimeoutError:
        raise BodyRefused(f"the body must arrive within {BODY_TIMEOUT_S:g} s", 408) from None
