"""A request's body within bounds of size and time: one reader for the chat's door and for the server's routes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

MOST_BODY_BYTES = 4_000_000
BODY_TIMEOUT_S = 30.0


class BodyRefused(Exception):
    """Why a body was not read to its end; what is left of it stays on the wire, so the connection must close."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


async def read_bounded(receive: Callable[[], Awaitable[MutableMapping[str, Any]]], declared: str) -> bytes:
    """The whole body of an ASGI request; `declared` is its Content-Length, 0 where it has none.

    Raises `BodyRefused` where it is too large (413, before it is read where its length is declared), too slow (408),
    or the client leaves before its end (400).
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
                    raise BodyRefused("the client left before its body was whole", 400)
                content += event.get("body", b"")
                if len(content) > MOST_BODY_BYTES:
                    raise too_large
                if not event.get("more_body"):
                    return bytes(content)
    except TimeoutError:
        raise BodyRefused(f"the body must arrive within {BODY_TIMEOUT_S:g} s", 408) from None
