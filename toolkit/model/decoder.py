"""Decodes any Hugging Face causal language model with torch, as the `Decoder` of teachers and float students.

A step appends to the cache without copying it (`toolkit.model.cache`), and reads the latents of latent attention as
they are (`toolkit.model.mla`). Prompts are padded on the left; B rows, T new tokens, S attended tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import DynamicCache

from toolkit.errors import InputError
from toolkit.generation.generate import Floats, Ints
from toolkit.machine.allowance import memory
from toolkit.model.cache import GrowingLayer, LatentLayer, make_cache, position_bytes
from toolkit.model.latent_basis import Basis, calibrate
from toolkit.model.loading import load_whole
from toolkit.model.mla import absorb
from toolkit.model.precision import compute_dtype

UNBOUNDED = 2**31
"""The context of a model without position embeddings."""
MOST_READ = 16_384
"""Tokens of prompts, padding included, that are read at once: more would take much memory and be no faster."""
DROPPED_FROM = 0.125
"""Columns of the cache that no row uses are dropped when they are more than this share."""


@dataclass(frozen=True, kw_only=True)
class LatentCache:
    """How a decoder stores latent attention's cache."""

    int8: bool = False
    """Whether each token's latent is stored in int8 with one step; the rotated key is not quantized."""
    rank: int = 0
    """How many numbers a latent is projected to; 0 projects none."""
    calibration: Sequence[Sequence[int]] = ()
    """Rows of token ids to fit the projection to."""

    def __bool__(self) -> bool:
        return self.int8 or self.rank != 0


EXACT = LatentCache()


class TorchDecoder:
    """Decodes a model on its device; a model in training must be in eval mode meanwhile."""

    def __init__(self, model: PreTrainedModel, cache: LatentCache = EXACT) -> None:
        """Raises `InputError` if a smaller cache is asked for and the model has no latent attention, or the rank does
        not fit it."""
        has_latents = absorb(model)
        if cache and not has_latents:
            raise InputError(
                f"a cache in int8 or of lower rank needs a model with latent attention (DeepSeek-V2 or V3); "
                f"this one is {model.config.model_type}; leave the cache as it is"
            )
        self._kept = cache
        self._bases: list[Basis] = calibrate(model, cache.calibration, cache.rank) if cache.rank else []
        self.model = model
        self.device = model.device
        self._config: Any = model.config.get_text_config(decoder=True)
        self.max_length: int = getattr(self._config, "max_position_embeddings", None) or UNBOUNDED
        self._cache: DynamicCache | None = None
        self._mask_BS = torch.empty(0)
        self._padded = False

    @classmethod
    def open(cls, folder: Path, dtype: torch.dtype | None = None, cache: LatentCache = EXACT) -> Self:
        """Load a model folder, onto the GPU if there is one; by default in bf16 if this machine computes in it."""
        model: torch.nn.Module = load_model(folder, dtype or compute_dtype())
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return cls(cast(PreTrainedModel, model.to(device).eval()), cache)

    @cached_property
    def position_bytes(self) -> int:
        """Bytes that one position of one row takes in the exact cache, as a step writes it."""
        return position_bytes(self.model, self.model.dtype)

    def free_bytes(self) -> int:
        """Free memory of the devices that hold the cache."""
        return free_bytes()

    def make_layer(self, number: int) -> GrowingLayer:
        """Make an empty cache for one layer."""
        if not self._kept:
            return GrowingLayer()
        return LatentLayer(self._bases[number] if self._bases else None, int8=self._kept.int8)

    @torch.inference_mode()
    def start(self, prompts: Sequence[Sequence[int]]) -> Floats:
        """See `Decoder.start`; returns logits_BV. A prompt that several rows share is read once."""
        places: dict[tuple[int, ...], int] = {}
        rows = np.array([places.setdefault(tuple(prompt), len(places)) for prompt in prompts])
        distinct = list(places)
        first, *others = _pieces(distinct)
        logits = [self._read(distinct[first])]
        for piece in others:
            logits.append(self._place(np.arange(piece.start, piece.stop), distinct[piece]))
        logits_BV = np.concatenate(logits)
        if len(places) < len(prompts):
            self.keep(rows)
            logits_BV = logits_BV[rows]
        return logits_BV

    @torch.inference_mode()
    def replace(self, rows: Ints, prompts: Sequence[Sequence[int]]) -> Floats:
        """See `Decoder.replace`; returns logits_BV of these rows.

        A row is written where it will be read, so the others are not copied. Columns that are padding in all rows are
        dropped when they are many.
        """
        logits_BV = self._place(rows, prompts)
        unused, length = int(self._mask_BS.argmax(1).min()), self._mask_BS.shape[1]
        if unused > DROPPED_FROM * length:
            self.keep(np.arange(len(self._mask_BS)))
        return logits_BV

    def _place(self, rows: Ints, prompts: Sequence[Sequence[int]]) -> Floats:
        cache, mask_BS = self._cache, self._mask_BS
        logits_BV = self.start(prompts)
        read, read_mask_BS = self._cache, self._mask_BS
        assert cache is not None and read is not None
        index = torch.from_numpy(np.ascontiguousarray(rows)).to(self.device)
        for layer, other in zip(cache.layers, read.layers, strict=True):
            assert isinstance(layer, GrowingLayer) and isinstance(other, GrowingLayer)
            layer.place(index, other)
        count, length = max(len(mask_BS), int(rows.max()) + 1), max(mask_BS.shape[1], read_mask_BS.shape[1])
        self._cache, self._mask_BS = cache, mask_BS.new_zeros(count, length)
        self._mask_BS[: len(mask_BS), length - mask_BS.shape[1] :] = mask_BS
        self._mask_BS[index] = torch.nn.functional.pad(read_mask_BS, (length - read_mask_BS.shape[1], 0))
        self._padded = not bool(self._mask_BS.all())
        return logits_BV

    def _read(self, prompts: Sequence[Sequence[int]]) -> Floats:
        longest = max(len(prompt) for prompt in prompts)
        pad = self._config.pad_token_id or 0
        rows = [[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        masks = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        self._mask_BS = torch.tensor(masks, device=self.device)
        self._padded = any(len(prompt) < longest for prompt in prompts)
        self._cache = make_cache(self._config.num_hidden_layers, self.make_layer)
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
        """See `Decoder.keep`; columns that are padding in all remaining rows are dropped too."""
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


def free_bytes() -> int:
    """Return the free memory of the GPUs, or of the machine if there is none."""
    if torch.cuda.is_available():
        return sum(torch.cuda.mem_get_info(device)[0] for device in range(torch.cuda.device_count()))
    return memory().available_bytes


def _pieces(prompts: Sequence[Sequence[int]]) -> list[slice]:
    """Cut prompts into runs that have at most `MOST_READ` tokens each when they are padded, or are one prompt."""
    pieces, begin, longest = [], 0, 0
    for end, prompt in enumerate(prompts):
        longest = max(longest, len(prompt))
        if end > begin and longest * (end + 1 - begin) > MOST_READ:
            pieces.append(slice(begin, end))
            begin, longest = end, len(prompt)
    return [*pieces, slice(begin, len(prompts))]


def load_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load a local causal language model completely, as `toolkit.model.loading.load_whole` does."""
    return load_whole(AutoModelForCausalLM, folder, dtype=dtype, attn_implementation="sdpa")


def check_loads(folder: Path) -> None:
    """Raise what `load_model` would raise, without reading a weight."""
    load_whole(AutoModelForCausalLM, folder, device_map="meta", attn_implementation="sdpa")
