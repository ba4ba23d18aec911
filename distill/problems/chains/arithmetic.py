"""Writes chains for sums, equations, greatest common divisors and countdown.

Every line is one step that a small model can learn: tens first, then ones; never two carries at once.
"""

from __future__ import annotations

import re
from itertools import combinations

from toolkit.records import Problem

Chain = tuple[str, str]
"""Reasoning and answer."""


def chain_sum(problem: Problem) -> Chain:
    """Keep a running total, one term per line, each term split into tens and ones."""
    first, *rest = re.findall(r"[+-]? ?\d+", problem.metadata["expression"])
    total = int(first)
    lines = []
    for term in rest:
        sign, number = term[0], int(term[1:])
        line, total = _add(total, number if sign == "+" else -number)
        lines.append(line)
    return "\n".join(lines), str(total)


def simple_equations(problem: Problem) -> Chain:
    """Isolate the term with the variable, then divide."""
    variable = problem.metadata["variable"]
    left, right_text = problem.metadata["equation"].split(" = ")
    right = int(right_text)
    coefficient, constant = _linear(left, variable)
    term = _term(coefficient, variable)
    lines = [problem.metadata["equation"]]
    if constant:
        line, value = _add(right, -constant)
        lines.append(f"{term} = {right} {'-' if constant > 0 else '+'} {abs(constant)}")
        lines.append(line)
        right = value
        lines.append(f"{term} = {right}")
    if coefficient == -1:
        lines.append(f"{variable} = {-right}")
    elif coefficient != 1:
        lines.append(f"{variable} = {right} / {coefficient} = {right // coefficient}")
    return "\n".join(lines), str(right // coefficient)


def gcd(problem: Problem) -> Chain:
    """Run Euclid's algorithm; a line shows the multiple that is subtracted, then tens, then ones."""
    larger, smaller = sorted(problem.metadata["numbers"], reverse=True)
    lines = []
    while smaller:
        quotient, rest = divmod(larger, smaller)
        difference, _ = _add(larger, -quotient * smaller)
        lines.append(difference if quotient == 1 else f"{larger} - {quotient} * {smaller} = {difference}")
        larger, smaller = smaller, rest
    return "\n".join(lines), str(larger)


def countdown(problem: Problem) -> Chain:
    """Search + - * of three numbers: set one aside, and compare what the other two must make with what they can."""
    numbers, target = list(problem.metadata["numbers"]), int(problem.metadata["target"])
    lines = []
    for last, (a, b) in _asides(numbers):
        needs = {target - last: "+", target + last: "-"}
        if target % last == 0:
            needs.setdefault(target // last, "*")
        made = {a + b: f"{a} + {b}", a * b: f"{a} * {b}"}
        made.setdefault(a - b, f"{a} - {b}")
        need_text = ", ".join(f"{value} {operator} {last}" for value, operator in needs.items())
        made_text = ", ".join(f"{pair} = {value}" for value, pair in made.items())
        hit = next((value for value in needs if value in made), None)
        found = "no" if hit is None else f"{hit} {needs[hit]} {last}"
        lines.append(f"{need_text}; {made_text}: {found}")
        if hit is not None:
            return "\n".join(lines), f"({made[hit]}) {needs[hit]} {last}"
    raise ValueError(f"{numbers} cannot make {target} with + - *")


def _asides(numbers: list[int]) -> list[tuple[int, tuple[int, int]]]:
    """Set each number aside in turn; return it with the other two, the larger first."""
    rows = []
    for pair in combinations(range(3), 2):
        (index,) = set(range(3)) - set(pair)
        larger, smaller = sorted((numbers[i] for i in pair), reverse=True)
        rows.append((numbers[index], (larger, smaller)))
    return rows


def _add(total: int, change: int) -> tuple[str, int]:
    """Write one line for `total + change`: first rewritten so that a smaller positive number is added to or subtracted
    from a larger one, then tens, then ones."""
    result = total + change
    head = f"{total} {'+' if change >= 0 else '-'} {abs(change)}"
    larger, smaller = max(abs(total), abs(change)), min(abs(total), abs(change))
    is_sum = (total >= 0) == (change >= 0)
    turned = f"{larger} {'+' if is_sum else '-'} {smaller}"
    steps = [] if head == turned else [turned]
    tens, ones = divmod(smaller, 10)
    if tens and ones:
        middle = larger + tens * 10 if is_sum else larger - tens * 10
        steps.append(f"{middle} {'+' if is_sum else '-'} {ones}")
    if result < 0:
        steps = [f"-({step})" for step in steps]
    return " = ".join([head, *steps, str(result)]), result


def _linear(left: str, variable: str) -> tuple[int, int]:
    """Return the coefficient and the constant of a linear expression as sympy prints it."""
    coefficient = constant = 0
    for part in left.replace(" - ", " + -").split(" + "):
        if variable in part:
            factor = part.replace(variable, "").replace("*", "")
            coefficient += {"": 1, "-": -1}.get(factor) or int(factor)
        else:
            constant += int(part)
    return coefficient, constant


def _term(coefficient: int, variable: str) -> str:
    return {1: variable, -1: f"-{variable}"}.get(coefficient, f"{coefficient}*{variable}")
