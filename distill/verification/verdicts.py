"""From a trace to a verdict: what a model answered, and whether it is right.

    answer text ── extract_answer(text, form) ──> the answer proper ── the family's own scorer ──> Verdict

One extraction reads every model alike, whether it was trained on our format or never saw it: a boxed answer, else what
follows the last "answer is", else the last line. It is generous on purpose, so that an untrained model is graded on
what it knows and not on how it writes, and it never looks into the reasoning. reasoning-gym's scorer of the family then
decides. A problem with tests is code, and right where its program passes all of them; a request is answered or refused
(`distill.problems.requests`). Any other is compared with its reference: word by word, and where the reference is mathematics,
also by what it means.

A verdict is stricter than the scorer in two places. Its countdown evaluates the answer as Python, so only arithmetic
reaches it; its number_sorting lets each number be off by one and takes NaN for anything, so the list must also consist
of the question's own numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from importlib import metadata
from typing import Any, Literal

from distill.problems.requests import HARMFUL, responds_rightly
from distill.teachers.thought_forms import without_thoughts
from distill.verification.equivalence import equivalent
from distill.verification.sandbox import strongest_level
from distill.verification.unit_tests import TESTS, passed
from distill.verification.wholeness import incomplete
from toolkit.errors import MissingExtra
from toolkit.records import Problem, Trace, Verdict

VERIFIER = "reasoning-gym"
EXACT, MATHEMATICS, CODE, REFUSAL = "exact-match", "math-verify", "unit-tests", "refusal"
"""The verifiers of problems that reasoning-gym does not know."""
VERSION = "3"
"""Of the rules in this folder; goes up whenever the same trace could get another verdict."""

Form = Literal["number", "expression", "list", "word", "text", "lines"]
"""What an answer of a family looks like, which decides how it is read."""

_FORMS: dict[str, Form] = {"countdown": "expression", "number_sorting": "list", "spell_backward": "word"}
_ANSWER_IS = re.compile(r"\banswer(?:\s+\w+){0,8}?\s*(?:\bis\b:?|:|=)", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+(?:\.\d+)?|\.\d+)")
_SUM = re.compile(r"\d\s*[-+*/^]\s*\(*\d")
_ARITHMETIC = re.compile(r"[-(]*\d[\d\s()+*/-]*")
_FORMULA = re.compile(r"[\d\\^=<>]")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[^\W\d_]{2,}")
_SIGNS = str.maketrans({"−": "-", "–": "-", "×": "*", "·": "*", "÷": "/", "“": '"', "”": '"', "’": "'", "‘": "'"})
_LATEX = {r"\times": "*", r"\cdot": "*", r"\div": "/", r"\left": "", r"\right": "", r"\(": "", r"\)": "", "$": ""}
LONGEST_EXPRESSION = 200


def grade(problem: Problem, trace: Trace) -> Verdict:
    """Decide about one trace. One that is not whole is wrong, whatever its answer; a scorer that raises costs it only.

    Raises `MissingExtra` where reasoning-gym is not installed, `InputError` where code must run, nothing confines it,
    and nobody allowed that (`distill.verification.sandbox.allow_unsafe`).
    """
    judge = _judge(problem)
    fault = incomplete(trace)
    score = 0.0 if fault else score_answer(problem, without_thoughts(trace.answer))
    reason = fault or ("correct" if score == 1.0 else "wrong")
    verifier, version = judge, VERSION
    if judge == VERIFIER:
        verifier = f"{VERIFIER}:{problem.family}"
    elif judge == CODE:
        verifier = f"{CODE}:{strongest_level()}"
    if judge in (VERIFIER, MATHEMATICS):
        version = f"{VERSION}+{judge}-{metadata.version(judge)}"
    return Verdict(
        problem_id=trace.problem_id,
        sample=trace.sample,
        correct=reason == "correct",
        reason=reason,
        score=score,
        verifier=verifier,
        version=version,
    )


def _judge(problem: Problem) -> str:
    if TESTS in problem.metadata:
        return CODE
    if HARMFUL in problem.metadata:
        return REFUSAL
    if _scorer(problem.family):
        return VERIFIER
    return MATHEMATICS if _is_mathematics(_plain(problem.answer)) else EXACT


def score_answer(problem: Problem, text: str) -> float:
    """How right an answer's text is, from 0 to 1; what is between is the scorer's own, or a share of tests.

    Raises as `grade` does.
    """
    judge = _judge(problem)
    if judge == CODE:
        return passed(text, problem.metadata[TESTS])
    if judge == REFUSAL:
        return float(responds_rightly(problem, text))
    answer = extract_answer(text, answer_form(problem))
    if judge == VERIFIER:
        return _scored(problem, answer)
    return float(_exact(problem, answer) or (judge == MATHEMATICS and _means(problem, text)))


def answer_form(problem: Problem) -> Form:
    """How this problem's answers are read: by its family, else by what its reference looks like."""
    if problem.family in _FORMS:
        return _FORMS[problem.family]
    if "\n" in problem.answer.strip():
        return "lines"
    return "number" if _NUMBER.fullmatch(_plain(problem.answer)) else "text"


def extract_answer(text: str, form: Form) -> str:
    """Read the final answer out of what a model wrote after its reasoning; empty where there is nothing of that form.

    A number is written without sign +, thousands commas and trailing zeros, a list as JSON list of strings.
    """
    plain = _plain(text)
    if form == "lines":
        return plain
    final = _final(plain)
    match form:
        case "number":
            return _number(final)
        case "expression":
            return _expression(final)
        case "list":
            return _list(_boxed(plain) or plain)
        case "word":
            words = re.findall(r"[^\W\d_]+", final)
            return words[-1] if words else ""
        case _:
            return _bare(final)


def _final(plain: str) -> str:
    """Where a text says its answer: what is boxed, else what follows "answer is", else the last line."""
    return next((piece for piece in (_boxed(plain), _said(plain), _last_line(plain)) if piece), "")


def _plain(text: str) -> str:
    """Without markdown emphasis, code marks and mathematics marks; one kind of minus, times and quotes."""
    text = text.translate(_SIGNS)
    for mark, meaning in _LATEX.items():
        text = text.replace(mark, meaning)
    text = re.sub(r"```\w*", "", text).replace("**", "").replace("`", "")
    return re.sub(r"(?<=\d),(?=\d{3}\b)", "", text).strip()


def _boxed(text: str) -> str:
    """What the last \\boxed{…} holds, braces balanced."""
    _, found, rest = text.rpartition(r"\boxed{")
    if not found:
        return ""
    depth = 1
    for i, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return re.sub(r"\\text\{([^}]*)\}", r"\1", rest[:i]).strip()
    return ""


def _said(text: str) -> str:
    """The first line with something in it after the last "answer is" or "answer:"."""
    matches = list(_ANSWER_IS.finditer(text))
    lines = text[matches[-1].end() :].split("\n") if matches else []
    return next((line.strip() for line in lines if _bare(line)), "")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.split("\n") if _bare(line)]
    return re.sub(r"^[-*•]\s+", "", lines[-1]) if lines else ""


def _bare(text: str) -> str:
    return text.strip().strip("\"'*_").rstrip(".!").strip().strip("\"'*_")


def _number(text: str) -> str:
    """The last number of the first sentence, right of any equals sign; a sum that was not done is no number."""
    text = re.split(r"\.(?:\s|$)", text.rsplit("=", 1)[-1])[0]
    numbers = _NUMBER.findall(text)
    if not numbers or _SUM.search(text):
        return ""
    return _canonical(numbers[-1])


def _canonical(number: str) -> str:
    sign = "-" if number.startswith("-") else ""
    whole, _, decimals = number.lstrip("+-").partition(".")
    whole, decimals = whole.lstrip("0") or "0", decimals.rstrip("0")
    value = f"{whole}.{decimals}" if decimals else whole
    return value if value == "0" else sign + value


def _expression(text: str) -> str:
    """The last run of arithmetic that holds an operation, so "3 * 4 = 12" is read as "3 * 4"."""
    runs = [run.strip() for run in _ARITHMETIC.findall(text)]
    runs = [_balanced(run) for run in runs if _SUM.search(run.replace(")", ""))]
    return runs[-1] if runs else ""


def _balanced(run: str) -> str:
    """Without the closing bracket of a sentence around it, and without operators that lead nowhere."""
    run = run.rstrip("+-*/( ")
    while run.endswith(")") and run.count(")") > run.count("("):
        run = run[:-1].rstrip()
    while run.startswith("(") and run.count("(") > run.count(")"):
        run = run[1:].lstrip()
    return run


def _list(text: str) -> str:
    """The last list in brackets, which may span lines; else the last line that lists numbers."""
    lines = re.findall(r"\[([^\[\]]*)\]", text) or [line for line in text.split("\n") if len(_NUMBER.findall(line)) > 1]
    items = _NUMBER.findall(lines[-1]) if lines else []
    return json.dumps(items) if items else ""


def _scored(problem: Problem, answer: str) -> float:
    """By the family's scorer."""
    scorer = _scorer(problem.family)
    assert scorer
    entry = {"question": problem.question, "answer": problem.answer, "metadata": problem.metadata}
    try:
        return float(scorer(answer, entry)) if _is_admissible(problem, answer) else 0.0
    except Exception:  # noqa: BLE001 - a scorer is foreign code on a model's text
        return 0.0


def _is_admissible(problem: Problem, answer: str) -> bool:
    """Whether a scorer may see the answer at all; see the module's docstring."""
    if problem.family == "countdown":
        return bool(_ARITHMETIC.fullmatch(answer)) and "**" not in answer and len(answer) <= LONGEST_EXPRESSION
    if problem.family == "number_sorting":
        asked = problem.metadata.get("original_numbers") or json.loads(_list(problem.answer) or "[]")
        return sorted(map(Decimal, asked)) == sorted(map(Decimal, json.loads(answer or "[]")))
    return True


def _exact(problem: Problem, answer: str) -> bool:
    reference = extract_answer(problem.answer, answer_form(problem))
    return " ".join(answer.split()).casefold() == " ".join(reference.split()).casefold()


def _is_mathematics(text: str) -> bool:
    """Digits, operators, LaTeX and letters that stand alone: no words, whose letters an algebra system would multiply."""
    return bool(_FORMULA.search(text)) and not _WORD.search(_COMMAND.sub(" ", text))


def _means(problem: Problem, answer: str) -> bool:
    reference, final = _plain(problem.answer), _bare(_final(_plain(answer)))
    return _is_mathematics(final) and equivalent(reference, final)


@cache
def _scorer(family: str) -> Callable[[str, dict[str, Any]], float] | None:
    """The family's own scorer, or None where reasoning-gym has no such family."""
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise MissingExtra("reasoning_gym", "distill") from error
    if family not in DATASETS:
        return None
    scorer: Callable[[str, dict[str, Any]], float] = reasoning_gym.get_score_answer_fn(family)
    return scorer
