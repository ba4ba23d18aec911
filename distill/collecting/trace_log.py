"""What becomes of a job's requests: which ones are missing, and what is kept of each answer or failure as it arrives.

    OwnFile     one file for this job alone; the first failure ends the job
    Collected   a store that other jobs fill as well (`distill.store`), failures beside the traces

A request of a store is handed out when it is about to be sent, and to one process only. Nothing here holds all traces,
or all requests, of a job in a store.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from typing import Any, Generic, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from distill.collecting.job import Job, P, Plan, Request
from distill.collecting.outcomes import Outcomes, Refusal
from distill.store.claims import Claims
from distill.store.failure import Failure
from distill.store.logprobs import TokenLogprobs
from distill.store.shard_index import Hashes, scan
from distill.store.sharded_store import TraceStore
from toolkit.errors import InputError
from toolkit.progress import Progress
from toolkit.records import AppendLog, Trace, read_records, stream_records
from toolkit.runs import given_name
from toolkit.terminal import say

WAIT_S = 0.25
"""How long a process waits before it looks again for requests that others left."""


class TraceLog(Protocol):
    """Takes the outcome of each request; for one thread."""

    @property
    def left(self) -> int:
        """How many requests have no outcome yet, those that are in flight included."""

    def answered(self, trace: Trace, logprobs: Sequence[TokenLogprobs] | None = None) -> None:
        """Keep a trace, with the log-probabilities of its tokens if the teacher gave them."""

    def failed(self, request: Request[Any], refusal: Refusal) -> bool:
        """Note that a request was not answered; return whether to send it again later.

        Raises `InputError` if the failure ends the job.
        """


class OwnFile(Generic[P]):
    """The file of one job's traces, open for appending."""

    def __init__(self, job: Job, plan: Plan[P]) -> None:
        """Open the file and read its traces; raises `InputError` if it holds a trace of another request."""
        self._job = job
        self._plan: Plan[P] = plan
        with ExitStack() as stack:
            self._file = stack.enter_context(AppendLog(job.path))  # mends a torn line, so it precedes reading
            self.traces = self._held()
            """By position in the plan."""
            self.missing = [position for position in range(len(plan)) if position not in self.traces]
            done = len(plan) - len(self.missing)
            if done and self.missing:
                held = f"{done} of {len(plan)}"
                say(f"{job.label}: resuming {given_name(job.path.parent)}, which holds {held} answers")
            self._progress = stack.enter_context(Progress(job.label, len(plan), done=done))
            self._open = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    @property
    def left(self) -> int:
        return len(self._plan) - len(self.traces)

    def answered(self, trace: Trace, logprobs: Sequence[TokenLogprobs] | None = None) -> None:
        self._file.append(trace)
        position = self._plan.position(trace.problem_id, trace.sample)
        assert position is not None
        self.traces[position] = trace
        self._progress.advance()

    def failed(self, request: Request[P], refusal: Refusal) -> bool:
        raise InputError(f"{refusal}; problem {request.problem_id} was asked") from refusal

    def _held(self) -> dict[int, Trace]:
        held = {}
        for trace in read_records(self._job.path, Trace):
            position = self._plan.position(trace.problem_id, trace.sample)
            if position is None:
                continue
            wanted = self._plan.hash(position)
            if trace.request_hash != wanted:
                raise InputError(
                    f"{self._job.path} holds a trace of another request ({trace.request_hash}, by {trace.teacher}) "
                    f"for problem {trace.problem_id} sample {trace.sample}, whose request is now {wanted}; choose "
                    "another folder"
                )
            held[position] = trace
        return held


class Collected(Generic[P]):
    """A job's requests in a store, which other processes may fill at the same time."""

    def __init__(self, job: Job, plan: Plan[P], store: TraceStore) -> None:
        """Find out what the store lacks, and say so."""
        self._job, self._store = job, store
        self._plan: Plan[P] = plan
        self._adopted: set[int] = set()
        self._failed_before: dict[int, int] = {}
        """Where the failures are that are asked again: a later one is an outcome of this job."""
        with ExitStack() as stack:
            self._writer = stack.enter_context(store.writer())
            self._take_over()
            held = store.held(plan.chosen)
            self._outcomes = Outcomes(self, proven=len(store) > 0)
            unanswered = plan.chosen[~held]
            failed, places = store.failures.find(unanswered)
            if job.retry_failed:
                known = failed >= 0
                self._failed_before = dict(zip(unanswered[known].tolist(), places[known].tolist(), strict=True))
            missing = plan.positions[~held][~self._settled(unanswered)]
            failed_before, settled = len(unanswered) - len(missing), len(plan.positions) - len(missing)
            if job.limit is not None:
                missing = missing[: max(0, job.limit - settled)]
            self.missing = missing
            """The positions of the requests to ask."""
            self._watched = plan.hashes[missing]
            self._claims: Claims = self._writer.claims(self._watched, self._unsettled)
            self._say_what_is_missing(int(held.sum()), failed_before)
            total = settled + len(missing)
            self._progress = stack.enter_context(Progress(job.label, total, done=settled))
            self._open = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def rounds(self) -> Iterator[Iterator[Request[P]]]:
        """Yield the missing requests, until no process has any left; each round has those that nobody else holds.

        A request is made when it is taken from its round. If a round is not taken to its end, it is the last one.
        Raises `InputError` if the server may be to blame for failures.
        """
        while self._claims.left:
            requests = (self._plan.request(int(self.missing[row])) for row in self._claims.round())
            first = next(requests, None)
            if first is not None:
                yield chain([first], requests)
                self._outcomes.end()
            self._writer.sync()
            self._claims.free_all()
            if not self._claims.ended:
                return
            if self._claims.left and first is None:
                self._wait()

    def watch(self) -> None:
        """Count what other processes have settled since the last look, where they ask all of the requests."""
        self._watched = self._watched[self._unsettled(self._watched)]

    @property
    def left(self) -> int:
        return self._progress.left

    def answered(self, trace: Trace, logprobs: Sequence[TokenLogprobs] | None = None) -> None:
        self._settle(self._writer.append(trace, logprobs))
        self._outcomes.answered()
        self._progress.advance()

    def failed(self, request: Request[P], refusal: Refusal) -> bool:
        failure = Failure(
            problem_id=request.problem_id,
            sample=request.sample,
            reason=refusal.reason,
            message=refusal.said,
            request_hash=request.hash,
        )
        again = self._outcomes.failed(failure, refusal)
        self._progress.advance(0 if again else 1)
        return again

    def adopt(self, trace: Trace, logprobs: Sequence[TokenLogprobs] | None = None) -> None:
        """Keep a trace that an earlier command asked for, whether this job's requests are claimed yet or not."""
        self._adopted.add(self._writer.append(trace, logprobs))
        self._writer.sync_if_due()

    def is_adopted(self, request: Request[P]) -> bool:
        """Whether a request that was handed out has been adopted meanwhile; count it as answered then."""
        hash = int(request.hash, 16)
        if hash not in self._adopted:
            return False
        self._settle(hash)
        self._progress.advance()
        return True

    def append(self, failure: Failure) -> None:
        """Record a failure that is a request's own (`distill.collecting.outcomes`)."""
        self._settle(self._writer.failed(failure))

    def _settle(self, hash: int) -> None:
        self._claims.settle(hash)
        if self._writer.sync_if_due():
            self._claims.free_settled()

    def _settled(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Return which requests have an outcome: a trace, or a failure that is not asked again."""
        failed, places = self._store.failures.find(hashes)
        settled = self._store.held(hashes) | (failed >= 0)
        if self._failed_before:
            before = [self._failed_before.get(hash) for hash in hashes.tolist()]
            settled &= np.array([old != new for old, new in zip(before, places.tolist(), strict=True)], dtype=bool)
        return settled

    def _unsettled(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Look at the disk, and return which requests have no outcome there."""
        self._writer.refresh()
        settled = self._settled(hashes)
        if others := int(settled.sum()):
            self._progress.advance(others)
        return ~settled

    def _wait(self) -> None:
        """Wait a little for requests that other processes ask."""
        if not self._waits:
            say(f"{self._job.label}: waiting for other processes, which ask the same requests ({self._claims.left})")
            self._waits = True
        time.sleep(WAIT_S)

    _waits = False

    def _take_over(self) -> None:
        """Append the traces that an earlier version kept in the run folder, and that the store lacks."""
        before = self._job.before
        if before is None or not before.exists() or self._store.held(self._plan.chosen).all():
            return
        entries = scan(before, 0, Trace).entries()
        if (self._store.held(entries["hash"])).all():
            return
        for trace in stream_records(before, Trace, torn_end=True):
            position = self._plan.position(trace.problem_id, trace.sample)
            if position is not None and not self._store.held(self._plan.hashes[[position]])[0]:
                self._writer.append(replace(trace, request_hash=self._plan.hash(position)))

    def _say_what_is_missing(self, held: int, failed_before: int) -> None:
        unasked = f", {failed_before} failed before" if failed_before else ""
        asked = f"; {len(self.missing)} to ask" if len(self.missing) else ""
        say(f"{self._job.label}: {held} of {len(self._plan.positions)} are already in {self._job.path}{unasked}{asked}")
