"""No update has the rate 0, however many there are."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from distill.training.optimizers.schedule import cosine_schedule, rate_share


@pytest.mark.parametrize("updates", [1, 2, 3, 4, 7, 20, 160])
@pytest.mark.parametrize("warmup", [0, 1, 2, 8, 500])
def test_every_rate_is_above_zero_and_one_is_the_peak(updates: int, warmup: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = cosine_schedule(optimizer, updates=updates, warmup=warmup)
    rates = []
    for _ in range(updates):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert min(rates) > 0
    peak = rates.index(max(rates))
    assert math.isclose(rates[peak], 0.5)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_rates_of_short_runs() -> None:
    assert [rate_share(i, 1, 1) for i in range(1)] == [1.0]
    assert [rate_share(i, 2, 1) for i in range(2)] == pytest.approx([1.0, 0.5])
    assert [rate_share(i, 3, 1) for i in range(3)] == pytest.approx([1.0, 0.75, 0.25])
    assert [rate_share(i, 4, 2, final=0.1) for i in range(4)] == pytest.approx([0.5, 1.0, 0.775, 0.325])


WSD = {"kind": "wsd", "decay": 32}


@pytest.mark.parametrize(
    ("name", "options", "ours"),
    [
        ("cosine", {}, {}),
        ("cosine_with_min_lr", {"min_lr_rate": 0.1}, {"final": 0.1}),
        ("linear", {}, {"kind": "linear"}),
        ("polynomial", {"lr_end": 0.2, "power": 1.0}, {"kind": "linear", "final": 0.2}),
        ("constant_with_warmup", {}, {"kind": "constant"}),
        ("warmup_stable_decay", {"num_decay_steps": 33}, WSD),
        ("warmup_stable_decay", {"num_decay_steps": 33, "min_lr_ratio": 0.1}, WSD | {"final": 0.1}),
    ],
)
def test_a_long_run_has_transformers_rates_one_update_earlier(
    name: str, options: dict[str, Any], ours: dict[str, Any]
) -> None:
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(name, optimizer, 8, 161, scheduler_specific_kwargs=options)
    rates = []
    for _ in range(161):
        rates.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    begin = 8 if "min_lr_ratio" in options else 0  # there the warm-up begins at that share too
    assert [rate_share(i, 160, 8, **ours) for i in range(160)][begin:] == pytest.approx(rates[1:][begin:], abs=1e-12)
