"""Hands each request to a server of the teacher that is free for it.

Of the servers that may be asked now, the one with the fewest requests in flight for its weight gets the next. Towards
the end a slow server gets none that the others would finish sooner, so that the last answers do not wait for it. A
server that fails is drained while another one answers (`distill.endpoints.servers.server`).
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence

from distill.endpoints.servers.server import Server

SOONEST_S = 0.001
CAUTION = 2.0
"""A slow server's answers may take so much longer than its last ones, since it works in waves; a late one costs the end
of a job more than the others lose without it."""


class ServerPool:
    """The servers of one teacher; used within one event loop."""

    def __init__(self, servers: Sequence[Server], left: Callable[[], int]) -> None:
        """`left`: returns how many requests have no answer yet."""
        self.servers = list(servers)
        self._left = left
        self._waiting: deque[asyncio.Future[Server | None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def most(self) -> int:
        """The most requests in flight."""
        return sum(server.most for server in self.servers)

    @property
    def answers(self) -> int:
        """How many requests were answered so far."""
        return sum(server.answers for server in self.servers)

    async def acquire(self) -> Server | None:
        """Wait until a server may get a request, and count it as sent there; None if nothing is left to be sent."""
        turn: asyncio.Future[Server | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self.hand_out()
        return await turn

    def dismiss(self) -> None:
        """Let nobody wait any longer, because nothing is left to be sent."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)

    def release(self, server: Server) -> None:
        """Count a request as over."""
        server.limit.in_flight -= 1
        self.hand_out()

    async def pause(self, server: Server, seconds: float) -> Server:
        """Wait before a request is tried again; return the server to ask then.

        Without another server the request keeps its place, so that no further ones are sent where these fail.
        """
        if self.others(server):
            self.release(server)
            found = None
            while found is None:  # others may find that nothing is left, but this is
                await asyncio.sleep(seconds)
                found = await self.acquire()
            return found
        await asyncio.sleep(max(seconds, server.rests_s()))
        return server

    def others(self, server: Server) -> bool:
        """Whether another server answers."""
        return any(other is not server and other.is_live for other in self.servers)

    def hand_out(self) -> None:
        """Give servers that may be asked now to those who wait for one."""
        while self._waiting:
            waits = [(server.wait_s(), server) for server in self.servers if not self._is_too_slow(server)]
            free = [server for wait_s, server in waits if wait_s <= 0.0]
            if not free:
                self._wake_in(min((wait_s for wait_s, _ in waits), default=math.inf))
                return
            turn = self._waiting.popleft()
            if turn.done():  # whoever waited was cancelled
                continue
            server = min(free, key=lambda one: one.limit.in_flight / one.settings.weight)
            server.limit.in_flight += 1
            turn.set_result(server)

    def _wake_in(self, seconds: float) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if 0.0 < seconds < math.inf:
            self._timer = asyncio.get_running_loop().call_later(max(seconds, SOONEST_S), self.hand_out)

    def _is_too_slow(self, server: Server) -> bool:
        """Whether the other servers would have finished everything that is left before this one answers."""
        others = [one for one in self.servers if one is not server and one.answers and one.is_live]
        if math.isnan(server.seconds) or not others:
            return False
        rate = sum(max(1, one.limit.limit) / max(one.seconds, SOONEST_S) for one in others)
        soonest_s = min(one.finish_s() for one in others)  # the quickest server of all is never too slow
        return CAUTION * (server.finish_s() - soonest_s) > self._left() / rate
