"""Questions whose answer a line of program knows, and whether a model gave it.

They are worded as the problems that students of this project learn from (reasoning-gym's families, `distill.problems.families`).
The graders of training and evaluation are in `distill.verification.verdicts`; this is as much of them as a page needs beside an answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

_ANSWER_IS = re.compile(r"\banswer\b[^:=\n]{0,60}?(?:\bis\b:?|:|=)", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.])-?\d+")


def right_answer(question: str) -> str | None:
    """The answer to a question of a known family; None for any other."""
    for pattern, answer in _FAMILIES:
        if found := pattern.fullmatch(question.strip()):
            return answer(found)
    return None


def is_right(question: str, text: str) -> bool | None:
    """Whether a model's answer ends with the right one; None where the question is of no known family."""
    expected = right_answer(question)
    if expected is None:
        return None
    plain = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text.replace("**", "").replace("`", "").replace("−", "-"))
    said = _ANSWER_IS.split(plain)[-1].strip()
    lines = [line for line in said.split("\n") if re.search(r"\w", line)]
    if not lines:
        return False
    final = lines[0] if said != plain.strip() else lines[-1]
    pattern = _NUMBER if _NUMBER.fullmatch(expected) else re.compile(r"[^\W\d_]+")
    given = pattern.findall(final.rsplit("=", 1)[-1])
    return bool(given) and given[-1].casefold() == expected.casefold()


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
