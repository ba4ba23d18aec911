"""Caches keys and values in buffers that grow by a share when they are full, so that a step appends without copying.

For latent attention a layer keeps [latent | rotated key] (transformers' DeepSeek modules cache these, not the expanded
heads), or less: the latent in a calibrated basis of lower rank (`toolkit.model.latent_basis`), in int8
(`toolkit.model.latents`), or both. Reading then returns an approximation of what was written; the first pass over a
prompt attends to its exact values.
"""

# Shapes: B batch, S attended tokens, C kv rank, P rank kept of it, R rope. The 1 is transformers' axis of heads.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from toolkit.model.latent_basis import Basis, latent_layers
from toolkit.model.latents import FloatLatents, Int8Latents, Latents, quantize

DOUBLED = 1024
"""Buffers of fewer positions double when they are full."""


class GrowingLayer(DynamicLayer):
    """One layer's cache in buffers [rows, heads, capacity, dim] of which the first `length` positions are used."""

    def __init__(self) -> None:
        super().__init__()
        self.length = 0
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[Any, Any]:
        """Append new positions; returns views of all cached ones."""
        self._append(key_states, value_states)
        return self.keys, self.values

    def keep(self, rows: Tensor, first: int) -> None:
        """Keep only these rows, and only positions from `first` on."""
        assert self._buffers is not None
        keys, values = self._buffers
        self._buffers = (keys[rows.to(keys.device), :, first:], values[rows.to(values.device), :, first:])
        self._use(self.length - first)

    def place(self, rows: Tensor, other: GrowingLayer) -> None:
        """Write the rows of another cache into these rows, which may be new ones. Both caches end at one position: the
        beginning of the shorter rows is what was there before, or zeros."""
        assert self._buffers is not None and other._buffers is not None
        has_rows, length = len(self._buffers[0]), max(self.length, other.length)
        count = max(has_rows, int(rows.max()) + 1)
        if count > has_rows or length > self._buffers[0].shape[2]:
            self._buffers = (
                _roomier(self._buffers[0], count, length, self.length),
                _roomier(self._buffers[1], count, length, self.length),
            )
        elif length > self.length:
            for buffer in self._buffers:
                buffer[:, :, length - self.length : length] = buffer[:, :, : self.length].clone()
        for buffer, placed in zip(self._buffers, (other.keys, other.values), strict=True):
            buffer[rows.to(buffer.device), :, length - other.length : length] = placed
        self._use(length)

    def _append(self, key_states: Tensor, value_states: Tensor) -> None:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        if self._buffers is None or end > self._buffers[0].shape[2]:
            self._grow(key_states, value_states, end)
        assert self._buffers is not None
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.length : end] = states
        self._use(end)

    def _use(self, length: int) -> None:
        assert self._buffers is not None
        self.length = length
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)

    def _grow(self, key_states: Tensor, value_states: Tensor, end: int) -> None:
        old = self._buffers
        capacity = _capacity(end)
        grown = []
        for index, states in enumerate((key_states, value_states)):
            buffer = states.new_empty(*states.shape[:2], capacity, states.shape[3])
            if old is not None:
                buffer[:, :, : self.length] = old[index][:, :, : self.length]
            grown.append(buffer)
        self._buffers = (grown[0], grown[1])


def _capacity(length: int) -> int:
    """Return how many positions to make room for: twice as many, and a quarter more where that is much memory."""
    return max(min(2 * length, length + max(length // 4, DOUBLED)), 64)


def _roomier(buffer: Tensor, rows: int, length: int, used: int) -> Tensor:
    """Return a larger buffer, in which the `used` positions of the rows end at `length`."""
    larger = buffer.new_zeros(rows, buffer.shape[1], _capacity(length), buffer.shape[3])
    larger[: len(buffer), :, length - used : length] = buffer[:, :, :used]
    return larger


class LatentLayer(GrowingLayer):
    """Keeps one layer's latents in fewer bytes.

    `update` returns this layer in place of keys and values, and attention reads it through `latents`. If all tokens are
    new, it returns them unchanged.
    """

    def __init__(self, basis: Basis | None, *, int8: bool) -> None:
        super().__init__()
        self.basis = basis
        self._int8 = int8

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[Any, Any]:
        """Append new latents (B1SC) and rotated keys (B1SR)."""
        all_are_new = self.length == 0
        latent = key_states if self.basis is None else self.basis.project(key_states)
        if self._int8:
            values, step = quantize(latent)
            self._append(values, torch.cat([step, value_states], dim=-1))
        else:
            self._append(latent, value_states)
        return (key_states, value_states) if all_are_new else (self, self)

    def latents(self) -> Latents:
        keys, values = self.keys[:, 0], self.values[:, 0]
        return Int8Latents(keys, values[..., :1], values[..., 1:]) if self._int8 else FloatLatents(keys, values)

    def restore(self) -> tuple[Tensor, Tensor]:
        """Return latents B1SC and rotated keys B1SR, as nearly as they can be restored."""
        latent_BSP, rotated_BSR = self.latents().restore()
        latent_BSC = latent_BSP if self.basis is None else self.basis.lift(latent_BSP)
        return latent_BSC[:, None], rotated_BSR[:, None]


def make_cache(num_hidden_layers: int, make_layer: Callable[[int], GrowingLayer]) -> DynamicCache:
    """Make a cache of growing layers; `make_layer` gets each layer's number."""
    cache = DynamicCache()
    cache.layer_class_to_replicate = None
    cache.layers = [make_layer(number) for number in range(num_hidden_layers)]
    return cache


def position_bytes(model: PreTrainedModel, dtype: torch.dtype) -> int:
    """Return the bytes that one token of one row takes in the exact cache."""
    config: Any = model.config.get_text_config(decoder=True)
    if layers := latent_layers(model):
        kept: int = sum(layer.kv_lora_rank + layer.qk_rope_head_dim for layer in layers)
        return kept * dtype.itemsize
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    count: int = 2 * heads * head_dim * config.num_hidden_layers
    return count * dtype.itemsize
