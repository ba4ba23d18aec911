"""Evaluates a tree, given values for its letters: to an exact fraction if possible, else to a number of 50 digits.

Rational arithmetic is exact. Roots, powers, logarithms and angles are computed to `DIGITS` digits, and two values that
agree to `AGREEING` of them are the same: a different number would have to match forty digits by chance. Evaluation
always ends: powers and factorials beyond `LARGEST_EXPONENT` digits have no value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import mpmath

from distill.verification.mathematics.atoms import Tree
from distill.verification.mathematics.units import DEGREE

DIGITS, AGREEING = 50, 40
LARGEST_EXPONENT = 4_000
"""Largest exponent of ten; no real result is larger."""
Value = Any
"""A `Fraction`, or a real or complex number of mpmath."""

_CONTEXT = mpmath.MPContext()
_CONTEXT.dps = DIGITS


class NoValue(Exception):
    """A tree without a value; the message tells people why."""


def value_of(tree: Tree, letters: Mapping[str, Value] | None = None) -> Value:
    """Evaluate a tree; raises `NoValue` if a letter has no value, or the tree is not a single number."""
    try:
        return _value(tree, letters or {})
    except (ZeroDivisionError, OverflowError, ValueError, TypeError) as error:
        raise NoValue(f"{type(error).__name__} in its arithmetic") from error


def are_same(one: Value, other: Value) -> bool:
    """Return whether two values are equal: exactly, or to `AGREEING` digits if one of them is not a fraction."""
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        return one == other
    one, other = _real(one), _real(other)
    rounding = max(abs(one), abs(other), _CONTEXT.mpf(10) ** (AGREEING - DIGITS)) * _CONTEXT.mpf(10) ** -AGREEING
    return bool(abs(one - other) <= rounding)


def letters_of(tree: Tree) -> frozenset[str]:
    """Return the names of all symbols and of unknown functions."""
    found = set()
    for part in _walk(tree):
        if part[0] == "symbol" or (part[0] == "call" and part[1].startswith("function")):
            found.add(part[1])
    return frozenset(found)


def _walk(tree: Any) -> Iterator[Tree]:
    if isinstance(tree, tuple):
        if tree and isinstance(tree[0], str):
            yield tree
        for part in tree:
            yield from _walk(part)


def _real(value: Value) -> Value:
    return _CONTEXT.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def _value(tree: Tree, letters: Mapping[str, Value]) -> Value:
    match tree[0]:
        case "number":
            return tree[1]
        case "constant":
            return _constant(tree[1])
        case "symbol":
            if tree[1] in letters:
                return letters[tree[1]]
            raise NoValue(f"{tree[1]} without a value")
        case "negative":
            return -_value(tree[1], letters)
        case "+":
            one, other = _both(tree, letters)
            return one + other
        case "*":
            one, other = _both(tree, letters)
            return one * other
        case "/" | "ratio":
            one, other = _both(tree, letters)
            if other == 0:
                raise NoValue("a division by 0")
            return one / other
        case "^":
            return _power(*(_value(part, letters) for part in tree[1:]))
        case "digits":
            return Fraction(int(tree[1], tree[2]))
        case "call":
            return _call(tree[1], tree[2], letters)
        case "about":
            return _value(tree[1], letters)
    raise NoValue(f"a {tree[0]}")


def _both(tree: Tree, letters: Mapping[str, Value]) -> tuple[Value, Value]:
    one, other = _value(tree[1], letters), _value(tree[2], letters)
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        return one, other
    return _real(one), _real(other)


def _constant(name: str) -> Value:
    values = {"pi": +_CONTEXT.pi, "e": +_CONTEXT.e, "i": _CONTEXT.mpc(0, 1)}
    if name not in values:
        raise NoValue(name)
    return values[name]


def _power(base: Value, exponent: Value) -> Value:
    if abs(exponent) > 10 * LARGEST_EXPONENT or abs(exponent) * abs(_log10(base)) > LARGEST_EXPONENT:
        raise NoValue("a power that is too large")
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        if base == 0 and exponent < 0:
            raise NoValue("a division by 0")
        if exponent.denominator == 1:
            return base ** int(exponent)
        is_real = base >= 0 or exponent.denominator < 10  # (-8)^{1/3} is -2; (-1)^n between whole numbers is complex
        if is_real and (root := _exact_root(base, exponent.denominator)) is not None:
            return root**exponent.numerator
    return _CONTEXT.power(_real(base), _real(exponent))


def _log10(value: Value) -> float:
    if value == 0:
        return 0.0
    if isinstance(value, Fraction):
        return math.log10(abs(value.numerator)) - math.log10(value.denominator)
    return float(_CONTEXT.log10(abs(value)))


def _exact_root(value: Fraction, degree: int) -> Fraction | None:
    """Return the real root if it is a fraction; a negative number has only odd roots."""
    if degree > LARGEST_EXPONENT or (value < 0 and degree % 2 == 0):
        return None
    sign = -1 if value < 0 else 1
    parts = [_whole_root(part, degree) for part in (abs(value.numerator), value.denominator)]
    return None if None in parts else Fraction(sign * parts[0], parts[1])  # type: ignore[operator]


def _whole_root(number: int, degree: int) -> int | None:
    if degree == 2:
        root = math.isqrt(number)
        return root if root * root == number else None
    root = int(_CONTEXT.nint(_CONTEXT.root(number, degree))) if number else 0
    return root if root.bit_length() * degree < 8 * LARGEST_EXPONENT and root**degree == number else None


def _root(value: Value, degree: Value) -> Value:
    if degree == 0:
        raise NoValue("a root of degree 0")
    if isinstance(value, Fraction) and isinstance(degree, Fraction) and degree.denominator == 1:
        if (exact := _exact_root(value, abs(int(degree)))) is not None:
            return exact if degree > 0 or exact == 0 else 1 / exact
        if value < 0 and degree % 2 == 1:
            return -_root(-value, degree)
    return _power(_real(value), 1 / _real(degree))


def _call(name: str, arguments: tuple[Tree, ...], letters: Mapping[str, Value]) -> Value:
    subscript = next((_value(part[1], letters) for part in arguments if part[0] == "subscript"), None)
    values = [_value(_radians(part), letters) for part in arguments if part[0] != "subscript"]
    if name.startswith("function"):
        if name in letters and len(values) == 1:
            return _CONTEXT.sin(_real(letters[name]) + 3 * _real(values[0]))  # any function that no formula is
        raise NoValue(f"the {name}")
    if subscript is not None and name != "log":
        raise NoValue(f"{name} with a subscript")
    if name in ("log", "ln", "lg", "exp", "cbrt", "abs", "factorial") and len(values) != 1:
        raise NoValue(f"{name} of {len(values)} values")
    match name:
        case "root":
            return _root(*values)
        case "cbrt":
            return _root(values[0], Fraction(3))
        case "abs":
            return abs(values[0])
        case "log" | "ln" | "lg":
            base = subscript if subscript is not None else Fraction(10) if name == "lg" else None
            return _logarithm(values[0], base)
        case "exp":
            return _power(+_CONTEXT.e, values[0])
        case "factorial" | "binomial" if not all(
            isinstance(value, Fraction) and value.denominator == 1 for value in values
        ):
            return _between_whole(name, values)
        case "factorial" | "double factorial" | "binomial" | "gcd" | "lcm":
            return Fraction(_whole(name, values))
        case "max" | "min" if values:
            return {"max": max, "min": min}[name](values, key=_real)
        case "floor" | "ceil":
            return Fraction({"floor": math.floor, "ceil": math.ceil}[name](values[0]))
    if name in _ANALYTIC and len(values) == 1:
        return _ANALYTIC[name](_real(values[0]))
    raise NoValue(name)


def _radians(tree: Tree) -> Tree:
    r"""Convert an angle in degrees, as in `\sin 45^\circ`, to radians."""
    if tree[0] != "quantity" or tree[2] != DEGREE:
        return tree
    return ("*", tree[1], ("/", ("constant", "pi"), ("number", Fraction(180), None)))


def _logarithm(value: Value, base: Value | None) -> Value:
    """Compute a logarithm, exactly if value and base are powers of one number."""
    if value == 0 or (base is not None and base in (0, 1)):
        raise NoValue("a logarithm without a value")
    if base is None:
        return _CONTEXT.log(_real(value))
    result = _CONTEXT.log(_real(value)) / _CONTEXT.log(_real(base))
    if isinstance(value, Fraction) and isinstance(base, Fraction) and not _CONTEXT.im(result):
        near = Fraction(int(_CONTEXT.nint(result * 12)), 12)
        if abs(near) < LARGEST_EXPONENT and base**near.numerator == value**near.denominator:
            return near
    return result


def _between_whole(name: str, values: list[Value]) -> Value:
    """Evaluate factorials of non-integers, so that formulas with letters can be compared at non-integer points."""
    if any(abs(value) > 1_000 for value in values):
        raise NoValue(f"{name} of {values[0]}")
    return {"factorial": _CONTEXT.factorial, "binomial": _CONTEXT.binomial}[name](*map(_real, values))


def _whole(name: str, values: list[Value]) -> int:
    """Evaluate functions of integers."""
    if not values or not all(isinstance(value, Fraction) and value.denominator == 1 for value in values):
        raise NoValue(f"{name} of a number that is not an integer")
    numbers = [int(value) for value in values]
    if name in ("gcd", "lcm"):
        return {"gcd": math.gcd, "lcm": math.lcm}[name](*numbers)
    if min(numbers) < 0 or max(numbers) > 1_000:
        raise NoValue(f"{name} of {values[0]}")
    if name == "factorial":
        return math.factorial(numbers[0])
    if name == "binomial":
        return math.comb(*numbers)
    return math.prod(range(numbers[0], 0, -2))


_ANALYTIC: dict[str, Callable[[Value], Value]] = {
    "sin": _CONTEXT.sin, "cos": _CONTEXT.cos, "tan": _CONTEXT.tan, "cot": _CONTEXT.cot, "sec": _CONTEXT.sec,
    "csc": _CONTEXT.csc, "arcsin": _CONTEXT.asin, "arccos": _CONTEXT.acos, "arctan": _CONTEXT.atan,
    "sinh": _CONTEXT.sinh, "cosh": _CONTEXT.cosh, "tanh": _CONTEXT.tanh,
}  # fmt: skip
