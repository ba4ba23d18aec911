"""Code problems: what passes, and what tricks don't."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill.problems.problem_set import read_problems
from distill.verification.unit_tests import find_program, passed
from distill.verification.verdicts import CODE, grade
from tests.distill.test_verdicts import trace
from toolkit.errors import InputError
from toolkit.records import Problem

ADD = [{"call": "add", "args": [2, 3], "returns": 5}, {"call": "add", "args": [-1, 1], "returns": 0}]
SUM = [{"stdin": "2 3\n", "stdout": "5\n"}, {"stdin": "10 -4\n", "stdout": "6\n"}]


def fenced(program: str) -> str:
    return f"This should do:\n\n```python\n{program}\n```\n"


@pytest.mark.parametrize(
    ("program", "tests", "share"),
    [
        ("def add(a, b):\n    return a + b", ADD, 1.0),
        ("def add(a, b):\n    print('a debug line')\n    return a + b", ADD, 1.0),
        ("from fractions import Fraction\ndef add(a, b):\n    return int(Fraction(a) + b)", ADD, 1.0),
        ("def add(a, b):\n    return 5", ADD, 0.5),
        ("def add(a, b):\n    if a < 0: raise ValueError\n    return a + b", ADD, 0.5),
        ("def plus(a, b):\n    return a + b", ADD, 0.0),
        ("def add(a, b) return", ADD, 0.0),
        ("print(sum(map(int, input().split())))", SUM, 1.0),
        ("print(' '.join([input() and '5']))", SUM, 0.5),
        ("print('5')\nraise SystemExit(1)", SUM, 0.0),
    ],
)
def test_the_share_of_tests_that_pass(program: str, tests: list[dict[str, Any]], share: float) -> None:
    assert passed(fenced(program), tests) == share


TRICKS = {
    "leave with success": "import os\nos._exit(0)",
    "leave when called": "import os\ndef add(a, b):\n    os._exit(0)",
    "equal everything": "class All(int):\n    def __eq__(self, other): return True\ndef add(a, b):\n    return All(99)",
    "equal in JSON": "class All(dict):\n    def __eq__(self, other): return True\ndef add(a, b):\n    return All()",
    "print an answer": "print('[5]')\nprint('[5]')\nimport os\nos._exit(0)",
    "look at the caller": (
        "import sys\ndef add(a, b):\n    frame = sys._getframe(1)\n    return frame.f_globals.get('tests') or 'none'"
    ),
    "true for one": "def add(a, b):\n    return a + b == 5",
    "never end": "def add(a, b):\n    while True: pass",
}


@pytest.mark.parametrize("trick", TRICKS)
def test_a_trick_passes_nothing(trick: str) -> None:
    tests = [{"call": "add", "args": [0, 1], "returns": 1}, {"call": "add", "args": [2, 3], "returns": 5}]
    assert passed(fenced(TRICKS[trick]), tests) == 0.0


def test_writing_the_protocol_by_hand_helps_only_who_knows_the_answer() -> None:
    program = "import os\ndef add(a, b):\n    os.write(1, b'[5]\\n')\n    os._exit(0)"
    assert passed(fenced(program), ADD) == 0.5


def test_the_last_block_is_the_program() -> None:
    assert find_program("```\na\n```\nor better\n```py\nb\n```") == "b\n"
    assert find_program("x = 1") == "x = 1"


def test_a_verdict_names_how_the_program_was_confined() -> None:
    problem = Problem.create(family="user", question="Write add.", answer="a + b", metadata={"tests": ADD})
    verdict = grade(problem, trace(fenced("def add(a, b):\n    return a + b")))
    assert verdict.correct
    assert verdict.verifier in (f"{CODE}:namespaces", f"{CODE}:landlock")
    half = grade(problem, trace(fenced("def add(a, b):\n    return 5")))
    assert (half.correct, half.score) == (False, 0.5)


@pytest.mark.parametrize(
    ("tests", "wrong"),
    [
        ([], "at least one test"),
        ("assert add(1, 2) == 3", "at least one test"),
        ([{"input": "1", "output": "2"}], '"stdin" and "stdout", or'),
        ([{"call": "add", "args": 2, "returns": 5}], "args as a list"),
        ([ADD[0], SUM[0]], "of one kind"),
    ],
)
def test_tests_of_another_form_are_refused_with_their_line(tests: Any, wrong: str, tmp_path: Path) -> None:
    good = {"question": "Write add.", "answer": "a + b", "metadata": {"tests": ADD}}
    bad = {"question": "Write it.", "answer": "a + b", "metadata": {"tests": tests}}
    (tmp_path / "code.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(bad) + "\n")
    with pytest.raises(InputError, match=f"line 2 is no problem: its metadata's 'tests' must .*{wrong}"):
        read_problems(tmp_path / "code.jsonl")
