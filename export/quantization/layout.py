"""Assigns each matrix its bits and block size: codes of 3, 4 or 8 bits, or floats of 16 or 32."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from export.checkpoint.decoder_families import MATRICES
from export.checkpoint.model_config import ModelConfig
from export.checkpoint.tensors import EMBEDDING, LM_HEAD
from export.quantization.codes import LARGEST_CODE_BITS, THREE_BITS_BLOCK
from toolkit.errors import InputError

BLOCK_SIZES = (256, 128, 64, 32)
"""The sizes that onnxruntime has fast kernels for; larger ones are faster and smaller, but less faithful."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The format of one stored matrix."""

    bits: int
    """3, 4 or 8 for codes, 16 or 32 for floats."""
    block_size: int
    """Weights that share a scale; 0 for floats, which have none."""


def layouts(
    config: ModelConfig,
    *,
    bits: int,
    block_size: int,
    head_bits: int,
    has_own_head: bool = False,
    narrow: Collection[str] = (),
) -> dict[str, Layout]:
    """Assign a layout to each stored matrix by name: `bits` to all but the output head, which gets `head_bits`.

    The layers' modules in `narrow` get 3 bits if their rows are whole blocks of 256. A tied embedding and head are one
    matrix, unless `has_own_head` stores them apart.

    If `block_size` does not divide the rows of a matrix of codes, it gets the next smaller one of `BLOCK_SIZES` that
    does. Raises `InputError` if none does.
    """
    hidden, attended = config.hidden_size, config.qkv_sizes[0]
    columns = {"self_attn.o_proj": attended, "mlp.down_proj": config.intermediate_size}
    chosen = {
        f"model.layers.{layer}.{module}.weight": _layout(
            module, columns.get(module, hidden), bits, block_size, is_narrow=module in narrow
        )
        for layer in range(config.num_hidden_layers)
        for module in MATRICES
    }
    shared = config.tie_word_embeddings and not has_own_head
    chosen[EMBEDDING] = _layout("embed_tokens", hidden, head_bits if shared else bits, block_size)
    if not shared:
        chosen[LM_HEAD] = _layout("lm_head", hidden, head_bits, block_size)
    return chosen


def _layout(module: str, columns: int, bits: int, block_size: int, *, is_narrow: bool = False) -> Layout:
    if bits > LARGEST_CODE_BITS:
        return Layout(bits=bits, block_size=0)
    for size in BLOCK_SIZES:
        if size <= block_size and columns % size == 0:
            return Layout(bits=3 if is_narrow and size == THREE_BITS_BLOCK else bits, block_size=size)
    raise InputError(
        f"the rows of {module} ({columns} values) must be a multiple of {BLOCK_SIZES[-1]}, the smallest block size; "
        "export with --fp16 or --fp32, which have no blocks"
    )
