"""One budget for all workers of a job, so that its limits on money and tokens hold for them together.

The budget is in a process of its own. A worker asks it before each request, and tells it afterwards what the requests
took. What a worker had in flight when it died may have been paid for, so it counts as spent in full.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from distill.endpoints.budget import Budget, Reservation, SpendingLimits, cost_of
from distill.endpoints.servers.server import ServerSettings
from toolkit.records import Message

ASK_AGAIN_S = 0.2
"""The pause before a worker asks again for what others may give back."""


class Purse:
    """The budget in a process of its own; its methods are called from others."""

    def __init__(self, limits: SpendingLimits, servers: Sequence[ServerSettings], spent: tuple[float, float]) -> None:
        """`spent`: the tokens and the money that the job's traces took before."""
        self._budget = Budget(limits, servers)
        self._budget.tokens, self._budget.cost = spent
        self._reserved: defaultdict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
        """The tokens and the money that each worker has reserved."""

    def reserve(self, worker: int, wanted: Reservation) -> tuple[bool, str]:
        """Return whether a request may be sent, and the limit that has ended the job."""
        is_granted = self._budget.grant(wanted)
        if is_granted:
            self._add(worker, wanted, 1)
        elif not self._budget.is_reserved:
            self._budget.stop()
        return is_granted, self._budget.stopped_by

    def settle(self, worker: int, reservation: Reservation, tokens: float, cost: float) -> None:
        """Take back a reservation, and count what was taken meanwhile."""
        self._add(worker, reservation, -1)
        self._budget.tokens += tokens
        self._budget.cost += cost
        self._budget.settle(reservation)

    def begin(self, worker: int) -> None:
        """Count as spent what an earlier process of a worker had reserved when it died."""
        tokens, cost = self._reserved.pop(worker, (0.0, 0.0))
        self._budget.tokens += tokens
        self._budget.cost += cost
        self._budget.settle(Reservation(tokens=tokens, cost=cost))

    def _add(self, worker: int, reservation: Reservation, sign: int) -> None:
        self._reserved[worker][0] += sign * reservation.tokens
        self._reserved[worker][1] += sign * reservation.cost


class SharedBudget(Budget):
    """A worker's side of the budget."""

    def __init__(self, purse: Any, worker: int, servers: Sequence[ServerSettings]) -> None:
        """`purse`: the handle of Ray's actor with the `Purse`."""
        super().__init__(SpendingLimits(), servers)
        self._purse, self._worker = purse, worker
        self._taken_tokens = self._taken_cost = 0.0
        """What was taken since the purse was told."""
        import ray

        ray.get(purse.begin.remote(worker))

    @property
    def is_limited(self) -> bool:
        return True

    def take(self, server: ServerSettings, prompt_tokens: int, completion_tokens: int) -> None:
        self._taken_tokens += prompt_tokens + completion_tokens
        self._taken_cost += cost_of(server, prompt_tokens, completion_tokens)

    async def reserve(
        self, server: ServerSettings, messages: Sequence[Message], max_new_tokens: int
    ) -> Reservation | None:
        wanted = self.bound_of(server, messages, max_new_tokens)
        while True:
            is_granted, self.stopped_by = await self._purse.reserve.remote(self._worker, wanted)
            if is_granted:
                return wanted
            if self.stopped_by:
                return None
            await asyncio.sleep(ASK_AGAIN_S)

    def settle(self, reservation: Reservation) -> None:
        self._purse.settle.remote(self._worker, reservation, self._taken_tokens, self._taken_cost)
        self._taken_tokens = self._taken_cost = 0.0
