"""Guards the chat's door: a printed address opens it to one browser, and from then on that browser's cookie does.

    GET /open/TOKEN ── from this user ── the token is used up and a new one printed ── cookie ── /
    GET /health     ── answered for everybody
    the rest        ── cookie ── from our own page ── body within bounds ── application

Other users of this machine may reach the port, but can read neither the terminal nor the cookie. The address is also on
the command line that starts the browser, which Linux shows to everybody, so there the token is accepted only from this
user's sockets.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from apps.access.bounded_body import BodyRefused, read_bounded
from apps.access.guard import HTML, Application, Event, Receive, Scope, Send, header, refuse
from apps.access.peer import is_another_user

OPEN = "/open/"
LOCKED = (Path(__file__).parent / "assets" / "locked.html").read_bytes()
"""The page that a browser without a cookie sees."""


class Admission:
    """Holds the tokens and cookies of one server's run."""

    def __init__(self, address: str, start: str, announce: Callable[[str], None]) -> None:
        """`address`: `http://host:port`. `start`: path of the page that browsers are sent to. `announce`: gets the next
        address that opens the door, once the one before has been used.
        """
        self._address, self._start, self._announce = address, start, announce
        self._cookie = f"chat-{urlsplit(address).port}"  # a browser sends a host's cookies to all of its ports
        self._token = secrets.token_urlsafe(32)
        self._admitted: list[str] = []

    @property
    def door(self) -> str:
        """The address that opens the chat, once."""
        return f"{self._address}{OPEN}{self._token}"

    def wrap(self, application: Application) -> Application:
        """Put the application behind this door."""

        async def admitted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan" or scope.get("path") == "/health":
                await application(scope, receive, send)
            elif scope["type"] == "http" and scope["method"] == "GET" and self._takes_token(scope):
                await refuse(scope, send, 303, b"", (b"location", self._start.encode()), self._new_cookie())
            elif not self._knows(scope) or not _is_our_own_page(scope):
                await refuse(scope, send, 403, LOCKED, (b"connection", b"close"), kind=HTML)
            else:
                await _with_bounded_body(application, scope, receive, send)

        return admitted

    def _takes_token(self, scope: Scope) -> bool:
        """Whether this user asks for a path with the token, which is then used up."""
        path = scope["path"]
        given = path.removeprefix(OPEN)
        if given == path or not hmac.compare_digest(given.encode(), self._token.encode()):
            return False
        if is_another_user(scope.get("client"), scope.get("server")):
            return False
        self._token = secrets.token_urlsafe(32)
        self._announce(self.door)
        return True

    def _new_cookie(self) -> tuple[bytes, bytes]:
        self._admitted.append(secrets.token_urlsafe(32))
        return b"set-cookie", f"{self._cookie}={self._admitted[-1]}; Path=/; HttpOnly; SameSite=Strict".encode()

    def _knows(self, scope: Scope) -> bool:
        sent = b";".join(value for name, value in scope["headers"] if name == b"cookie")
        named = f"{self._cookie}=".encode()  # other servers of this host set cookies of any form
        given = [pair.strip().removeprefix(named) for pair in sent.split(b";") if pair.strip().startswith(named)]
        return any(hmac.compare_digest(value, one.encode()) for value in given for one in self._admitted)


def _is_our_own_page(scope: Scope) -> bool:
    """Whether a person or our page asks: a page on another port of this host is same-site, and gets the cookie too."""
    if header(scope, b"sec-fetch-site", absent="none") in ("same-origin", "none"):
        return True
    return header(scope, b"sec-fetch-mode") == "navigate" and header(scope, b"sec-fetch-dest") == "document"


async def _with_bounded_body(application: Application, scope: Scope, receive: Receive, send: Send) -> None:
    length = header(scope, b"content-length", absent="0") or ""
    if scope["type"] != "http" or (length == "0" and header(scope, b"transfer-encoding", absent="") == ""):
        await application(scope, receive, send)
        return
    try:
        body = await read_bounded(receive, length)
    except BodyRefused as refused:
        await refuse(scope, send, refused.status, f"{refused}\n".encode(), (b"connection", b"close"))
        return
    unread = [body]

    async def receive_again() -> Event:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        return await receive()

    await application(scope, receive_again, send)
