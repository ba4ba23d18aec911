"""The file of a job's traces: reads what it already holds; appends and counts each answer or failure as it arrives.

traces.jsonl    one line per finished sample, in the order in which they finish, written as soon as a row ends
failed.jsonl    in a shared job, the requests without an answer (`distill.collecting.outcomes`)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Self

from distill.collecting.job import Job, P, Request
from distill.collecting.outcomes import FAILED, Failure, Outcomes, Refusal
from toolkit.errors import InputError
from toolkit.progress import Progress
from toolkit.records import AppendLog, Trace, read_records
from toolkit.terminal import say


class TraceLog:
    """The file of a job's traces, open for appending."""

    def __init__(self, job: Job, hashes: Mapping[tuple[str, int], str]) -> None:
        """Open the file and read the job's traces in it; `hashes`: of all its requests, by (problem id, sample).

        Raises `InputError` if the file holds a trace of another request, unless the job is shared.
        """
        self._job, self._hashes = job, hashes
        self._outcomes: Outcomes | None = None
        with ExitStack() as stack:
            self._file = stack.enter_context(AppendLog(job.path))  # mends a torn line, so it precedes reading
            self.traces = self._held()
            """By (problem id, sample)."""
            for trace in self._from_before():
                self._file.append(trace)
                self.traces[trace.problem_id, trace.sample] = trace
            self.missing = {key for key in hashes if key not in self.traces}
            """The keys of the requests to send."""
            if job.shared:
                failures = stack.enter_context(AppendLog(job.path.with_name(FAILED)))
                self._outcomes = Outcomes(failures, proven=bool(self.traces))
                self._leave_failed_out()
            done = len(hashes) - len(self.missing)
            self._progress = stack.enter_context(Progress(job.label, len(hashes), done=done))
            self._open = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def answered(self, trace: Trace) -> None:
        """Append a trace and count it."""
        self._file.append(trace)
        self.traces[trace.problem_id, trace.sample] = trace
        if self._outcomes:
            self._outcomes.answered()
        self._progress.advance()

    def failed(self, request: Request[P], refusal: Refusal) -> bool:
        """Note that a request was not answered; return whether to send it again later.

        Raises `InputError` if the failure ends the job.
        """
        if not self._outcomes:
            raise InputError(f"{refusal}; problem {request.problem_id} was asked") from refusal
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

    def end(self) -> None:
        """Settle the failures once all requests were sent; raises `InputError` if the server may be to blame."""
        if self._outcomes:
            self._outcomes.end()

    def _held(self) -> dict[tuple[str, int], Trace]:
        """Read the traces of the job's requests that the file already holds."""
        held = {}
        for trace in read_records(self._job.path, Trace):
            key = (trace.problem_id, trace.sample)
            wanted = self._hashes.get(key)
            if wanted is None or (self._job.shared and trace.request_hash != wanted):
                continue
            if trace.request_hash != wanted:
                raise InputError(
                    f"{self._job.path} holds a trace of another request ({trace.request_hash}, by {trace.teacher}) "
                    f"for problem {trace.problem_id} sample {trace.sample}, whose request is now {wanted}; choose "
                    "another folder"
                )
            held[key] = trace
        return held

    def _from_before(self) -> Iterator[Trace]:
        """Yield the traces that an earlier version kept elsewhere and that the file lacks."""
        if self._job.before is None or not self._job.before.exists():
            return
        for trace in read_records(self._job.before, Trace, torn_end=True):
            key = (trace.problem_id, trace.sample)
            if key in self._hashes and key not in self.traces:
                yield replace(trace, request_hash=self._hashes[key])

    def _leave_failed_out(self) -> None:
        """Drop requests with a recorded failure, unless failures are retried, and report what is left to ask."""
        unanswered = len(self.missing)
        if not self._job.retry_failed:
            known = {failure.request_hash for failure in read_records(self._job.path.with_name(FAILED), Failure)}
            self.missing = {key for key in self.missing if self._hashes[key] not in known}
        failed_before = unanswered - len(self.missing)
        unasked = f", {failed_before} failed before" if failed_before else ""
        asked = f"; {len(self.missing)} to ask" if self.missing else ""
        count = f"{len(self.traces)} of {len(self._hashes)}"
        say(f"{self._job.label}: {count} are already in {self._job.path}{unasked}{asked}")
