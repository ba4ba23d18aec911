"""Scores problems of reasoning-gym's families by its own scorers, on the part of an answer that these expect.

A problem belongs to a family if its metadata say so (`source_dataset`), so a user's own family of the same name never
reaches a scorer that was not made for it. Verdicts are stricter than the scorers in two places: countdown's evaluates
the answer as Python, so only arithmetic reaches it; number_sorting's lets each number be off by one and accepts NaN for
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
"""The form of a family's answers, which decides what its scorer gets."""

_FORMS: dict[str, Form] = {"countdown": "expression", "number_sorting": "list", "spell_backward": "word"}
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+(?:\.\d+)?|\.\d+)")
_SUM = re.compile(r"\d\s*[-+*/^]\s*\(*\d")
_ARITHMETIC = re.compile(r"[-(]*\d[\d\s()+*/-]*")
LONGEST_EXPRESSION = 200


def has_scorer(problem: Problem) -> bool:
    """Return whether reasoning-gym has a scorer for this problem.

    Raises `MissingExtra` if it has, but is not installed.
    """
    return problem.metadata.get("source_dataset") == problem.family and _scorer(problem.family) is not None


def family_score(problem: Problem, answer: str) -> float:
    """Return the scorer's score of a `family_answer`, from 0 to 1; 0 if the scorer raises on a model's text."""
    scorer = _scorer(problem.family)
    assert scorer, "asked only where `has_scorer`"
    entry = {"question": problem.question, "answer": problem.answer, "metadata": problem.metadata}
    try:
        return float(scorer(answer, entry)) if _is_admissible(problem, answer) else 0.0
    except Exception:  # noqa: BLE001 - a scorer may raise anything on a model's text
        return 0.0


def family_answer(problem: Problem, text: str) -> str:
    """Return the final answer as the family's scorer reads it; empty if there is none of its form.

    A number has no sign +, thousands commas or trailing zeros; a list is a JSON list of strings.
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
    """Return the arithmetic with most numbers, the last of equals: "3 * 4 + 2" of "3 * 4 + 2 = 12 + 2 = 14"."""
    runs = [run.strip() for run in _ARITHMETIC.findall(text)]
    runs = [_balanced(run) for run in runs if _SUM.search(run.replace(")", ""))]
    if len(runs) > 1 and re.search(r"\bor\b", text):
        return ""
    return max(reversed(runs), key=lambda run: len(_NUMBER.findall(run)), default="")


def _balanced(run: str) -> str:
    """Strip unbalanced brackets and trailing operators."""
    run = run.rstrip("+-*/( ")
    while run.endswith(")") and run.count(")") > run.count("("):
        run = run[:-1].rstrip()
    while run.startswith("(") and run.count("(") > run.count(")"):
        run = run[1:].lstrip()
    return run


def _list(text: str) -> str:
    """Return the last bracketed list, or else the last line of several numbers, or lines of one number each."""
    lines = re.findall(r"\[([^\[\]]*)\]", text) or [line for line in text.split("\n") if len(_NUMBER.findall(line)) > 1]
    lines = lines or [
        " ".join(re.findall(rf"^\s*(?:[-*•]\s+|\d+[.)]\s+)?['\"]?({_NUMBER.pattern})['\"]?,?\s*$", text, re.MULTILINE))
    ]
    items = _NUMBER.findall(lines[-1])
    return json.dumps(items) if items else ""


def _is_admissible(problem: Problem, answer: str) -> bool:
    """Return whether the scorer may see the answer, by the module's stricter rules."""
    if problem.family == "countdown":
        return bool(_ARITHMETIC.fullmatch(answer)) and "**" not in answer and len(answer) <= LONGEST_EXPRESSION
    if problem.family == "number_sorting":
        asked = problem.metadata.get("original_numbers") or json.loads(_list(problem.answer) or "[]")
        return sorted(map(Decimal, asked)) == sorted(map(Decimal, json.loads(answer or "[]")))
    return True


@cache
def _scorer(family: str) -> Callable[[str, dict[str, Any]], float] | None:
    """Return the family's own scorer; None if reasoning-gym has no such family."""
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise MissingExtra("reasoning_gym", "distill") from error
    if family not in DATASETS:
        return None
    scorer: Callable[[str, dict[str, Any]], float] = reasoning_gym.get_score_answer_fn(family)
    return scorer
