"""A model behind an OpenAI-compatible server: where it is, and its answer as it is written.

    http://host:8000/v1            the only model that {url}/models lists
    http://host:8000/v1#name       that one of several

Redirects are not followed, so the key of `TOOLKIT_API_KEY` reaches nobody else, and no message shows it, not even one
that quotes a server that does. A server of this machine is asked directly; others through the proxy that the
environment names (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY). What a server sends has bounds: see
`toolkit.generation.bounded_response`.
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
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from html.entities import html5
from threading import Thread
from typing import Any

from httpx2 import URL, AsyncClient, Headers, HTTPError, InvalidURL, Request, Response, Timeout

from toolkit.errors import InputError, Unreachable
from toolkit.formats.message_fields import content_parts, reasoning_of, whole
from toolkit.generation.bounded_response import WHOLE, read_events, read_whole, send_bounded, silence_s

KEY_VARIABLE = "TOOLKIT_API_KEY"
"""Environment variable with the key: what is sent as a bearer token, and what `toolkit serve` then asks for."""
CONTEXT_FIELDS = ("max_model_len", "context_length", "context_window", "max_context_length")
"""Of a listed model: vLLM and `toolkit serve`, OpenRouter and Together, Groq, Mistral."""
LLAMA_SERVER = "llamacpp"
"""Who owns a model that llama-server lists."""
PREFIX = "prefix"
"""DeepSeek's mark of a message that is to go on; also, among a listed model's capabilities, that it can: of our
servers."""
LISTING_TIMEOUT_S = 10.0
MOST_TOKENS = 100_000_000
"""No context is longer, and no answer."""


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


def parse_address(argument: str) -> tuple[str, str]:
    """The address and the named model, empty where none is, of an `http(s)://…/v1#MODEL` argument; asks nobody."""
    try:
        url = URL(argument)
    except (InvalidURL, UnicodeEncodeError) as error:
        shown = "an endpoint" if "@" in argument or "?" in argument else repr(argument)  # they may hold a secret
        raise InputError(f"{shown} must be an address like http://127.0.0.1:8000/v1: {error}") from error
    if not url.host or url.userinfo or url.query:
        raise InputError(
            f"an endpoint's address must have a host ({url.host!r}) and neither password nor query; "
            f"a key goes into the environment variable {KEY_VARIABLE}"
        )
    return str(url.copy_with(fragment=None)).rstrip("/"), url.fragment


def locate(argument: str) -> Place:
    """The endpoint of an `http(s)://…/v1` argument, `#MODEL` after it where its server has several.

    Raises `InputError` where nobody answers there, or where it is open which model is meant.
    """
    address, named = parse_address(argument)
    listing = ask_listing(address)
    model = named or _only_model(address, listing)
    described = _described(listing, model)
    max_length = _context(described)
    if max_length is None and described.get("owned_by") == LLAMA_SERVER:
        max_length = _llama_server_context(address)
    capabilities = described.get("capabilities")
    goes_on = isinstance(capabilities, dict) and capabilities.get(PREFIX) is True
    return Place(url=address, model=model, max_length=max_length, goes_on=goes_on)


def ask_listing(address: str) -> Response:
    """Whatever a server says of its models; raises `Unreachable` where nobody answers there."""
    try:
        return _get(address, f"{address}/models")
    except HTTPError as error:
        raise Unreachable(
            f"{address} must be a server that answers: {first_line(error)}; start it or correct the address"
        ) from error


def stream_chat(url: str, body: Mapping[str, Any], poll_s: float) -> Iterator[Chunk | None]:
    """The events of one streamed chat completion, None after each `poll_s` seconds without one.

    Closing the iterator ends the request at once. Raises `InputError` where the server is away, refuses, breaks off or
    sends something else.
    """
    arrived: queue.SimpleQueue[Chunk | BaseException | None] = queue.SimpleQueue()

    async def read() -> None:
        async with (
            open_client(url) as client,
            client.stream("POST", "chat/completions", json={**body, "stream": True}) as response,
        ):
            if response.status_code != 200:
                refusal = await read_whole(response)
                raise InputError(f"{url} must accept a chat completion; it says {status(refusal)}")
            await read_events(response, lambda kind, data: arrived.put(_chunk(url, kind, data)))

    def run() -> None:
        try:
            loop.run_until_complete(reading)
            arrived.put(None)
        except BaseException as error:  # noqa: BLE001 – whatever it is, the reader waits for it
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


def _get(address: str, url: str) -> Response:
    """What a server has at one of its addresses."""

    async def get() -> Response:
        async with open_client(address, Timeout(LISTING_TIMEOUT_S)) as client:
            return await send_bounded(client, client.build_request("GET", url), WHOLE * LISTING_TIMEOUT_S)

    return asyncio.run(get())


def open_client(url: str, timeout: Timeout | None = None) -> AsyncClient:
    """A client whose requests go to one server; raises `InputError` where the key or the proxy cannot be used."""
    sent, waits = headers(), timeout or Timeout(silence_s(), connect=LISTING_TIMEOUT_S)
    if is_loopback(url):
        verify = ssl.create_default_context() if URL(url).scheme == "https" else False  # made for nothing else
        return AsyncClient(base_url=url, headers=sent, timeout=waits, trust_env=False, verify=verify)
    try:
        return AsyncClient(base_url=url, headers=sent, timeout=waits)
    except (ValueError, ImportError, InvalidURL) as error:
        raise InputError(
            "HTTP_PROXY, HTTPS_PROXY and ALL_PROXY must be addresses of HTTP "
            "proxies, or of SOCKS proxies where socksio is "
            f"installed, to reach {url}; correct them, or name its host in NO_PROXY"
        ) from error


def chat_sender(client: AsyncClient, url: str) -> Callable[[bytes], Coroutine[Any, Any, Response]]:
    """What posts one body after another to a server's chat completions; what is the same in all is made once."""
    seconds = WHOLE * silence_s()
    address, sent = (
        URL(f"{url}/chat/completions"),
        Headers([*client.headers.raw, (b"Content-Type", b"application/json")]),
    )
    extensions = {"timeout": client.timeout.as_dict()}

    def send(body: bytes) -> Coroutine[Any, Any, Response]:
        return send_bounded(
            client, Request("POST", address, headers=sent, content=body, extensions=extensions), seconds
        )

    return send


def headers() -> dict[str, str]:
    """The key's header; raises `InputError` where the key holds what no header can, without showing the key."""
    key = _key()
    strange = [place for place, sign in enumerate(key, start=1) if not sign.isascii() or not sign.isprintable()]
    if strange:
        raise InputError(
            f"each of the {len(key)} characters of {KEY_VARIABLE} must be a printable ASCII character, and number "
            f"{strange[0]} is none (a line break, perhaps); set it to the key alone"
        )
    return {"Authorization": f"Bearer {key}"} if key else {}


def is_loopback(url: str) -> bool:
    """Whether an address is one of this machine's own."""
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
    """A number of tokens that a server tells; None where it is none, or more than any model has."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS else None


def first_line(error: BaseException) -> str:
    lines = _redacted(str(error)).strip().splitlines() or [type(error).__name__]
    return lines[0] if lines[0].isprintable() else ascii(lines[0])


def status(response: Response) -> str:
    return f"{response.status_code} {printable(response.reason_phrase)[1:-1]}: {excerpt(response)}"


def excerpt(response: Response) -> str:
    """The beginning of what a server said, safe to print."""
    return printable(response.text)


def printable(text: str) -> str:
    """The beginning of a text by others, in one line of ASCII and without the key."""
    return ascii(" ".join(_redacted(text)[:2000].split())[:160])


def _redacted(text: str) -> str:
    """The text without the key, also where JSON, Python, HTML or an address writes its signs otherwise."""
    key = _key()
    return re.sub("".join(map(_written, key)), f"[{KEY_VARIABLE}]", text) if key else text


def _written(sign: str) -> str:
    """A pattern of the ways that a sign of the key is written, each of which may be escaped again (`%252F`)."""
    code, names = ord(sign), [name for name, meant in html5.items() if meant == sign and name.endswith(";")]
    ways = [
        rf"\\{{0,8}}{re.escape(sign)}",
        rf"\\{{1,8}}(?i:u{code:04x}|u\{{0{{0,4}}{code:x}\}}|x{code:02x})",
        rf"\\{{1,8}}0?{code:o}(?![0-7])",
        rf"%(?:25){{0,3}}(?i:{code:02x})",
        rf"&(?:amp;){{0,3}}(?:#0{{0,4}}{code};|#(?i:x0{{0,4}}{code:x});{''.join(f'|{name}' for name in names)})",
    ]
    return f"(?:{'|'.join(ways)})"


def _key() -> str:
    return os.environ.get(KEY_VARIABLE, "").strip()


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
            raise InputError(f"{url} must answer to the end: {first_line(found)}; ask again") from found
        yield found


def _chunk(url: str, kind: str, data: str) -> Chunk:
    """Read one event's JSON; whatever is in one of the kind `error` is what went wrong."""
    if kind == "error":
        raise InputError(f"{url} broke off: {printable(data)}")
    try:
        event = json.loads(data)
        if event.get("error"):
            raise InputError(f"{url} broke off: {printable(str(event['error']))}")
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
        raise InputError(f"{url} must send chunks of a chat completion; it says {printable(data)}") from error


def _only_model(address: str, listing: Response) -> str:
    try:
        names = [str(model["id"]) for model in listing.json()["data"]] if listing.status_code == 200 else []
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"{address}/models must list the server's models; it says {excerpt(listing)}") from error
    if len(names) != 1 or not names[0].isprintable():
        found = ", ".join(printable(name) for name in names[:5]) or status(listing)
        raise InputError(
            f"{address} must list 1 model where none is named; it lists {len(names)} ({found}): add #MODEL"
        )
    return names[0]


def _described(listing: Response, model: str) -> dict[str, Any]:
    """What a server says of its model; nothing where it does not list it."""
    try:
        return next(dict(entry) for entry in listing.json()["data"] if entry["id"] == model)
    except (ValueError, LookupError, TypeError, StopIteration, RecursionError):
        return {}


def _context(described: Mapping[str, Any]) -> int | None:
    """Tokens of a listed model's context, of whichever server; llama-server's is among what it says of the file."""
    meta = described.get("meta")
    told = [described.get(name) for name in CONTEXT_FIELDS] + [meta.get("n_ctx") if isinstance(meta, dict) else None]
    return next((count for value in told if (count := count_of(value))), None)


def _llama_server_context(address: str) -> int | None:
    """What `llama-server` was started with, which older ones say beside the API; None where this one does not."""
    with suppress(HTTPError, ValueError, LookupError, TypeError, RecursionError):
        properties = _get(address, f"{address.removesuffix('/v1')}/props").json()
        return count_of(properties["default_generation_settings"]["n_ctx"])
    return None
