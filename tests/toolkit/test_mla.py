"""Absorbed latent attention against transformers' own, on layers with the head shapes of DeepSeek's models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    PreTrainedModel,
)

from toolkit.model import mla
from toolkit.model.cache import growing_cache
from toolkit.model.decoder import load_model

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
    "original_max_position_embeddings": 64,
}
SMALL: dict[str, Any] = {  # around attention of the real shape
    "vocab_size": 100,
    "hidden_size": 128,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "max_position_embeddings": 4096,
    "initializer_range": 0.1,  # attention that is far from even
}
SHAPES = {
    "v2_lite": lambda: DeepseekV2ForCausalLM(
        DeepseekV2Config(
            **SMALL, num_attention_heads=16, num_key_value_heads=16, q_lora_rank=None, rope_parameters=YARN
        )
    ),
    "v3": lambda: DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **SMALL, num_attention_heads=32, num_key_value_heads=32, q_lora_rank=192, n_group=4, topk_group=2
        )
    ),
    "v3_yarn": lambda: DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **SMALL,
            num_attention_heads=8,
            num_key_value_heads=8,
            q_lora_rank=None,
            n_group=1,
            topk_group=1,
            rope_parameters=YARN,
        )
    ),
}


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    made: PreTrainedModel = SHAPES[request.param]().eval()
    return made


@torch.inference_mode()
def logits(model: PreTrainedModel, chunks: list[Tensor], mask_BS: Tensor) -> Tensor:
    """Of all positions, fed chunk by chunk through one cache."""
    cache, end, found = growing_cache(model.config.num_hidden_layers), 0, []
    positions_BS = (mask_BS.cumsum(1) - 1).clamp(min=0)
    for chunk_BT in chunks:
        start, end = end, end + chunk_BT.shape[1]
        out = model(
            chunk_BT,
            attention_mask=mask_BS[:, :end],
            position_ids=positions_BS[:, start:end],
            past_key_values=cache,
            use_cache=True,
        )
        found.append(out.logits)
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("new_tokens", [[1, 1, 1], [4, 1]])
@pytest.mark.parametrize("padding", [0, 9])
def test_logits_are_those_of_the_expanded_form(model: PreTrainedModel, new_tokens: list[int], padding: int) -> None:
    ids_BS = torch.randint(100, (3, 40 + sum(new_tokens)), generator=torch.Generator().manual_seed(1))
    mask_BS = torch.ones_like(ids_BS)
    mask_BS[1, :padding] = 0
    chunks = list(ids_BS.split([40, *new_tokens], dim=1))
    expected = logits(model, chunks, mask_BS)
    assert mla.absorb(model)
    found = logits(model, chunks, mask_BS)
    real = mask_BS.bool()
    torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=0)


def test_many_new_tokens_take_the_expanded_form(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    absorbed = mla._absorbed

    def watched(module: Any, query_BHTX: Tensor, *rest: Any) -> Tensor:
        taken.append(query_BHTX.shape[2])
        return absorbed(module, query_BHTX, *rest)

    monkeypatch.setattr(mla, "_absorbed", watched)
    mla.absorb(model)
    ids_BS = torch.randint(100, (1, 220), generator=torch.Generator().manual_seed(2))
    logits(model, list(ids_BS.split([10, 170, 39, 1], dim=1)), torch.ones_like(ids_BS))
    # 170 = C·(N + U) / (2C − N − U), in both layers
    assert taken == [170, 170, 39, 39, 1, 1]
    taken.clear()
    logits(model, list(ids_BS.split([10, 171, 39], dim=1)), torch.ones_like(ids_BS))
    assert taken == [39, 39]


def test_a_model_without_latents_is_left_alone(tiny_student: Path) -> None:
    llama = load_model(tiny_student, torch.float32)
    assert not mla.absorb(llama)
    assert llama.config._attn_implementation == "sdpa"
