r"""Decides whether a whole answer's tree means a whole reference's tree.

Numbers are compared exactly. Only a reference with decimals and at least `ROUNDED_DIGITS` digits allows for rounding,
by half a unit of its last place (`0.333333` for 1/3); one with fewer digits means exactly that number. A formula with
letters is evaluated at points; an equation may be multiplied by a number; sets have no order, lists have; one side may
leave out a unit, a per cent sign, or the name before an equals sign.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from distill.verification.mathematics.atoms import Tree
from distill.verification.mathematics.regions import are_same_region, is_region, letter_of
from distill.verification.mathematics.same_value import (
    is_plain,
    is_rational,
    is_undone,
    paired_values,
    rounds_to,
    same_value,
)
from distill.verification.mathematics.units import Unit
from distill.verification.mathematics.values import NoValue, Value, are_same, letters_of, value_of


def means(reference: Tree, answer: Tree) -> bool:
    """Return whether the answer means the reference; it may leave out what a person would leave out, no more."""
    if reference == answer:
        return True
    if answer[0] == "relation" and reference[0] != "relation" and "~" in answer[1]:
        return any(means(reference, side) for side in _around_about(answer))
    reference, answer = _without_names(reference, answer)
    kinds = {reference[0], answer[0]}
    if is_region(reference) or is_region(answer):
        return _regions(reference, answer)
    if "relation" in kinds:
        return reference[0] == answer[0] and _relations(reference, answer)
    if "plusminus" in kinds or _holds_plusminus(reference) or _holds_plusminus(answer):
        return _alternatives(reference, answer)
    if "matrix" in kinds:
        return _matrices(reference, answer)
    if "sequence" in kinds:
        return _sequences(reference, answer)
    if "text" in kinds:
        return bool(reference[0] == answer[0] and reference[1].casefold().split() == answer[1].casefold().split())
    if "quantity" in kinds or "compound" in kinds:
        return _quantities(reference, answer)
    return _numbers(reference, answer)


def _around_about(tree: Tree) -> tuple[Tree, Tree]:
    r"""Return the exact side and the rounded one of `x = 36\pi \approx 113.1`."""
    at = tree[1].index("~")
    left = tree[2][at] if at == 0 else ("relation", tree[1][:at], tree[2][: at + 1])
    return left, tree[2][at + 1]


# Names: x = 5 for 5


def _without_names(reference: Tree, answer: Tree) -> tuple[Tree, Tree]:
    """Strip the names before the equals signs if only one side has one, or both have the same."""
    named, called = _named(reference), _named(answer)
    if named and called:
        if named[0] == called[0] or (named[0][0] == "call" and called[0] == ("symbol", "y")):
            return named[1], called[1]
        return reference, answer
    if named and answer[0] != "relation":
        return named[1], answer
    if answer[0] == "relation" and not called and reference[0] != "relation" and _is_identity(answer):
        return reference, answer[2][-1]
    if called and (
        reference[0] == "sequence"
        or (reference[0] != "relation" and not _own_letters(called[0]) & letters_of(reference))
    ):
        return reference, called[1]
    if answer[0] == "modulo" and reference[0] != "modulo" and _is_reduced(answer):
        return reference, answer[1]
    return reference, answer


def _is_reduced(residue: Tree) -> bool:
    r"""Tell whether a residue is reduced, as `113 \pmod{1000}` and unlike `18 \bmod 5`, which is to be done."""
    try:
        number, modulus = value_of(residue[1]), value_of(residue[2])
    except NoValue:
        return True
    return isinstance(number, Fraction) and isinstance(modulus, Fraction) and 0 <= number < modulus


def _is_identity(tree: Tree) -> bool:
    """Return whether an equation holds for all values of its letters: `x^2 - 4 = (x - 2)(x + 2)`."""
    return set(tree[1]) == {"="} and all(same_value(tree[2][0], side) for side in tree[2][1:])


def _named(tree: Tree) -> tuple[Tree, Tree] | None:
    """Return (name, value) of an equation that states a value; of a chain of equations the last value."""
    if tree[0] != "relation" or not set(tree[1]) <= {"=", "~", "==", "in"}:
        return None
    first, last = tree[2][0], tree[2][-1]
    if tree[1] == ("in",) and first[0] == "symbol" and last[0] == "sequence" and last[1] == "{":
        return first, last
    if first[0] == last[0] == "sequence" and all(item[0] == "symbol" for item in first[3]):
        return first, last
    if last[0] == "symbol" and not letters_of(first):  # 42 = n
        first, last = last, first
    return (first, last) if _is_name(first) and not _own_letters(first) & letters_of(last) else None


def _own_letters(name: Tree) -> frozenset[str]:
    """Return a name's own letters: of `f(x)` only the f, since x may occur on the other side."""
    return frozenset({name[1]}) if name[0] == "call" else letters_of(name)


def _is_name(tree: Tree) -> bool:
    r"""Return whether a tree is a name: a letter, `f(x)`, `m + n`, `AB`, `\angle ABC`, or arithmetic that the other
    side carries out; not `x^2` or `|x|`."""
    if tree[0] == "symbol" or (tree[0] == "call" and tree[1].startswith("function")) or is_rational(tree):
        return True
    if tree[0] == "text" or (not letters_of(tree) and tree[0] != "sequence"):
        return True
    return tree[0] in ("+", "*") and not any(part[0] == "number" for part in tree[1:]) and all(map(_is_name, tree[1:]))


# Parts of the real numbers, equations


def _regions(reference: Tree, answer: Tree) -> bool:
    letters = {letter_of(reference), letter_of(answer)} - {None}
    if len(letters) > 1:
        return False
    if are_same_region(reference, answer):
        return True
    if reference[0] == answer[0] == "relation":
        return _relations(reference, answer)
    if reference[0] == answer[0] == "sequence":
        return _sequences(reference, answer)
    return False


def _relations(reference: Tree, answer: Tree) -> bool:
    """Compare equations up to a factor, and inequalities up to a positive factor."""
    (signs, sides), (signs_said, sides_said) = reference[1:], answer[1:]
    if len(signs) != 1 or len(signs_said) != 1:
        return signs == signs_said and all(map(means, sides, sides_said))
    sign, difference = _difference(signs[0], sides)
    sign_said, difference_said = _difference(signs_said[0], sides_said)
    if sign != sign_said:
        return False
    if sign not in ("=", "<", "<=", "!="):
        return all(map(means, sides, sides_said))
    factors = list(_factors(difference, difference_said))
    if not factors or not all(are_same(factors[0], factor) for factor in factors):
        return False
    return sign in ("=", "!=") or factors[0] > 0


def _difference(sign: str, sides: tuple[Tree, ...]) -> tuple[str, Tree]:
    """Rewrite `a > b` as ("<", b - a)."""
    left, right = sides
    if sign in (">", ">="):
        sign, left, right = {">": "<", ">=": "<="}[sign], right, left
    return sign, ("+", left, ("negative", right))


def _factors(one: Tree, other: Tree) -> Iterator[Value]:
    """Yield the factor between two trees at each point where it can be computed."""
    pairs = list(paired_values(one, other))
    if any(first == 0 or second == 0 for first, second in pairs):
        return
    for first, second in pairs:
        yield second / first


# Several values


def _holds_plusminus(tree: Tree) -> bool:
    return tree[0] == "plusminus" or (tree[0] in ("+", "*", "/", "negative") and any(map(_holds_plusminus, tree[1:])))


def _both_signs(tree: Tree) -> tuple[Tree, ...]:
    """Return both values of a plus-minus sign, the items of a list, or else the tree alone."""
    if tree[0] == "sequence":
        return tuple(tree[3])
    if not _holds_plusminus(tree):
        return (tree,)
    return _signed(tree, positive=True), _signed(tree, positive=False)


def _signed(tree: Tree, *, positive: bool) -> Tree:
    if tree[0] == "plusminus":
        right = tree[2] if positive else ("negative", tree[2])
        return right if tree[1] is None else ("+", tree[1], right)
    if tree[0] in ("+", "*", "/", "negative"):
        return (tree[0], *(_signed(part, positive=positive) for part in tree[1:]))
    return tree


def _alternatives(reference: Tree, answer: Tree) -> bool:
    return _unordered(_both_signs(reference), _both_signs(answer))


def _unordered(items: tuple[Tree, ...], said: tuple[Tree, ...]) -> bool:
    """Return whether each item has an equal in the other tuple."""
    if len(items) > 60 or len(said) > 60:
        return False
    return all(any(means(item, other) for other in said) for item in items) and all(
        any(means(item, other) for item in items) for other in said
    )


def _sequences(reference: Tree, answer: Tree) -> bool:
    if reference[0] != answer[0]:
        single, several = (reference, answer) if answer[0] == "sequence" else (answer, reference)
        is_one = several[1] == "{" and len(several[3]) == 1
        return is_one and (means(several[3][0], single) if several is reference else means(single, several[3][0]))
    brackets, brackets_said = reference[1] + reference[2], answer[1] + answer[2]
    items, said = reference[3], answer[3]
    if brackets != brackets_said and brackets and brackets_said:
        return False
    if (
        "{" in brackets
        or "or" in (reference[4], answer[4])
        or _is_solutions(items)
        or (not brackets and _are_pairs(items))
    ):
        return _unordered(items, said)
    if len(items) != len(said):
        return False
    names, names_said = _names(items), _names(said)
    if names and (names_said or _follow_each_other(names)):
        items = _by_name(names, items)
    if names_said and (names or _follow_each_other(names_said)):
        said = _by_name(names_said, said)
    return all(map(means, items, said))


def _are_pairs(items: tuple[Tree, ...]) -> bool:
    """Return whether items are pairs such as `(1, 2), (3, 4)`: points or solutions, which have no order."""
    return all(item[0] == "sequence" and item[1] == "(" and len(item[3]) > 1 for item in items)


def _is_solutions(items: tuple[Tree, ...]) -> bool:
    """Return whether items are values of one letter, `x = 1, -2` or `x = 1, x = -2`, which have no order."""
    named = [_named(item) for item in items]
    if not named or named[0] is None or named[0][0][0] != "symbol":
        return False
    return all(name is None or name[0] == named[0][0] for name in named)


def _names(items: tuple[Tree, ...]) -> list[str] | None:
    """Return what each item names, if all name different things."""
    named = [_named(item) for item in items]
    names = [name[0][1] for name in named if name and name[0][0] == "symbol"]
    return names if len(set(names)) == len(items) else None


def _by_name(names: list[str], items: tuple[Tree, ...]) -> tuple[Tree, ...]:
    return tuple(item for _, item in sorted(zip(names, items, strict=True), key=lambda pair: pair[0]))


def _follow_each_other(names: list[str]) -> bool:
    """Return whether names are consecutive letters, `y = 2, x = 1`: they are compared in alphabetical order."""
    letters = sorted(map(ord, "".join(names)))
    return len(letters) == len(names) > 1 and letters[-1] - letters[0] == len(letters) - 1


def _matrices(reference: Tree, answer: Tree) -> bool:
    rows, said = _rows(reference), _rows(answer)
    if rows is None or said is None or list(map(len, rows)) != list(map(len, said)):
        return False
    return all(
        means(item, other)
        for row, row_said in zip(rows, said, strict=True)
        for item, other in zip(row, row_said, strict=True)
    )


def _rows(tree: Tree) -> tuple[tuple[Tree, ...], ...] | None:
    """Return the rows of a matrix; a list of lists counts as one, and a tuple as a column."""
    if tree[0] == "matrix":
        rows: tuple[tuple[Tree, ...], ...] = tree[1]
        return rows
    if tree[0] != "sequence" or not tree[3]:
        return None
    if all(item[0] == "sequence" for item in tree[3]):
        return tuple(tuple(item[3]) for item in tree[3])
    return tuple((item,) for item in tree[3]) if tree[1] == "(" else None


# Single values


def _quantities(reference: Tree, answer: Tree) -> bool:
    (number, units), (number_said, units_said) = _measured(reference), _measured(answer)
    if not units or not units_said:
        if _in_radians(units, units_said, number_said):
            return _numbers(_radians(number), number_said)
        if _in_radians(units_said, units, number):
            return _numbers(number, _radians(number_said))
        return any(
            _numbers(one, other)
            for one in _without_unit(number, units, number_said)
            for other in _without_unit(number_said, units_said, number)
        )
    unit, unit_said = units[-1], units_said[-1]
    if unit.dimensions == unit_said.dimensions:
        if unit.factor == unit_said.factor:
            return _numbers(number, number_said)
        factor = ("number", unit.factor / unit_said.factor, None)
        return _numbers(number, ("/", number_said, factor), is_converted=True)
    if (
        {name for name, _ in unit.dimensions} & {name for name, _ in unit_said.dimensions}
        and unit.is_noun
        and unit_said.is_noun
    ):
        return _numbers(number, number_said)
    return False


def _measured(tree: Tree) -> tuple[Tree, tuple[Unit, ...]]:
    if tree[0] == "quantity":
        return tree[1], (tree[2],)
    if tree[0] == "compound":
        return ("number", value_of(tree[1][1]), None), tree[2]
    return tree, ()


def _in_radians(units: tuple[Unit, ...], units_said: tuple[Unit, ...], said: Tree) -> bool:
    """Return whether degrees are compared with a multiple of pi."""
    return bool(units) and not units_said and units[-1].dimensions == (("angle", 1),) and "'pi'" in str(said)


def _radians(degrees: Tree) -> Tree:
    return ("/", ("*", degrees, ("constant", "pi")), ("number", Fraction(180), None))


def _without_unit(number: Tree, units: tuple[Unit, ...], other: Tree) -> Iterator[Tree]:
    """Yield what a quantity may be without its unit: its number; for 50 % also 0.5, for 1 h 30 min both numbers.

    Compared with a number below 1, a percentage is a share: 0.25 is 25 %, and not 0.25 %.
    """
    try:
        is_share = abs(value_of(other)) < 1
    except NoValue:
        is_share = False
    if len(units) > 1:
        for unit in units:
            yield ("number", value_of(number) * units[-1].factor / unit.factor, None)
        return
    if not (units and units[0].is_percent and is_share):
        yield number
    if units and units[0].is_percent:
        yield ("/", number, ("number", Fraction(100), None))


def _numbers(reference: Tree, answer: Tree, *, is_converted: bool = False) -> bool:
    if "ratio" in (reference[0], answer[0]) and (terms := _terms(reference)) and (said := _terms(answer)):
        return len(terms) == len(said) and _proportional(terms, said)
    if reference[0] == "modulo" or answer[0] == "modulo":
        return reference[0] == answer[0] and all(map(means, reference[1:], answer[1:]))
    if reference[0] == "digits":
        bare = answer[0] == "number" and str(answer[1]) == reference[1].lstrip("0")
        return bare or (answer[0] == "digits" and answer[2] == reference[2] and same_value(reference, answer))
    if is_plain(reference) and is_undone(answer) and not is_converted:
        return False
    return same_value(reference, answer) or rounds_to(reference, answer)


def _terms(tree: Tree) -> tuple[Tree, ...] | None:
    """Return the terms of a ratio, `1:2:3`."""
    if tree[0] != "ratio":
        return None
    return (*(_terms(tree[1]) or (tree[1],)), tree[2])


def _proportional(terms: tuple[Tree, ...], said: tuple[Tree, ...]) -> bool:
    return all(
        means(("/", terms[0], term), ("/", said[0], other)) for term, other in zip(terms[1:], said[1:], strict=True)
    )
