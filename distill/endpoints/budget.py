"""Counts what requests cost, and stops before a limit on money or tokens is passed.

A request is sent only if it stays within the limit even with the longest answer that it may get, together with those in
flight; what it then takes less is free again. What a broken answer took is counted too, as far as it arrived. The
traces that a job had before count as well, so the same command never spends more than its limit, however often it runs.
Where a server counts no tokens, they are estimated from above by the bytes of the texts.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from distill.endpoints.servers.server import ServerSettings
from toolkit.errors import InputError
from toolkit.records import Message, Trace
from toolkit.terminal import say

BYTES_PER_TOKEN = 2.0
"""Fewer than a tokenizer's on ordinary text, so that an answer whose tokens nobody counts is not underestimated."""
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
        """Raises `InputError` if money is limited but a server lacks a price."""
        free = [server.name for server in servers if server.price_in is None or server.price_out is None]
        if limits.cost is not None and free:
            raise InputError(f"--max-cost needs the prices of {free[0]}; give --price-in and --price-out")
        self._limits = limits
        self._prices = {server.name: server for server in servers}
        self._default = servers[0]
        self.tokens, self.cost = 0.0, 0.0
        """What was taken, by traces and by answers that broke off."""
        self.stopped_by = ""
        """The limit that ended the job; empty if none did."""
        self._beyond_prompt = self._beyond_answer = 0
        """The most tokens of a prompt and of an answer beyond their bounds: a server's own template, a limit that it
        ignores."""
        self._reached = ""
        self._estimates: set[str] = set()
        """The servers that count no tokens."""
        self._reserved_tokens = self._reserved_cost = 0.0
        self._waiting: list[asyncio.Future[None]] = []
        """Those who wait until something is given back."""

    @property
    def is_limited(self) -> bool:
        return self._limits != UNLIMITED

    def count(
        self, traces: Iterable[Trace], messages_of: Callable[[Trace], Sequence[Message]], max_new_tokens: int
    ) -> None:
        """Count traces that the job had before."""
        for trace in traces:
            server = self._prices.get(trace.teacher.rpartition("@")[0], self._default)
            self.take_answer(server, trace, messages_of(trace), max_new_tokens)

    def take_answer(
        self, server: ServerSettings, trace: Trace, messages: Sequence[Message], max_new_tokens: int
    ) -> None:
        """Count what an answer took; what its server has not counted is estimated from above."""
        prompt, completion, bound = trace.prompt_tokens, trace.completion_tokens, prompt_bound(messages)
        if prompt is None or completion is None:
            self._say_estimated(server)
        if prompt is None:
            prompt = bound
        elif messages:
            self._beyond_prompt = max(self._beyond_prompt, prompt - bound)
        if completion is None:
            completion = answer_bound(len(f"{trace.reasoning}{trace.answer}".encode(errors="replace")))
        else:
            self._beyond_answer = max(self._beyond_answer, completion - max_new_tokens)
        self.take(server, prompt, completion)

    def take_broken(self, server: ServerSettings, messages: Sequence[Message], pieces: int, size_bytes: int) -> None:
        """Count what an answer took that broke off after so many pieces of so many bytes."""
        if pieces:
            self.take(server, prompt_bound(messages), max(pieces, answer_bound(size_bytes)))

    def take(self, server: ServerSettings, prompt_tokens: int, completion_tokens: int) -> None:
        self.tokens += prompt_tokens + completion_tokens
        self.cost += cost_of(server, prompt_tokens, completion_tokens)

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
        wanted = self.bound_of(server, messages, max_new_tokens)
        return wanted if self.grant(wanted) else None

    def bound_of(self, server: ServerSettings, messages: Sequence[Message], max_new_tokens: int) -> Reservation:
        """Return what a request may take at most."""
        prompt, answer = prompt_bound(messages) + self._beyond_prompt, max_new_tokens + self._beyond_answer
        return Reservation(tokens=prompt + answer, cost=cost_of(server, prompt, answer))

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

    def _say_estimated(self, server: ServerSettings) -> None:
        if self.is_limited and server.name not in self._estimates:
            self._estimates.add(server.name)
            say(
                f"{server.url} does not count tokens; for the limits, {BYTES_PER_TOKEN:g} bytes count as one "
                "(--no-stream may make it count)"
            )

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


def prompt_bound(messages: Sequence[Mapping[str, str]]) -> int:
    """Return a number of tokens that a prompt does not exceed: no tokenizer has more than a token for each byte."""
    return sum(len(message["content"].encode(errors="replace")) + TEMPLATE_TOKENS for message in messages)


def answer_bound(size_bytes: int) -> int:
    """Return a number of tokens that an answer of so many bytes hardly exceeds."""
    return math.ceil(size_bytes / BYTES_PER_TOKEN)
