"""A job (problems, how to sample answers to them, the file for the traces) and its requests, one per sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from toolkit.errors import InputError
from toolkit.formats.chat_format import Completion
from toolkit.generation.generate import Sampling
from toolkit.records import FinishReason, Message, Problem, Trace

P = TypeVar("P", list[int], list[Message])


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
    """Problems to answer, how to sample the answers, and the file that keeps the traces."""

    problems: Sequence[Problem]
    sampling: Sampling
    samples: int
    batch_size: int
    """Rows or requests at once; changes no trace."""
    path: Path
    label: str = "traces"
    """The name on the progress line."""
    shared: bool = False
    """Whether the file also keeps other jobs' traces and failed requests are recorded beside it. Otherwise the first
    failure ends the job, and a trace of another job is an error."""
    retry_failed: bool = False
    """Whether requests with a recorded failure are sent again."""
    before: Path | None = None
    """Traces of this very job that an earlier version kept in the run folder."""


def check_samples(samples: int, temperature: float) -> None:
    """Raise `InputError` if a problem is to be sampled several times at temperature 0, where all samples are equal."""
    if samples > 1 and temperature == 0.0:
        raise InputError(
            f"samples ({samples}) must be 1 at temperature 0, since all samples would be equal; raise the temperature"
        )
