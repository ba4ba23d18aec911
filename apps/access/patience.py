"""uvicorn's connections, which end where a request's head does not arrive: uvicorn itself waits for it for ever.

What is no HTTP is answered in the words of the server that it was sent to, in place of uvicorn's plain text. Whoever
opens connections and sends nothing, or a byte now and then, would have all that a process may open. A request's body
has its own bound (`apps.access.bounded_body`), and so has a connection that is kept for another request (uvicorn's).
"""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from apps.access.guard import Tell, as_text

HEAD_TIMEOUT_S = 30.0


class PatientProtocol(H11Protocol):
    """One connection."""

    tell: Tell = staticmethod(as_text)
    """How an error is said; a server that says it otherwise takes a class of its own (`that_tells`)."""
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
        """Answer what is no HTTP; where an answer has begun already, only the end of the connection can say it."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body, kind = self.tell(msg, 400)
            head = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
            for event in (h11.Response(status_code=400, headers=head, reason=b"Bad Request"), h11.Data(data=body)):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _wait(self) -> None:
        """Wait for the rest of a head, from its first byte on; not while a request is answered."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._wait_no_more()
        elif self._waits is None:
            self._waits = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _wait_no_more(self) -> None:
        if self._waits is not None:
            self._waits.cancel()
            self._waits = None

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing here speaks over websockets, so nobody need install what uvicorn says."""


def that_tells(tell: Tell) -> type[PatientProtocol]:
    """Connections whose errors are said so."""
    return type("TellingProtocol", (PatientProtocol,), {"tell": staticmethod(tell)})
