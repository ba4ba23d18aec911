"""Finds a model behind an OpenAI-compatible server, and streams its answers.

    http://host:8000/v1            the only model that {url}/models lists
    http://host:8000/v1#name       the named one of several

Redirects are not followed, so that the key of `TOOLKIT_API_KEY` reaches nobody else, and no message shows the key, not
even one that quotes a server that does. A server on this machine is asked directly, others through the proxy that the
environment names (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY). `toolkit.generation.bounded_response` limits what a
server may send.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import queue
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from html.entities import html5
from threading import Thread
from typing import Any

from httpx2 import (
    URL,
    AsyncClient,
    HTTPError,
    InvalidURL,
    Limits,
    ReadError,
    ReadTimeout,
    RemoteProtocolError,
    Response,
    Timeout,
)

from toolkit.errors import Busy, InputError, Unreachable
from toolkit.formats.message_fields import content_parts, reasoning_of, whole
from toolkit.generation.bounded_response import WHOLE, read_body, read_events, send_bounded, silence_s, with_body

KEY_VARIABLE = "TOOLKIT_API_KEY"
"""Environment variable with the key that is sent as a bearer token, and that `toolkit serve` asks for."""
CONTEXT_FIELDS = ("max_model_len", "context_length", "context_window", "max_context_length")
"""Fields of a listed model with its context: of vLLM and `toolkit serve`, OpenRouter and Together, Groq, Mistral."""
LLAMA_SERVER = "llamacpp"
"""The owner of a model that llama-server lists."""
PREFIX = "prefix"
"""DeepSeek's mark of a message to continue; our servers also list it among a model's capabilities."""
NOT_TLS, NOT_TRUSTED = "WRONG_VERSION_NUMBER", "CERTIFICATE_VERIFY_FAILED"
"""OpenSSL's names of an answer without TLS, and of a certificate that nobody whom this machine trusts has signed."""
LISTING_TIMEOUT_S = 10.0
KEPT_ALIVE_S = 5.0
"""How long an idle connection is kept for the next request."""
MOST_TOKENS = 100_000_000
"""No context and no answer is longer."""
_key_variables = {KEY_VARIABLE}
"""The environment variables whose keys no message may show."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """One model of one server."""

    url: str
    model: str
    max_length: int | None
    """Tokens of its context; None if the server does not tell."""
    goes_on: bool = False
    """Whether it can continue an answer from its beginning."""

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
    """Tokens of the whole answer, if this event tells."""


def parse_address(argument: str) -> tuple[str, str]:
    """Split an `http(s)://…/v1#MODEL` argument into address and model (empty if not named) without any request."""
    try:
        url = URL(argument)
    except (InvalidURL, UnicodeEncodeError) as error:
        shown = "an endpoint" if "@" in argument or "?" in argument else repr(argument)  # they may hold a secret
        raise InputError(f"{shown} is no address such as http://127.0.0.1:8000/v1: {error}") from error
    if not url.host or url.userinfo or url.query:
        raise InputError(
            f"an endpoint's address must have a host ({url.host!r}), but neither a password nor a query; "
            f"put a key into the environment variable {KEY_VARIABLE}"
        )
    return str(url.copy_with(fragment=None)).rstrip("/"), url.fragment


def locate(argument: str, key: str = KEY_VARIABLE) -> Place:
    """Find the endpoint of an `http(s)://…/v1` argument, with `#MODEL` after it if its server has several models.

    Raises `InputError` if no server answers there, or it is unclear which model is meant.
    """
    address, named = parse_address(argument)
    listing = ask_listing(address, key)
    model = named or _only_model(address, listing, key)
    described = _described(listing, model)
    max_length = _context(described)
    if max_length is None and described.get("owned_by") == LLAMA_SERVER:
        max_length = _llama_server_context(address)
    capabilities = described.get("capabilities")
    goes_on = isinstance(capabilities, dict) and capabilities.get(PREFIX) is True
    return Place(url=address, model=model, max_length=max_length, goes_on=goes_on)


def ask_listing(address: str, key: str = KEY_VARIABLE) -> Response:
    """Return whatever a server says of its models; raises `Unreachable` if no server answers there."""
    try:
        return _get(address, f"{address}/models", key)
    except HTTPError as error:
        kind = Busy if isinstance(error, ReadTimeout) else Unreachable
        raise kind(_why_unreachable(address, error)) from error


def _why_unreachable(address: str, error: HTTPError) -> str:
    """Say why no server answers at an address, and the remedy."""
    said, url = first_line(error), URL(address)
    if NOT_TLS in said:
        return f"{address} does not speak https; try {url.copy_with(scheme='http')}"
    if NOT_TRUSTED in said:
        return f"{address} has a certificate that is not trusted here: {said}; name its file in SSL_CERT_FILE"
    if url.scheme == "http" and isinstance(error, ReadError | RemoteProtocolError):
        return f"{address} sends no HTTP answer ({said}); if it speaks https, try {url.copy_with(scheme='https')}"
    if isinstance(error, ReadTimeout):
        trouble = str(error) or f"sent nothing in {LISTING_TIMEOUT_S:g} s"
        return f"{address} takes connections but {trouble}; if it is busy, try later"
    return f"{address} must be a server that answers: {said}; start it, or correct the address"


def stream_chat(url: str, body: Mapping[str, Any], poll_s: float) -> Iterator[Chunk | None]:
    """Yield the events of one streamed chat completion, and None after each `poll_s` seconds without one.

    Closing the iterator ends the request at once. Raises `InputError` if the server is unreachable, refuses, breaks off
    or sends something else.
    """
    arrived: queue.SimpleQueue[Chunk | BaseException | None] = queue.SimpleQueue()

    async def read() -> None:
        async with (
            open_client(url) as client,
            client.stream("POST", "chat/completions", json={**body, "stream": True}) as response,
        ):
            if response.status_code != 200:
                refusal = with_body(response, await read_body(response))
                remedy = f"; the key is read from {KEY_VARIABLE}" if response.status_code in (401, 403) else ""
                raise InputError(f"{url} refuses the chat completion: {status(refusal)}{remedy}")
            await read_events(response, lambda kind, data: arrived.put(_chunk(url, kind, data)))

    def run() -> None:
        try:
            loop.run_until_complete(reading)
            arrived.put(None)
        except BaseException as error:  # noqa: BLE001 – the reader raises it
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


def _get(address: str, url: str, key: str = KEY_VARIABLE) -> Response:
    """Get what a server has at one of its addresses."""

    async def get() -> Response:
        async with open_client(address, Timeout(LISTING_TIMEOUT_S), key=key) as client:
            return await send_bounded(client, client.build_request("GET", url), WHOLE * LISTING_TIMEOUT_S)

    return asyncio.run(get())


def open_client(
    url: str, timeout: Timeout | None = None, *, connections: int = 100, key: str = KEY_VARIABLE
) -> AsyncClient:
    """Open a client for one server; `key`: the environment variable with its key.

    Raises `InputError` if the key or the proxy cannot be used.
    """
    sent, waits = headers(key), timeout or Timeout(silence_s(), connect=LISTING_TIMEOUT_S)
    limits = Limits(max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=KEPT_ALIVE_S)
    if is_loopback(url):
        verify = ssl.create_default_context() if URL(url).scheme == "https" else False  # a context is slow to make
        return AsyncClient(base_url=url, headers=sent, timeout=waits, limits=limits, trust_env=False, verify=verify)
    try:
        return AsyncClient(base_url=url, headers=sent, timeout=waits, limits=limits)
    except (ValueError, ImportError, InvalidURL) as error:
        raise InputError(
            f"to reach {url}, HTTP_PROXY, HTTPS_PROXY and ALL_PROXY must be addresses of HTTP proxies, or of SOCKS "
            "proxies if socksio is installed; correct them, or name its host in NO_PROXY"
        ) from error


def headers(variable: str = KEY_VARIABLE) -> dict[str, str]:
    """Return the header with a variable's key; raises `InputError`, without showing the key, if none can hold it."""
    _key_variables.add(variable)
    key = _key(variable)
    strange = [place for place, sign in enumerate(key, start=1) if not sign.isascii() or not sign.isprintable()]
    if strange:
        raise InputError(
            f"each of the {len(key)} characters of {variable} must be printable ASCII; number {strange[0]} is not "
            "(a line break, perhaps); set it to the key alone"
        )
    return {"Authorization": f"Bearer {key}"} if key else {}


def is_loopback(url: str) -> bool:
    """Whether an address is on this machine."""
    host = URL(url).host.rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    with suppress(ValueError):
        found = ipaddress.ip_address(host.strip("[]"))
        mapped = getattr(found, "ipv4_mapped", None) or found
        return bool(mapped.is_loopback or mapped.is_unspecified)
    with suppress(OSError):  # short forms such as 127.1 and 0
        short = ipaddress.ip_address(socket.inet_aton(host))
        return short.is_loopback or short.is_unspecified
    return False


def count_of(value: Any) -> int | None:
    """Return a number of tokens that a server tells; None if it is not a number, or more than any model has."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS else None


def first_line(error: BaseException) -> str:
    lines = _redacted(str(error)).strip().splitlines() or [type(error).__name__]
    return lines[0] if lines[0].isprintable() else ascii(lines[0])


def status(response: Response) -> str:
    return f"{response.status_code} {printable(response.reason_phrase)[1:-1]}: {excerpt(response)}"


def excerpt(response: Response) -> str:
    """Return the beginning of what a server said, safe to print."""
    return printable(response.text)


def printable(text: str) -> str:
    """Return the beginning of foreign text in one line of ASCII, without the key."""
    return ascii(" ".join(_redacted(text)[:2000].split())[:160])


def _redacted(text: str) -> str:
    """Remove the keys from a text, also where JSON, Python, HTML or an address escapes their characters."""
    for variable in sorted(_key_variables):
        if key := _key(variable):
            text = re.sub("".join(map(_written, key)), f"[{variable}]", text)
    return text


def _written(sign: str) -> str:
    """Return a pattern of the ways to write a character of the key, each of which may be escaped again (`%252F`)."""
    code, names = ord(sign), [name for name, meant in html5.items() if meant == sign and name.endswith(";")]
    ways = [
        rf"\\{{0,8}}{re.escape(sign)}",
        rf"\\{{1,8}}(?i:u{code:04x}|u\{{0{{0,4}}{code:x}\}}|x{code:02x})",
        rf"\\{{1,8}}0?{code:o}(?![0-7])",
        rf"%(?:25){{0,3}}(?i:{code:02x})",
        rf"&(?:amp;){{0,3}}(?:#0{{0,4}}{code};|#(?i:x0{{0,4}}{code:x});{''.join(f'|{name}' for name in names)})",
    ]
    return f"(?:{'|'.join(ways)})"


def _key(variable: str) -> str:
    return os.environ.get(variable, "").strip()


def _arrivals(
    url: str, arrived: queue.SimpleQueue[Chunk | BaseException | None], poll_s: float
) -> Iterator[Chunk | None]:
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
        if isinstance(found, BaseException):
            raise InputError(
                f"{url} did not answer to the end: {first_line(found)}; check that the server runs, then ask again"
            ) from found
        yield found


def _chunk(url: str, kind: str, data: str) -> Chunk:
    """Read one event's JSON; an event of the kind `error` says what went wrong."""
    if kind == "error":
        raise InputError(f"{url} broke off: {printable(data)}; ask again")
    try:
        event = json.loads(data)
        if event.get("error"):
            raise InputError(f"{url} broke off: {printable(str(event['error']))}; ask again")
        choice = (event.get("choices") or [{}])[0]
        delta = choice.get("delta") or {}
        usage = event.get("usage") or {}
        parts = content_parts(delta)
        return Chunk(
            reasoning=whole(reasoning_of(delta) or "".join(text for is_thought, text in parts if is_thought)),
            content=whole("".join(text for is_thought, text in parts if not is_thought)),
            finish_reason=choice.get("finish_reason"),
            completion_tokens=count_of(usage.get("completion_tokens")),
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{url} sends no chunks of a chat completion, but {printable(data)}; correct the address"
        ) from error


def _only_model(address: str, listing: Response, key: str) -> str:
    try:
        names = [str(model["id"]) for model in listing.json()["data"]] if listing.status_code == 200 else []
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(
            f"{address}/models lists no models, but says {excerpt(listing)}; correct the address"
        ) from error
    if listing.status_code == 404 and _lists_models(f"{address}/v1", key):
        raise InputError(f"{address} lists no models ({status(listing)}); did you mean {address}/v1, which does?")
    if len(names) != 1 or not names[0].isprintable():
        found = ", ".join(printable(name) for name in names[:5]) or status(listing)
        raise InputError(f"{address} lists {len(names)} models ({found}), so the one to use must be named: add #MODEL")
    return names[0]


def _lists_models(address: str, key: str) -> bool:
    try:
        return ask_listing(address, key).status_code == 200
    except Unreachable:
        return False


def _described(listing: Response, model: str) -> dict[str, Any]:
    """Return what a server says of a model; nothing if it does not list it."""
    try:
        return next(dict(entry) for entry in listing.json()["data"] if entry["id"] == model)
    except (ValueError, LookupError, TypeError, StopIteration, RecursionError):
        return {}


def _context(described: Mapping[str, Any]) -> int | None:
    """Return the tokens of a listed model's context for any server; llama-server gives them with its file's facts."""
    meta = described.get("meta")
    told = [described.get(name) for name in CONTEXT_FIELDS] + [meta.get("n_ctx") if isinstance(meta, dict) else None]
    return next((count for value in told if (count := count_of(value))), None)


def _llama_server_context(address: str) -> int | None:
    """Return the context of an older `llama-server`, which tells it outside the API; None if it does not."""
    with suppress(HTTPError, ValueError, LookupError, TypeError, RecursionError):
        properties = _get(address, f"{address.removesuffix('/v1')}/props").json()
        return count_of(properties["default_generation_settings"]["n_ctx"])
    return None
