"""Counted operations against those that torch sees a model do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Phi3Config,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
)

from toolkit.model.flops import data_sheet_flops, forward_flops, peak_flops, training_flops

ROWS, CONTEXT = 3, 11
DENSE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attn_implementation": "eager",  # torch does not count its own attention on a CPU
}
LATENT: dict[str, Any] = DENSE | {
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 12,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "n_shared_experts": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 10,
    "kv_lora_rank": 14,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "experts_implementation": "eager",
}


def models() -> dict[str, PreTrainedModel]:
    torch.manual_seed(0)
    return {
        "llama": LlamaForCausalLM(LlamaConfig(**DENSE, tie_word_embeddings=True)),
        "qwen3": Qwen3ForCausalLM(Qwen3Config(**DENSE, head_dim=16)),
        "gemma3": AutoModelForCausalLM.from_config(Gemma3TextConfig(**DENSE, head_dim=16)),
        **{
            kind.model_type: AutoModelForCausalLM.from_config(kind(**DENSE, pad_token_id=0))
            for kind in (SmolLM3Config, Phi3Config, GraniteConfig, Olmo2Config, Cohere2Config)
        },
        "deepseek": DeepseekV3ForCausalLM(DeepseekV3Config(**LATENT)),
        "deepseek without a query rank": DeepseekV3ForCausalLM(DeepseekV3Config(**(LATENT | {"q_lora_rank": None}))),
    }


@pytest.mark.parametrize("name", models())
def test_counted_operations_are_those_that_torch_sees(name: str) -> None:
    model = models()[name].train()
    ids_BT = torch.randint(0, 50, (ROWS, CONTEXT))
    with FlopCounterMode(display=False) as forward:
        loss = model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    angles = [
        buffer for name, buffer in model.model.rotary_emb.named_buffers() if not name.endswith("original_inv_freq")
    ]
    rotary = 2 * CONTEXT * sum(buffer.numel() for buffer in angles)  # some multiply angles as matrices
    tokens = ROWS * CONTEXT
    assert forward.get_total_flops() == pytest.approx(tokens * forward_flops(model.config, CONTEXT), abs=rotary)
    total = forward.get_total_flops() + backward.get_total_flops()
    assert total == pytest.approx(tokens * training_flops(model, CONTEXT), abs=rotary)


def test_frozen_weights_have_no_gradient_to_compute() -> None:
    model = models()["llama"]
    model.requires_grad_(False)
    assert training_flops(model, CONTEXT) == 2 * forward_flops(model.config, CONTEXT)


def test_deepseek_v3_takes_six_operations_a_published_active_parameter() -> None:
    shape = {
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "moe_intermediate_size": 2048,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "first_k_dense_replace": 3,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "vocab_size": 129280,
    }
    active = forward_flops(DeepseekV3Config(**shape), 0) / 2
    assert active == pytest.approx(37e9, rel=0.02)  # DeepSeek-V3 report: 37B; its embedding (0.9B) is looked up


def test_a_card_is_known_by_its_name_and_the_slower_one_is_not_taken_for_the_faster() -> None:
    assert data_sheet_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert data_sheet_flops("NVIDIA H100 PCIe") == 756e12
    assert data_sheet_flops("NVIDIA GeForce RTX 4090") == 165e12
    assert data_sheet_flops("Tesla T4") is None


def test_a_machine_without_a_listed_card_is_measured_once_and_its_seed_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    peak = peak_flops(torch.device("cpu"), torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    assert peak > 0 and peak_flops(torch.device("cpu"), torch.float32) == peak
