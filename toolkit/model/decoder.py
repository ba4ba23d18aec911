"""Decodes any Hugging Face causal language model through torch: the `Decoder` of teachers and float students.

The cache of each layer is two buffers that double when they are full, so a step appends without copying what is there.
For multi-head latent attention the two are the latent and the rotated key (transformers' DeepSeek modules cache these,
not the expanded heads), and a step attends to them as they are (`toolkit.model.mla`). Prompts are padded on the left;
B rows, T new tokens, S attended tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self, cast

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.utils.logging import disable_progress_bar

from toolkit.errors import InputError
from toolkit.generate import Floats, Ints
from toolkit.model.mla import absorb
from toolkit.model.precision import compute_dtype


class TorchDecoder:
    """Decodes a model, where it is; a model in training must be in its eval mode meanwhile."""

    def __init__(self, model: PreTrainedModel) -> None:
        absorb(model)
        self.model = model
        self.device = model.device
        self.max_length: int = model.config.max_position_embeddings
        self._cache: DynamicCache | None = None
        self._mask_BS = torch.empty(0)
        self._padded = False

    @classmethod
    def open(cls, folder: Path, dtype: torch.dtype | None = None) -> Self:
        """Load a model folder, to the GPU where there is one; by default in bf16 on a machine that computes in it."""
        model: torch.nn.Module = load_model(folder, dtype or compute_dtype())
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return cls(cast(PreTrainedModel, model.to(device).eval()))

    @torch.inference_mode()
    def start(self, prompts: Sequence[Sequence[int]]) -> Floats:
        """See `Decoder.start`; returns logits_BV."""
        longest = max(len(prompt) for prompt in prompts)
        pad = self.model.config.pad_token_id or 0
        rows = [[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        masks = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        self._mask_BS = torch.tensor(masks, device=self.device)
        self._padded = any(len(prompt) < longest for prompt in prompts)
        self._cache = growing_cache(self.model.config.num_hidden_layers)
        positions_BT = (self._mask_BS.cumsum(1) - 1).clamp(min=0)
        return self._forward(torch.tensor(rows, device=self.device), positions_BT)

    @torch.inference_mode()
    def step(self, tokens_B: Ints) -> Floats:
        """See `Decoder.step`; returns logits_BV."""
        self._mask_BS = torch.nn.functional.pad(self._mask_BS, (0, 1), value=1)
        positions_BT = self._mask_BS.sum(1, keepdim=True) - 1
        return self._forward(torch.from_numpy(tokens_B).to(self.device)[:, None], positions_BT)

    @torch.inference_mode()
    def keep(self, rows: Ints) -> None:
        """See `Decoder.keep`; columns that were padding in every row that stays are dropped as well."""
        assert self._cache is not None
        index = torch.from_numpy(np.ascontiguousarray(rows)).to(self.device)
        self._mask_BS = self._mask_BS[index]
        unused = int(self._mask_BS.argmax(1).min())
        self._mask_BS = self._mask_BS[:, unused:]
        self._padded = not bool(self._mask_BS.all())
        for layer in self._cache.layers:
            assert isinstance(layer, GrowingLayer)
            layer.keep(index, unused)

    def _forward(self, ids_BT: Tensor, positions_BT: Tensor) -> Floats:
        output = self.model(
            input_ids=ids_BT,
            attention_mask=self._mask_BS if self._padded else None,
            position_ids=positions_BT,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits_BV: Floats = output.logits[:, -1].float().cpu().numpy()
        return logits_BV


class GrowingLayer(DynamicLayer):
    """One layer's cache in buffers [rows, heads, capacity, dim] of which the first `length` positions are used."""

    def __init__(self) -> None:
        super().__init__()
        self.length = 0
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append new positions; returns views of all that are cached."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        if self._buffers is None or end > self._buffers[0].shape[2]:
            self._grow(key_states, value_states, end)
        assert self._buffers is not None
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.length : end] = states
        return self._use(end)

    def keep(self, rows: Tensor, first: int) -> None:
        """Keep only these rows, and only positions from `first` on."""
        assert self._buffers is not None
        self._buffers = (self._buffers[0][rows, :, first:], self._buffers[1][rows, :, first:])
        self._use(self.length - first)

    def _use(self, length: int) -> tuple[Tensor, Tensor]:
        assert self._buffers is not None
        self.length = length
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)
        return self.keys, self.values

    def _grow(self, key_states: Tensor, value_states: Tensor, end: int) -> None:
        old = self._buffers
        capacity = max(2 * end, 64)
        grown = []
        for index, states in enumerate((key_states, value_states)):
            buffer = states.new_empty(*states.shape[:2], capacity, states.shape[3])
            if old is not None:
                buffer[:, :, : self.length] = old[index][:, :, : self.length]
            grown.append(buffer)
        self._buffers = (grown[0], grown[1])


def growing_cache(num_hidden_layers: int) -> DynamicCache:
    """A cache for `past_key_values` whose layers grow by doubling."""
    cache = DynamicCache()
    cache.layer_class_to_replicate = None
    cache.layers = [GrowingLayer() for _ in range(num_hidden_layers)]
    return cache


def load_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load a local causal language model; raises `InputError` where the folder holds none."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} must hold a config.json; it has none")
    disable_progress_bar()  # of loading weights: local files take a moment
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True
        )
    except Exception as error:  # safetensors, JSON and missing tensors each raise their own
        raise InputError(f"{folder} must hold a model that transformers can load: {error}") from error
    return model
