"""Claims about verdicts on untrusted text: nothing that a model or a user writes ends a run, hangs it, or is right by
accident."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from distill.verification.verdicts import grade, score_answer
from tests.distill.test_verdict_cases import CASES
from tests.distill.test_verdicts import problem, trace

PIECES = [
    *"0123456789.,;:+-*/^_=<>()[]{}|!%$&#'\"\\ \n",
    *(
        "\\frac",
        "\\sqrt",
        "\\boxed{",
        "\\text{",
        "\\left",
        "\\right",
        "\\infty",
        "\\pi",
        "\\pm",
        "\\cup",
        "\\le",
        "\\{",
        "\\}",
    ),
    *(
        "\\begin{pmatrix}",
        "\\end{pmatrix}",
        "\\\\",
        "<answer>",
        "</answer>",
        "####",
        "**",
        "answer is",
        "not",
        "or",
        "x",
        "i",
    ),
    *(
        "\\pmod",
        "\\binom{",
        "\\log",
        "\\lfloor",
        "\\mathbb{R}",
        "\\emptyset",
        "^\\circ",
        "€",
        "°",
        "cm",
        "km/h",
        "yes",
        "no",
        "B",
    ),
    *(
        " mod ",
        " to ",
        " out of ",
        "all real numbers",
        "one hundred",
        "dozen",
        "12:30",
        "2024-01-02",
        "1,234",
        "三",
        "０",
    ),
    *("答案是", "４", "٣", "½", "²", "\u202e", "\ud800", "\x00", "\N{COMBINING ACUTE ACCENT}", "🙂"),
]
FOREIGN = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=25).map("".join))

HOSTILE = {
    "power tower": r"\boxed{9^{9^{9^{9}}}}",
    "power tower, plain": "9**9**9**9",
    "great power": r"\boxed{2^{10^{9}}}",
    "factorial of factorials": r"\boxed{((9!)!)!}",
    "great factorial": r"\boxed{100000000!}",
    "great binomial": r"\boxed{\binom{1000000000}{500000000}}",
    "great exponent": "1e999999999",
    "many digits": "7" * 100_000,
    "many decimals": "0." + "3" * 100_000,
    "deep brackets": "(" * 5_000 + "1" + ")" * 5_000,
    "deep fractions": r"\frac{1}{" * 2_000 + "1" + "}" * 2_000,
    "deep roots": r"\boxed{" + r"\sqrt{" * 500 + "2" + "}" * 501,
    "deep boxes": r"\boxed{" * 2_000 + "1" + "}" * 2_000,
    "open boxes": r"\boxed{" * 20_000,
    "long sum": "+".join("1" for _ in range(20_000)),
    "long polynomial": r"\boxed{(x+1)^{100000}}",
    "nested sums": r"\boxed{\sum_{i=1}^{10^{9}}\sum_{j=1}^{10^{9}} ij}",
    "integral": r"\boxed{\int_0^1 \sin(\sin(\sin(x^x))) dx}",
    "many commas": "1," * 30_000,
    "many spaces": "answer" + " " * 50_000 + "is",
    "many answers": "The answer is the answer is " * 3_000,
    "many tags": "<answer>" * 20_000,
    "many dollars": "$" * 30_000,
    "many underscores": "_" * 30_000,
    "many factors": r"\boxed{" + r"\pi" * 600 + "}",
    "many factorials": r"\boxed{" + "5!" * 900 + "}",
    "many signs behind": r"\boxed{5" + "!" * 1_900 + "}",
    "many times": "The answer is " + "5 hours and " * 150,
    "many parts": "The answer is " + "(a) b " * 300,
    "modulus of a tower": r"\boxed{7^{7^{7^{7^7}}} \pmod{10^{9}}}",
}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(reference=FOREIGN, answer=FOREIGN)
@example(reference="", answer="")
@example(reference=" ", answer="\\boxed{}")
@example(reference="\ud800", answer="\ud800")
@example(reference="nan", answer="inf")
@example(reference="$-**1", answer="5")
@example(reference='$"B', answer="5")
@example(reference="0,11,234", answer="5")
@example(reference="3", answer=r"\boxed{3 \pmod i}")
def test_whatever_is_written_gets_a_verdict(reference: str, answer: str) -> None:
    verdict = grade(problem("user", reference), trace(answer))
    assert verdict.correct == (verdict.score == 1.0)
    assert verdict.reason in ("correct", "wrong", "empty", "truncated")


@pytest.mark.parametrize("name", HOSTILE)
def test_an_answer_without_end_is_wrong_and_the_next_one_is_graded(name: str) -> None:
    for reference in ("5", r"\frac{\sqrt{5}}{x+1}", "Paris"):
        assert not grade(problem("user", reference), trace(HOSTILE[name])).correct
    assert grade(problem("user", r"\frac{x}{2}"), trace(r"\boxed{0.5x}")).correct


@pytest.mark.parametrize("name", HOSTILE)
def test_a_reference_without_end_costs_its_problem_only(name: str) -> None:
    item = problem("user", HOSTILE[name])
    for answer in ("5", r"\boxed{\frac{\sqrt{5}}{x+1}}", "Paris"):
        assert not grade(item, trace(answer)).correct


def references() -> list[str]:
    rows = [json.loads(line) for name in ("verify", "published") for line in (CASES / f"{name}.jsonl").open()]
    return list(dict.fromkeys(row["reference"] for row in rows))


@pytest.mark.parametrize("reference", references())
def test_a_reference_is_right_as_its_own_answer(reference: str) -> None:
    assert score_answer(problem("user", reference), reference) == 1


@pytest.mark.parametrize("reference", [text for text in references() if not re.search(r"\n|####|\\boxed", text)])
def test_a_denied_reference_is_wrong(reference: str) -> None:
    said = reference if "$" in reference or "\\" not in reference else f"${reference}$"
    assert score_answer(problem("user", reference), f"The answer is not {said}.") == 0
