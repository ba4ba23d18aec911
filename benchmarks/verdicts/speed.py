"""Measures how many verdicts per second `grade` gives on one core: on numbers, on words and on expressions.

Every reference and answer is new, so no cache helps; half of the answers are right. The first run of each kind starts
the algebra system and does not count.
"""

from __future__ import annotations

import os
import random
import statistics
import string
import time
from collections.abc import Callable

from benchmarks.verdicts.accuracy import graded_pair
from distill.verification.verdicts import grade
from toolkit.figures.tables import markdown_table

Pair = tuple[str, str, bool]
"""A reference, an answer, and whether it is right."""


def number_pair(random_: random.Random) -> Pair:
    value, right = random_.randrange(10**7), random_.random() < 0.5
    answer = value if right else value + random_.randint(1, 9)
    wording = random_.choice((r"So it is \boxed{{{:,}}}.", "The answer is {}.", "**{}**", "We get\n#### {}"))
    return str(value), wording.format(answer), right


def word_pair(random_: random.Random) -> Pair:
    """Make words that no language has, with at least three letters."""
    words = ["qz" + "".join(random_.choices(string.ascii_lowercase, k=random_.randint(4, 9))) for _ in range(2)]
    right = random_.random() < 0.5 or words[0] == words[1]
    wording = random_.choice((r"\boxed{{\text{{{}}}}}", "The answer is {}.", "**{}**", "{}"))
    return words[0].title(), wording.format(words[0] if right else words[1]), right


def expression_pair(random_: random.Random) -> Pair:
    """Make a polynomial with a square root, and its expansion, correct or with one coefficient changed."""
    a, b, c, d = (random_.randint(2, 99) for _ in range(4))
    right = random_.random() < 0.5
    reference = rf"({a}x + {b})({c}x - {d}) + \sqrt{{{a}}}"
    middle = b * c - a * d + (0 if right else 1)
    return reference, rf"\boxed{{{a * c}x^2 {middle:+d}x - {b * d} + \sqrt{{{a}}}}}", right


KINDS: dict[str, tuple[Callable[[random.Random], Pair], int]] = {
    "numbers": (number_pair, 2000),
    "words": (word_pair, 2000),
    "expressions": (expression_pair, 100),
}
"""For each kind the function that draws a pair, and the number of verdicts per run."""


def measure(runs: int) -> dict[str, tuple[float, float, float]]:
    """Measure verdicts per second on one core: the median, the slowest and the fastest run of each kind."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for run in range(runs + 1):
        for kind, (draw, count) in KINDS.items():
            random_ = random.Random(f"{kind} {run}")
            pairs = [draw(random_) for _ in range(count)]
            graded = [graded_pair(reference, answer) for reference, answer, _ in pairs]
            start = time.perf_counter()
            given = [grade(problem, trace).correct for problem, trace in graded]
            rates[kind].append(count / (time.perf_counter() - start))
            wrong = [pair for pair, verdict in zip(pairs, given, strict=True) if verdict != pair[2]]
            assert not wrong, f"{len(wrong)} wrong verdicts, as {wrong[0]}"
    return {kind: (statistics.median(all_[1:]), min(all_[1:]), max(all_[1:])) for kind, all_ in rates.items()}


def speed_table(rates: dict[str, tuple[float, float, float]]) -> str:
    rows = [["verdicts on", "a second, median", "slowest and fastest run"]]
    rows += [[kind, f"{median:,.0f}", f"{low:,.0f}–{high:,.0f}"] for kind, (median, low, high) in rates.items()]
    return markdown_table(rows)
