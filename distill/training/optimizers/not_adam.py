"""Makes the optimizers of a recipe that are not AdamW, over the trained weights of a student.

adafactor   transformers' Adafactor (Shazeer and Stern 2018), at the recipe's own rates
muon        Muon for matrices and AdamW for all else, both at the recipe's rate
sgd         torch's SGD with momentum `beta1`
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.optimization import Adafactor

from distill.training.optimizers.mastered import Groups, Mastered
from distill.training.optimizers.muon import MuonAdamW, split_parameters
from distill.training.train_config import TrainConfig

NOT_ADAM = ("adafactor", "muon", "sgd")


def make_not_adam(model: nn.Module, groups: Groups, config: TrainConfig) -> torch.optim.Optimizer:
    """Make one of `NOT_ADAM`. `groups`: the trained weights, those that do not decay apart; Muon splits them itself."""
    rate, decay = config.learning_rate, config.weight_decay

    def adafactor(masters: Groups) -> torch.optim.Optimizer:
        return Adafactor(masters, lr=rate, scale_parameter=False, relative_step=False, weight_decay=decay)

    def sgd(masters: Groups) -> torch.optim.Optimizer:
        return torch.optim.SGD(masters, lr=rate, momentum=config.beta1, weight_decay=decay)

    def muon(masters: Groups) -> torch.optim.Optimizer:
        matrices, others = (group["params"] for group in masters)
        betas = (config.beta1, config.beta2)
        return MuonAdamW(matrices, others, matrix_lr=rate, other_lr=rate, weight_decay=decay, betas=betas)

    make = {"adafactor": adafactor, "sgd": sgd, "muon": muon}[config.optimizer]
    if make is muon:
        parts = split_parameters(model)
        groups = [{"params": [parameter for parameter in part if parameter.requires_grad]} for part in parts]
    return Mastered([group | {"lr": rate} for group in groups if group["params"] or make is muon], make)
