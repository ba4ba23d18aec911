"""A model behind an OpenAI-compatible server: where it is, and its answer as it is written.

    http://host:8000/v1            the only model that {url}/models lists
    http://host:8000/v1#name       that one of several

Redirects are not followed, so the key of `TOOLKIT_API_KEY` reaches nobody else.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from threading import Thread
from typing import Any

from httpx2 import URL, AsyncClient, HTTPError, InvalidURL, Response, Timeout, get

from toolkit.errors import InputError
from toolkit.message_fields import content_parts, reasoning_of

KEY_VARIABLE = "TOOLKIT_API_KEY"
"""Environment variable whose value is sent as a bearer token."""
CONTEXT_FIELDS = ("max_model_len", "context_length")
"""Of a listed model: vLLM and `toolkit serve`, others."""
PREFIX = "prefix"
"""DeepSeek's mark of a message that is to go on; also, among a listed model's capabilities, that it can: of our servers."""
LISTING_TIMEOUT_S = 10.0
TIMEOUT = Timeout(600.0, connect=LISTING_TIMEOUT_S)
"""A slow server that works through a queue sends nothing for long."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """One model of one server."""

    url: str
    model: str
    max_length: int | None
    """Tokens of its context; None where the server does not tell."""
    goes_on: bool = False
    """Whether it goes on with an answer that it is given the beginning of."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        url = URL(self.url)
        return url.host, url.port or (443 if url.scheme == "https" else 80)


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """One event of a streamed answer."""

    reasoning: str
    content: str
    finish_reason: str | None
    completion_tokens: int | None
    """Of the whole answer, where this event tells."""


def locate(argument: str) -> Place:
    """The endpoint of an `http(s)://…/v1` argument, `#MODEL` after it where its server has several.

    Raises `InputError` where nobody answers there, or where it is open which model is meant.
    """
    try:
        url = URL(argument)
    except InvalidURL as error:
        raise InputError(f"{argument!r} must be an address like http://127.0.0.1:8000/v1: {error}") from error
    if not url.host or url.userinfo or url.query:
        raise InputError(
            f"an endpoint's address must have a host ({url.host!r}) and neither password nor query; "
            f"a key goes into the environment variable {KEY_VARIABLE}"
        )
    address = str(url.copy_with(fragment=None)).rstrip("/")
    try:
        listing = get(f"{address}/models", headers=headers(), timeout=LISTING_TIMEOUT_S)
    except HTTPError as error:
        raise InputError(
            f"{address} must be a server that answers: {first_line(error)}; start it or correct the address"
        ) from error
    model = url.fragment or _only_model(address, listing)
    described = _described(listing, model)
    capabilities = described.get("capabilities")
    goes_on = isinstance(capabilities, dict) and capabilities.get(PREFIX) is True
    return Place(url=address, model=model, max_length=_context(described), goes_on=goes_on)


def stream_chat(url: str, body: Mapping[str, Any], poll_s: float) -> Iterator[Chunk | None]:
    """The events of one streamed chat completion, None after each `poll_s` seconds without one.

    Closing the iterator ends the request at once. Raises `InputError` where the server is away, refuses, breaks off or
    sends something else.
    """
    arrived: queue.SimpleQueue[Chunk | Exception | None] = queue.SimpleQueue()

    async def read() -> None:
        async with (
            AsyncClient(base_url=url, headers=headers(), timeout=TIMEOUT) as client,
            client.stream("POST", "chat/completions", json={**body, "stream": True}) as response,
        ):
            if response.status_code != 200:
                await response.aread()
                raise InputError(f"{url} must accept a chat completion; it says {status(response)}")
            async for line in response.aiter_lines():
                if line.startswith("data:") and line[5:].strip() != "[DONE]":
                    arrived.put(_chunk(url, line[5:]))
        arrived.put(None)

    def run() -> None:
        try:
            with suppress(asyncio.CancelledError):
                loop.run_until_complete(reading)
        except (InputError, HTTPError) as error:
            arrived.put(error)
        finally:
            loop.close()

    loop = asyncio.new_event_loop()
    reading = loop.create_task(read())
    Thread(target=run, daemon=True).start()
    try:
        yield from _arrivals(url, arrived, poll_s)
    finally:
        with suppress(RuntimeError):  # it has ended by itself
            loop.call_soon_threadsafe(reading.cancel)


def headers() -> dict[str, str]:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    return {"Authorization": f"Bearer {key}"} if key else {}


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]


def status(response: Response) -> str:
    return f"{response.status_code} {response.reason_phrase}: {excerpt(response)}"


def excerpt(response: Response) -> str:
    """The beginning of what a server said, safe to print."""
    return ascii(" ".join(response.text[:2000].split())[:160])


def _arrivals(url: str, arrived: queue.SimpleQueue[Chunk | Exception | None], poll_s: float) -> Iterator[Chunk | None]:
    while True:
        try:
            found = arrived.get(timeout=poll_s)
        except queue.Empty:
            yield None
            continue
        if found is None:
            return
        if isinstance(found, InputError):
            raise found
        if isinstance(found, Exception):
            raise InputError(f"{url} must answer to the end: {first_line(found)}; ask again") from found
        yield found


def _chunk(url: str, data: str) -> Chunk:
    """Read one event's JSON."""
    try:
        event = json.loads(data)
        if event.get("error"):
            raise InputError(f"{url} broke off: {str(event['error'])[:160]!a}")
        choice = (event.get("choices") or [{}])[0]
        delta = choice.get("delta") or {}
        usage = event.get("usage") or {}
        parts = content_parts(delta)
        return Chunk(
            reasoning=reasoning_of(delta) or "".join(text for is_thought, text in parts if is_thought),
            content="".join(text for is_thought, text in parts if not is_thought),
            finish_reason=choice.get("finish_reason"),
            completion_tokens=usage.get("completion_tokens"),
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{url} must send chunks of a chat completion; it says {data[:160]!a}") from error


def _only_model(address: str, listing: Response) -> str:
    try:
        names = [str(model["id"]) for model in listing.json()["data"]] if listing.status_code == 200 else []
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"{address}/models must list the server's models; it says {excerpt(listing)}") from error
    if len(names) != 1 or not names[0].isprintable():
        found = ", ".join(ascii(name) for name in names[:5]) or status(listing)
        raise InputError(
            f"{address} must list 1 model where none is named; it lists {len(names)} ({found}): add #MODEL"
        )
    return names[0]


def _described(listing: Response, model: str) -> dict[str, Any]:
    """What a server says of its model; nothing where it does not list it."""
    try:
        return next(dict(entry) for entry in listing.json()["data"] if entry["id"] == model)
    except (ValueError, LookupError, TypeError, StopIteration):
        return {}


def _context(described: Mapping[str, Any]) -> int | None:
    try:
        return next(int(described[name]) for name in CONTEXT_FIELDS if described.get(name))
    except (ValueError, TypeError, StopIteration):
        return None
