"""Multi-head latent attention that decodes without expanding its cache (DeepSeek-V2 report, section 2.1.2).

transformers caches one latent a token, and at every step expands the whole prefix into each head's keys and values.
Absorbed, the key half of `kv_b_proj` folds into the query and the value half follows the attention, so a step reads
the latents as they are, the same ones for all heads:

    q̃ = q_nope · W_UK        scores = (q̃ · c + q_rot · k_rot) · scaling        out = (softmax(scores) · c) · W_UV

Modules, weights and names stay transformers' own (DeepSeek-V2 and V3); only what stands between the cache and the
output projection changes. Many new tokens at once are cheaper expanded, and take the stock path.
"""

# Shapes: B batch, H heads, T new tokens, S attended tokens, N nope, R rope, U value, C kv rank.

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Attention
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

NAME = "absorbed"


def absorb(model: PreTrainedModel) -> bool:
    """Let a model's latent attention decode absorbed, in place; returns whether it has any.

    Training is not changed: without a cache all tokens are new, and take the stock path.
    """
    layers = [module for module in model.modules() if isinstance(module, DeepseekV2Attention | DeepseekV3Attention)]
    for layer in layers:
        layer.expand_kv = _keep_latents
    if layers:
        model.set_attn_implementation(NAME)
    return bool(layers)


def _keep_latents(latent_B1SC: Tensor, rotated_B1SR: Tensor) -> tuple[Tensor, Tensor]:
    """In the place of a layer's `expand_kv`: what goes into attention as keys and values is the cache itself."""
    return latent_B1SC, rotated_B1SR


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention under transformers' interface: query BHT(N+R), key the latents B1SC, value the rotated keys B1SR.

    Returns BTHU.
    """
    assert isinstance(module, DeepseekV2Attention | DeepseekV3Attention)
    keeps_latents = "expand_kv" in vars(module)  # another model may be made from this one's configuration
    new, cached = query.shape[2], key.shape[2]
    if keeps_latents and new < cached and new <= _most_absorbed(module):
        return _absorbed(module, query, key[:, 0], value[:, 0], attention_mask, scaling), None
    if keeps_latents:
        key, value = type(module).expand_kv(module, key, value)
    return sdpa_attention_forward(  # type: ignore[no-any-return]
        module, query, key, value, attention_mask, scaling=scaling, **kwargs
    )


def _most_absorbed(module: Any) -> int:
    """New tokens up to which absorbed attention takes fewer products: 2C + R a head and attended token against
    N + R + U, and the C·(N + U) of its expansion."""
    rank, expanded = module.kv_lora_rank, module.qk_nope_head_dim + module.v_head_dim
    saved: int = 2 * rank - expanded
    return rank * expanded // saved if saved > 0 else torch.iinfo(torch.long).max


def _absorbed(
    module: Any,
    query_BHTX: Tensor,
    latent_BSC: Tensor,
    rotated_BSR: Tensor,
    mask_B1TS: Tensor | None,
    scaling: float,
) -> Tensor:
    batch, heads, new, _ = query_BHTX.shape
    nope, rank = module.qk_nope_head_dim, module.kv_lora_rank
    weight_HXC = module.kv_b_proj.weight.view(heads, nope + module.v_head_dim, rank)
    q_nope_BHTN, q_rot_BHTR = query_BHTX.split([nope, module.qk_rope_head_dim], dim=-1)
    q_latent_BHTC = torch.einsum("bhtn,hnc->bhtc", q_nope_BHTN, weight_HXC[:, :nope])

    # rows of all heads together: one product a sequence, which reads each latent once
    rows_BYC = q_latent_BHTC.reshape(batch, heads * new, rank)
    rows_BYR = q_rot_BHTR.reshape(batch, heads * new, -1)
    scores_BYS = torch.bmm(rows_BYC, latent_BSC.transpose(1, 2))
    scores_BYS = torch.baddbmm(scores_BYS, rows_BYR, rotated_BSR.transpose(1, 2), beta=scaling, alpha=scaling)
    scores_BHTS = scores_BYS.view(batch, heads, new, -1)
    if mask_B1TS is not None:
        scores_BHTS = scores_BHTS.masked_fill(~mask_B1TS, float("-inf"))
    weights_BHTS = torch.softmax(scores_BHTS, dim=-1, dtype=torch.float32).to(query_BHTX.dtype)

    out_BYC = torch.bmm(weights_BHTS.view(batch, heads * new, -1), latent_BSC)
    out_BHTC = out_BYC.view(batch, heads, new, rank)
    return torch.einsum("bhtc,huc->bthu", out_BHTC, weight_HXC[:, nope:])


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
