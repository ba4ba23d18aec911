"""What a model takes of this machine's memory, known from its files before a weight is read.

The weights are counted on a model without any (torch's device `meta`); the cache by what its attention keeps of a
token: keys and values of each layer, or latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from distill.local.quantized import WEIGHT_BYTES, LoadIn, quantized_layers
from toolkit.errors import InputError
from toolkit.model.cache import position_bytes
from toolkit.model.loading import quantization

WORKING_SHARE = 1.05
"""What loading and computing take besides, as a factor of the weights."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Bytes that a model takes."""

    weights: int
    cache_per_token: int
    """For each token of each row."""


def needs_of(model: PreTrainedModel, folder: Path, dtype: torch.dtype, load_in: LoadIn | None = None) -> Needs:
    """Count what the checkpoint of a folder takes when it is loaded so; `model`: the same one, without weights."""
    if quantization(folder):
        weights = weight_file_bytes(folder)
    else:
        weights = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    if load_in:
        saved = sum(layer.weight.numel() for layer in quantized_layers(model, load_in).values())
        weights -= int(saved * (dtype.itemsize - WEIGHT_BYTES[load_in]))
    return Needs(weights=weights, cache_per_token=position_bytes(model, dtype))


def weight_file_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def check_room(folder: Path, needs: Needs, load_in: LoadIn | None, free: int) -> None:
    """Raise `InputError` if a checkpoint's weights do not fit so many free bytes."""
    wanted = needs.weights * WORKING_SHARE
    if wanted > free:
        fewer = {None: "--load-in 8bit or 4bit", "8bit": "--load-in 4bit", "4bit": ""}[load_in]
        remedy = f"use {fewer}, or a smaller model" if fewer else "use a smaller model, or a server as the teacher"
        raise InputError(
            f"the weights of {folder} take {wanted / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free "
            f"{'on the GPU' if torch.cuda.is_available() else 'on this machine'}; {remedy}"
        )
