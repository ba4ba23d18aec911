"""What is asked: problems, how each is to be answered, the file for the traces; and one request for each sample."""

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
    """One sample to draw: everything that shapes it. A decoder is prompted by ids, an endpoint by messages."""

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
        """The trace of an answer to this request; `teacher`: name@digest. A server may not count its tokens."""
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
    """Problems to be answered, how, and the file that keeps the traces."""

    problems: Sequence[Problem]
    sampling: Sampling
    samples: int
    batch_size: int
    """Rows at once, or requests; changes no trace."""
    path: Path
    label: str = "traces"
    """Stands before the progress."""
    shared: bool = False
    """The file keeps what other jobs asked too, and requests without an answer are recorded beside it; else the first
    one ends the job, and a trace of another job is an error."""
    retry_failed: bool = False
    """Whether recorded failures are asked again."""
    before: Path | None = None
    """The traces of this very job by an earlier version, which kept them in the run folder."""


def check_samples(samples: int, temperature: float) -> None:
    """Raises `InputError` where several samples are asked of a problem that would all be the same one."""
    if samples > 1 and temperature == 0.0:
        raise InputError(
            f"samples ({samples}) must be 1 where temperature is 0, since all would be equal; raise temperature"
        )
