"""A job (problems, how to sample answers to them, what keeps the traces) and its requests, one per sample.

A job may have a million requests. They are known by their hashes, and each is made when it is sent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from distill.collecting.asking import AS_IT_IS, Asking
from distill.store.shard_index import Hashes
from toolkit.formats.chat_format import Completion
from toolkit.generation.generate import Sampling
from toolkit.records import FinishReason, Message, Problem, Trace

P = TypeVar("P", list[int], list[Message])
Chosen = Callable[[Hashes], NDArray[np.bool_]]
"""Returns which requests belong to a job that has only some of those of its problems."""


@dataclass(frozen=True, kw_only=True)
class Request(Generic[P]):
    """One sample to draw, with everything that determines it. A decoder's prompt is ids, an endpoint's messages."""

    problem_id: str
    sample: int
    prompt: P
    seed: int
    hash: str

    def trace(
        self,
        completion: Completion,
        finish_reason: FinishReason,
        teacher: str,
        *,
        prompt_tokens: int | None,
        reasoning_tokens: int | None,
        completion_tokens: int | None,
    ) -> Trace:
        """Return the trace of an answer to this request; `teacher`: name@digest. Token counts may be unknown (None)."""
        return Trace(
            problem_id=self.problem_id,
            sample=self.sample,
            reasoning=completion.reasoning,
            answer=completion.answer,
            finish_reason=finish_reason,
            closed=completion.closed,
            prompt_tokens=prompt_tokens,
            reasoning_tokens=reasoning_tokens,
            completion_tokens=completion_tokens,
            teacher=teacher,
            request_hash=self.hash,
        )


@dataclass(frozen=True, kw_only=True)
class Job:
    """Problems to answer, how to sample the answers, and what keeps the traces."""

    problems: Sequence[Problem]
    sampling: Sampling
    samples: int
    batch_size: int
    """Rows or requests at once; changes no trace."""
    in_whole_batches: bool = False
    """Whether a batch ends before the next one begins. A job that is broken off between two batches then goes on with
    the same rows side by side, so its bits are the same in bf16 too."""
    path: Path
    """The file that keeps the traces, or the folder of the store that does."""
    label: str = "traces"
    """The name on the progress line."""
    shared: bool = False
    """Whether a store keeps the traces, which other jobs fill as well, and failed requests beside them. Otherwise the
    first failure ends the job, and a trace of another job is an error."""
    retry_failed: bool = False
    """Whether requests with a recorded failure are sent again."""
    asking: Asking = AS_IT_IS
    """How the questions are put."""
    limit: int | None = None
    """The most requests of a shared job that get an outcome, those that had one before included; None: all."""
    chosen: Chosen | None = None
    """The requests of a shared job; None: all samples of all problems."""
    before: Path | None = None
    """Traces of this very job that an earlier version kept in the run folder."""


class Plan(Generic[P]):
    """The requests of a job by their position: problem by problem, sample by sample."""

    def __init__(self, prompt_of: Callable[[list[Message]], P], job: Job, teacher: str) -> None:
        """`teacher`: name@digest. A request's hash covers the digest but not the name: the same model may move."""
        self._prompt_of: Callable[[Problem], P] = lambda problem: prompt_of(job.asking.messages(problem))
        self._seed, self._samples = job.sampling.seed, job.samples
        distinct = {problem.id: problem for problem in job.problems}
        self._problems = job.problems if len(distinct) == len(job.problems) else list(distinct.values())
        settings = json.dumps(
            asdict(job.sampling) | job.asking.given() | {"teacher": teacher.rpartition("@")[2]}, sort_keys=True
        )
        begun = hashlib.sha256(f"{settings}\n".encode())
        self.hashes: Hashes = np.empty(len(self), dtype=np.uint64)
        """Of all requests, in their order; `distill.store.shard_index.hash_of` says how."""
        self.longest = (0, "")
        """The length of the longest prompt, and its problem."""
        for number, problem in enumerate(self._problems):
            prompt = self._prompt_of(problem)
            if len(prompt) > self.longest[0]:
                self.longest = len(prompt), problem.id
            asked = begun.copy()
            asked.update(f"{prompt}\n".encode())
            for sample in range(job.samples):
                request = asked.copy()
                request.update(str(row_seed(self._seed, problem.id, sample)).encode())
                self.hashes[number * job.samples + sample] = int.from_bytes(request.digest()[:8])
        self.positions: NDArray[np.int64] = (
            np.arange(len(self)) if job.chosen is None else np.flatnonzero(job.chosen(self.hashes))
        )
        """Of the job's own requests."""

    def __len__(self) -> int:
        return len(self._problems) * self._samples

    @property
    def chosen(self) -> Hashes:
        """The hashes of the job's own requests, in their order."""
        return self.hashes[self.positions]

    def hash(self, position: int) -> str:
        """Return a request's hash as its trace names it."""
        return f"{int(self.hashes[position]):016x}"

    def problem_id(self, position: int) -> str:
        """Return which problem the request at a position asks."""
        return self._problems[position // self._samples].id

    def request(self, position: int) -> Request[P]:
        """Make the request at a position."""
        number, sample = divmod(position, self._samples)
        problem = self._problems[number]
        return Request(
            problem_id=problem.id,
            sample=sample,
            prompt=self._prompt_of(problem),
            seed=row_seed(self._seed, problem.id, sample),
            hash=self.hash(position),
        )

    def position(self, problem_id: str, sample: int) -> int | None:
        """Return where the request of a sample is; None if the job has none."""
        number = self._numbers.get(problem_id)
        return None if number is None or not 0 <= sample < self._samples else number * self._samples + sample

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {problem.id: number for number, problem in enumerate(self._problems)}


def row_seed(seed: int, problem_id: str, sample: int) -> int:
    """Derive the seed of one sample of one problem, independent of all others."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{problem_id}:{sample}".encode()).digest()[:8])
