"""Code problems: what passes, and which tricks do not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from distill.problems.problem_set import read_problems
from distill.verification.code.programs import find_program
from distill.verification.code.unit_tests import check_tests, passed, same_output
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


ADDS = "def add(a, b):\n    return a + b\n"
READS = "a, b = map(int, input().split())\nprint(a + b)\n"


@pytest.mark.parametrize(
    "answer",
    [
        f"```python\n{ADDS}```",
        f"``` python\n{ADDS}```",
        f"```Python3\n{ADDS}```",
        f'```python title="add.py"\n{ADDS}```',
        f"```{{.python}}\n{ADDS}```",
        f"~~~py\n{ADDS}~~~",
        f"````python\n{ADDS}````",
        f"```\n{ADDS}```",
        f"```python\n{ADDS}",
        f"```python\r\n{ADDS}```".replace("\n", "\r\n"),
        "1. Code:\n   ```python\n   def add(a, b):\n       return a + b\n   ```\n2. Done.",
        "The code:\n    ```python\n    def add(a, b):\n        return a + b\n    ```",
        f"**Code:** ```python\n{ADDS}```",
        f"```python\n{ADDS}```\nExample usage:\n```python\nprint(add(2, 3))\n```",
        f"```python\n{ADDS}```\nOutput:\n```\n5\n```",
        f"```python\n{ADDS}```\nRun it:\n```bash\npython add.py\n```",
        f"```python\n{ADDS}```\n```python\n>>> add(2, 3)\n5\n```",
        f"```python\ndef add(a, b):\n    return 0\n```\nBetter:\n```python\n{ADDS}```",
        f"In C:\n```c\nint add(int a, int b) {{ return a + b; }}\n```\n```python\n{ADDS}```",
        f"```python\n{ADDS}```\nIn JavaScript:\n```js\nfunction add(a, b) {{ return a + b }}\n```",
        (
            "```python\ndef plus(a, b):\n    return a + b\n```\nThen:\n```python\ndef "
            "add(a, b):\n    return plus(a, b)\n```"
        ),
        f"```python\n!pip install numpy\n{ADDS}```",
        ADDS,
        f"Here it is:\n\n{ADDS}\nThis adds two numbers.",
        (
            "```python\nclass Solution:\n    def add(self, a: List[int], b: 'int') "
            "-> Optional[int]:\n        return a + b\n```"
        ),
        "```python\nadd = lambda a, b: a + b\n```",
        "```python\nimport numpy as np\ndef add(a, b):\n    return np.int64(a) + b\n```",
        f"```python\n{ADDS}\nassert add(1, 1) == 2\nprint('checked')\n```",
    ],
)
def test_the_block_that_defines_what_the_tests_call_is_the_program(answer: str) -> None:
    assert passed(answer, ADD) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        f"```python\n{READS}```\nFor example:\n```\n5\n```",
        f"```python\n{READS}```\nor shorter, without input:\n```python\nprint(5)\n```",
        f"```python\n{ADDS}```\nThe main program:\n```python\na, b = map(int, input().split())\nprint(add(a, b))\n```",
        f"```python\n{READS}exit()\n```",
        f"```python\nimport sys\n{READS}sys.exit(0)\n```",
        "```python\nimport sys\nfor line in sys.stdin:\n    print(sum(map(int, line.split())))\n```",
    ],
)
def test_the_block_that_reads_its_input_is_the_whole_program(answer: str) -> None:
    assert passed(answer, SUM) == 1.0


def test_text_without_code_is_no_program() -> None:
    assert find_program("I cannot do that.") == "I cannot do that."
    assert passed("I cannot do that.", ADD) == 0.0
    assert passed("(" * 100_000, ADD) == 0.0
    assert passed("```python\n\0\ud800\n```", SUM) == 0.0


@pytest.mark.parametrize(
    ("printed", "expected", "test", "same"),
    [
        ("5  \n\n", "5", {}, True),
        ("5\r\n", "5\n", {}, True),
        ("0.30000000000000004", "0.3", {}, True),
        ("0.333333", "0.3333333333", {}, True),
        ("0.33", "0.3333333333", {}, False),
        ("0.33", "0.3333333333", {"tolerance": 0.01}, True),
        ("5.0", "5", {}, True),
        ("5.0000001", "5", {}, False),
        ("6", "5", {"tolerance": 2}, False),
        ("0101", "101", {}, False),
        ("1e400", "1.0", {}, False),
        ("inf", "inf", {}, True),
        ("YES", "Yes", {}, True),
        ("Alice", "alice", {}, False),
        ("Alice", "alice", {"ignore_case": True}, True),
        ("1  2 3", "1 2 3", {}, True),
        (" *\n***", "*\n***", {}, False),
        ("1\n2", "1 2", {}, False),
        ("1\n2\n3", "1\n2", {}, False),
    ],
)
def test_output_is_compared_as_judges_compare_it(printed: str, expected: str, test: dict[str, Any], same: bool) -> None:
    assert same_output(printed, expected, test) is same


@pytest.mark.parametrize(
    ("body", "returns", "test", "share"),
    [
        ("return (1, 2)", [1, 2], {}, 1.0),
        ("return {1: 2}", {"1": 2}, {}, 1.0),
        ("return float('inf')", float("inf"), {}, 1.0),
        ("return float('nan')", float("nan"), {}, 1.0),
        ("return float('nan')", 1.5, {}, 0.0),
        ("return 10**400", 1.5, {}, 0.0),
        ("return 10**400", float("inf"), {}, 0.0),
        ("return 10**5000", 1, {}, 0.0),
        ("return 0.3333333", 0.333333333, {}, 0.0),
        ("return 0.3333333", 0.333333333, {"tolerance": 1e-6}, 1.0),
        ("return 6", 5, {"tolerance": 1}, 0.0),
        ("x = []\n    x.append(x)\n    return x", [1], {}, 0.0),
        ("return object()", None, {}, 0.0),
        ("raise KeyboardInterrupt", None, {}, 0.0),
        ("return None", None, {}, 1.0),
        ("return '\\ud800'", "a", {}, 0.0),
        ("import numpy\n    return numpy.arange(3)", [0, 1, 2], {}, 1.0),
    ],
)
def test_a_value_is_compared_as_json_and_whatever_it_is_costs_that_test_only(
    body: str, returns: Any, test: dict[str, Any], share: float
) -> None:
    assert passed(fenced(f"def f():\n    {body}"), [{"call": "f", "args": [], "returns": returns} | test]) == share


def test_a_method_is_called_on_its_class_by_a_field_or_its_name() -> None:
    program = fenced("class Adder:\n    def add(self, a, b):\n        return a + b")
    assert passed(program, [test | {"class": "Adder"} for test in ADD]) == 1.0
    assert passed(program, [test | {"call": "Adder.add"} for test in ADD]) == 1.0
    assert passed(program, ADD) == 0.0


def test_each_call_has_its_own_time_and_its_own_end() -> None:
    program = fenced("import os, time\ndef f(x):\n    if x == 1: os._exit(0)\n    time.sleep(x)\n    return x")
    tests = [{"call": "f", "args": [x], "returns": x, "timeout_s": 1.5} for x in (1.0, 0.9, 0.8, 9, 0.1)]
    assert passed(program, tests) == 0.6
    assert passed(fenced("def f(x):\n    while True: pass"), tests * 20) == 0.0, "two late tests end it"


def test_a_program_that_ends_before_it_is_called_has_defined_nothing() -> None:
    assert passed(fenced(f"{ADDS}print(add(1, 1))\nexit()"), ADD) == 0.0


@pytest.mark.parametrize(
    ("more", "wrong"),
    [
        ({"timeout_s": 0}, r"must have a timeout_s \(0\) from 0.001 to 600"),
        ({"timeout_s": "5"}, r"must have a timeout_s \('5'\)"),
        ({"tolerance": float("nan")}, r"must have a tolerance \(nan\) from 0 to 1"),
        ({"class": 5}, r"must have a class \(5\) that is a name"),
        ({"tolerence": 0.1}, "and besides only ignore_case, tolerance, timeout_s or class"),
    ],
)
def test_what_a_test_says_besides_is_checked(more: dict[str, Any], wrong: str) -> None:
    assert re.search(wrong, check_tests([ADD[0] | more]) or "")
    assert check_tests([ADD[0] | {"timeout_s": None, "tolerance": 1e-3, "class": None}]) is None


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
        ([{"call": "add", "args": 2, "returns": 5}], "a list as args"),
        ([ADD[0], SUM[0]], "of one kind"),
    ],
)
def test_tests_of_another_form_are_refused_with_their_line(tests: Any, wrong: str, tmp_path: Path) -> None:
    good = {"question": "Write add.", "answer": "a + b", "metadata": {"tests": ADD}}
    bad = {"question": "Write it.", "answer": "a + b", "metadata": {"tests": tests}}
    (tmp_path / "code.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(bad) + "\n")
    with pytest.raises(InputError, match=f"line 2 is not a problem: the 'tests' of its metadata must .*{wrong}"):
        read_problems(tmp_path / "code.jsonl")
