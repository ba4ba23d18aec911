"""Tensors come out of one file or of many alike, in float32, whatever they were stored in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from export.checkpoint import Checkpoint, tensor_shapes
from toolkit.errors import InputError


@pytest.fixture
def sharded(tiny_student: Path, tmp_path: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(tiny_student, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    return tmp_path / "sharded"


def test_a_sharded_bf16_checkpoint_reads_as_the_single_one_rounded(tiny_student: Path, sharded: Path) -> None:
    single, many = Checkpoint(tiny_student), Checkpoint(sharded)
    for name, shape in tensor_shapes(many.config).items():
        assert many.array(name).shape == shape
        assert many.array(name).dtype == np.float32
        np.testing.assert_array_equal(many.array(name), single.tensor(name).bfloat16().float().numpy())


def test_tensor_shapes_name_every_tensor_of_each_architecture(checkpoint_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint_folder)
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert tensor_shapes(Checkpoint(checkpoint_folder).config) == expected


def test_a_missing_shard_is_named(sharded: Path) -> None:
    shard = max(sharded.glob("*.safetensors"))
    shard.unlink()
    with pytest.raises(InputError, match=rf"{shard.name} \(0 bytes\) must be a whole safetensors file"):
        Checkpoint(sharded)
