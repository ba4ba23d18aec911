"""Counts what requests cost, and stops before a limit on money or tokens is passed.

A request is sent only if it stays within the limit even with the longest answer that it may get, together with those in
flight; what it then takes less is free again. What a broken answer took is counted too, as far as it arrived. The
traces that a job had before count as well, so the same command never spends more than its limit, however often it runs.
If a server does not count tokens, a trace takes the most that its texts may have.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from distill.endpoints.servers.server import ServerSettings
from toolkit.errors import InputError
from toolkit.records import Message, Trace

BYTES_PER_TOKEN = 2.0
"""Fewer than any tokenizer's on ordinary text, so that a prompt is not underestimated."""
TEMPLATE_TOKENS = 64
"""What a chat template adds to a message, at most."""
MILLION = 1_000_000


@dataclass(frozen=True, kw_only=True)
class SpendingLimits:
    """The most that the traces of a job may take; None: no limit."""

    cost: float | None = None
    """Money, in the unit of the prices."""
    tokens: int | None = None
    """Tokens of prompts and answers together."""


UNLIMITED = SpendingLimits()


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """What a request in flight may take at most."""

    tokens: float
    cost: float


class Budget:
    """What the requests of a job have taken, and may take still."""

    def __init__(self, limits: SpendingLimits, servers: Sequence[ServerSettings]) -> None:
        """Raises `InputError` if money is limited but a server has no prices."""
        if limits.cost is not None and (free := [server.name for server in servers if server.price_out is None]):
            raise InputError(f"--max-cost needs the prices of {free[0]}; give --price-in and --price-out")
        self._limits = limits
        self._prices = {server.name: server for server in servers}
        self._default = servers[0]
        self.tokens, self.cost = 0.0, 0.0
        """What was taken, by traces and by answers that broke off."""
        self.stopped_by = ""
        """The limit that ended the job; empty if none did."""
        self.uncounted = 0
        """Traces whose tokens their server did not count."""
        self._reached = ""
        self._reserved_tokens = self._reserved_cost = 0.0
        self._waiting: list[asyncio.Future[None]] = []
        """Those who wait until something is given back."""

    @property
    def is_limited(self) -> bool:
        return self._limits != UNLIMITED

    def count(
        self, traces: Iterable[Trace], prompt_of: Callable[[str], Sequence[Message]], max_new_tokens: int
    ) -> None:
        """Count traces that the job had before; `prompt_of`: what a problem's id was asked as."""
        for trace in traces:
            server = self._prices.get(trace.teacher.rpartition("@")[0], self._default)
            self.take_trace(server, trace, prompt_of(trace.problem_id), max_new_tokens)

    def take_trace(self, server: ServerSettings, trace: Trace, prompt: Sequence[Message], max_new_tokens: int) -> None:
        """Count a trace, with the most that its texts may have where the server does not count tokens."""
        asked, answered = trace.prompt_tokens, trace.completion_tokens
        if self.is_limited and (asked is None or answered is None):
            self.uncounted += 1
            asked = prompt_bound(prompt) if asked is None else asked
            written = math.ceil(len((trace.reasoning + trace.answer).encode(errors="replace")) / BYTES_PER_TOKEN)
            answered = min(max_new_tokens, written) if answered is None else answered
        self.take(server, asked, answered)

    def take(self, server: ServerSettings, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        self.tokens += (prompt_tokens or 0) + (completion_tokens or 0)
        self.cost += cost_of(server, prompt_tokens or 0, completion_tokens or 0)

    async def reserve(
        self, server: ServerSettings, messages: Sequence[Message], max_new_tokens: int
    ) -> Reservation | None:
        """Reserve what a request may take, waiting while others may give back enough; None: a limit is reached."""
        while not (found := self.try_reserve(server, messages, max_new_tokens)):
            if self.stopped_by or not self.is_reserved:
                self.stop()
                return None
            freed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(freed)
            await freed
        return found

    def try_reserve(
        self, server: ServerSettings, messages: Sequence[Message], max_new_tokens: int
    ) -> Reservation | None:
        """Reserve what a request may take; None if it might pass a limit (`stop` then ends the job)."""
        wanted = bound_of(server, messages, max_new_tokens)
        return wanted if self.grant(wanted) else None

    @property
    def is_reserved(self) -> bool:
        """Whether requests in flight may give something back."""
        return self._reserved_tokens > 0

    def grant(self, wanted: Reservation) -> bool:
        """Make a reservation, and return whether it stays within the limits."""
        if self._passes_limit(wanted):
            return False
        self._reserved_tokens += wanted.tokens
        self._reserved_cost += wanted.cost
        return True

    def settle(self, reservation: Reservation) -> None:
        """Give a reservation back; what the request took is counted by `take`."""
        self._reserved_tokens = max(0.0, self._reserved_tokens - reservation.tokens)
        self._reserved_cost = max(0.0, self._reserved_cost - reservation.cost)
        for freed in self._waiting:
            if not freed.done():
                freed.set_result(None)
        self._waiting.clear()

    def stop(self) -> None:
        """End the job because of the limit that the last refused reservation might have passed."""
        self.stopped_by = self.stopped_by or self._reached

    def _passes_limit(self, wanted: Reservation) -> bool:
        if self.tokens + self._reserved_tokens + wanted.tokens > (self._limits.tokens or math.inf):
            self._reached = f"--max-tokens-total {self._limits.tokens}"
            return True
        if self._limits.cost is not None and self.cost + self._reserved_cost + wanted.cost > self._limits.cost:
            self._reached = f"--max-cost {self._limits.cost:g}"
            return True
        return False


def cost_of(server: ServerSettings, prompt_tokens: float, completion_tokens: float) -> float:
    """Return what tokens cost at a server; what has no price counts as free."""
    return (prompt_tokens * (server.price_in or 0.0) + completion_tokens * (server.price_out or 0.0)) / MILLION


def bound_of(server: ServerSettings, messages: Sequence[Message], max_new_tokens: int) -> Reservation:
    """Return what a request may take at most."""
    prompt = prompt_bound(messages)
    return Reservation(tokens=prompt + max_new_tokens, cost=cost_of(server, prompt, max_new_tokens))


def prompt_bound(messages: Sequence[Mapping[str, str]]) -> int:
    """Return a number of tokens that a prompt does not exceed."""
    return math.ceil(
        sum(len(message["content"].encode(errors="replace")) for message in messages) / BYTES_PER_TOKEN
    ) + TEMPLATE_TOKENS * len(messages)
