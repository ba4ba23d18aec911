"""Chains for sums, equations, greatest common divisors and countdown.

Every line is one small step that a small model can learn: tens first, then ones; never two carries at once.
"""

from __future__ import annotations

import re
from itertools import combinations

from toolkit.records import Problem

Chain = tuple[str, str]
"""Reasoning and answer."""


def chain_sum(problem: Problem) -> Chain:
    """Running total, one term a line, each term split into tens and ones."""
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
    """Euclid's algorithm; each quotient line shows the product that it takes away."""
    larger, smaller = sorted(problem.metadata["numbers"], reverse=True)
    lines = []
    while smaller:
        quotient, rest = divmod(larger, smaller)
        lines.append(f"{larger} - {quotient} * {smaller} = {larger} - {quotient * smaller} = {rest}")
        larger, smaller = smaller, rest
    return "\n".join(lines), str(larger)


def countdown(problem: Problem) -> Chain:
    """Set one number aside and ask what the other two must make; a complete search over + - * of three numbers."""
    numbers, target = list(problem.metadata["numbers"]), int(problem.metadata["target"])
    lines = []
    for last, (a, b) in _asides(numbers):
        needs = {target - last: "+", target + last: "-"}
        if target % last == 0:
            needs.setdefault(target // last, "*")
        made = {a + b: f"{a} + {b}", a * b: f"{a} * {b}"}
        made.setdefault(a - b, f"{a} - {b}")
        need_text = " or ".join(map(str, needs))
        made_text = ", ".join(f"{pair} = {value}" for value, pair in made.items())
        hit = next((value for value in needs if value in made), None)
        lines.append(f"{last} aside: need {need_text}; {made_text}: {'yes' if hit is not None else 'no'}")
        if hit is not None:
            return "\n".join(lines), _expression(made[hit], needs[hit], last)
    raise ValueError(f"{numbers} cannot make {target} with + - *")


def _asides(numbers: list[int]) -> list[tuple[int, tuple[int, int]]]:
    """Each number set aside in turn, with the other two, larger first."""
    rows = []
    for pair in combinations(range(3), 2):
        (index,) = set(range(3)) - set(pair)
        larger, smaller = sorted((numbers[i] for i in pair), reverse=True)
        rows.append((numbers[index], (larger, smaller)))
    return rows


def _expression(pair: str, operator: str, last: int) -> str:
    return f"({pair}) {operator} {last}"


def _add(total: int, change: int) -> tuple[str, int]:
    """One line for `total + change`: tens, then ones."""
    sign = "+" if change >= 0 else "-"
    tens, ones = divmod(abs(change), 10)
    result = total + change
    head = f"{total} {sign} {abs(change)}"
    if not tens or not ones:
        return f"{head} = {result}", result
    middle = total + tens * 10 if change >= 0 else total - tens * 10
    return f"{head} = {middle} {sign} {ones} = {result}", result


def _linear(left: str, variable: str) -> tuple[int, int]:
    """Coefficient and constant of a linear expression as sympy prints it."""
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
