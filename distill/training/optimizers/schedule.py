"""The learning rate of each update as a share of the peak: a linear warm-up, then one of four courses.

    share(i) = (i + 1) / w                                             for i < w
               f + (1 − f) · (1 + cos(π · t)) / 2   cosine             after that, t = (i − w + 1) / (n − w + 1)
               f + (1 − f) · (1 − t)                linear
               1                                    constant
               1, and a cosine within the last d    wsd                t = (i − (n − d) + 1) / (d + 1)

for update i (from 0) of n, the first w of which warm up, towards a share f. No update has the rate 0, neither the first
(1/w) nor the last; a schedule that starts from 0 wastes its first update, which may be the only one of a short run.
transformers' schedules give the same rates one update later.
"""

from __future__ import annotations

import math

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
    return make_schedule(optimizer, updates=updates, warmup=warmup, final=final)


def constant_schedule(optimizer: torch.optim.Optimizer, *, warmup: int) -> LambdaLR:
    """Make a schedule that warms up to the optimizer's own rates and stays there."""
    return LambdaLR(optimizer, lambda update: min(1.0, (update + 1) / max(1, warmup)))


def make_schedule(
    optimizer: torch.optim.Optimizer,
    *,
    updates: int,
    warmup: int,
    final: float = 0.0,
    kind: str = "cosine",
    decay_share: float = 0.0,
) -> LambdaLR:
    """Make a trainer's schedule of `updates`; the optimizer's own rates are the peaks, which one update reaches."""
    warmup, decay = max(1, min(warmup, updates)), math.ceil(decay_share * updates)
    return LambdaLR(optimizer, lambda update: rate_share(update, updates, warmup, final, kind, decay))
