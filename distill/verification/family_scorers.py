"""reasoning-gym's families: what their scorers are given of an answer, and the scorers' word.

A problem is one of a family's where its metadata say so (`source_dataset`); a user's own family of the same name never
reaches a scorer that it was not made for. A verdict is stricter than the scorer in two places. Its countdown evaluates
the answer as Python, so only arithmetic reaches it; its number_sorting lets each number be off by one and takes NaN for
anything, so the list must also consist of the question's own numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from typing import Any, Literal

from toolkit.answers.final_answer import find_final_answer
from toolkit.answers.plain_numbers import plain_number
from toolkit.answers.plain_text import plain_text, without_emphasis
from toolkit.answers.sentences import plain_number_said, without_delimiters
from toolkit.answers.words import word_in
from toolkit.errors import MissingExtra
from toolkit.records import Problem

Form = Literal["number", "expression", "list", "word", "lines", "text"]
"""What an answer of a family looks like, which decides what its scorer is given."""

_FORMS: dict[str, Form] = {"countdown": "expression", "number_sorting": "list", "spell_backward": "word"}
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+(?:\.\d+)?|\.\d+)")
_SUM = re.compile(r"\d\s*[-+*/^]\s*\(*\d")
_ARITHMETIC = re.compile(r"[-(]*\d[\d\s()+*/-]*")
LONGEST_EXPRESSION = 200


def has_scorer(problem: Problem) -> bool:
    """Whether a scorer of reasoning-gym's was made for this problem.

    Raises `MissingExtra` where it was, and reasoning-gym is not installed.
    """
    return problem.metadata.get("source_dataset") == problem.family and _scorer(problem.family) is not None


def family_score(problem: Problem, answer: str) -> float:
    """The scorer's word about a `family_answer`, from 0 to 1; 0 where it raises, since it is foreign code on foreign
    text."""
    scorer = _scorer(problem.family)
    assert scorer, "asked only where `has_scorer`"
    entry = {"question": problem.question, "answer": problem.answer, "metadata": problem.metadata}
    try:
        return float(scorer(answer, entry)) if _is_admissible(problem, answer) else 0.0
    except Exception:  # noqa: BLE001 - a scorer is foreign code on a model's text
        return 0.0


def family_answer(problem: Problem, text: str) -> str:
    """The final answer as the family's scorer reads it; empty where there is none of its form.

    A number is without sign +, thousands commas and trailing zeros, a list a JSON list of strings.
    """
    found = find_final_answer(text)
    match _form(problem):
        case "number":
            return plain_number_said(found, problem.question)
        case "expression":
            return _expression(_as_python(found.text))
        case "list":
            return _list(found.text if "[" in found.text else without_emphasis(plain_text(text)))
        case "word":
            return word_in(found.text, problem.question)
        case "lines":
            return without_emphasis(plain_text(text)).strip()
    return without_delimiters(found.text).rstrip(".!").strip("\"'* ")


def _form(problem: Problem) -> Form:
    if problem.family in _FORMS:
        return _FORMS[problem.family]
    if "\n" in problem.answer.strip():
        return "lines"
    return "number" if plain_number(problem.answer) else "text"


def _as_python(text: str) -> str:
    text = re.sub(r"\\(?:times|cdot)(?![A-Za-z])", "*", without_delimiters(text))
    return re.sub(r"\\div(?![A-Za-z])", "/", re.sub(r"\\(?:left|right)", "", text)).replace("**", "^")


def _expression(text: str) -> str:
    """The run of arithmetic with most numbers, of equals the last: of "3 * 4 + 2 = 12 + 2 = 14" the "3 * 4 + 2"."""
    runs = [run.strip() for run in _ARITHMETIC.findall(text)]
    runs = [_balanced(run) for run in runs if _SUM.search(run.replace(")", ""))]
    if len(runs) > 1 and re.search(r"\bor\b", text):
        return ""
    return max(reversed(runs), key=lambda run: len(_NUMBER.findall(run)), default="")


def _balanced(run: str) -> str:
    """Without the closing bracket of a sentence around it, and without operators that lead nowhere."""
    run = run.rstrip("+-*/( ")
    while run.endswith(")") and run.count(")") > run.count("("):
        run = run[:-1].rstrip()
    while run.startswith("(") and run.count("(") > run.count(")"):
        run = run[1:].lstrip()
    return run


def _list(text: str) -> str:
    """The last list in brackets, which may span lines; else the last line that lists numbers, or lines of one each."""
    lines = re.findall(r"\[([^\[\]]*)\]", text) or [line for line in text.split("\n") if len(_NUMBER.findall(line)) > 1]
    lines = lines or [
        " ".join(re.findall(rf"^\s*(?:[-*•]\s+|\d+[.)]\s+)?['\"]?({_NUMBER.pattern})['\"]?,?\s*$", text, re.MULTILINE))
    ]
    items = _NUMBER.findall(lines[-1])
    return json.dumps(items) if items else ""


def _is_admissible(problem: Problem, answer: str) -> bool:
    """Whether a scorer may see the answer at all; see the module's docstring."""
    if problem.family == "countdown":
        return bool(_ARITHMETIC.fullmatch(answer)) and "**" not in answer and len(answer) <= LONGEST_EXPRESSION
    if problem.family == "number_sorting":
        asked = problem.metadata.get("original_numbers") or json.loads(_list(problem.answer) or "[]")
        return sorted(map(Decimal, asked)) == sorted(map(Decimal, json.loads(answer or "[]")))
    return True


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
