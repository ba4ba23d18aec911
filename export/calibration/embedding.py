"""Rounds the embedding's rows for what the first layers read of them.

A row that is looked up has no inputs whose second moment would say which of its errors matter. But it is read by the
matrices of the layers: with R one of those, times the norm before it, an error e becomes R e. So error feedback makes
eᵀ M e small, where M sums RᵀR over the matrices that read the stream in the first layers, each over the mean
square of its elements.

Shapes: D hidden, N output features, X rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from export.calibration.rounding import Calibrated
from export.checkpoint.tensors import EMBEDDING, LM_HEAD, Checkpoint
from export.quantization.codes import QuantizedWeight, quantize_nearest
from export.quantization.gptq import inverse_factor, quantize_with_feedback
from export.quantization.layout import Layout
from toolkit.generation.generate import Floats
from toolkit.model.precision import fp32_by_onednn

READING_LAYERS = 2
"""How many layers' matrices count: the stream grows, so that a row's share of what later ones read is small."""

RoundRows = Callable[[Tensor], QuantizedWeight]
"""Rounds rows_XD, each by itself."""


def embedding_rounding(
    checkpoint: Checkpoint, vectors: Mapping[str, Floats], chosen: Mapping[str, Layout], method: Calibrated
) -> RoundRows:
    """Return how rows of the embedding are rounded: with error feedback, if that is the method and the matrix is no
    head as well, which multiplies other inputs; else to nearest.

    `vectors`: norms and biases as the graph has them, by name. `chosen`: the layouts of all stored matrices.
    """
    layout = chosen[EMBEDDING]
    if method != "gptq" or LM_HEAD not in chosen:
        return lambda rows_XD: quantize_nearest(rows_XD.numpy(), bits=layout.bits, block_size=layout.block_size)
    metric_DD = reading_metric(checkpoint, vectors)
    upper_DD = inverse_factor(metric_DD)

    @fp32_by_onednn()
    @torch.no_grad()
    def fed_back(rows_XD: Tensor) -> QuantizedWeight:
        return quantize_with_feedback(rows_XD, metric_DD, upper_DD, bits=layout.bits, block_size=layout.block_size)

    return fed_back


def reading_metric(checkpoint: Checkpoint, vectors: Mapping[str, Floats]) -> Tensor:
    """Return metric_DD, what errors of the stream become in the first layers' matrices."""
    size = checkpoint.config.hidden_size
    metric_DD = torch.zeros(size, size)
    norms = checkpoint.config.family.norms
    for layer in range(min(READING_LAYERS, checkpoint.config.num_hidden_layers)):
        for module, norm in (("self_attn.qkv_proj", norms.before_attention), ("mlp.gate_up_proj", norms.before_mlp)):
            read_ND = checkpoint.whole(f"model.layers.{layer}.{module}.weight")
            if norm:
                read_ND *= torch.from_numpy(vectors[f"model.layers.{layer}.{norm}.weight"])
            metric_DD.addmm_(read_ND.T, read_ND, alpha=1 / float(read_ND.square().mean()))
    return metric_DD
