"""Balances a mixture of experts without an auxiliary loss (Wang et al. 2024; DeepSeek-V3 report, section 2.1.2).

After each optimizer step every router's bias moves by a fixed γ towards the mean load:
b_e += γ · sign(mean load − load_e). The bias affects only the choice of experts, never their weights, and has no
gradient. Loads are summed over all micro-batches and all processes of an update, each token counted once, so every
process moves its copy of the bias alike.

E experts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

BIAS_UPDATE_RATE = 0.001
"""γ of DeepSeek-V3's pretraining (report, section 4.2)."""


class ExpertBalance(TrainerCallback):
    """Counts each router's load over the micro-batches of a step and moves its bias once at the step's end."""

    def __init__(self, model: nn.Module, rate: float = BIAS_UPDATE_RATE) -> None:
        """A rate of 0 measures the loads and leaves the biases unchanged."""
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
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is not None and "loss" in logs and self.routers:
            logs["max_violation"] = max(self.last_violation)
            logs["max_violation_by_layer"] = list(self.last_violation)

    def move_biases(self) -> None:
        """Apply one update from the loads counted since the last one, and reset the counters.

        If processes train together, all of them must call this.
        """
        for index, load_E in enumerate(self._summed_loads()):
            total, experts = int(load_E.sum()), load_E.numel()
            if not total:
                continue
            bias_E = self.routers[index].e_score_correction_bias
            bias_E.add_(torch.sign(total - experts * load_E).to(bias_E), alpha=self.rate)  # in integers: exact
            self.last_violation[index] = experts * int(load_E.max()) / total - 1

    def _summed_loads(self) -> list[Tensor]:
        """Return the counted loads summed over all processes, and reset the counters."""
        biases = [router.e_score_correction_bias for router in self.routers]
        loads = [load_E.to(bias_E.device) for load_E, bias_E in zip(self.loads_E, biases, strict=True)]
        self.loads_E = [torch.zeros_like(load_E) for load_E in loads]
        if loads and distributed.is_initialized():
            joined = torch.cat(loads)
            distributed.all_reduce(joined)
            loads = list(joined.split([load_E.numel() for load_E in loads]))
        return loads

    def _counter(self, index: int) -> Any:
        def count(module: nn.Module, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, Tensor, Tensor]) -> None:
            if module.training and not _in_backward():
                chosen = outputs[2].flatten()
                load_E = self.loads_E[index].to(chosen.device)
                self.loads_E[index] = load_E + torch.bincount(chosen, minlength=load_E.numel())

        return count


def _in_backward() -> bool:
    """Whether this forward pass only recomputes activations for a backward pass (gradient checkpointing)."""
    return torch._C._current_graph_task_id() != -1
