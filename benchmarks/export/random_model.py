"""Writes random weights in a given shape, to measure what does not depend on them: speed, time and memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from export.checkpoint.model_config import read_model_config
from export.checkpoint.tensors import tensor_shapes
from toolkit.formats.chat_format import CHAT_FILES
from toolkit.sources.model_names import resolve


def write_random(config_json: Mapping[str, Any], folder: Path) -> None:
    """Write a model folder in bf16 with the tokenizer of SmolLM2; the norms' weights are ones."""
    folder.mkdir(parents=True)
    donor = resolve("smollm2-135m")
    for name in CHAT_FILES:
        if (donor / name).is_file():
            shutil.copyfile(donor / name, folder / name)
    (folder / "config.json").write_text(json.dumps(config_json), encoding="utf-8")
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.ones(shape, dtype=torch.bfloat16)
        if len(shape) == 1
        else torch.randn(shape, generator=generator).mul_(0.02).bfloat16()
        for name, shape in tensor_shapes(read_model_config(folder)).items()
    }
    save_file(tensors, folder / "model.safetensors")
