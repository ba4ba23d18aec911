"""Reads a training set that curation chose, so that `toolkit distill` learns from it without judging it again."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from toolkit.records import Example, Trace, Verdict, read_jsonl, read_records

VERIFIER, VERSION = "curation", "1"


def is_chosen(path: Path) -> bool:
    """Return whether a file holds examples, which bring their questions along, and not traces."""
    first = next(islice(read_jsonl(path, torn_end=True), 1), (0, {}))[1]
    return "question" in first and "finish_reason" not in first


def chosen_traces(path: Path) -> list[Trace]:
    """Return the traces of examples; raises `InputError` naming a line that is not one."""
    return [
        Trace(
            problem_id=example.problem_id,
            sample=example.sample,
            reasoning=example.reasoning,
            answer=example.answer,
            finish_reason="stop",
            closed=True,
            prompt_tokens=None,
            reasoning_tokens=None,
            completion_tokens=None,
            teacher=example.teacher,
            request_hash="",
        )
        for example in read_records(path, Example)
    ]


def chosen_verdict(trace: Trace) -> Verdict:
    """Return the verdict of a trace that was chosen: whatever the rule was, it is to be learned from."""
    return Verdict(
        problem_id=trace.problem_id,
        sample=trace.sample,
        correct=True,
        reason="correct",
        score=1.0,
        verifier=VERIFIER,
        version=VERSION,
    )
