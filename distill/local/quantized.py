"""Loads a checkpoint's linear layers in 8 or 4 bits with bitsandbytes (Dettmers et al. 2022 and 2023).

8bit: each row of a weight in int8 with one scale. The products are those of the dequantized weights: bitsandbytes' own
also rounds the activations, except in columns where some row of the batch has a large value, so what one row says would
depend on its neighbours.
4bit: NF4 in blocks of 64, whose scales are quantized in turn.

Embeddings, the head and norms stay as they are, and so do `kv_b_proj`, which absorbed attention reads as a matrix
(`toolkit.model.mla`), and in 4 bits layers whose rows are not made of whole blocks. transformers keeps a mixture's
routed experts as stacked tensors, which bitsandbytes leaves as they are too.

Shapes: B rows, T tokens, K inputs, N outputs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args

from toolkit.errors import InputError
from toolkit.model.loading import quantization
from toolkit.sources.model_names import is_exported

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LoadIn = Literal["8bit", "4bit"]
LOAD_IN: tuple[LoadIn, ...] = get_args(LoadIn)
WEIGHT_BYTES: Mapping[LoadIn, float] = MappingProxyType({"8bit": 1.0, "4bit": 0.5 + 2 / 64})
"""Bytes of a weight in a quantized layer: NF4's codes with a scale for each block, which is in bf16 on a CPU."""
LEFT_AS_THEY_ARE = ("kv_b_proj", "lm_head")
INT8_LARGEST = 127
BLOCK = 64
"""Weights that share a scale in NF4. On a CPU bitsandbytes 0.50 mixes them up if a row is not made of whole blocks."""
ROWS_TOGETHER = 32
"""What bitsandbytes' kernel for CPUs with AVX512-BF16 needs a layer's outputs to be a multiple of."""


def check_load_in(folder: Path, load_in: LoadIn) -> None:
    """Raise `InputError` if a folder's weights cannot be loaded in fewer bits, as far as its files show it."""
    if is_exported(folder):
        raise InputError(
            f"--load-in {load_in}: {folder} is an exported model, whose weights are quantized already; leave it out"
        )
    if method := quantization(folder):
        raise InputError(
            f"--load-in {load_in}: {folder} is quantized already (by {method}); leave it out, or choose the model that "
            "it was made from"
        )
    if find_spec("bitsandbytes") is None:
        raise InputError(
            f"--load-in {load_in} needs bitsandbytes, which is not installed; pip install 'reasoning-edge[scale]'"
        )


def quantized_layers(model: torch.nn.Module, load_in: LoadIn) -> dict[str, torch.nn.Linear]:
    """Return the layers of a model that are loaded in so many bits, by name; the model may be without weights."""
    from torch.nn import Linear

    return {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) is Linear
        and name.rpartition(".")[2] not in LEFT_AS_THEY_ARE
        and (load_in == "8bit" or layer.in_features % BLOCK == 0)
    }


def quantization_settings(model: torch.nn.Module, load_in: LoadIn, dtype: torch.dtype) -> dict[str, Any]:
    """Return what transformers' `from_pretrained` needs to load in so many bits and to compute in `dtype`.

    `model`: the same one, which may be without weights.
    """
    from torch.nn import Linear
    from transformers import BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # one line for each layer that no faster kernel runs
    quantized = quantized_layers(model, load_in)
    left = [name for name, layer in model.named_modules() if type(layer) is Linear and name not in quantized]
    common = {"llm_int8_skip_modules": left or list(LEFT_AS_THEY_ARE)}
    if load_in == "8bit":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True, **common)}
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        **common,
    )
    return {"quantization_config": config}


def prepare(model: torch.nn.Module) -> None:
    """Let layers in 8 bits multiply with their dequantized weights, and those in 4 bits run whatever their sizes."""
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    for module in model.modules():
        if isinstance(module, Linear8bitLt):
            vars(module)["forward"] = partial(_dequantized_product, module)
        elif isinstance(module, Linear4bit) and module.out_features % ROWS_TOGETHER:
            module.support_avx512bf16_for_cpu = False


def _dequantized_product(layer: Any, input_BTK: Tensor) -> Tensor:
    from torch.nn.functional import linear

    codes_NK, scale_N = layer.weight.data, layer.weight.SCB
    output_BTN: Tensor = linear(input_BTK, codes_NK.to(input_BTK.dtype))  # codes are exact in bf16
    output_BTN = output_BTN * (scale_N / INT8_LARGEST).to(input_BTK.dtype)
    return output_BTN if layer.bias is None else output_BTN + layer.bias
