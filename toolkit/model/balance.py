"""Balances a mixture of experts without an auxiliary loss (Wang et al. 2024; DeepSeek-V3 report, section 2.1.2).

After each optimizer step every router's bias moves by a fixed γ towards the mean load:
b_e += γ · sign(mean load − load_e). The bias takes part in choosing experts only, never in their weights, and has no
gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

BIAS_UPDATE_RATE = 0.001
"""γ of DeepSeek-V3's pretraining (report, section 4.2)."""


class ExpertBalance(TrainerCallback):
    """Counts each router's load over the micro-batches of a step and moves its bias once at the step's end."""

    def __init__(self, model: nn.Module, rate: float = BIAS_UPDATE_RATE) -> None:
        self.rate = rate
        self.routers = [module for module in model.modules() if isinstance(module, DeepseekV3TopkRouter)]
        self.loads_E = [torch.zeros(router.num_experts, dtype=torch.int64) for router in self.routers]
        self.last_violation = [0.0] * len(self.routers)
        """MaxVio of each layer at the last step: (greatest load − mean load) / mean load."""
        for index, router in enumerate(self.routers):
            router.register_forward_hook(self._counter(index))

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.move_biases()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is not None and "loss" in logs and self.routers:
            logs["max_violation"] = max(self.last_violation)

    def move_biases(self) -> None:
        """Apply one update from the loads counted since the last one, and forget them."""
        for index, (router, load_E) in enumerate(zip(self.routers, self.loads_E, strict=True)):
            if not load_E.any():
                continue
            load = load_E.float()
            router.e_score_correction_bias.add_(torch.sign(load.mean() - load), alpha=self.rate)
            self.last_violation[index] = float((load.max() - load.mean()) / load.mean())
            load_E.zero_()

    def _counter(self, index: int) -> Any:
        def count(module: nn.Module, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, Tensor, Tensor]) -> None:
            if module.training:
                chosen = outputs[2].flatten()
                self.loads_E[index] += torch.bincount(chosen, minlength=self.loads_E[index].numel())

        return count
