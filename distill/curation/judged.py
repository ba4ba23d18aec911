"""Judges the traces of a run; those of a training set that was chosen before have their verdict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from distill.curation.chosen import chosen_verdict
from distill.verification.verdicts import check_gradable, grade
from toolkit.records import Problem, Trace, Verdict


def check_judgeable(problems: Iterable[Problem]) -> None:
    """Raise `InputError` if an answer to one of the problems could not be judged on this machine."""
    check_gradable(problems)


def judged(problems: Iterable[Problem], traces: Sequence[Trace], *, chosen: bool) -> list[Verdict]:
    """Return the verdict of each trace. `chosen`: they are examples of a training set that was chosen before."""
    if chosen:
        return [chosen_verdict(trace) for trace in traces]
    by_id = {problem.id: problem for problem in problems}
    return [grade(by_id[trace.problem_id], trace) for trace in traces]
