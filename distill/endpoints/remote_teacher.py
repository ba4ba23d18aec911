"""A model behind an OpenAI-compatible server, or behind several that serve the same one.

The first server gives the teacher its name and digest, so the traces that it gave before are found again when others
join it. If a server sends thoughts as untagged content, a thought cut by the limit cannot be told from an answer that
was cut; neither counts as whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

from distill.collecting.job import Job, Plan
from distill.collecting.trace_log import Collected, TraceLog
from distill.collecting.traces import collect
from distill.endpoints.answers import Patience
from distill.endpoints.batches import BatchRequests
from distill.endpoints.budget import UNLIMITED, Budget, SpendingLimits
from distill.endpoints.chat_requests import ChatRequest, ChatRequests
from distill.endpoints.servers.server import Server, ServerSettings
from distill.endpoints.servers.server_fields import ServerFields
from distill.store.sharded_store import HeldTraces, TraceStore
from toolkit.errors import Busy, Unreachable
from toolkit.generation.endpoint import ask_listing, locate
from toolkit.records import Message, Problem, Trace
from toolkit.terminal import say


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What a user says of a teacher's servers."""

    servers: tuple[ServerSettings, ...] = ()
    """All servers; none: the teacher's address, with the defaults."""
    limits: SpendingLimits = UNLIMITED
    patience: Patience | None = None
    """None: the defaults, with the environment's silence."""
    batch_api: bool = False
    """Whether the requests are sent in files to the first server's batch API."""
    is_streamed: bool = True
    """Whether answers are asked for as streams."""


AS_USUAL = Serving()
"""One server, with the defaults."""


@dataclass(kw_only=True)
class _Outcome:
    """What asking the servers has shown so far."""

    stopped_by: str = ""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One model of one server, or of several."""

    url: str
    model: str
    """Those of the first server."""
    weight_bytes: int = 0
    """The weights are on the server."""
    serving: Serving = AS_USUAL
    budget: Budget | None = None
    """What several processes may take together; None: each job has a budget of its own, with the limits."""
    _outcome: _Outcome = field(default_factory=_Outcome, compare=False)

    @property
    def name(self) -> str:
        return f"{self.url}#{self.model}"

    @cached_property
    def digest(self) -> str:
        """A digest of the address, since the weights behind it cannot be read."""
        return hashlib.sha256(self.name.encode()).hexdigest()[:16]

    @cached_property
    def fields(self) -> dict[str, ServerFields]:
        """The request fields that each server accepts, as far as it has shown."""
        return {settings.name: ServerFields(settings.url) for settings in self.all_servers}

    @cached_property
    def all_servers(self) -> tuple[ServerSettings, ...]:
        return self.serving.servers or (ServerSettings(url=self.url, model=self.model),)

    @property
    def left_out(self) -> list[str]:
        """The requested fields that a server has refused."""
        return sorted({name for fields in self.fields.values() for name in fields.left_out})

    @property
    def stopped_by(self) -> str:
        """The limit that ended the last job before all was asked; empty if none did."""
        return self._outcome.stopped_by

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def load(self) -> None:
        """Check that a server answers; raises `Unreachable` if none does."""
        self._reachable()

    def answer(self, job: Job) -> Sequence[Trace]:
        """Ask the servers for the traces that the job's file does not hold yet, and return all traces in order.

        They are contacted only if a trace is missing. Raises `InputError` if no server is reachable, or if one refuses
        a request or answers with anything but a chat completion; in a shared job, only if the failure is not a single
        request's own.
        """

        plan = self.plan(job)
        budget = self.budget or self.budget_of(job, plan)
        servers: list[Server] = []

        def ask(requests: Iterator[ChatRequest], log: TraceLog) -> None:
            servers[:] = servers or [
                Server(settings=one, fields=self.fields[one.name], most=min(one.most, job.batch_size))
                for one in (self._reachable() if job.shared else self.all_servers)
            ]
            if self.serving.batch_api and isinstance(log, Collected):
                BatchRequests(servers[0], job, digest=self.digest, budget=budget).ask(requests, log)
                return
            ChatRequests(
                servers,
                job,
                digest=self.digest,
                budget=budget,
                patience=self.serving.patience or Patience(),
                is_streamed=self.serving.is_streamed,
            ).ask(requests, log)

        traces = collect(plan, ask, job)
        self._outcome.stopped_by = budget.stopped_by
        if len(servers) > 1:
            counts = ", ".join(f"{server.settings.url}: {server.answers}" for server in servers)
            say(f"{job.label}: answered by {counts}")
        return traces

    def plan(self, job: Job) -> Plan[list[Message]]:
        """Return the requests of a job."""
        return Plan(list, job, f"{self.name}@{self.digest}")

    def budget_of(self, job: Job, plan: Plan[list[Message]]) -> Budget:
        """Return what a job may take, with what its traces took before."""
        budget = Budget(self.serving.limits, self.all_servers)
        if budget.is_limited and job.shared:
            asked = {problem.id: problem for problem in job.problems}
            budget.count(
                HeldTraces(TraceStore(job.path), plan.chosen),
                lambda trace: job.asking.messages(asked[trace.problem_id]),
                job.sampling.max_new_tokens,
            )
        return budget

    def tokens_per_s(self, problems: Sequence[Problem]) -> None:
        """Return None: a server's speed, its queue and the network's belong in no ledger of this machine."""

    def _reachable(self) -> list[ServerSettings]:
        """Return the servers that answer, and report the others; raises `Unreachable` if none does."""
        found, missing = [], []
        for settings in self.all_servers:
            try:
                ask_listing(settings.url, settings.key)
                found.append(settings)
            except Busy:
                say(f"{settings.url} is too busy to list its models; it is asked all the same")
                found.append(settings)
            except Unreachable as error:
                missing.append(error)
        if not found:
            raise missing[0]
        for trouble in missing:
            say(f"{trouble}; meanwhile the other servers answer")
        return found


def connect(argument: str) -> Endpoint:
    """Return the endpoint that a model argument names; raises `InputError` as `toolkit.generation.endpoint.locate`."""
    place = locate(argument)
    return Endpoint(url=place.url, model=place.model)
