"""The learning rate of each update, as a share of the peak: up in a straight line, then down by a cosine, or constant.

    share(i) = (i + 1) / w                                             for i < w
               f + (1 − f) · (1 + cos(π · (i − w + 1) / (n − w + 1))) / 2   after that

for update i (from 0) of n, of which w warm up, towards a share f. No update has the rate 0, neither the first (1/w) nor
the last, however few there are; a schedule that starts from 0 wastes its first update, and the only one of a short run.
"""

from __future__ import annotations

import math

import torch
from torch.optim.lr_scheduler import LambdaLR


def rate_share(update: int, updates: int, warmup: int, final: float = 0.0) -> float:
    """The share of the peak that `update` (from 0) of `updates` has, of which the first `warmup` warm up."""
    if update < warmup:
        return (update + 1) / warmup
    falling = updates - warmup + 1
    turn = min(update - warmup + 1, falling) / falling  # a scheduler asks for the rate behind the last update too
    return final + (1 - final) * (1 + math.cos(math.pi * turn)) / 2


def constant_schedule(optimizer: torch.optim.Optimizer, *, warmup: int) -> LambdaLR:
    """The schedule that stays at the optimizer's own rates once they are reached."""
    return LambdaLR(optimizer, lambda update: min(1.0, (update + 1) / max(1, warmup)))


def cosine_schedule(optimizer: torch.optim.Optimizer, *, updates: int, warmup: int, final: float = 0.0) -> LambdaLR:
    """The schedule of `updates`, for a trainer; the optimizer's own rates are the peaks, and one update has them."""
    warmup = max(1, min(warmup, updates))
    return LambdaLR(optimizer, lambda update: rate_share(update, updates, warmup, final))
