"""QLoRA's base (Dettmers et al. 2023): linear layers in NF4 with double quantization, under adapters in bf16 or fp32.

    student, floats ─ bitsandbytes ─> NF4 base, frozen      forward: x·W̃ + x·A·B      W̃ = dequantized NF4
                                      + adapters A, B       saved:   W̃ + A·B

Adapters learn to correct W̃ and not W, so they are merged into W̃: docs/how-to/train-larger-students.md has the losses.
PEFT's own merge into a layer in 4 bits would round the sum to NF4 again.

Which layers are quantized, and bitsandbytes' traps on a CPU: `distill.local.quantized`. Its kernel for CPUs with
AVX512-BF16 has no gradient and lays the weights out anew at the first evaluation, so no layer uses it here.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from distill.local.quantized import quantization_settings, quantized_layers
from toolkit.errors import InputError
from toolkit.model.decoder import load_model
from toolkit.model.loading import load_whole
from toolkit.model.precision import compute_dtype


def check_quantization(quantization: str) -> None:
    """Raise `InputError` if what quantizes is not installed."""
    if quantization and find_spec("bitsandbytes") is None:
        raise InputError("nf4 needs bitsandbytes, which is not installed; pip install 'reasoning-edge[scale]'")


def load_nf4(folder: Path) -> PreTrainedModel:
    """Load a student's checkpoint with its linear layers in NF4, on this process's device.

    Raises `InputError` if its weights cannot be read, or if no layer can be quantized.
    """
    from bitsandbytes.nn.modules import Linear4bit

    dtype = compute_dtype()
    empty = load_whole(AutoModelForCausalLM, folder, device_map="meta")
    if not quantized_layers(empty, "4bit"):
        raise InputError(
            f"no layer of {folder} has rows of whole blocks of 64, as nf4 needs; leave the quantization out"
        )
    device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    settings = quantization_settings(empty, "4bit", dtype)
    student = load_whole(
        AutoModelForCausalLM, folder, dtype=dtype, attn_implementation="sdpa", device_map={"": device}, **settings
    )
    for layer in student.modules():
        if isinstance(layer, Linear4bit):
            layer.support_avx512bf16_for_cpu = False
    for parameter in student.parameters():
        if not hasattr(parameter, "quant_state"):
            parameter.data = parameter.data.clone()  # a view of the file would keep all of it in memory
    return student


def dequantized(parameter: torch.Tensor) -> torch.Tensor:
    """Return the values of a weight, which may be in NF4."""
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return parameter.detach()
    from bitsandbytes.functional import dequantize_4bit

    values: torch.Tensor = dequantize_4bit(parameter.detach(), state)
    return values


def merged(model: PeftModel, folder: Path) -> PreTrainedModel:
    """Return the student of the folder in floats with the base's values and the adapters of `model` merged into them.

    `model` must not be used any more: its base gives up one layer at a time.
    """
    plain: Any = load_model(folder, compute_dtype())
    base = model.get_base_model()
    for name, parameter in list(base.named_parameters()):
        if hasattr(parameter, "quant_state"):
            plain.get_parameter(name.replace(".base_layer.", ".")).data.copy_(dequantized(parameter))
    fresh = get_peft_model(plain, model.peft_config["default"], autocast_adapter_dtype=False)
    set_peft_model_state_dict(fresh, get_peft_model_state_dict(model))
    whole: PreTrainedModel = fresh.merge_and_unload()
    return whole


def is_quantized(model: nn.Module) -> bool:
    """Whether some of a model's weights are in NF4."""
    return any(hasattr(parameter, "quant_state") for parameter in model.parameters())
