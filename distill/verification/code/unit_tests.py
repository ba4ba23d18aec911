"""Judges code problems: runs a program that a model wrote on inputs that it has not seen.

A problem has its tests in `metadata["tests"]`, all of one of two kinds:

    {"stdin": "2 3\\n", "stdout": "5\\n"}                          a whole program
    {"call": "add", "args": [2, 3], "returns": 5}                  a function, its values as JSON

Optional are `timeout_s` and `tolerance`, for output `ignore_case`, for a call the `class` of a method (otherwise it is
a function, or a method of `Solution` as in LeetCode; "Solution.add" means the same).

The rules are those of the usual judges (testlib's checkers of Codeforces, LiveCodeBench, EvalPlus):

* Which code is the program: `distill.verification.code.programs`.
* A whole program must end with exit code 0. Its output is compared line by line and word by word, ignoring spaces at
  the ends of lines and empty lines at the end: numbers with a decimal point may differ by 1e-6, absolutely or
  relatively, "yes" and "no" in case, everything else must be equal.
* A call's value must equal the expected one as JSON: a tuple is a list, a numpy number is a number, and numbers may
  differ by 1e-9. A program that ends before it is called (`exit()`) has defined nothing.
* Each test has its own time limit. After `LATE_TESTS` tests that exceeded theirs the rest count as failed.

Only inputs enter the sandbox. The output is compared here, as text or as JSON values, so a program can neither read the
expected result, nor end the test early, nor return an object that equals everything.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from distill.verification.code.programs import SOLUTION, find_program
from distill.verification.code.sandbox import WALL_S, run

TESTS = "tests"
"""The key of the tests in a problem's metadata."""
OUTPUT_TOLERANCE, VALUE_TOLERANCE = 1e-6, 1e-9
LATE_TESTS = 2
LONGEST_TIMEOUT_S = 600.0
DIGITS = 400
"""Most digits of a printed number; a longer one is compared as a word."""

_MORE = {"timeout_s", "tolerance"}
_KEYS = (
    ({"stdin", "stdout"}, _MORE | {"ignore_case"}),
    ({"call", "args", "returns"}, _MORE | {"class"}),
)
"""The required and the optional keys of each kind of test."""
_DECIMAL = re.compile(r"[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?")
_WHOLE = re.compile(r"[-+]?\d+")

_CALLS = """
import io as _io, json as _json, sys as _sys, types as _types
_task, _out = _json.load(_sys.stdin), _sys.stdout
_sys.stdout = _sys.__stdout__ = _io.TextIOWrapper(_io.BytesIO(), encoding="utf-8", errors="replace")
_sys.modules["program"] = _types.ModuleType("program")
_names = vars(_sys.modules["program"])
exec(_task["usual_imports"], _names)
exec(compile(_task["program"], "program.py", "exec"), _names)
def _plain(value):
    if type(value).__module__ == "numpy":
        return value.tolist()
    raise TypeError
def _function(name, owner):
    if owner is None and name in _names:
        return _names[name]
    return getattr(_names[owner or _task["solution"]](), name)
_out.write("defined\\n")
_out.flush()
for _name, _owner, _args in _task["calls"]:
    try:
        _line = _json.dumps([_function(_name, _owner)(*_args)], default=_plain)
    except BaseException:
        _line = "null"
    _out.write(_line + "\\n")
    _out.flush()
"""
"""Defines the program, reports that, calls it, and writes one line per call: the value in a list, or null if it
raised."""

_USUAL_IMPORTS = "\n".join(
    [
        "import bisect, collections, copy, datetime, decimal, fractions, functools, heapq, itertools, math, operator",
        "import random, re, statistics, string, sys, typing",
        *(
            f"from {module} import *"
            for module in ("typing", "math", "itertools", "functools", "heapq", "bisect", "collections")
        ),
        "from builtins import *",
    ]
)
"""The imports that LeetCode, and judges of its problems, put before a solution."""


def check_tests(tests: Any) -> str | None:
    """Return the requirement that a problem's tests violate; None if they are valid."""
    if not isinstance(tests, list) or not tests:
        return "must be a list of at least one test"
    for test in tests:
        if not isinstance(test, dict) or not any(need <= set(test) <= need | may for need, may in _KEYS):
            return (
                'must each hold "stdin" and "stdout", or "call", "args" and "returns", and besides only ignore_case, '
                "tolerance, timeout_s or class"
            )
        texts = [test[name] for name in ("stdin", "stdout", "call") if name in test]
        if not all(isinstance(text, str) for text in texts) or not isinstance(test.get("args", []), list):
            return "must hold texts, and a list as args"
        if wrong := _wrong_option(test):
            return wrong
    if len({"call" in test for test in tests}) > 1:
        return "must all be of one kind"
    return None


def _wrong_option(test: Mapping[str, Any]) -> str | None:
    """Return the requirement that a test's options violate; a null option counts as absent."""
    for name, low, high in (("timeout_s", 0.001, LONGEST_TIMEOUT_S), ("tolerance", 0.0, 1.0)):
        value = test.get(name)
        if value is not None and not (_is_number(value) and low <= value <= high):
            return f"must have a {name} ({value!r}) from {low:g} to {high:g}"
    for name, kind in (("ignore_case", bool), ("class", str)):
        if test.get(name) is not None and not isinstance(test[name], kind):
            return f"must have a {name} ({test[name]!r}) that is {'true or false' if kind is bool else 'a name'}"
    return None


def passed(answer: str, tests: Sequence[Mapping[str, Any]]) -> float:
    """Return the share of the tests that the answer's program passes."""
    outcomes = _call(answer, tests) if "call" in tests[0] else _print(answer, tests)
    return sum(outcomes) / len(tests)


def _print(answer: str, tests: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Run a whole program on each test; return whether it prints what the test expects."""
    program, late = find_program(answer), 0
    outcomes: list[bool] = []
    for test in tests:
        if late == LATE_TESTS:
            return outcomes + [False] * (len(tests) - len(outcomes))
        outcome = run(program, test["stdin"].encode(errors="replace"), wall_s=_timeout_s(test))
        late += outcome.late
        printed = outcome.stdout.decode(errors="replace")
        outcomes.append(outcome.exit_code == 0 and same_output(printed, test["stdout"], test))
    return outcomes


def same_output(printed: str, expected: str, test: Mapping[str, Any]) -> bool:
    """Return whether a program printed what is expected, by the module's rules and the test's own."""
    found, wanted = _lines(printed), _lines(expected)
    return len(found) == len(wanted) and all(
        line == other or _same_words(line, other, test) for line, other in zip(found, wanted, strict=True)
    )


def _lines(text: str) -> list[str]:
    """Split into lines, dropping spaces at their ends and empty lines at the end."""
    return [line.rstrip() for line in text.replace("\r\n", "\n").rstrip().split("\n")]


def _same_words(line: str, expected: str, test: Mapping[str, Any]) -> bool:
    found, wanted = line.split(), expected.split()
    indents = (len(text) - len(text.lstrip()) for text in (line, expected))
    return (
        len(found) == len(wanted)
        and len(set(indents)) == 1
        and all(_same_word(word, other, test) for word, other in zip(found, wanted, strict=True))
    )


def _same_word(word: str, expected: str, test: Mapping[str, Any]) -> bool:
    if word == expected:
        return True
    if test.get("ignore_case") or expected.casefold() in ("yes", "no"):
        return word.casefold() == expected.casefold()
    if max(len(word), len(expected)) > DIGITS or not (_DECIMAL.fullmatch(word) or _DECIMAL.fullmatch(expected)):
        return False
    if not all(_DECIMAL.fullmatch(text) or _WHOLE.fullmatch(text) for text in (word, expected)):
        return False
    tolerance = test.get("tolerance")
    if tolerance is None:
        tolerance = OUTPUT_TOLERANCE if _DECIMAL.fullmatch(expected) else 0.0
    return _near(float(word), float(expected), tolerance)


def _call(answer: str, tests: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Whether a function returns what each test expects; a call that ends the process costs that test alone."""
    calls = [_named(test) for test in tests]
    program = find_program(answer, {f"{owner}.{name}" if owner else name for name, owner, _ in calls})
    values: list[Any] = []
    late = 0
    while len(values) < len(tests) and late < LATE_TESTS:
        task = {
            "program": program,
            "calls": calls[len(values) :],
            "solution": SOLUTION,
            "usual_imports": _USUAL_IMPORTS,
        }
        limits_s = [_timeout_s(test) for test in tests[len(values) :]]
        outcome = run(_CALLS, json.dumps(task).encode(), wall_s=WALL_S, line_limits_s=limits_s)
        defined, *lines = outcome.stdout.decode(errors="replace").split("\n")[:-1] or [""]
        if defined != "defined":
            break
        values += [_value(line) for line in lines[: len(tests) - len(values)]]
        late += outcome.late
        if len(values) < len(tests):
            values.append(None)  # the call that ended the process
    values += [None] * (len(tests) - len(values))
    return [_same(value, [test["returns"]], _tolerance(test)) for value, test in zip(values, tests, strict=True)]


def _named(test: Mapping[str, Any]) -> tuple[str, str | None, list[Any]]:
    """Return a test's function name, the class of the method if it names one, and the arguments."""
    owner, _, name = test["call"].rpartition(".")
    return name, test.get("class") or owner or None, test["args"]


def _timeout_s(test: Mapping[str, Any]) -> float:
    return float(test.get("timeout_s") or WALL_S)


def _tolerance(test: Mapping[str, Any]) -> float:
    tolerance = test.get("tolerance")
    return VALUE_TOLERANCE if tolerance is None else float(tolerance)


def _value(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _same(found: Any, expected: Any, tolerance: float) -> bool:
    """Compare as JSON: true is not 1, and numbers may differ by rounding."""
    if isinstance(expected, list):
        return (
            isinstance(found, list)
            and len(found) == len(expected)
            and all(_same(each, other, tolerance) for each, other in zip(found, expected, strict=True))
        )
    if isinstance(expected, dict):
        return (
            isinstance(found, dict)
            and found.keys() == expected.keys()
            and all(_same(found[key], value, tolerance) for key, value in expected.items())
        )
    if not _is_number(expected):
        return type(found) is type(expected) and bool(found == expected)
    return _is_number(found) and _near(found, expected, 0.0 if _are_whole(found, expected) else tolerance)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _are_whole(*values: Any) -> bool:
    return all(isinstance(value, int) for value in values)


def _near(found: float, expected: float, tolerance: float) -> bool:
    """Return whether numbers are equal, both NaN, or within the tolerance, absolutely or relative to the expected."""
    if found == expected:
        return True
    try:
        found, expected = float(found), float(expected)
    except OverflowError:  # an integer beyond all floats
        return False
    if math.isnan(found) or math.isnan(expected):
        return math.isnan(found) and math.isnan(expected)
    return abs(found - expected) <= tolerance * max(1.0, abs(expected)) < math.inf
