"""Measures one trace: everything that the choice of training examples depends on, in one row of numbers.

The facts do not depend on the options by which traces are chosen afterwards (`distill.curation.selection`), so they are
measured once, by many processes, and kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.curation.contamination import BenchmarkWords
from distill.curation.near_duplicates import NUMBERS, signature_of
from distill.curation.reasons import CODES, KEPT
from distill.curation.word_numbers import numbers_of, words_of
from distill.verification.languages import language_of
from distill.verification.verdicts import answer_key
from distill.verification.wholeness import incomplete, unfit
from toolkit.records import Example, Problem, Trace, Verdict, number_of

WRONG, RIGHT, NO_REFERENCE, UNJUDGED = range(4)
"""What is known of an answer."""
FACTS = np.dtype(
    [
        ("problem", "<i4"),  # its row in the table of problems; -1 if it is unknown
        ("sample", "<i8"),
        ("fault", "u1"),  # a number of `reasons.CODES`, or `KEPT`
        ("known", "u1"),  # whether the answer is right
        ("score", "<f4"),
        ("tokens", "<i4"),  # of the whole example
        ("thought_tokens", "<i4"),
        ("thought", "<u8"),  # equal for equal thoughts on one problem
        ("answer", "<u8"),  # equal for answers of equal text
        ("language", "S3"),  # of the thought; empty if it is too short to tell
        ("shares", "?"),  # whether words are shared with a benchmark
        ("start", "<u4"),  # where the line begins in its piece
        ("bytes", "<u4"),
    ]
)
BYTES_A_TOKEN = 3.2
"""Estimates tokens where none are counted: bytes of UTF-8 of worked mathematics in English for a token."""


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is measured beside faults and verdicts."""

    count_tokens: Callable[[Example], int] | None
    """Counts an example's tokens, prompt included; None estimates them."""
    benchmark: BenchmarkWords | None
    languages: bool
    signatures: bool


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The facts of one trace, the shared words, and its signature if one is wanted."""

    row: tuple[Any, ...]
    shared: str
    signature: np.ndarray | None


def measure(problem: Problem, number: int, trace: Trace, verdict: Verdict | None, measures: Measures) -> Measured:
    """Measure a trace of a problem; `number`: the problem's row. Without a verdict the answer has no reference.

    What costs much is measured only for a trace that has no fault. Raises `MissingExtra` if a library is missing.
    """
    fault = incomplete(trace) or unfit(trace, problem)
    known = NO_REFERENCE if verdict is None else RIGHT if verdict.correct else WRONG
    score = 0.0 if verdict is None else verdict.score
    if fault:
        row = _row(problem=number, sample=trace.sample, fault=CODES[fault], known=known, score=score)
        return Measured(row=row, shared="", signature=None)
    words = words_of(trace.reasoning) if measures.benchmark or measures.signatures else []
    numbers = numbers_of(words)
    shared = ""
    if measures.benchmark:
        asked = words_of(problem.transcript)
        shared = measures.benchmark.found_in_question(asked) or measures.benchmark.found_in_thought(words, numbers)
    row = _row(
        problem=number,
        sample=trace.sample,
        known=known,
        score=score,
        tokens=_tokens(problem, trace, measures.count_tokens),
        thought_tokens=trace.reasoning_tokens or estimated_tokens(trace.reasoning),
        thought=number_of(f"{trace.problem_id}\0{' '.join(trace.reasoning.split())}"),
        answer=number_of(answer_key(problem, trace, verdict)),
        language=language_of(trace.reasoning).encode() if measures.languages else b"",
        shares=bool(shared),
    )
    signature = signature_of(np.append(numbers, numbers_of(words_of(trace.answer)))) if measures.signatures else None
    return Measured(row=row, shared=shared, signature=signature)


def unknown(trace: Trace) -> tuple[Any, ...]:
    """Return the facts of a trace whose problem is not known."""
    return _row(problem=-1, sample=trace.sample, known=WRONG)


def estimated_tokens(text: str) -> int:
    """Estimate the tokens of a text."""
    return round(len(text.encode(errors="replace")) / BYTES_A_TOKEN)


def example_of(problem: Problem, trace: Trace) -> Example:
    """Return the line of the training set for a trace."""
    return Example.of(
        problem, reasoning=trace.reasoning, answer=trace.answer, sample=trace.sample, teacher=trace.teacher
    )


def empty_signatures(count: int) -> np.ndarray:
    """Return room for signatures."""
    return np.zeros((count, NUMBERS), dtype=np.uint16)


def _tokens(problem: Problem, trace: Trace, count_tokens: Callable[[Example], int] | None) -> int:
    if count_tokens is not None:
        return count_tokens(example_of(problem, trace))
    if trace.completion_tokens is not None:
        return trace.completion_tokens + (trace.prompt_tokens or estimated_tokens(problem.transcript))
    return estimated_tokens(f"{problem.transcript} {trace.reasoning} {trace.answer}")


def _row(
    *,
    problem: int,
    sample: int,
    fault: int = KEPT,
    known: int,
    score: float = 0.0,
    tokens: int = 0,
    thought_tokens: int = 0,
    thought: int = 0,
    answer: int = 0,
    language: bytes = b"",
    shares: bool = False,
) -> tuple[Any, ...]:
    most = 2**31 - 1
    return (
        problem,
        sample,
        fault,
        known,
        score,
        min(max(tokens, 0), most),
        min(max(thought_tokens, 0), most),
        thought,
        answer,
        language,
        shares,
        0,
        0,
    )
