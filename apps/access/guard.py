"""Guards every page and route: an ASGI wrapper that checks who asks, and limits what a page may load.

Host      must be one of our names, else 421     a page of another site reaches the loopback address under its own
                                                 name (DNS rebinding)
Origin    must be absent or our own, else 403    if it uses our name, the browser sends its origin; others are accepted
                                                 only if the user has named them
answer    has a policy by which the page may ask only this server and may not be in a frame
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Tell = Callable[[str, int], tuple[bytes, bytes]]
"""Turns a message and a status into the body of a refusal and its type."""

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline'",  # Gradio's page carries its configuration in inline scripts
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "frame-src 'none'",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
UNUSED_FEATURES = ("camera", "display-capture", "geolocation", "hid", "microphone", "midi", "payment", "serial", "usb")

HEADERS = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", ", ".join(f"{name}=()" for name in UNUSED_FEATURES).encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)


ANY_ORIGIN = "*"
TEXT, HTML = b"text/plain; charset=utf-8", b"text/html; charset=utf-8"


def as_text(message: str, status: int) -> tuple[bytes, bytes]:
    return f"{message}\n".encode(), TEXT


def guard(
    application: Application,
    hosts: frozenset[str],
    origins: frozenset[str] = frozenset(),
    advice: str = "",
    tell: Tell = as_text,
) -> Application:
    """Wrap an application so that it answers only under one of `hosts`, and only its own pages and those of `origins`.

    `hosts`: `name:port`, or a bare `name` for any port. `origins`: as browsers write them, or `ANY_ORIGIN`. `advice`:
    added to the reason of a refusal. `tell`: writes the refusal.
    """

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await application(scope, receive, send)
            return

        async def send_with_headers(event: Event) -> None:
            if event["type"] == "http.response.start":
                event["headers"] = [*event.get("headers", ()), *HEADERS]
            await send(event)

        async def deny(message: str, status: int) -> None:
            body, kind = tell(f"{message}{advice}.", status)
            await refuse(scope, send_with_headers, status, body, kind=kind)

        host = header(scope, b"host")
        origin = header(scope, b"origin", absent=f"http://{host}")
        if host is None or hosts.isdisjoint({host, _without_port(host)}):
            await deny("Misdirected request: this server answers only under the address that it printed", 421)
        elif origin != f"http://{host}" and origins.isdisjoint({origin or "", ANY_ORIGIN}):
            await deny("Forbidden: this server answers no page of another origin", 403)
        else:
            await application(scope, receive, send_with_headers)

    return guarded


def _without_port(host: str) -> str:
    """Return the name in a Host header; an IPv6 address stays in its brackets."""
    name, _, port = host.rpartition(":")
    return name if port.isdigit() else host


def header(scope: Scope, name: bytes, *, absent: str | None = None) -> str | None:
    """Return the only header of a name, in lower case; `absent` if there is none, None if there are several."""
    found = [value for key, value in scope["headers"] if key == name]
    if not found:
        return absent
    value: str = found[0].decode("latin-1").lower()
    return value if len(found) == 1 else None


async def refuse(
    scope: Scope, send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes], kind: bytes = TEXT
) -> None:
    """Refuse a request without asking the application; a websocket is closed as a policy violation."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    head = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
