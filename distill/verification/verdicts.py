"""Turns a trace into a verdict: what a model answered, and whether it is right.

    problem's reference ── readings.read_reference ──┐
                                                     ├── meaning.means ──> Verdict, which says how both sides were read
    answer's text ── readings.read_answer ───────────┘

A problem with tests is code, and right if its program passes all of them; a request is answered or refused
(`distill.verification.refusals`); a problem from reasoning-gym is judged by its own scorer. Any other problem has a
reference, whose kind decides how an answer is read and compared: the whole final answer must mean the reference, and
an answer that cannot be read in that way is wrong. One place finds the final answers of all models
(`toolkit.answers.final_answer`), whether or not they were trained on our format, and never in the reasoning.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata

from distill.verification.code.sandbox import strongest_level
from distill.verification.code.unit_tests import TESTS, check_tests, passed
from distill.verification.family_scorers import family_answer, family_score, has_scorer
from distill.verification.readings.meaning import means
from distill.verification.readings.readings import read_answer, read_as_list, read_reference
from distill.verification.refusals import HARMFUL, responds_rightly
from distill.verification.wholeness import incomplete
from toolkit.answers.final_answer import find_final_answer
from toolkit.errors import InputError
from toolkit.formats.thought_forms import without_thoughts
from toolkit.records import Problem, Trace, Verdict

VERIFIER = "reasoning-gym"
REFERENCE, CODE, REFUSAL = "reference", "unit-tests", "refusal"
"""The verifiers of problems that reasoning-gym does not know."""
VERSION = "9"
"""The version of this folder's rules; raised whenever the same trace could get another verdict."""


def check_gradable(problems: Iterable[Problem]) -> None:
    """Raise `InputError` if a problem is code that this machine cannot run, or whose tests are none, before any answer
    is paid for."""
    for problem in problems:
        if _judge(problem) == CODE:
            strongest_level()
            if wrong := check_tests(problem.metadata[TESTS]):
                raise InputError(f"problem {problem.id}: its tests {wrong}; correct them where the problem is")


def grade(problem: Problem, trace: Trace) -> Verdict:
    """Judge one trace. An incomplete one is wrong, whatever its answer; a scorer that raises affects only its trace.

    Raises `MissingExtra` if reasoning-gym is not installed, `InputError` if a program has to run, no sandbox is
    available and unsafe execution was not allowed (`distill.verification.code.sandbox.allow_unsafe`).
    """
    judge = _judge(problem)
    fault = incomplete(trace)
    answer = without_thoughts(trace.answer)
    score, reference_read, answer_read = (0.0, "", "") if fault else _judged(problem, answer)
    reason = fault or ("correct" if score == 1.0 else "wrong")
    verifier, version = judge, VERSION
    if judge == VERIFIER:
        verifier, version = f"{VERIFIER}:{problem.family}", f"{VERSION}+{VERIFIER}-{metadata.version(VERIFIER)}"
    elif judge == CODE:
        verifier = f"{CODE}:{strongest_level()}"
    return Verdict(
        problem_id=trace.problem_id,
        sample=trace.sample,
        correct=reason == "correct",
        reason=reason,
        score=score,
        verifier=verifier,
        version=version,
        reference_read=reference_read,
        answer_read=answer_read,
    )


def score_answer(problem: Problem, text: str) -> float:
    """Score an answer's text from 0 to 1; values in between come from a scorer, or are a share of passed tests.

    Raises as `grade` does.
    """
    return _judged(problem, text)[0]


def _judged(problem: Problem, text: str) -> tuple[float, str, str]:
    """Return an answer's score and how the reference and the answer were read; empty texts if none is compared."""
    judge = _judge(problem)
    if judge == CODE:
        return passed(text, problem.metadata[TESTS]), "", ""
    if judge == REFUSAL:
        return float(responds_rightly(problem, text)), "", ""
    if judge == VERIFIER:
        said = family_answer(problem, text)
        return family_score(problem, said), f"{problem.family}: {problem.answer}", f"{problem.family}: {said}"
    reference = read_reference(problem.answer)
    answer = read_answer(text, reference, problem.question)
    is_right = means(reference, answer) or (bool(text.strip()) and text.strip() == problem.answer.strip())
    if not is_right and reference.kind == "number" and (listed := read_as_list(problem.answer)):
        several = read_answer(text, listed, problem.question)
        is_right = (", " in several.said or "=" in several.said) and means(listed, several)
    return float(is_right), str(reference), str(answer)


def same_answer(problem: Problem, one: str, other: str) -> bool:
    """Return whether two answers mean the same, right or wrong; an empty one equals no other."""
    if _judge(problem) == VERIFIER:
        ours, theirs = family_answer(problem, one), family_answer(problem, other)
        return bool(ours) and ours.casefold().split() == theirs.casefold().split()
    if not has_reference(problem):  # each says how the other is to be read
        return _means_the_same(problem, one, other) or _means_the_same(problem, other, one)
    reference = read_reference(problem.answer)
    ours_read, theirs_read = (read_answer(text, reference, problem.question) for text in (one, other))
    return means(ours_read, theirs_read)


def _means_the_same(problem: Problem, one: str, other: str) -> bool:
    """Return whether an answer means another one, taken as the reference."""
    reference = read_reference(find_final_answer(one).text)
    return bool(reference.said) and means(reference, read_answer(other, reference, problem.question))


def answer_key(problem: Problem, trace: Trace, verdict: Verdict | None) -> str:
    """Return a text that is equal for answers that are the same beyond doubt; `same_answer` compares the others.

    Programs and refusals are not compared: those that are right are the same, the others only if their texts are.
    """
    answer = without_thoughts(trace.answer)
    if _judge(problem) in (CODE, REFUSAL):
        return "right" if verdict and verdict.correct else answer
    if _judge(problem) == VERIFIER:
        return " ".join(family_answer(problem, answer).casefold().split())
    return " ".join((find_final_answer(answer).text or answer).split()).casefold()


def compares_answers(problem: Problem) -> bool:
    """Return whether two answers of a problem can be compared with each other."""
    return _judge(problem) not in (CODE, REFUSAL)


def has_reference(problem: Problem) -> bool:
    """Return whether a program can tell right answers from wrong ones."""
    return _judge(problem) != REFERENCE or bool(problem.answer.strip())


def _judge(problem: Problem) -> str:
    if TESTS in problem.metadata:
        return CODE
    if HARMFUL in problem.metadata:
        return REFUSAL
    return VERIFIER if has_scorer(problem) else REFERENCE
