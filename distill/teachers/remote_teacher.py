"""A model behind an OpenAI-compatible server.

A thought that ran into the limit where a server sends it as content without any tag can't be told from an answer that
did; neither is whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from distill.teachers.chat_requests import ChatRequests
from distill.teachers.job import Job
from distill.teachers.server_fields import ServerFields
from distill.teachers.traces import collect, plan
from toolkit.errors import InputError
from toolkit.generation.endpoint import ask_listing, locate
from toolkit.records import Problem, Trace


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One model of one server."""

    url: str
    model: str
    weight_bytes: int = 0
    """They are elsewhere."""

    @property
    def name(self) -> str:
        return f"{self.url}#{self.model}"

    @cached_property
    def digest(self) -> str:
        """Of the address: what is behind it can't be known."""
        return hashlib.sha256(self.name.encode()).hexdigest()[:16]

    @cached_property
    def fields(self) -> ServerFields:
        """What the server takes of a request, as far as it is known."""
        return ServerFields(self.url)

    @property
    def left_out(self) -> list[str]:
        """Fields that were asked for and that the server has refused."""
        return self.fields.left_out

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def load(self) -> None:
        """Nothing is here to load; raises `Unreachable` where nobody answers."""
        ask_listing(self.url)

    def answer(self, job: Job) -> list[Trace]:
        """As `distill.teachers.traces.sample_traces`; of `batch_size` requests at most `MOST_IN_FLIGHT` are open at
        once.

        Nobody is asked before something is missing. Raises `InputError` where the server is away, refuses, or answers
        something else than a chat completion; where the job is shared, only if that is no single request's failure.
        """
        sampling = job.sampling
        for name, value, default in (
            ("top_k", sampling.top_k, 0),
            ("min_p", sampling.min_p, 0.0),
            ("repetition_penalty", sampling.repetition_penalty, 1.0),
        ):
            if value != default:
                raise InputError(f"{name} ({value}) must be {default} for {self.url}: an endpoint knows no {name}")

        teacher = f"{self.name}@{self.digest}"
        requests = ChatRequests(url=self.url, model=self.model, teacher=teacher, fields=self.fields, job=job)
        return collect(plan(list, job, teacher), requests.ask, job)

    def tokens_per_s(self, problems: Sequence[Problem]) -> None:
        """Another machine's speed, its queue and the network's belong into no ledger of this one."""


def connect(argument: str) -> Endpoint:
    """The endpoint of a model argument; raises `InputError` as `toolkit.generation.endpoint.locate` does."""
    place = locate(argument)
    return Endpoint(url=place.url, model=place.model)
