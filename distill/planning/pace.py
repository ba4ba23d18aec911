"""Finds out how fast a student trains: by a rehearsal of two of its layers here, or by a device's data sheet.

    here       one layer and two layers of the student's real sizes, with random weights, make a forward and a backward
               pass on a row of the recipe's documents; the difference is what a layer takes. The optimizer is timed on
               their weights.
    elsewhere  the operations of a token (`toolkit.model.flops`) at the device's peak times the share that trainers
               reach (`distill.planning.devices`)
"""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from distill.planning.footprint import Method, Row
from distill.training import document_attention
from distill.training.completion_loss import IGNORED, summed_loss
from distill.training.document_attention import Documents
from distill.training.optimizers.master_adamw import MasterAdamW
from distill.training.student import add_adapters

PASSES = 2
"""Timed passes, after one that allocates memory."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The time of a training run's parts."""

    token_s: float
    """Of a token's forward and backward pass."""
    update_s: float
    """Of an update, whatever the number of its tokens."""

    def tokens_per_s(self, update_tokens: float) -> float:
        """Return the speed with so many tokens an update."""
        return update_tokens / (update_tokens * self.token_s + self.update_s)


def rehearsed(config: PretrainedConfig, method: Method, row: Row) -> Pace:
    """Measure this machine."""
    one, two = (_rehearse(config, method, row, layers) for layers in (1, 2))
    layers = config.num_hidden_layers
    weights = one.trained + (layers - 1) * (two.trained - one.trained)
    return Pace(
        token_s=(one.row_s + (layers - 1) * max(two.row_s - one.row_s, 0.0)) / row.tokens,
        update_s=two.update_s * weights / two.trained,
    )


@dataclass(frozen=True, kw_only=True)
class _Rehearsal:
    row_s: float
    update_s: float
    trained: int


def _rehearse(config: PretrainedConfig, method: Method, row: Row, layers: int) -> _Rehearsal:
    few = copy.deepcopy(config)
    few.num_hidden_layers = layers
    if getattr(few, "layer_types", None):
        few.layer_types = few.layer_types[:layers]
    model: Any = AutoModelForCausalLM.from_config(few, dtype=method.dtype)
    if not torch.cuda.is_available():
        model.set_attn_implementation(document_attention.NAME)
    head = model.get_output_embeddings().weight
    trained_model = add_adapters(model, method.lora_rank, seed=0) if method.lora_rank else model
    if method.gradient_checkpointing:
        model.gradient_checkpointing_enable()
        model.train()
    trained = [parameter for parameter in trained_model.parameters() if parameter.requires_grad]
    optimizer = MasterAdamW([{"params": trained}], lr=1e-5)
    ids = torch.randint(config.vocab_size, (1, row.tokens))
    labels = torch.full((row.tokens,), IGNORED)
    labels[-row.trained_tokens :] = 0
    positions = torch.cat([torch.arange(length) for length in row.lengths])[None]
    row_s, update_s = [], []
    for _ in range(1 + PASSES):
        stamps = [time.perf_counter()]
        hidden = model.base_model(
            input_ids=ids, position_ids=positions, use_cache=False, documents=Documents(row.lengths)
        )[0]
        summed_loss(hidden[0], head, labels).backward()
        stamps.append(time.perf_counter())
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        stamps.append(time.perf_counter())
        row_s.append(stamps[1] - stamps[0])
        update_s.append(stamps[2] - stamps[1])
    return _Rehearsal(
        row_s=statistics.median(row_s[1:]),
        update_s=statistics.median(update_s[1:]),
        trained=sum(parameter.numel() for parameter in trained),
    )
