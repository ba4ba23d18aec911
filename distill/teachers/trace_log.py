"""The file of a job's traces: what it holds already, and each answer or failure, appended and counted as it arrives.

traces.jsonl    one line a finished sample, in the order they finish; written the moment a row ends
failed.jsonl    where the job is shared, requests without an answer (`distill.teachers.outcomes`)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Self

from distill.teachers.job import Job, P, Request
from distill.teachers.outcomes import FAILED, Failure, Outcomes, Refusal
from toolkit.errors import InputError
from toolkit.progress import Progress
from toolkit.records import AppendLog, Trace, read_records
from toolkit.terminal import say


class TraceLog:
    """The file of a job's traces, open for appending."""

    def __init__(self, job: Job, hashes: Mapping[tuple[str, int], str]) -> None:
        """Open the file and read what it holds of the job; `hashes`: of all its requests, by (problem id, sample).

        Raises `InputError` where it holds a trace of another request, unless it is shared.
        """
        self._job, self._hashes = job, hashes
        self._outcomes: Outcomes | None = None
        with ExitStack() as stack:
            self._file = stack.enter_context(AppendLog(job.path))  # mends a torn line, so it comes before reading
            self.traces = self._held()
            """By (problem id, sample)."""
            for trace in self._from_before():
                self._file.append(trace)
                self.traces[trace.problem_id, trace.sample] = trace
            self.missing = {key for key in hashes if key not in self.traces}
            """The requests that must be asked."""
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
        self._open.__exit__(*error)

    def answered(self, trace: Trace) -> None:
        """Append a trace."""
        self._file.append(trace)
        self.traces[trace.problem_id, trace.sample] = trace
        if self._outcomes:
            self._outcomes.answered()
        self._progress.advance()

    def failed(self, request: Request[P], refusal: Refusal) -> bool:
        """Note that a request was not answered; returns whether it must be asked later on.

        Raises `InputError` where the job ends by it.
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
        """All were asked. Raises `InputError` where some failed that may be the server's failure."""
        if self._outcomes:
            self._outcomes.end()

    def _held(self) -> dict[tuple[str, int], Trace]:
        """The traces of the job's requests that the file holds already."""
        held = {}
        for trace in read_records(self._job.path, Trace):
            key = (trace.problem_id, trace.sample)
            wanted = self._hashes.get(key)
            if wanted is None or (self._job.shared and trace.request_hash != wanted):
                continue
            if trace.request_hash != wanted:
                raise InputError(
                    f"{self._job.path} holds a trace of another request ({trace.request_hash}, by {trace.teacher}) "
                    f"where problem {trace.problem_id} sample {trace.sample} must be of this one ({wanted}); "
                    "choose another folder"
                )
            held[key] = trace
        return held

    def _from_before(self) -> Iterator[Trace]:
        """The traces that an earlier version kept elsewhere and that the file does not hold."""
        if self._job.before is None or not self._job.before.exists():
            return
        for trace in read_records(self._job.before, Trace, torn_end=True):
            key = (trace.problem_id, trace.sample)
            if key in self._hashes and key not in self.traces:
                yield replace(trace, request_hash=self._hashes[key])

    def _leave_failed_out(self) -> None:
        """Leave recorded failures out of what must be asked, unless they are retried, and say what is left."""
        unanswered = len(self.missing)
        if not self._job.retry_failed:
            known = {failure.request_hash for failure in read_records(self._job.path.with_name(FAILED), Failure)}
            self.missing = {key for key in self.missing if self._hashes[key] not in known}
        failed_before = unanswered - len(self.missing)
        unasked = f", {failed_before} failed before" if failed_before else ""
        asked = f"; {len(self.missing)} must be asked" if self.missing else ""
        count = f"{len(self.traces)} of {len(self._hashes)}"
        say(f"{self._job.label}: {count} are in {self._job.path} already{unasked}{asked}")
