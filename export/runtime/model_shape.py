"""Reads from an exported folder's `genai_config.json` the numbers with which its graph is run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import InputError
from toolkit.field_types import check_type
from toolkit.records import read_object

GENAI_CONFIG = "genai_config.json"
"""onnxruntime-genai's configuration, which each export writes."""
LARGEST_NUMBER = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Names are those of onnxruntime-genai."""

    num_hidden_layers: int
    num_key_value_heads: int
    head_size: int
    vocab_size: int
    context_length: int


def read_model_shape(folder: Path) -> ModelShape:
    """Read `folder/genai_config.json`; raises `InputError` if it is missing, or a number in it is."""
    path = folder / GENAI_CONFIG
    if not path.is_file():
        raise InputError(f"{folder} lacks {GENAI_CONFIG}; copy the whole folder again, or export again")
    model: Any = read_object(path).get("model")
    check_type(model, dict[str, Any], f"model in {path}")
    decoder: Any = model.get("decoder")
    check_type(decoder, dict[str, Any], f"decoder in {path}")
    found: dict[str, int] = {}
    for name in ModelShape.__dataclass_fields__:
        value = (model if name in ("vocab_size", "context_length") else decoder).get(name)
        check_type(value, int, f"{name} in {path}")
        if not 0 < value <= LARGEST_NUMBER:
            raise InputError(f"{name} in {path} ({value}) must be from 1 to {LARGEST_NUMBER}; export again")
        found[name] = value
    return ModelShape(**found)
