"""Opens a model folder as a teacher: any causal language model that transformers knows, on the GPU or the CPU.

What a folder's files show to be wrong is an error before a weight is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from distill.local import grouped_attention
from distill.local.needs import check_room, needs_of
from distill.local.quantized import LoadIn, check_load_in, prepare, quantization_settings
from toolkit.errors import InputError
from toolkit.formats.chat_format import TOKENIZER
from toolkit.model.decoder import EXACT, LatentCache, TorchDecoder, free_bytes
from toolkit.model.loading import check_rows, load_whole, not_finite, quantization
from toolkit.model.precision import compute_dtype
from toolkit.records import read_object

WRITERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""How the names of architectures that write text end."""
CACHED = ("full_attention", "sliding_attention", "chunked_attention")
"""Kinds of layers whose cache is one of keys and values, or of latents."""


def open_causal_model(
    folder: Path, dtype: torch.dtype | None = None, *, cache: LatentCache = EXACT, load_in: LoadIn | None = None
) -> TorchDecoder:
    """Load a checkpoint, by default in bf16 where the processor or GPU has it, or in fewer bits.

    Raises `InputError` if the folder is no causal model, is quantized already, does not fit the memory, has fewer rows
    than its vocabulary, or a weight that is not finite.
    """
    check_causal(folder)
    if load_in:
        check_load_in(folder, load_in)
    dtype, attention = dtype or compute_dtype(), attention_of(folder)
    empty = _without_weights(folder, attention)
    check_layers(folder, empty)
    if (folder / TOKENIZER).is_file():
        check_rows(folder, empty, added=False)
    check_room(folder, needs_of(empty, folder, dtype, load_in), load_in, free_bytes())
    settings: dict[str, Any] = quantization_settings(empty, load_in, dtype) if load_in else {}
    model = load_whole(
        AutoModelForCausalLM, folder, dtype=dtype, attn_implementation=attention, device_map=devices(), **settings
    ).eval()
    if name := not_finite(model):
        raise InputError(f"the weight {name} of {folder} is not finite; get the checkpoint again")
    if load_in or quantization(folder) == "bitsandbytes":
        prepare(model)
    if attention == "sdpa":
        model.set_attn_implementation(grouped_attention.NAME)
    return TorchDecoder(model, cache)


def _without_weights(folder: Path, attention: str) -> PreTrainedModel:
    """Make the model of a folder on torch's device `meta`, and check the names of its tensors, unless it is quantized:
    codes and scales have other ones, and transformers converts none without their values."""
    if not quantization(folder):
        return load_whole(AutoModelForCausalLM, folder, device_map="meta", attn_implementation=attention)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        empty: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return empty


def devices() -> str | dict[str, str]:
    """Return where layers go: onto the GPU, spread over several ones, or onto the CPU."""
    if not torch.cuda.is_available():
        return {"": "cpu"}
    return "auto" if torch.cuda.device_count() > 1 else {"": "cuda:0"}


def check_causal(folder: Path) -> None:
    """Raise `InputError` if a folder's configuration is not that of a model that continues text."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json; give a model folder")
    config = read_object(folder / "config.json")
    kind, named = config.get("model_type"), config.get("architectures")
    names = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    if names and not any(name.endswith(WRITERS) for name in names):
        raise InputError(f"{folder} is a {names[0]}, which does not continue text; choose a causal language model")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise InputError(
            f"{folder} has the model_type {kind!r}, which is no causal language model of transformers; choose another "
            "model, or serve it and give its address"
        )


def attention_of(folder: Path) -> str:
    """Return the fastest implementation of attention that a checkpoint's architecture has."""
    config = read_object(folder / "config.json")
    model_class = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config["model_type"]], None)
    if config.get("attn_logit_softcapping") or not getattr(model_class, "_supports_sdpa", True):
        return "eager"
    return "sdpa"


def check_layers(folder: Path, model: PreTrainedModel) -> None:
    """Raise `InputError` if a model has layers whose state is no cache of tokens, such as Mamba's."""
    config: Any = model.config.get_text_config(decoder=True)
    strange = [kind for kind in getattr(config, "layer_types", None) or () if kind not in CACHED]
    if strange or getattr(model, "_is_stateful", False):
        kind = strange[0] if strange else "recurrent"
        raise InputError(
            f"{folder} has {kind} layers, whose state no row here can keep; serve it (vLLM, llama.cpp) and give its "
            "address"
        )
