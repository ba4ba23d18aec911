"""The benchmark of a step: both trainers do the same work, and the figures get into the text."""

from __future__ import annotations

import pytest

from benchmarks.training.grpo_speed import VARIANTS, StepSize, Stopwatch, measure, table
from toolkit.sources.model_names import resolve

SIZE = StepSize(groups=2, group_size=2, tokens=4)


@pytest.mark.parametrize("name", ["trl", "ours"])
def test_a_step_samples_all_its_tokens_and_its_parts_add_up(name: str) -> None:
    (step,) = measure(VARIANTS[name], resolve("builtin"), SIZE, 1)  # it asserts the lengths
    assert set(step) == {"step", "sampling", "rewards", "training"}
    assert min(step.values()) > 0
    assert step["step"] == pytest.approx(step["sampling"] + step["rewards"] + step["training"])


def test_what_is_timed_inside_counts_once() -> None:
    watch = Stopwatch()
    inner = watch.around("inner", lambda: sum(range(200_000)))
    assert watch.around("outer", lambda: [inner() for _ in range(5)])() == [sum(range(200_000))] * 5
    assert watch.seconds["outer"] < watch.seconds["inner"]


def test_the_table_says_how_many_times_as_fast_each_is() -> None:
    rows = {"trl": 6.0, "trl-kept": 4.0, "ours": 3.0}
    medians = {
        name: {"step": s, "sampling": s / 2, "rewards": s / 8, "training": s * 3 / 8} for name, s in rows.items()
    }
    lines = table(medians).splitlines()
    assert [line.split("|")[-2].strip() for line in lines[2:]] == ["1.00", "1.50", "2.00"]
    assert lines[-1] == "| **ours** | 3.00 | 1.50 | 0.38 | 1.12 | 2.00 |"
