"""A model behind an OpenAI-compatible server.

If a server sends thoughts as untagged content, a thought cut by the limit cannot be told from an answer that was cut;
neither counts as whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from distill.collecting.job import Job
from distill.collecting.traces import collect, plan
from distill.endpoints.chat_requests import ChatRequests
from distill.endpoints.server_fields import ServerFields
from toolkit.errors import InputError
from toolkit.generation.endpoint import ask_listing, locate
from toolkit.records import Problem, Trace


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One model of one server."""

    url: str
    model: str
    weight_bytes: int = 0
    """The weights are on the server."""

    @property
    def name(self) -> str:
        return f"{self.url}#{self.model}"

    @cached_property
    def digest(self) -> str:
        """A digest of the address, since the weights behind it cannot be read."""
        return hashlib.sha256(self.name.encode()).hexdigest()[:16]

    @cached_property
    def fields(self) -> ServerFields:
        """The request fields that the server accepts, as far as it has shown."""
        return ServerFields(self.url)

    @property
    def left_out(self) -> list[str]:
        """The requested fields that the server has refused."""
        return self.fields.left_out

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def load(self) -> None:
        """Check that the server answers; raises `Unreachable` if it does not."""
        ask_listing(self.url)

    def answer(self, job: Job) -> list[Trace]:
        """Ask the server for the traces that the job's file does not hold yet, and return all traces in order.

        The server is contacted only if a trace is missing. Raises `InputError` if the server is unreachable, refuses a
        request, or answers with anything but a chat completion; in a shared job, only if the failure is not a single
        request's own.
        """
        sampling = job.sampling
        for name, value, default in (
            ("top_k", sampling.top_k, 0),
            ("min_p", sampling.min_p, 0.0),
            ("repetition_penalty", sampling.repetition_penalty, 1.0),
        ):
            if value != default:
                raise InputError(f"{name} ({value}) must be {default} for {self.url}: endpoints do not support {name}")

        teacher = f"{self.name}@{self.digest}"
        requests = ChatRequests(url=self.url, model=self.model, teacher=teacher, fields=self.fields, job=job)
        return collect(plan(list, job, teacher), requests.ask, job)

    def tokens_per_s(self, problems: Sequence[Problem]) -> None:
        """Return None: a server's speed, its queue and the network's belong in no ledger of this machine."""


def connect(argument: str) -> Endpoint:
    """Return the endpoint that a model argument names; raises `InputError` as `toolkit.generation.endpoint.locate`."""
    place = locate(argument)
    return Endpoint(url=place.url, model=place.model)
