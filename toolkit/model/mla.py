"""Lets multi-head latent attention decode without expanding its cache (DeepSeek-V2 report, section 2.1.2).

transformers caches one latent for each token, but expands the whole prefix into each head's keys and values at every
step. When absorbed, the key half of `kv_b_proj` folds into the query and the value half is applied after attention, so
a step reads the latents as they are, the same for all heads:

    q̃ = q_nope · W_UK        scores = (q̃ · c + q_rot · k_rot) · scaling        out = (softmax(scores) · c) · W_UV

The same step reads latents of lower rank (with W·D in place of W) and in int8: see `toolkit.model.cache`. Modules,
weights and names remain transformers' own (DeepSeek-V2 and V3); only the computation between the cache and the output
projection changes. Many new tokens at once are cheaper expanded, and take transformers' path.
"""

# Shapes: B batch, H heads, T new tokens, S attended tokens, N nope, R rope, U value, C kv rank, P rank kept of it,
# X nope + rope of a query and nope + value of a weight, Y heads and new tokens.

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from toolkit.model.cache import LatentLayer
from toolkit.model.latent_basis import LatentAttention, latent_layers
from toolkit.model.latents import FloatLatents, Latents

NAME = "absorbed"


def absorb(model: PreTrainedModel) -> bool:
    """Make a model's latent attention decode absorbed, in place; returns whether it has any.

    Training does not change: without a cache all tokens are new, and take transformers' path.
    """
    layers = latent_layers(model)
    for layer in layers:
        layer.expand_kv = _keep_latents
    if layers:
        model.set_attn_implementation(NAME)
    return bool(layers)


def _keep_latents(latent_B1SC: Tensor, rotated_B1SR: Tensor) -> tuple[Tensor, Tensor]:
    """Replace a layer's `expand_kv`, so that attention gets the cache itself as keys and values."""
    return latent_B1SC, rotated_B1SR


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor | LatentLayer,
    value: Tensor | LatentLayer,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Compute attention under transformers' interface: query BHT(N+R), key the latents B1SC, value the rotated keys
    B1SR; or key and value both the cache layer that keeps these.

    Returns BTHU.
    """
    assert isinstance(module, LatentAttention)
    keeps_latents = "expand_kv" in vars(module)  # another model may be made from this one's configuration
    new, cached = query.shape[2], key.length if isinstance(key, LatentLayer) else key.shape[2]
    if keeps_latents and new < cached and new <= _most_absorbed(module):
        if isinstance(key, LatentLayer):
            latents, folded = key.latents(), key.basis.folded if key.basis else None
        else:
            assert isinstance(value, Tensor)
            latents, folded = FloatLatents(key[:, 0], value[:, 0]), None
        weight_HXP = _kv_b_proj(module) if folded is None else folded
        return _absorbed(module, query, latents, weight_HXP, attention_mask, scaling), None
    if isinstance(key, LatentLayer):
        key, value = key.restore()
    if keeps_latents:
        key, value = type(module).expand_kv(module, key, value)
    return sdpa_attention_forward(  # type: ignore[no-any-return]
        module, query, key, value, attention_mask, scaling=scaling, **kwargs
    )


def _most_absorbed(module: Any) -> int:
    """Return the most new tokens for which absorbed attention takes fewer products: 2C + R for each head and attended
    token, against N + R + U and the C·(N + U) of its expansion."""
    rank, expanded = module.kv_lora_rank, module.qk_nope_head_dim + module.v_head_dim
    saved: int = 2 * rank - expanded
    return rank * expanded // saved if saved > 0 else torch.iinfo(torch.long).max


def _kv_b_proj(module: Any) -> Tensor:
    weight_HXC: Tensor = module.kv_b_proj.weight.unflatten(0, (-1, module.qk_nope_head_dim + module.v_head_dim))
    return weight_HXC


def _absorbed(
    module: Any,
    query_BHTX: Tensor,
    latents: Latents,
    weight_HXP: Tensor,
    mask_B1TS: Tensor | None,
    scaling: float,
) -> Tensor:
    batch, heads, new, _ = query_BHTX.shape
    q_nope_BHTN, q_rot_BHTR = query_BHTX.split([module.qk_nope_head_dim, module.qk_rope_head_dim], dim=-1)
    key_HNP, value_HUP = weight_HXP.split([module.qk_nope_head_dim, module.v_head_dim], dim=1)
    q_latent_BHTP = torch.einsum("bhtn,hnp->bhtp", q_nope_BHTN, key_HNP)

    # rows of all heads together: one product for each sequence reads each latent once
    rows_BYP = q_latent_BHTP.reshape(batch, heads * new, -1)
    rows_BYR = q_rot_BHTR.reshape(batch, heads * new, -1)
    scores_BYS = latents.scores(rows_BYP, rows_BYR, scaling)
    scores_BHTS = scores_BYS.view(batch, heads, new, -1)
    if mask_B1TS is not None:
        scores_BHTS = scores_BHTS.masked_fill(~mask_B1TS, float("-inf"))
    weights_BHTS = torch.softmax(scores_BHTS, dim=-1, dtype=torch.float32)

    out_BYP = latents.mix(weights_BHTS.view(batch, heads * new, -1))
    out_BHTP = out_BYP.view(batch, heads, new, -1)
    return torch.einsum("bhtp,hup->bthu", out_BHTP, value_HUP)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
