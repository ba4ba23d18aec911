"""Code problems: a program that a model wrote, judged by what it does on inputs that it has not seen.

A problem carries its tests in `metadata["tests"]`, all of one of two kinds:

    {"stdin": "2 3\\n", "stdout": "5\\n"}                          a whole program
    {"call": "add", "args": [2, 3], "returns": 5}                  a function, its values as JSON

Only inputs enter the sandbox. What comes out is compared here, as text or as JSON values, so a program can neither
read what is expected, nor end the test early, nor answer with an object that equals everything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from distill.verification.sandbox import run

TESTS = "tests"
"""Key of a problem's metadata."""

_FENCE = re.compile(r"```(?:python|py|python3)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)

_CALLS = """
import io as _io, json as _json, sys as _sys
_calls, _out = _json.load(_sys.stdin), _sys.stdout
_sys.stdout = _io.StringIO()
_names = {"__name__": "program"}
exec(compile(_calls["program"], "program.py", "exec"), _names)
for _name, _args in _calls["calls"]:
    try:
        _line = _json.dumps([_names[_name](*_args)])
    except Exception:
        _line = "null"
    _out.write(_line + "\\n")
    _out.flush()
"""
"""Defines the program, calls it, and writes one line a call: the value in a list, or null where it raised."""


def check_tests(tests: Any) -> str | None:
    """What is wrong with a problem's tests, as a claim that must hold; None where nothing is."""
    if not isinstance(tests, list) or not tests:
        return "must be a list of at least one test"
    for test in tests:
        if not isinstance(test, dict) or set(test) not in ({"stdin", "stdout"}, {"call", "args", "returns"}):
            return 'must each hold "stdin" and "stdout", or "call", "args" and "returns"'
        texts = [test[name] for name in ("stdin", "stdout", "call") if name in test]
        if not all(isinstance(text, str) for text in texts) or not isinstance(test.get("args", []), list):
            return "must hold texts, and args as a list"
    if len({"call" in test for test in tests}) > 1:
        return "must all be of one kind"
    return None


def passed(answer: str, tests: Sequence[Mapping[str, Any]]) -> float:
    """The share of the tests that the answer's program passes."""
    program = find_program(answer)
    outcomes = _call(program, tests) if "call" in tests[0] else [_prints(program, test) for test in tests]
    return sum(outcomes) / len(tests)


def find_program(answer: str) -> str:
    """The last fenced block, else the whole text."""
    blocks = _FENCE.findall(answer)
    return blocks[-1] if blocks else answer


def _prints(program: str, test: Mapping[str, Any]) -> bool:
    outcome = run(program, test["stdin"].encode())
    return outcome.exit_code == 0 and _lines(outcome.stdout.decode(errors="replace")) == _lines(test["stdout"])


def _lines(text: str) -> list[str]:
    """Without spaces at the ends of lines and empty lines at the end, as judges of programs compare."""
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _call(program: str, tests: Sequence[Mapping[str, Any]]) -> list[bool]:
    calls = {"program": program, "calls": [[test["call"], test["args"]] for test in tests]}
    outcome = run(_CALLS, json.dumps(calls).encode())
    values = [_value(line) for line in outcome.stdout.decode(errors="replace").split("\n")][: len(tests)]
    values += [None] * (len(tests) - len(values))
    return [_same(value, [test["returns"]]) for value, test in zip(values, tests, strict=True)]


def _value(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _same(found: Any, expected: Any) -> bool:
    """Equal as JSON: true is not 1, and numbers may differ by rounding."""
    if isinstance(expected, list):
        return isinstance(found, list) and len(found) == len(expected) and all(map(_same, found, expected))
    if isinstance(expected, dict):
        return (
            isinstance(found, dict)
            and found.keys() == expected.keys()
            and all(_same(found[key], value) for key, value in expected.items())
        )
    if isinstance(expected, bool) or expected is None or isinstance(expected, str):
        return type(found) is type(expected) and found == expected
    is_number = isinstance(found, (int, float)) and not isinstance(found, bool)
    if isinstance(expected, int) and isinstance(found, int):
        return is_number and found == expected
    return is_number and abs(found - expected) <= 1e-9 * max(1.0, abs(expected))
