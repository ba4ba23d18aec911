"""The learning rate of each update as a share of the peak: a linear warm-up, then one of four courses.

    share(i) = (i + 1) / w                                             for i < w
               f + (1 − f) · (1 + cos(π · t)) / 2   cosine             after that, t = (i − w + 1) / (n − w + 1)
               f + (1 − f) · (1 − t)                linear
               1                                    constant
               1, and a cosine within the last d    wsd                t = (i − (n − d) + 1) / (d + 1)

for update i (from 0) of n, the first w of which warm up, towards a share f. No update has the rate 0, neither the first
(1/w) nor the last; a schedule that starts from 0 wastes its first update, which may be the only one of a short run.
transformers' schedules give the same rates one update later.

A run may also end by the clock: n is then the number of updates that are expected to fit, which is estimated anew after
each of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.optim.lr_scheduler import LambdaLR


def rate_share(
    update: int, updates: int, warmup: int, final: float = 0.0, kind: str = "cosine", decay: int = 0
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
    """Make a schedule of `updates`; the optimizer's own rates are the peaks, which one update reaches."""
    return LambdaLR(optimizer, Course(updates, 0.0, warmup, final, "cosine", 0.0))


def constant_schedule(optimizer: torch.optim.Optimizer, *, warmup: int) -> LambdaLR:
    """Make a schedule that warms up to the optimizer's own rates and stays there."""
    return LambdaLR(optimizer, lambda update: min(1.0, (update + 1) / max(1, warmup)))


@dataclass
class Course:
    """The rates of a run as a share of the peak, whose number of updates may be estimated anew after each of them.

    Torch's scheduler writes the values into checkpoints, so a run that resumes has its earlier time behind it.
    """

    updates: int
    warmup_share: float
    warmup_steps: int
    """Updates of the warm-up; 0 leaves it to the share."""
    final: float
    kind: str
    decay_share: float
    passed_s: float = 0.0
    """The time from the beginning until the end of the last update, with what was done between updates."""
    updating_s: float = 0.0
    """The time of the `timed` updates alone."""
    timed: int = 0

    def __call__(self, update: int) -> float:
        warmup = self.warmup_steps or math.ceil(self.warmup_share * self.updates)
        warmup, decay = max(1, min(warmup, self.updates)), math.ceil(self.decay_share * self.updates)
        return rate_share(update, self.updates, warmup, self.final, self.kind, decay)
