"""Makes the optimizers of a recipe that are not AdamW, over the trained weights of a student.

adafactor   transformers' Adafactor (Shazeer and Stern 2018), at the recipe's own rates
muon        Muon for matrices and AdamW for all else, both at the recipe's rate
sgd         torch's SGD with momentum `beta1`
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.optimization import Adafactor

from distill.training.optimizers.mastered import Groups, Mastered
from distill.training.optimizers.muon import MuonAdamW, split_parameters

NOT_ADAM = ("adafactor", "muon", "sgd")


def make_not_adam(
    name: str,
    model: nn.Module,
    groups: Groups,
    *,
    learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> torch.optim.Optimizer:
    """Make one of `NOT_ADAM`. `groups`: the trained weights, those that do not decay apart; Muon splits them itself."""
    shared: dict[str, Any] = {"lr": learning_rate, "weight_decay": weight_decay}
    filled = [group | {"lr": learning_rate} for group in groups if group["params"]]
    if name == "adafactor":
        return Mastered(filled, partial(Adafactor, scale_parameter=False, relative_step=False, **shared))
    if name == "sgd":
        return Mastered(filled, partial(torch.optim.SGD, momentum=betas[0], **shared))
    assert name == "muon"

    def muon(masters: Groups) -> torch.optim.Optimizer:
        matrices, others = (group["params"] for group in masters)
        rates = {"matrix_lr": learning_rate, "other_lr": learning_rate}
        return MuonAdamW(matrices, others, **rates, weight_decay=weight_decay, betas=betas)

    parts = split_parameters(model)
    trained = [{"params": [parameter for parameter in part if parameter.requires_grad]} for part in parts]
    return Mastered([group | {"lr": learning_rate} for group in trained], muon)
