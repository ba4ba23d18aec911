"""Merges rows that share a question: into one problem, separate problems, or an error.

Two rows with one question are one problem if their answers mean the same, and a conflict otherwise. Questions that
differ only in case or inner white space are separate problems: the first has the plain id, the hash of the folded
question; each later one has that id, a dash and a hash of its exact text. Problems without such variants keep their
ids.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from distill.problems.splits import split_of
from distill.verification.code.unit_tests import TESTS
from distill.verification.verdicts import score_answer
from toolkit.errors import InputError
from toolkit.records import Problem

_PRECEDENCE = ("train", "validation", "test")
"""A question in two splits stays in the later one of these."""


@dataclass(frozen=True, kw_only=True)
class ProblemRow:
    """A row's problem, its place in the file, and its id if it has one."""

    problem: Problem
    where: str
    id: str


@dataclass(kw_only=True)
class MergedProblems:
    """The remaining problems, with counts of merged and dropped rows by reason."""

    problems: list[Problem]
    merged: Counter[str]
    left_out: Counter[str]
    variants: int
    """Problems that differ from another one only in case or white space."""


def merge(found: Sequence[ProblemRow], *, leave_conflicts_out: bool) -> MergedProblems:
    """Return one problem for each question, in the order of the rows.

    Raises `InputError` naming two rows that answer one question differently, unless conflicts are left out.
    """
    merged: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    kept: dict[str, ProblemRow] = {}
    conflicts: set[str] = set()
    for new in found:
        exact = new.problem.exact_text
        old = kept.setdefault(exact, new)
        if old is new:
            continue
        if not _mean_the_same(old.problem, new.problem):
            if not leave_conflicts_out:
                raise _conflict(old, new)
            conflicts.add(exact)
            left_out["another answer to the same question"] += 1
            continue
        first, second = sorted((old, new), key=lambda one: -_PRECEDENCE.index(split_of(one.problem)))
        kept[exact] = first
        if split_of(first.problem) != split_of(second.problem):
            left_out[_leak(second.problem, first.problem)] += 1
        else:
            same = first.problem.answer.strip() == second.problem.answer.strip()
            merged["equal to another row" if same else "equal in meaning"] += 1
    for exact in conflicts:
        del kept[exact]
        left_out["another answer to the same question"] += 1
    problems = _with_ids(_without_leaks(kept.values(), left_out))
    variants = sum("-" in problem.id for problem in problems)
    return MergedProblems(problems=problems, merged=merged, left_out=left_out, variants=variants)


def _mean_the_same(old: Problem, new: Problem) -> bool:
    """Return whether an answer that is right for one problem is right for the other."""
    if old.metadata.get(TESTS) != new.metadata.get(TESTS):
        return False
    if TESTS in old.metadata or old.answer.strip() == new.answer.strip():
        return True
    return score_answer(old, new.answer) == score_answer(new, old.answer) == 1.0


def _conflict(old: ProblemRow, new: ProblemRow) -> InputError:
    if old.problem.metadata.get(TESTS) != new.problem.metadata.get(TESTS):
        what = "different tests"
    else:
        what = f"different answers ({old.problem.answer[:80]!r} and {new.problem.answer[:80]!r})"
    return InputError(
        f"{old.where} and {new.where} give one question {what}: {new.problem.question.strip()[:60]!r}; correct one of "
        "them, or drop such questions with --conflicts leave-out"
    )


def _leak(dropped: Problem, kept: Problem) -> str:
    return f"in {split_of(dropped)} and in {split_of(kept)} too, where it stays"


def _without_leaks(kept: Collection[ProblemRow], left_out: Counter[str]) -> list[ProblemRow]:
    """Drop training problems that a held-out one repeats, up to case and white space, with the same answer."""
    by_id = defaultdict(list)
    for one in kept:
        by_id[one.problem.id].append(one)
    left = []
    for one in kept:
        same = [other for other in by_id[one.problem.id] if _same_answer(one, other)]
        last = max(same, key=lambda other: _PRECEDENCE.index(split_of(other.problem)))
        if _PRECEDENCE.index(split_of(last.problem)) > _PRECEDENCE.index(split_of(one.problem)):
            left_out[_leak(one.problem, last.problem)] += 1
        else:
            left.append(one)
    return left


def _same_answer(one: ProblemRow, other: ProblemRow) -> bool:
    return one.problem.answer.strip() == other.problem.answer.strip()


def _with_ids(found: list[ProblemRow]) -> list[Problem]:
    """Return problems with distinct ids; a row's own id is kept if it is one that its question may have."""
    given: dict[str, str] = {}
    for one in found:
        if one.id in (one.problem.id, one.problem.set_apart().id):
            given.setdefault(one.id, one.problem.exact_text)
    problems = []
    for one in found:
        exact, apart = one.problem.exact_text, one.problem.set_apart()
        is_first = given.get(apart.id) != exact and given.setdefault(one.problem.id, exact) == exact
        problems.append(one.problem if is_first else apart)
    return problems
