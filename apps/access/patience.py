"""Closes connections on which the head of a request does not arrive; uvicorn alone would wait forever.

A client that opens connections and sends nothing, or a byte now and then, could otherwise take all that a process may
open. A request's body has its own limit (`apps.access.bounded_body`), and so has an idle connection that is kept for
another request (uvicorn's). What is not HTTP is refused in the server's own format instead of uvicorn's plain text.
"""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from apps.access.guard import Tell, as_text

HEAD_TIMEOUT_S = 30.0


class PatientProtocol(H11Protocol):
    """One connection with a limit on the time for a request's head."""

    tell: Tell = staticmethod(as_text)
    """Writes the body of an error; a server with another format uses a subclass (`that_tells`)."""
    _waits: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._wait_no_more()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP; if an answer has begun already, only close the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body, kind = self.tell(msg, 400)
            head = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
            for event in (h11.Response(status_code=400, headers=head, reason=b"Bad Request"), h11.Data(data=body)):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _wait(self) -> None:
        """Wait for the head of a request, but not while a request is being answered."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._wait_no_more()
        elif self._waits is None:
            self._waits = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _wait_no_more(self) -> None:
        if self._waits is not None:
            self._waits.cancel()
            self._waits = None

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: no route uses websockets, so nobody needs to install what uvicorn advises."""


def that_tells(tell: Tell) -> type[PatientProtocol]:
    """Return the class of connections whose errors are written by `tell`."""
    return type("TellingProtocol", (PatientProtocol,), {"tell": staticmethod(tell)})
