"""Arranges the channels of each head as attention's kernels read them.

    checkpoint          x0 x1 … y0 y1 … rest          or, where neighbours rotate together, x0 y0 x1 y1 … rest
    queries and keys    x0 x1 … 0 y0 y1 … 0 rest 0
    values              all channels as they are, 0

Channels x and y of one number are a pair, which rotates. The kernels rotate a multiple of `PAIRS_STEP` pairs, of a head
of a multiple of `HEAD_DIM_STEP` channels, so zeros fill up both. They change nothing: zeros stay zeros when they are
rotated, they add nothing to the products of queries and keys, and zeros among the values meet zero columns of o_proj. A
norm over a head's channels divides by more of them, for which its weight and its epsilon make up.

Shapes: A head dim, R rotated pairs.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torch.nn.functional import pad

from export.checkpoint.model_config import ModelConfig

IN_HEADS = re.compile(
    r"layers\.(?P<layer>\d+)\.self_attn\.(?P<letters>q|k|v|qkv|o)_(?P<kind>proj|norm)\.(weight|bias)$"
)
"""The names of tensors that have heads: as rows, the weight of o_proj as columns."""


def are_arranged(config: ModelConfig) -> bool:
    """Whether the graph has the channels of heads otherwise than the checkpoint."""
    return config.padded_head_dim != config.head_dim or config.family.rotates_neighbours


def has_heads_as_rows(name: str) -> bool:
    """Whether the rows of a checkpoint's tensor are those of heads, so that it must be arranged whole."""
    found = IN_HEADS.search(name)
    return found is not None and found["letters"] != "o"


def arranged(config: ModelConfig, name: str, values: Tensor) -> Tensor:
    """Return a checkpoint's tensor with its heads as the graph has them; of o_proj it may be some rows."""
    found = IN_HEADS.search(name)
    if not found or not are_arranged(config) or name.endswith("o_proj.bias"):
        return values
    layer, letters = int(found["layer"]), found["letters"]
    if letters == "o":
        return (
            values
            if values.dim() == 1
            else _with_heads(config, values.T, head_order(config, layer, "v")).T.contiguous()
        )
    sizes = dict(zip("qkv", config.stored_qkv_sizes, strict=True))
    parts = values.split([sizes[letter] for letter in letters]) if found["kind"] == "proj" else [values]
    with_heads = torch.cat(
        [
            _with_heads(config, part, head_order(config, layer, letter))
            for part, letter in zip(parts, letters, strict=True)
        ]
    )
    return with_heads * (config.head_dim / config.padded_head_dim) ** 0.5 if found["kind"] == "norm" else with_heads


def head_order(config: ModelConfig, layer: int, letter: str) -> Tensor:
    """Return which of the checkpoint's channels each of the graph's is, order_A; `head_dim` is a zero. `letter`: q, k
    or v."""
    zero, rope = config.head_dim, config.ropes[layer]
    pairs = len(rope.inv_freq) if rope and letter != "v" else 0
    added = len(rope.turns) - pairs if rope and pairs else 0
    rotated = torch.arange(2 * pairs)
    halves_2R = rotated.reshape(pairs, 2).T if config.family.rotates_neighbours else rotated.reshape(2, pairs)
    order_A = torch.cat([pad(halves_2R, (0, added), value=zero).flatten(), torch.arange(2 * pairs, zero)])
    return pad(order_A, (0, config.padded_head_dim - len(order_A)), value=zero)


def _with_heads(config: ModelConfig, values: Tensor, order_A: Tensor) -> Tensor:
    heads = values.unflatten(0, (-1, config.head_dim))
    zeros = heads.new_zeros(len(heads), 1, *heads.shape[2:])
    return torch.cat([heads, zeros], dim=1)[:, order_A].flatten(0, 1)
