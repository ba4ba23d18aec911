"""Computes the answers to questions of a few known families, and marks a model's answer right or wrong.

The questions are worded like the problems that this project's students learn from (reasoning-gym's families,
`distill.problems.families`). The final answer is extracted by the code that training and evaluation use
(`toolkit.answers`), so a mark here equals a verdict there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from toolkit.answers.final_answer import find_final_answer
from toolkit.answers.sentences import plain_number_said
from toolkit.answers.words import word_in


def right_answer(question: str) -> str | None:
    """Compute the answer to a question of a known family; None for any other question."""
    for pattern, answer in _FAMILIES:
        if found := pattern.fullmatch(question.strip()):
            return answer(found)
    return None


def is_right(question: str, text: str) -> bool | None:
    """Whether a model's final answer is right; None if the question is of no known family."""
    expected = right_answer(question)
    if expected is None:
        return None
    found = find_final_answer(text)
    if re.fullmatch(r"-?\d+", expected):
        return plain_number_said(found, question) == expected
    return word_in(found.text, question).casefold() == expected.casefold()


def _gcd(found: re.Match[str]) -> str:
    return str(math.gcd(*map(int, re.findall(r"\d+", found["numbers"]))))


def _sum(found: re.Match[str]) -> str:
    return str(sum(int(term.replace(" ", "")) for term in re.findall(r"[-+]? ?\d+", found["terms"])))


def _count(found: re.Match[str]) -> str:
    return str(found["text"].casefold().count(found["letter"].casefold()))


def _backward(found: re.Match[str]) -> str:
    return found["word"][::-1]


_FAMILIES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"Find the Greatest Common Divisor \(GCD\) of these numbers: (?P<numbers>\d+(?:, \d+)+)\..*"), _gcd),
    (re.compile(r"State the final answer to the following arithmetic problem: (?P<terms>-?\d+(?: [-+] \d+)*) ="), _sum),
    (re.compile(r'How many times does the letter "(?P<letter>.)" appear in the text: "(?P<text>.*)"\?'), _count),
    (re.compile(r"Spell this word backward \(example: sun -> nus\): (?P<word>\w+)"), _backward),
)
