r"""Reduces intervals, their unions and inequalities of one letter to the real numbers that they contain.

[2, 5)    2 \le x < 5    x \in [2, 5)    ──>  ((2, closed, 5, open),)
"""

from __future__ import annotations

from dataclasses import dataclass

from distill.verification.mathematics.atoms import Tree
from distill.verification.mathematics.values import NoValue, Value, are_same, value_of

_TURNED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}


@dataclass(frozen=True)
class Infinite:
    """An infinite end."""

    sign: int


@dataclass(frozen=True)
class Interval:
    """All real numbers between two ends."""

    low: Value | Infinite
    is_low_closed: bool
    high: Value | Infinite
    is_high_closed: bool


ALL = (Interval(Infinite(-1), False, Infinite(1), False),)


def is_region(tree: Tree) -> bool:
    """Return whether a tree can only mean a set of real numbers; `(1, 2)` may also be a pair."""
    match tree[0]:
        case "union" | "intersection" | "without":
            return True
        case "sequence":
            return _is_interval(tree) and (
                tree[1] + tree[2] in ("[)", "(]") or any(_infinite(item) is not None for item in tree[3])
            )
        case "relation":
            if tree[1] == ("in",):
                return is_region(tree[2][1]) or _is_pair(tree[2][1])
            return any(sign in ("<", ">", "<=", ">=", "!=") for sign in tree[1])
    return tree == ("symbol", "mathbb_R")


def are_same_region(one: Tree, other: Tree) -> bool:
    """Return whether two trees contain the same real numbers; False if one of them cannot be read so."""
    try:
        ours, theirs = region_of(one), region_of(other)
    except NoValue:
        return False
    return len(ours) == len(theirs) and all(map(_same_interval, ours, theirs))


def region_of(tree: Tree) -> tuple[Interval, ...]:
    """Return the intervals in order; raises `NoValue` if the tree has none, or has ends that are not numbers."""
    if tree == ("symbol", "mathbb_R"):
        return ALL
    if tree[0] == "union":
        parts = [*region_of(tree[1]), *region_of(tree[2])]
        return tuple(sorted(parts, key=lambda part: _order(part.low)))
    if tree[0] == "without" and tree[1] == ("symbol", "mathbb_R") and tree[2][0] == "sequence" and tree[2][1] == "{":
        ends = sorted((_end(item) for item in tree[2][3]), key=_order)
        lows, highs = [Infinite(-1), *ends], [*ends, Infinite(1)]
        return tuple(Interval(low, False, high, False) for low, high in zip(lows, highs, strict=True))
    if tree[0] == "sequence" and _is_interval(tree):
        return (Interval(_end(tree[3][0]), tree[1] == "[", _end(tree[3][1]), tree[2] == "]"),)
    if tree[0] == "sequence" and tree[4] == "or" and tree[1] == "":
        parts = [part for item in tree[3] for part in region_of(item)]
        return tuple(sorted(parts, key=lambda part: _order(part.low)))
    if tree[0] == "relation":
        return _of_relation(tree[1], tree[2])
    raise NoValue("no interval")


def letter_of(tree: Tree) -> str | None:
    """Return the letter that an inequality, or an `x \\in …`, is about."""
    if tree[0] == "sequence" and tree[3]:
        return letter_of(tree[3][0])
    letters = [side[1] for side in tree[2] if side[0] == "symbol"] if tree[0] == "relation" else []
    return letters[0] if letters else None


def _of_relation(signs: tuple[str, ...], sides: tuple[Tree, ...]) -> tuple[Interval, ...]:
    if signs == ("in",) and sides[0][0] == "symbol":
        return region_of(sides[1])
    if len(signs) == 1 and signs[0] in (*_TURNED, "!=") and "symbol" in (sides[0][0], sides[1][0]):
        sign, (bound, _) = signs[0], _sorted(*sides)
        if sides[0][0] != "symbol":
            sign = _TURNED.get(sign, sign)
        end = _end(bound)
        if sign == "!=":
            return (Interval(Infinite(-1), False, end, False), Interval(end, False, Infinite(1), False))
        if sign in ("<", "<="):
            return (Interval(Infinite(-1), False, end, sign == "<="),)
        return (Interval(end, sign == ">=", Infinite(1), False),)
    if len(signs) == 2 and sides[1][0] == "symbol":
        if set(signs) <= {"<", "<="}:
            return (Interval(_end(sides[0]), signs[0] == "<=", _end(sides[2]), signs[1] == "<="),)
        if set(signs) <= {">", ">="}:
            return (Interval(_end(sides[2]), signs[1] == ">=", _end(sides[0]), signs[0] == ">="),)
    raise NoValue("no inequality of one letter")


def _sorted(one: Tree, other: Tree) -> tuple[Tree, Tree]:
    """Return the bound, then the letter."""
    return (other, one) if one[0] == "symbol" else (one, other)


def _is_pair(tree: Tree) -> bool:
    return tree[0] == "sequence" and _is_interval(tree)


def _is_interval(tree: Tree) -> bool:
    return len(tree[3]) == 2 and tree[1] in ("(", "[") and tree[2] in (")", "]")


def _infinite(tree: Tree) -> int | None:
    if tree == ("constant", "infinity"):
        return 1
    return -1 if tree == ("negative", ("constant", "infinity")) else None


def _end(tree: Tree) -> Value | Infinite:
    sign = _infinite(tree)
    return value_of(tree) if sign is None else Infinite(sign)


def _order(end: Value | Infinite) -> float:
    return end.sign * float("inf") if isinstance(end, Infinite) else float(end)


def _same_interval(one: Interval, other: Interval) -> bool:
    closed = (one.is_low_closed, one.is_high_closed) == (other.is_low_closed, other.is_high_closed)
    return closed and _same_end(one.low, other.low) and _same_end(one.high, other.high)


def _same_end(one: Value | Infinite, other: Value | Infinite) -> bool:
    if isinstance(one, Infinite) or isinstance(other, Infinite):
        return one == other
    return are_same(one, other)
