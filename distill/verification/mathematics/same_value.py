"""Decides whether two trees have the same value: exactly, at sample points of their letters, or after rounding.

Two formulas that agree at every point to forty digits count as one: a different one would have to agree four times by
chance. At the last two points some letters are negative and only real values count, so that `\\sqrt{x^2}` is not `x`.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from distill.verification.mathematics.atoms import Tree
from distill.verification.mathematics.values import NoValue, Value, are_same, letters_of, value_of

ROUNDED_DIGITS = 4
_POINTS = tuple(
    tuple(Fraction(number, 1009) for number in row)
    for row in (
        (1733, 2411, 619, 3167, 887, 1453, 2903, 541),
        (409, 1213, 3511, 773, 2671, 1907, 331, 2297),
        (-1571, 2083, -757, 1361, -2437, 463, 3041, -991),
        (2857, -683, 1901, -2213, 347, -1129, -3331, 1787),
    )
)
"""Values for letters; at the last two, where some are negative, only real values count."""


def same_value(one: Tree, other: Tree) -> bool:
    pairs = list(paired_values(one, other))
    return bool(pairs) and all(are_same(*pair) for pair in pairs)


def rounds_to(reference: Tree, answer: Tree) -> bool:
    """Return whether the reference is the rounded answer, with enough digits to show that it was rounded."""
    number = reference[1] if reference[0] == "negative" else reference
    if number[0] != "number" or number[2] is None or number[2] < 1:
        return False
    unit = Fraction(1, 10 ** number[2])
    if number[1] / unit < 10 ** (ROUNDED_DIGITS - 1):
        return False
    try:
        value, said = value_of(reference), value_of(answer)
    except NoValue:
        return False
    return not getattr(said, "imag", 0) and bool(
        abs(float(said - float(value) if not isinstance(said, Fraction) else said - value)) <= unit / 2
    )


def paired_values(one: Tree, other: Tree) -> Iterator[tuple[Value, Value]]:
    """Yield both values at each point where both have one; nothing if they lack one at a point of positive values."""
    if letters_of(one) ^ letters_of(other) == {"c", "C"}:  # the constant of an integral
        one, other = (_with_capital(tree) for tree in (one, other))
    letters = sorted(letters_of(one) | letters_of(other))
    if not letters:
        try:
            yield value_of(one), value_of(other)
        except NoValue:
            return
        return
    if len(letters) > len(_POINTS[0]):
        return
    pairs = []
    for number, point in enumerate(_POINTS):
        values = dict(zip(letters, point, strict=False))
        try:
            pair = value_of(one, values), value_of(other, values)
        except NoValue:
            if number < 2:
                return
            continue
        if number < 2 or all(not getattr(value, "imag", 0) for value in pair):
            pairs.append(pair)
    yield from pairs


def is_undone(tree: Tree) -> bool:
    """Return whether a tree is unfinished arithmetic: a sum, difference or product of plain numbers, not `3 * 10^8`."""
    if tree[0] in ("+", "*") and all(map(is_rational, tree[1:])):
        return not _is_scientific(tree)
    return tree[0] in ("+", "*", "/", "negative", "about") and any(is_undone(part) for part in tree[1:])


def is_plain(tree: Tree) -> bool:
    """Return whether a tree is a plain number."""
    return is_rational(tree) and not is_undone(tree)


def is_rational(tree: Tree) -> bool:
    if tree[0] == "number":
        return True
    return tree[0] in ("+", "*", "/", "negative", "^") and all(map(is_rational, tree[1:]))


def _is_scientific(tree: Tree) -> bool:
    if tree[0] != "*":
        return False
    factor, power = tree[1:]
    factor = factor[1] if factor[0] == "negative" else factor
    return bool(factor[0] == "number" and power[0] == "^" and power[1][:2] == ("number", 10))


def _with_capital(tree: Tree) -> Tree:
    if tree == ("symbol", "c"):
        return ("symbol", "C")
    return tuple(_with_capital(part) if isinstance(part, tuple) else part for part in tree)
