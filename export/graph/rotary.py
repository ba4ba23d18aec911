"""Computes from its configuration the frequencies by which a model rotates queries and keys.

Pair r of a head rotates by inv_freq[r] radians a position: inv_freq[r] = rope_theta^(-2r / head_dim). Llama 3 stretches
the slow ones: a wavelength above original_max_position_embeddings / low_freq_factor becomes `factor` times as long, one
below original_max_position_embeddings / high_freq_factor stays, and between them the frequency is interpolated.

Invariant: the same float32 bits as transformers' modeling_rope_utils, operation by operation.

Shapes: R rotated pairs of a head.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.runtime.model_config import Llama3Scaling, ModelConfig


def inverse_frequencies(config: ModelConfig) -> NDArray[np.float32]:
    """Return inv_freq_R in radians a position."""
    exponents_R = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    inv_freq_R = 1.0 / config.rope_theta**exponents_R
    if config.rope_scaling is not None:
        inv_freq_R = _stretch(inv_freq_R, config.rope_scaling)
    values_R: NDArray[np.float32] = inv_freq_R.numpy()
    return values_R


def _stretch(inv_freq_R: Tensor, scaling: Llama3Scaling) -> Tensor:
    trained, low, high = scaling.original_max_position_embeddings, scaling.low_freq_factor, scaling.high_freq_factor
    wavelength_R = 2 * math.pi / inv_freq_R
    is_long_R, is_short_R = wavelength_R > trained / low, wavelength_R < trained / high
    share_R = (trained / wavelength_R - low) / (high - low)
    between_R = (1 - share_R) * inv_freq_R / scaling.factor + share_R * inv_freq_R
    stretched_R = torch.where(is_long_R, inv_freq_R / scaling.factor, between_R)
    return torch.where(is_short_R, inv_freq_R, stretched_R)
