"""Counts the memory of a training step without allocating it.

The student is built with its real sizes on torch's meta device, whose tensors have shapes and no content, and one row
of an update goes through it. What autograd keeps for the backward pass is then counted exactly, tensor by tensor, in
the very code that trains; weights, gradients and the optimizer's state follow from the parameters. What cannot be
counted so is small and named: the program itself.

    program + weights + optimizer + max( activations + logits + head's gradient     the loss of a row
                                         gradients + one of them in fp32            the update )

With several rows or batches in an update the gradients of the earlier ones are there all the time. On a CPU gradients
are counted so too if the row has fewer tokens than the student is wide: a matrix's gradient is then larger than any
room that an activation leaves in the C library's heap.
"""

# Shapes: N tokens of a row, C tokens that predict a completion token, D hidden, V vocabulary.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import psutil
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PretrainedConfig

from distill.local.quantized import BLOCK, quantized_layers
from distill.training import document_attention
from distill.training.completion_loss import LOGITS_BYTES, ROWS
from distill.training.document_attention import Documents
from distill.training.optimizers.choice import STATE_BYTES
from distill.training.student import add_adapters, causal_lm_of
from distill.training.train_config import TrainConfig

NF4_BYTES = 0.5 + 1 / BLOCK + 4 / (BLOCK * 256)
"""A weight's share of its block: 4 bits, an 8-bit scale, an fp32 scale for 256 of those (QLoRA, section 3)."""
FP32 = torch.float32.itemsize
GPU_PROGRAM_BYTES = 1.5e9
"""A CUDA context with its libraries, and fragments of its allocator."""
HEAP_SHARE, WITH_ADAPTERS = 1.2, 1.6
"""What the C library's heap takes for activations, by their bytes: 1.20 for a student of 135M with all weights trained,
1.24 for one of 360M; with adapters 1.5 to 1.7, since their optimizer's many small tensors lie between what was free
(`python -m benchmarks.training.planned`). Allocators of GPUs waste less."""
COPIES_IN_8_BIT = 5
"""Tensors in fp32 of a weight's size that bitsandbytes makes on a CPU to update it in 8 bits."""


@dataclass(frozen=True, kw_only=True)
class PackedRow:
    """One pass through the student: the lengths of its documents, and how many tokens are trained on."""

    lengths: tuple[int, ...]
    trained_tokens: int
    earlier: tuple[int, ...] = ()
    """For each document the one that it goes on from, as in `Documents`."""

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """The bytes of one process's training step at its peak, by part."""

    program: float
    """What is there before any model: a process that has imported torch, transformers and TRL, and its data."""
    weights: float
    optimizer: float
    gradients: float
    activations: float
    logits: float

    @property
    def peak(self) -> float:
        return float(sum(getattr(self, part.name) for part in fields(self)))


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The weights of a student, as a training counts them."""

    parameters: int
    trained: int
    quantized: int
    largest_trained: int
    head: int
    """Those of a trained head, whose gradient the loss makes at once."""


def footprint(
    config: PretrainedConfig,
    train: TrainConfig,
    dtype: torch.dtype,
    row: PackedRow,
    *,
    rows: int,
    shards: int,
    on_gpu: bool,
) -> Footprint:
    """Return what an update of so many rows of this size takes at its peak, in one process.

    `dtype`: in which the steps compute. `shards`: processes among which weights, gradients and optimizer are divided.
    `on_gpu`: whether a GPU of its own holds it, or the C library's heap, beside all that this process holds now.
    """
    program = GPU_PROGRAM_BYTES if on_gpu else psutil.Process().memory_info().rss
    model = meta_model(config, train, dtype)
    sizes, width = sizes_of(model, train), dtype.itemsize
    weights = width * (sizes.parameters - sizes.quantized) + NF4_BYTES * sizes.quantized
    state = STATE_BYTES[train.optimizer] - (FP32 if dtype == torch.float32 else 0)
    saved = saved_bytes(model, config, train, row, dtype)
    if not on_gpu:
        saved *= WITH_ADAPTERS if train.lora_rank else HEAP_SHARE
    copies = COPIES_IN_8_BIT * FP32 * sizes.largest_trained if not on_gpu and train.optimizer == "adamw_8bit" else 0.0
    logits, chunked = _logits_bytes(config.vocab_size, row.trained_tokens, width)
    gradients = width * sizes.trained / shards
    before = gradients if rows > 1 or (not on_gpu and row.tokens < config.hidden_size) else 0.0
    at_loss = max(before, (FP32 if chunked else width) * sizes.head)
    at_update = gradients + FP32 * sizes.largest_trained
    is_loss = saved + logits + at_loss >= at_update
    return Footprint(
        program=program,
        weights=weights / shards,
        optimizer=state * sizes.trained / shards + copies,
        gradients=at_loss if is_loss else at_update,
        activations=saved if is_loss else 0.0,
        logits=logits if is_loss else 0.0,
    )


def meta_model(config: PretrainedConfig, train: TrainConfig, dtype: torch.dtype) -> Any:
    """Build the student on the meta device, with its adapters if it gets any."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
        model.set_attn_implementation(document_attention.NAME)
        return add_adapters(model, train) if train.lora_rank else model


def sizes_of(model: Any, train: TrainConfig) -> Sizes:
    base = causal_lm_of(model)
    trained = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    quantized = [layer.weight.numel() for layer in _base_layers(base).values()] if train.quantization else []
    head = base.get_output_embeddings().weight
    return Sizes(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trained=sum(trained),
        quantized=sum(quantized),
        largest_trained=max(trained),
        head=head.numel() if head.requires_grad else 0,
    )


def saved_bytes(model: Any, config: PretrainedConfig, train: TrainConfig, row: PackedRow, dtype: torch.dtype) -> float:
    """Count the bytes that autograd keeps of a row until its backward pass, the logits aside."""
    kept = float(_kept(causal_lm_of(model), row))
    if not train.gradient_checkpointing:
        return kept
    layers = int(config.num_hidden_layers)
    inputs = layers * row.tokens * int(config.hidden_size) * dtype.itemsize
    return inputs + kept / layers  # a layer is computed again for its own backward pass


def _kept(causal_lm: Any, row: PackedRow) -> int:
    weights = {_storage(parameter) for parameter in causal_lm.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if _storage(tensor) not in weights:
            kept[_storage(tensor)] = tensor.untyped_storage()
        return tensor

    kernels = _KernelsOfTorch()
    with torch.device("meta"), kernels, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = causal_lm.base_model(
            input_ids=torch.zeros(1, row.tokens, dtype=torch.long),
            position_ids=torch.zeros(1, row.tokens, dtype=torch.long),
            use_cache=False,
            documents=Documents(row.lengths, row.earlier),
        )[0]
    kept[_storage(hidden)] = hidden.untyped_storage()
    return sum(storage.nbytes() for storage in kept.values())


class _KernelsOfTorch(TorchFunctionMode):
    """Lets torch's attention keep what its kernels keep; on the meta device it has none, and would keep all weights."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        settings = dict(kwargs or {})
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **settings)
        return _KeptByKernel.apply(*args, settings.get("attn_mask"))  # type: ignore[no-untyped-call]


class _KeptByKernel(torch.autograd.Function):
    """Keeps what a kernel of attention needs for its backward pass: its inputs, its result, a number for each query."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any) -> torch.Tensor:
        result = torch.empty_like(query)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, result, sums, *([] if mask is None else [mask.to(query.dtype)]))
        return result


def _logits_bytes(words: int, trained_tokens: int, width: int) -> tuple[float, bool]:
    """Return the bytes of logits at once, and whether they are made chunk by chunk."""
    whole, in_fp32 = trained_tokens * words * width, ROWS * words * FP32
    return min(whole, LOGITS_BYTES) + in_fp32, whole > LOGITS_BYTES


def _base_layers(causal_lm: nn.Module) -> dict[str, nn.Linear]:
    """Return the layers that NF4 holds; adapters are layers of their own, and stay as they are."""
    return {name: layer for name, layer in quantized_layers(causal_lm, "4bit").items() if ".lora_" not in name}


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
