"""One layer of any family in float32, in the parts between which its matrices are calibrated.

    stream ─ norm ─ qkv_proj ─ attend ─ o_proj ─ norm ─ + stream ─ norm ─ gate_up_proj ─ gate ─ down_proj ─ norm ─ +

Which norms there are is the family's (`export.checkpoint.decoder_families`). The gate compares the exported whole with
transformers' own model.

Shapes: B texts of a batch, T tokens, D hidden, F feed-forward, H query heads, G kv heads, A head dim, R rotated pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from export.checkpoint.decoder_families import MATRICES
from export.checkpoint.model_config import ModelConfig
from export.checkpoint.rope import Rope
from export.checkpoint.tensors import XIELU_ALPHAS, XIELU_BUFFERS, Checkpoint
from toolkit.generation.generate import Floats

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu_tanh": lambda gate: functional.gelu(gate, approximate="tanh"),
    "relu_squared": lambda gate: functional.relu(gate).square(),
}
"""Those that nothing is learned for."""


class Layer(nn.Module):
    """A layer with its weights; after it has been calibrated, its matrices are the rounded ones."""

    def __init__(self, checkpoint: Checkpoint, layer: int, vectors: Mapping[str, Floats]) -> None:
        """Read a layer's matrices; `vectors`: all norms and biases (`export.checkpoint.tensors`)."""
        super().__init__()
        self.config: ModelConfig = checkpoint.config
        self._layer = layer
        prefix = f"model.layers.{layer}."
        self._vectors = {
            name.removeprefix(prefix): torch.from_numpy(vector)
            for name, vector in vectors.items()
            if name.startswith(prefix)
        }
        self.linears = nn.ModuleDict()
        for module in MATRICES:
            weight_NK = checkpoint.whole(f"{prefix}{module}.weight")
            linear = nn.Linear(weight_NK.shape[1], weight_NK.shape[0], bias=False, device="meta")
            linear.weight = nn.Parameter(weight_NK, requires_grad=False)
            bias_N = self._vectors.get(f"{module}.bias")
            if bias_N is not None:
                linear.bias = nn.Parameter(bias_N, requires_grad=False)
            self.linears[module.partition(".")[2]] = linear

    def linear(self, name: str) -> nn.Linear:
        """Return a matrix by the last part of its name."""
        linear: Any = self.linears[name]
        found: nn.Linear = linear
        return found

    def norm(self, name: str, input_BTD: Tensor) -> Tensor:
        """Norm by name; without one, return the input."""
        return normed(self._vectors, name, input_BTD, self.config.rms_norm_eps) if name else input_BTD

    def update(self, name: str, output_BTD: Tensor) -> Tensor:
        """Return what is added to the residual stream: an output behind its own norm."""
        return self.norm(name, output_BTD) * self.config.residual_multiplier

    def attend(self, input_BTD: Tensor) -> Tensor:
        """Compute attention up to o_proj, [B, T, H·A]."""
        config = self.config
        query, key, value = self.linear("qkv_proj")(input_BTD).split(config.qkv_sizes, dim=-1)
        if config.family.qk_norm == "all heads":
            query, key = self._qk_normed(query, key)
        query_BHTA, key_BGTA, value_BGTA = (
            part.unflatten(-1, (-1, config.padded_head_dim)).transpose(1, 2) for part in (query, key, value)
        )
        if config.family.qk_norm == "each head":
            query_BHTA, key_BGTA = self._qk_normed(query_BHTA, key_BGTA)
        rope = config.ropes[self._layer]
        if rope:
            query_BHTA, key_BGTA = rotated(query_BHTA, rope), rotated(key_BGTA, rope)
        mask_TT = window_mask(input_BTD.shape[1], config.sliding_windows[self._layer])
        attended_BHTA = functional.scaled_dot_product_attention(
            query_BHTA,
            key_BGTA,
            value_BGTA,
            attn_mask=mask_TT,
            is_causal=mask_TT is None,
            scale=config.attention_multiplier,
            enable_gqa=True,
        )
        return attended_BHTA.transpose(1, 2).flatten(2)

    def _qk_normed(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        eps = self.config.qk_norm_eps
        return (
            normed(self._vectors, "self_attn.q_norm", query, eps),
            normed(self._vectors, "self_attn.k_norm", key, eps),
        )

    def gate(self, input_BTD: Tensor) -> Tensor:
        """Compute the MLP up to down_proj, [B, T, F]."""
        product: Tensor = self.linear("gate_up_proj")(input_BTD)
        if not self.config.family.has_gate:
            return self._activated(product)
        gate_BTF, up_BTF = product.chunk(2, dim=-1)
        return self._activated(gate_BTF) * up_BTF

    def _activated(self, gate_BTF: Tensor) -> Tensor:
        if self.config.activation != "xielu":
            return ACTIVATIONS[self.config.activation](gate_BTF)
        alpha_p, alpha_n, beta, eps = (self._vectors[f"mlp.act_fn.{name}"] for name in (*XIELU_ALPHAS, *XIELU_BUFFERS))
        negative_BTF = alpha_n * (torch.expm1(torch.minimum(gate_BTF, eps)) - gate_BTF)
        return torch.where(gate_BTF > 0, alpha_p * gate_BTF.square(), negative_BTF) + beta * gate_BTF


def normed(vectors: Mapping[str, Tensor], name: str, input_BTD: Tensor, eps: float) -> Tensor:
    """Norm by name; one that has a bias subtracts the mean as well."""
    weight_D, bias_D = vectors[f"{name}.weight"], vectors.get(f"{name}.bias")
    if bias_D is None:
        return functional.rms_norm(input_BTD, weight_D.shape, weight_D, eps)
    return functional.layer_norm(input_BTD, weight_D.shape, weight_D, bias_D, eps)


def final_norm(config: ModelConfig, vectors: Mapping[str, Floats]) -> Callable[[Tensor], Tensor]:
    """Return the norm behind the last layer. `vectors`: all norms and biases."""
    found = {name: torch.from_numpy(vector) for name, vector in vectors.items() if name.startswith("model.norm.")}
    return lambda states_BTD: normed(found, "model.norm", states_BTD, config.rms_norm_eps)


def rotated(input_BHTA: Tensor, rope: Rope) -> Tensor:
    """Rotate the first 2R channels of each head by their positions; channels r and r + R are a pair."""
    turns_R = torch.tensor(rope.turns, dtype=torch.float32)
    angles_TR = torch.arange(input_BHTA.shape[2], dtype=torch.float32)[:, None] * turns_R
    cos_TR, sin_TR = angles_TR.cos() * rope.length, angles_TR.sin() * rope.length
    pairs = len(turns_R)
    first, second, rest = input_BHTA.split([pairs, pairs, input_BHTA.shape[-1] - 2 * pairs], dim=-1)
    return torch.cat([first * cos_TR - second * sin_TR, second * cos_TR + first * sin_TR, rest], dim=-1)


def window_mask(length: int, sliding_window: int) -> Tensor | None:
    """Make a sliding window's mask; None if plain causal attention suffices, which sdpa computes without one."""
    if not 0 < sliding_window < length:
        return None
    distance_TT = torch.arange(length)[:, None] - torch.arange(length)
    return (distance_TT >= 0) & (distance_TT < sliding_window)
