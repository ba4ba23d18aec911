"""Repeated sentences are a loop; figures, code, tables, verse and counting are not."""

from __future__ import annotations

import pytest

from distill.verification.loops import is_looping

LOOPS = [
    "Wait, let me check again. " * 12,
    "First I try 5.\n" + "Let me see once more.\n" * 40 + "So the answer is 6.",
    "No, wait. " * 40,
    "Hmm. " * 70,
    "I add the tens, then the ones, and carry one. It does not fit, since 18 / 12 is 1.5.\n\n" * 6,
    "Alternatively, maybe the answer is 6. But wait, that is not right. " * 5,
    "让我再检查一下。" * 12,
    "the " * 700,
    "ha" * 900,
]
HONEST = [
    "\n".join(f"{n} - 10 = {n - 10}" for n in range(57, -500, -10)),
    "\n".join(f"Step {i}: add {i} to the sum, which is now {i * (i + 1) // 2}." for i in range(1, 80)),
    "\n".join(f"{a} x {b} = {a * b}" for a in range(1, 13) for b in range(1, 13)),
    ", ".join(map(str, range(500))),
    ("0 " * 20 + "\n") * 20,
    "# . . # . . . #\n" * 30,
    "HTHHT " * 50,
    "open, closed, " * 60,
    "1" + "0" * 400,
    "=" * 500,
    "| a | b |\n|---|---|\n" + "| no path | to there |\n" * 60,
    "```python\n" + "print('hello big world')\n" * 40 + "```",
    "Row, row, row your boat, gently down the stream. " * 4,
    "\n".join(f"{i} bottles of beer on the wall, {i} bottles of beer. Take one down." for i in range(99, 0, -1)),
]


@pytest.mark.parametrize("text", LOOPS, ids=range(len(LOOPS)))
def test_a_loop_is_seen(text: str) -> None:
    assert is_looping(text)


@pytest.mark.parametrize("text", HONEST, ids=range(len(HONEST)))
def test_an_honest_repetition_is_no_loop(text: str) -> None:
    assert not is_looping(text)
