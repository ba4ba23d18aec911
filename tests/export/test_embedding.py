"""Rows that are looked up are rounded for what the first layers read of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from export.calibration.embedding import READING_LAYERS, embedding_rounding, reading_metric
from export.checkpoint.tensors import EMBEDDING, LM_HEAD, Checkpoint, vectors
from export.quantization.codes import dequantize, quantize_nearest
from export.quantization.layout import Layout


def test_an_errors_cost_is_what_it_adds_to_the_outputs_of_the_first_matrices(checkpoint_folder: Path) -> None:
    """The oracle multiplies by transformers' own modules, norms' weights and all."""
    from transformers import AutoModelForCausalLM

    checkpoint = Checkpoint(checkpoint_folder)
    metric_DD = reading_metric(checkpoint, vectors(checkpoint))
    error_D = torch.randn(checkpoint.config.hidden_size, generator=torch.Generator().manual_seed(3))
    model, family = (
        AutoModelForCausalLM.from_pretrained(checkpoint_folder, dtype=torch.float32),
        checkpoint.config.family,
    )
    model.requires_grad_(False)
    expected = 0.0
    for index, layer in enumerate(model.model.layers[:READING_LAYERS]):
        for module, norm in (
            ("self_attn.qkv_proj", family.norms.before_attention),
            ("mlp.gate_up_proj", family.norms.before_mlp),
        ):
            matrix_ND = torch.cat([layer.get_submodule(part).weight for part in family.sources[module]])
            if norm:
                matrix_ND = matrix_ND * (layer.get_submodule(norm).weight + float(family.norms_add_one))
            filled_up = checkpoint.whole(f"model.layers.{index}.{module}.weight").numel()  # with rows of zeros
            expected += float((matrix_ND @ error_D).square().sum() * filled_up / matrix_ND.square().sum())
    np.testing.assert_allclose(float(error_D @ metric_DD @ error_D), expected, rtol=1e-4)


def test_feedback_lowers_the_cost_of_the_embeddings_errors(checkpoint_folder: Path) -> None:
    """A matrix that is the head as well is rounded to nearest."""
    checkpoint = Checkpoint(checkpoint_folder)
    norms, layout = vectors(checkpoint), Layout(bits=4, block_size=32)
    float_VD, metric_DD = checkpoint.tensor(EMBEDDING), reading_metric(checkpoint, norms)
    nearest = quantize_nearest(float_VD.numpy(), bits=4, block_size=32)
    fed_back, shared = (
        embedding_rounding(checkpoint, norms, chosen, "gptq")(float_VD)
        for chosen in ({EMBEDDING: layout, LM_HEAD: layout}, {EMBEDDING: layout})
    )
    assert (shared.codes == nearest.codes).all()
    cost = {
        name: float(
            ((torch.from_numpy(dequantize(weight)) - float_VD) @ metric_DD)
            .mul_(torch.from_numpy(dequantize(weight)) - float_VD)
            .sum()
        )
        for name, weight in (("nearest", nearest), ("fed back", fed_back))
    }
    assert cost["fed back"] < cost["nearest"]
