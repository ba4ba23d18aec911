"""Counts signs that a model examines its own thoughts: the "aha" of the DeepSeek-R1 report (section 2.2.4).

Words alone prove little, so a thought's arithmetic is checked: a wrong line and, later, the same left side done right
is a real correction.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

SIGNS = {
    "verification": (
        r"\b(?:let me|let's|i(?:'ll| will| should)?|to) (?:check|verify|double[- ]check|confirm)\b|\bcheck:"
    ),
    "reflection": (
        r"\b(?:wait|hmm+|actually|hold on)\b|\b(?:that|this)(?: is|'s) (?:wrong|not right|incorrect)\b|\bmistake\b"
    ),
    "correction": r"\b(?:let me|i(?:'ll| will)?) (?:redo|correct|fix|try again)\b|\b(?:do it|try) again\b|\binstead\b",
}
"""The pattern of each sign, in the words of English chains of thought."""
_SIGNS = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in SIGNS.items()}

_SIDE = re.compile(r"[-\d(][-\d\s+*()]*")
_TOKEN = re.compile(r"\d+|[-+*()]")
LONGEST_SIDE = 80
LARGEST = 10**12


def signs(reasoning: str) -> frozenset[str]:
    """Return the signs that a thought shows."""
    return frozenset(name for name, pattern in _SIGNS.items() if pattern.search(reasoning))


def corrects_itself(reasoning: str) -> bool:
    """Return whether an equation of the thought is wrong and a later one with the same left side is right."""
    wrong: set[str] = set()
    for line in reasoning.splitlines():
        sides = [side.strip() for side in line.split("=")]
        values = [_value(side) for side in sides]
        if len(sides) < 2 or None in values:
            continue
        right = len(set(values)) == 1
        if right and sides[0] in wrong:
            return True
        if not right:
            wrong.add(sides[0])
    return False


def shares(thoughts: Sequence[str]) -> dict[str, float]:
    """Return each sign's share of the thoughts, and the share that corrected a wrong result."""
    found = [signs(thought) for thought in thoughts]
    named = {name: sum(name in each for each in found) / len(thoughts) for name in SIGNS}
    return named | {"corrected": sum(map(corrects_itself, thoughts)) / len(thoughts)}


def _value(side: str) -> int | None:
    """Evaluate arithmetic of integers with + - * and brackets; None if it is something else, or too long."""
    if len(side) > LONGEST_SIDE or not _SIDE.fullmatch(side):
        return None
    tokens = _TOKEN.findall(side)
    value, rest = _sum(tokens)
    return value if not rest else None


def _sum(tokens: list[str]) -> tuple[int | None, list[str]]:
    total, tokens = _product(tokens)
    while total is not None and tokens and tokens[0] in "+-":
        sign, (term, tokens) = tokens[0], _product(tokens[1:])
        total = None if term is None else total + term if sign == "+" else total - term
    return total, tokens


def _product(tokens: list[str]) -> tuple[int | None, list[str]]:
    product, tokens = _factor(tokens)
    while product is not None and tokens and tokens[0] == "*":
        factor, tokens = _factor(tokens[1:])
        product = None if factor is None or abs(product * factor) > LARGEST else product * factor
    return product, tokens


def _factor(tokens: list[str]) -> tuple[int | None, list[str]]:
    if not tokens:
        return None, tokens
    first, rest = tokens[0], tokens[1:]
    if first == "-":
        value, rest = _factor(rest)
        return (None if value is None else -value), rest
    if first == "(":
        value, rest = _sum(rest)
        return (value, rest[1:]) if rest and rest[0] == ")" else (None, rest)
    return (int(first), rest) if first.isdigit() else (None, rest)
