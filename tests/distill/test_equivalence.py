"""Mathematical equality of answers, and what a hostile answer costs: itself."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from distill.verification.mathematics.equivalence import _worker, equivalent

SAME = [
    ("1/2", "0.5"),
    ("3.5", "7/2"),
    (r"\frac{3}{4}", "3/4"),
    (r"\frac{3}{4}", r"\dfrac34"),
    ("2\\sqrt{3}", r"\sqrt{12}"),
    ("x^2 + 2x + 1", "(x+1)^2"),
    ("5", "x = 5"),
    (r"\{1, 2\}", r"\{2, 1\}"),
    (r"(1, 2]", r"(1,2]"),
    ("10\\%", "0.1"),
]
DIFFERENT = [
    ("1/2", "0.51"),
    ("3", "-3"),
    ("x + 1", "x + 2"),
    (r"(1, 2)", r"(2, 1)"),
    (r"\sqrt{2}", "1.4"),
    ("7", ""),
    ("7", "no idea"),
    ("7", "$$$"),
]


@pytest.mark.parametrize(("reference", "answer"), SAME)
def test_other_ways_to_write_the_same(reference: str, answer: str) -> None:
    assert equivalent(reference, answer)


@pytest.mark.parametrize(("reference", "answer"), DIFFERENT)
def test_another_value(reference: str, answer: str) -> None:
    assert not equivalent(reference, answer)


@pytest.mark.parametrize(
    "hostile", ["9**9**9**9", "9^{9^{9^9}}", "(" * 1_900 + "1" + ")" * 1_900, "(" * 100_000, "2^" * 900]
)
def test_a_hostile_answer_costs_itself_only(hostile: str) -> None:
    assert not equivalent("387420489", hostile, limit_s=2.0)
    assert equivalent("1/2", "0.5")


def test_a_killed_worker_is_replaced() -> None:
    assert equivalent("1/2", "0.5")
    process = _worker()._process
    assert process is not None
    process.kill()
    process.wait()
    assert equivalent("1/2", "0.5")


def test_no_worker_outlives_its_parent() -> None:
    program = (
        "import os, signal\nfrom distill.verification.mathematics.equivalence import "
        "_worker, equivalent\nequivalent('1', '1.0')\n"
        "print(_worker()._process.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, stdout=subprocess.PIPE, text=True, timeout=300)
    worker = done.stdout.strip()
    for _ in range(600):
        if not _is_running(worker):
            return
        time.sleep(0.1)
    raise AssertionError(f"worker {worker} runs on")


def _is_running(pid: str) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
