"""Counts the memory of a training step without allocating it.

The student is built with its real sizes on torch's meta device, whose tensors have shapes and no content, and one row
of an update goes through it. What autograd keeps for the backward pass is then counted exactly, tensor by tensor, in
the very code that trains; weights, gradients and the optimizer's state follow from the parameters. What cannot be
counted so is small and named: the program itself, and buffers of a moment.

    weights + optimizer + max( activations + logits + head's gradient     the loss of a row, and the first backward step
                               gradients                                  the end of the backward pass, and the update )

With several rows or batches in an update the gradients of the earlier ones are there all the time.
"""

# Shapes: N tokens of a row, C tokens that predict a completion token, D hidden, V vocabulary.

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from distill.training import document_attention
from distill.training.completion_loss import ROWS
from distill.training.document_attention import Documents
from distill.training.student import add_adapters

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""A weight's share of its block: 4 bits, an 8-bit scale for 64, an fp32 scale for 256 of those (QLoRA, section 3)."""
PROGRAM_BYTES = 900_000_000
"""A process that has imported torch, transformers and TRL, and holds a tokenizer and a data set."""
ROW_BYTES = 4
"""Of fp32, in which the loss works through a few rows of logits at a time."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a student is trained, as far as memory depends on it."""

    dtype: torch.dtype
    """In which the steps compute."""
    lora_rank: int = 0
    quantization: str = ""
    gradient_checkpointing: bool = False
    optimizer_bytes: float = 12.0
    """The optimizer's state of a trained weight."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One pass through the student: the lengths of its documents, and how many of their tokens are trained on."""

    lengths: tuple[int, ...]
    trained_tokens: int

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """The bytes of a training step at its peak, by part."""

    program: float
    weights: float
    optimizer: float
    gradients: float
    activations: float
    logits: float

    @property
    def peak(self) -> float:
        return sum(getattr(self, part.name) for part in fields(self))


def footprint(config: PretrainedConfig, method: Method, row: Row, *, rows: int) -> Footprint:
    """Return what an update of so many rows of this size takes at its peak."""
    model = meta_model(config, method)
    counts = [(p.numel(), p.requires_grad, name) for name, p in model.named_parameters()]
    trained = sum(size for size, is_trained, _ in counts if is_trained)
    width = method.dtype.itemsize
    linear = quantized_weights(model) if method.quantization else 0
    weights = width * (sum(size for size, _, _ in counts) - linear) + NF4_BYTES * linear
    saved = saved_bytes(model, config, method, row)
    logits = row.trained_tokens * config.vocab_size * width + ROWS * config.vocab_size * ROW_BYTES
    all_gradients = width * trained
    head = _head_gradient(model) * width
    before = all_gradients if rows > 1 else 0
    at_loss = saved + logits + max(before, head)
    at_update = all_gradients + ROW_BYTES * max(size for size, is_trained, _ in counts if is_trained)
    is_loss = at_loss >= at_update
    return Footprint(
        program=PROGRAM_BYTES,
        weights=weights,
        optimizer=method.optimizer_bytes * trained,
        gradients=max(before, head) if is_loss else at_update,
        activations=saved if is_loss else 0.0,
        logits=logits if is_loss else 0.0,
    )


def meta_model(config: PretrainedConfig, method: Method) -> Any:
    """Build the student on the meta device, with its adapters if it has any."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=method.dtype)
        model.set_attn_implementation(document_attention.NAME)
        return add_adapters(model, method.lora_rank, seed=0) if method.lora_rank else model


def saved_bytes(model: Any, config: PretrainedConfig, method: Method, row: Row) -> float:
    """Count the bytes that autograd keeps of a row until its backward pass, the logits aside."""
    if not method.gradient_checkpointing:
        return float(_kept(model, row))
    layers = config.num_hidden_layers
    inputs = layers * row.tokens * config.hidden_size * method.dtype.itemsize
    return inputs + _kept(model, row) / layers  # a layer is computed again for its own backward pass


def _kept(model: nn.Module, row: Row) -> int:
    weights = {_storage(parameter) for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if _storage(tensor) not in weights:
            kept[_storage(tensor)] = tensor.untyped_storage()
        return tensor

    causal_lm: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        causal_lm.base_model(
            input_ids=torch.zeros(1, row.tokens, dtype=torch.long),
            position_ids=torch.zeros(1, row.tokens, dtype=torch.long),
            use_cache=False,
            documents=Documents(row.lengths),
        )
    return sum(storage.nbytes() for storage in kept.values())


def quantized_weights(model: nn.Module) -> int:
    """Count the weights that are kept in 4 bits: all linear layers' but the head's and the adapters'."""
    return sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "lora_" not in name and not name.endswith("lm_head")
    )


def _head_gradient(model: Any) -> int:
    """Count the gradients that the loss itself makes: those of a trained head."""
    weight = model.get_output_embeddings().weight
    return int(weight.numel()) if weight.requires_grad else 0


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
