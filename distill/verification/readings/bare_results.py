r"""Strips what surrounds a result: the final point, "So", an arrow, a label with an equals sign, a remark.

"So total = 42 (which is 6 * 7)."  ──bare_result──>  "total = 42"  ──without_label──>  "42"
"""

from __future__ import annotations

import re

from distill.verification.mathematics.grammar import read_notation
from distill.verification.mathematics.tokens import Unreadable
from distill.verification.mathematics.values import NoValue, value_of
from distill.verification.readings import strings
from toolkit.answers.qualifiers import DOUBT
from toolkit.answers.sentences import without_delimiters

_REMARK = re.compile(
    rf"(?<=[\d%}}])\s+\((?!\s*(?:mod|base|(?:or\s+)?{DOUBT}\b[^()]*\d))"
    r"(?=\s*(?:=|\\approx)|[^()]*(?<![\\A-Za-z])(?!(?:sin|cos|tan|log|exp|sqrt)\b)[^\W\d_]{3,})[^()]*\)$"
)
"""Words in brackets after a number, `42 (which is 6 * 7)`; `2 (x + 1)` is a product, and `(1, 2) (3, 4)` are two
pairs."""
_IN_BASE = re.compile(r"^([0-9A-Z]+),?\s*(?:\(\s*|in\s+|\(in\s+)?base[- ](\w+)\s*\)?$", re.IGNORECASE)
"""`101 (base 2)`"""
_WORKING = re.compile(r"(-?[\d.]+)\s+\(([-+*/\d.\s]+)\)")
"""The calculation of a number, `5 (8 - 3)`."""
_OPENING = re.compile(r"^(?:so|thus|hence|therefore|then|and|we (?:get|have|find|obtain))\b[\s,:]*", re.IGNORECASE)
_LABEL = re.compile(
    r"^(?:[A-Za-z][A-Za-z' ]*|[A-Z]\^\{-1\}\s*|\\?[A-Za-z]+\([^()=]*\)|[A-Za-z]'+|"
    r"\\frac\{d[a-zA-Z]?\}\{d[a-zA-Z]\}[^=]*|\\(?:lim|int|sum|prod|gcd|text|operatorname)(?![A-Za-z])[^=]*)=\s*(?=\S)"
)
"""Words before an equals sign, `total = 42`."""

_REMAINDER = re.compile(r"(\d{1,100})\s*(?:\\b)?mod(?![A-Za-z])\s*(?:\{\s*)?(\d{1,100})(?:\s*\})?")
"""A remainder that is still to be taken, `18 \\bmod 5`; `18 \\pmod 5` is a residue."""


def bare_result(text: str) -> str:
    """Strip the final point, opening words, leading arrows and a bracketed remark after a number."""
    text = _last_of_aligned(text).strip("~ ")
    text = _OPENING.sub("", re.sub(r"\b(?:R|US|A|AU|CA|C|NZ|HK|S)\$", "$", text.strip()))
    text = re.sub(r"(?:\s*\\?[.。,;])+$", "", without_delimiters(text)).strip()
    text = _IN_BASE.sub(
        lambda found: f"{found[1]}_{{{found[2]}}}" if found[2].isdigit() else rf"{found[1]}_{{\text{{{found[2]}}}}}",
        text,
    )
    text = _REMARK.sub("", re.sub(r"^(?:=>|->|=|≈|:)\s*", "", text))
    if (working := _WORKING.fullmatch(text)) and _is_worth(working[1], working[2]):
        return working[1]
    return text


def _is_worth(number: str, sum_: str) -> bool:
    try:
        return bool(value_of(read_notation(number)) == value_of(read_notation(sum_)))
    except (Unreadable, NoValue):
        return False


def remainder_in(text: str, question: str) -> int | None:
    """Return the remainder of two whole numbers that a text is; None for anything else, and for what the question
    itself asks to be computed."""
    found = _REMAINDER.fullmatch(text)
    if found is None or not int(found[2]) or _closed_up(text) in _closed_up(question):
        return None
    return int(found[1]) % int(found[2])


def _closed_up(text: str) -> str:
    """Return a text without spaces and marks, with one word for the ways to write a modulus."""
    return re.sub(r"[\s${}\\()]|(?<=\\)[bp](?=mod\b)", "", text.replace("modulo", "mod"))


def without_label(text: str) -> str:
    """Strip the words before an equals sign; a denial is not a label."""
    label = _LABEL.match(text)
    return text[label.end() :] if label and not strings.says_otherwise(label[0]) else text


def _last_of_aligned(text: str) -> str:
    r"""Return the last line of `\begin{aligned} x &= 3 + 4 \\ &= 7 \end{aligned}`."""
    start = max(text.rfind(rf"\begin{{{name}") for name in ("align", "gather", "split", "eqnarray", "equation"))
    if start >= 0 and (end := text.find(r"\end{", start)) >= 0:
        lines = [line for line in text[text.find("}", start) + 1 : end].split(r"\\") if line.strip()]
        text = lines[-1] if lines else ""
    return text.replace("&=", "=")
