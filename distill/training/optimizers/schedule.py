"""The learning rate of each update as a share of the peak: a linear warm-up, then one of four courses.

    share(i) = (i + 1) / w                                             for i < w
               f + (1 − f) · (1 + cos(π · t)) / 2   cosine             after that, t = (i − w + 1) / (n − w + 1)
               f + (1 − f) · (1 − t)                linear
               1                                    constant
               1, and a cosine within the last d    wsd                t = (i − (n − d) + 1) / (d + 1)

for update i (from 0) of n, the first w of which warm up, towards a share f. No update has the rate 0, neither the first
(1/w) nor the last; a schedule that starts from 0 wastes its first update, which may be the only one of a short run.
transformers' schedules give the same rates one update later.

A run may also end by the clock. Then i is the larger of the updates that were made and of that share of n which is the
share of the time that has passed, so that the rate ends its course with whichever ends first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from time import monotonic
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from distill.training.journal import of_the_first


def rate_share(
    update: float, updates: int, warmup: int, final: float = 0.0, kind: str = "cosine", decay: int = 0
) -> float:
    """Return the share of the peak for `update` (from 0) of `updates`, the first `warmup` of which warm up.

    `decay`: the updates at the end within which `wsd` falls.
    """
    if update < warmup:
        return (update + 1) / warmup
    begins = max(warmup, updates - decay) if kind == "wsd" else warmup
    if kind == "constant" or update < begins:
        return 1.0
    falling = updates - begins + 1
    turn = min(update - begins + 1, falling) / falling  # a scheduler also asks for the rate after the last update
    return final + (1 - final) * (1 - turn if kind == "linear" else (1 + math.cos(math.pi * turn)) / 2)


def cosine_schedule(optimizer: torch.optim.Optimizer, *, updates: int, warmup: int, final: float = 0.0) -> LambdaLR:
    return make_schedule(optimizer, updates=updates, warmup=warmup, final=final)


def constant_schedule(optimizer: torch.optim.Optimizer, *, warmup: int) -> LambdaLR:
    """Make a schedule that warms up to the optimizer's own rates and stays there."""
    return LambdaLR(optimizer, lambda update: min(1.0, (update + 1) / max(1, warmup)))


@dataclass
class Course:
    """The rates of a run, as a share of the peak, by its updates and by its time.

    Torch's scheduler writes the values into checkpoints, so a run that resumes has its earlier time behind it.
    """

    updates: int
    warmup: int
    final: float
    kind: str
    decay: int
    limit_s: float = math.inf
    passed_s: float = 0.0
    """The time from the first update until the end of the last one, with what was done between them."""
    update_s: float = 0.0
    """The time of the last update."""

    def __call__(self, update: int) -> float:
        passed = min((self.passed_s + self.update_s) / self.limit_s, 1.0)
        made = max(update, passed * self.updates)
        return rate_share(made, self.updates, self.warmup, self.final, self.kind, self.decay)


class Deadline(TrainerCallback):
    """Tells a trainer's `Course` the time, the first process' in all of them, and makes the update at its limit the
    last.

    It must be called before the callbacks that treat the last update in another way.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._course: Course = kwargs["lr_scheduler"].lr_lambdas[0]
        self._seen_at = monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        course, now = self._course, monotonic()
        course.update_s = of_the_first(now - self._seen_at)
        course.passed_s += course.update_s
        self._seen_at = now
        if course.passed_s >= course.limit_s:
            state.max_steps = state.global_step
            control.should_training_stop = True


def make_schedule(
    optimizer: torch.optim.Optimizer,
    *,
    updates: int,
    warmup: int,
    final: float = 0.0,
    kind: str = "cosine",
    decay_share: float = 0.0,
    limit_s: float = math.inf,
) -> LambdaLR:
    """Make a trainer's schedule of `updates`, or of what a `Deadline` lets it make within `limit_s`; the optimizer's
    own rates are the peaks, which one update reaches."""
    warmup, decay = max(1, min(warmup, updates)), math.ceil(decay_share * updates)
    return LambdaLR(optimizer, Course(updates, warmup, final, kind, decay, limit_s))
