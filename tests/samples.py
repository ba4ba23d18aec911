"""A trace and a model configuration; tests change the fields that they are about."""

from __future__ import annotations

from typing import Any

from toolkit.records import Trace

TRACE = Trace(
    problem_id="p",
    sample=0,
    reasoning="",
    answer="",
    finish_reason="stop",
    closed=True,
    prompt_tokens=1,
    reasoning_tokens=1,
    completion_tokens=2,
    teacher="t",
    request_hash="h",
)
TINY_DEEPSEEK: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "moe_intermediate_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}
"""Arguments of a `DeepseekV3Config` with one dense layer and two of experts."""
