"""A Hugging Face folder's tensors, streamed: one at a time from one or many safetensors files.

Invariant: names are the checkpoint's own, and what leaves here is finite float32 of the shape that the configuration
promises. Source: the safetensors format and Hugging Face's `model.safetensors.index.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from export.model_config import ModelConfig, read_model_config
from toolkit.errors import InputError

Floats = NDArray[np.float32]

MATRICES = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}
"""A layer's matrices as they are stored, from the checkpoint's: those that read the same input are one."""

LARGEST = 65504.0
"""Weights and scales are stored in fp16 somewhere on the way; a larger value could not be."""


class Checkpoint:
    """An open model folder: its configuration, and its tensors by name."""

    def __init__(self, folder: Path) -> None:
        """Raises `InputError` where a file is missing, cut short, or lacks a tensor that the configuration needs."""
        self.folder = folder
        self.config = read_model_config(folder)
        self._files: dict[str, Any] = {}
        with ExitStack() as stack:
            for path in _weight_files(folder):
                file = stack.enter_context(_open(path))
                self._files.update(dict.fromkeys(file.keys(), file))
            self._stack = stack.pop_all()
        for name, shape in tensor_shapes(self.config).items():
            if name not in self._files:
                raise InputError(f"{folder} must hold the tensor {name}; its safetensors files do not")
            found = tuple(self._files[name].get_slice(name).get_shape())
            if found != shape:
                raise InputError(f"{name} in {folder} has shape {found}, which must equal {shape} of its config.json")

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor as float32."""
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor.float()

    def array(self, name: str) -> Floats:
        """Read one tensor as a float32 array."""
        array: Floats = self.tensor(name).numpy()
        return array

    def check_values(self) -> None:
        """Read everything once. Raises `InputError` naming the tensor that holds NaN, an infinity or a huge value."""
        for name in tensor_shapes(self.config):
            tensor = self.tensor(name)
            low, high = torch.aminmax(tensor)
            if not (torch.isfinite(low) and torch.isfinite(high)):
                count = int((~torch.isfinite(tensor)).sum())
                raise InputError(f"{name} in {self.folder} must be finite, but holds {count} NaN or infinite values")
            if max(-float(low), float(high)) > LARGEST:
                worst = max(-float(low), float(high))
                raise InputError(f"{name} in {self.folder} holds {worst:g}, which must be at most {LARGEST:g}")

    def close(self) -> None:
        self._stack.close()


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the graph is made of, in the order of the model."""
    hidden = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for layer in range(config.num_hidden_layers):
        shapes.update({f"model.layers.{layer}.{name}": shape for name, shape in _layer_shapes(config)})
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def _layer_shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, intermediate = config.hidden_size, config.intermediate_size
    yield "input_layernorm.weight", (hidden,)
    for name, rows in zip("qkv", config.qkv_sizes, strict=True):
        yield f"self_attn.{name}_proj.weight", (rows, hidden)
        if config.has_qkv_bias:
            yield f"self_attn.{name}_proj.bias", (rows,)
        if config.has_qk_norm and name != "v":
            yield f"self_attn.{name}_norm.weight", (config.head_dim,)
    yield "self_attn.o_proj.weight", (hidden, config.qkv_sizes[0])
    yield "post_attention_layernorm.weight", (hidden,)
    yield "mlp.gate_proj.weight", (intermediate, hidden)
    yield "mlp.up_proj.weight", (intermediate, hidden)
    yield "mlp.down_proj.weight", (hidden, intermediate)


def _weight_files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise InputError(f"{folder} must hold model.safetensors or model.safetensors.index.json; it holds neither")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{index} must be an index of safetensors files: {error!r}") from error
    return [folder / Path(str(name)).name for name in names]


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        size = path.stat().st_size if path.is_file() else 0
        raise InputError(f"{path} ({size} bytes) must be a whole safetensors file: {error}; fetch it again") from error
