"""Random models of several architectures with the tokenizer of the tiny student; their weights are large, so that
greedy choices are clear."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    MistralConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from toolkit.formats.chat_format import CHAT_FILES

SIZES = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 512}
TOKENS: dict[str, Any] = {"eos_token_id": [2, 0], "pad_token_id": 0, "bos_token_id": 1}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
COMMON: dict[str, Any] = SIZES | TOKENS | HEADS
LATENT: dict[str, Any] = (
    COMMON
    | {"num_key_value_heads": 4, "q_lora_rank": 64, "kv_lora_rank": 64}
    | {"qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16, "first_k_dense_replace": 1}
    | {"moe_intermediate_size": 64, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
)
CONFIGS: dict[str, PreTrainedConfig] = {
    "qwen3": Qwen3Config(**COMMON, head_dim=16),
    "mistral": MistralConfig(**COMMON, sliding_window=24, head_dim=16),
    "deepseek_v2": DeepseekV2Config(**LATENT),
    "deepseek_v3": DeepseekV3Config(**LATENT),
}


def write_tiny(kind: str, folder: Path, student: Path) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    model.save_pretrained(folder)
    for name in CHAT_FILES:
        if (student / name).is_file():
            shutil.copy(student / name, folder / name)
    return folder
