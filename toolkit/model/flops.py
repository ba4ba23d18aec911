"""Counts the floating point operations of a model, and the most that this machine can do.

A token's forward pass takes 2 operations for each weight that it uses (active experts, the router, the head; an
embedding is only looked up) and, with S tokens in its sequence, 2·S·heads·(query size + value size) in each layer for
attention. Training takes three times that: the forward pass and the gradients of activations and of weights. Causal
masking is not subtracted, and recomputation is not added. Model FLOP utilization is then the share of the machine's
peak that the model's own operations fill (PaLM, Chowdhery et al. 2022, appendix B; there as 6·N + 12·L·H·Q·T).
"""

from __future__ import annotations

import functools
import time
from typing import Any

import torch
from torch import nn

LATENT = ("deepseek_v2", "deepseek_v3")
GROUPED = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm3",
    "gemma",
    "gemma3_text",
    "phi3",
    "granite",
    "olmo2",
    "olmo3",
    "cohere",
    "cohere2",
)
"""Dense models whose feed-forward parts are gated: three matrices each."""
DATA_SHEET_BF16 = {
    "A100": 312e12,  # NVIDIA A100 data sheet
    "H100 PCIe": 756e12,  # NVIDIA H100 data sheet, half of the figure with sparsity
    "H100": 989e12,  # SXM, from the same data sheet
    "L40S": 362e12,  # NVIDIA L40S data sheet
    "RTX 4090": 165e12,  # NVIDIA Ada architecture, appendix A, fp32 accumulation
}
"""Dense bf16 operations a second by a part of the device's name; the first match counts."""
MEASURED_FOR_S = 0.2


def forward_flops(config: Any, context: float) -> float:
    """Return the operations of a token's forward pass by a model's `config.json`; `context`: tokens in its sequence."""
    assert config.model_type in LATENT + GROUPED, f"{config.model_type} must be one of {LATENT + GROUPED}"
    attention, attended = _latent_attention(config) if config.model_type in LATENT else _grouped_attention(config)
    layers = config.num_hidden_layers
    weights = layers * attention + _feed_forward(config) + config.hidden_size * config.vocab_size
    return float(2 * weights + 2 * context * layers * attended)


def training_flops(model: nn.Module, context: float) -> float:
    """Return the operations of training on a token; frozen weights (below adapters) need no gradient of their own."""
    sizes = [(_values(parameter), parameter.requires_grad) for parameter in model.parameters()]
    trained = sum(size for size, is_trained in sizes if is_trained) / sum(size for size, _ in sizes)
    return (2 + trained) * forward_flops(model.config, context)


def _values(parameter: nn.Parameter) -> int:
    """Count a weight's values, of which one in four bits has half as many bytes."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(state.shape.numel())


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations a second of one device: the data sheet's for a listed GPU, else measured now."""
    listed = data_sheet_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return listed if listed and dtype == torch.bfloat16 else measured_flops(device, dtype)


def data_sheet_flops(device_name: str) -> float | None:
    return next((flops for part, flops in DATA_SHEET_BF16.items() if part in device_name), None)


@functools.cache
def measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the fastest of some square matrix products, with the threads of this process."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))  # draws no random number
    fastest_s, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < MEASURED_FOR_S:
        before = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        fastest_s = min(fastest_s, time.perf_counter() - before)
    return 2 * size**3 / fastest_s


def _latent_attention(config: Any) -> tuple[int, int]:
    """Return a layer's weights, and the multiplications for each attended token; latents are expanded."""
    heads, qk = config.num_attention_heads, config.qk_nope_head_dim + config.qk_rope_head_dim
    if config.q_lora_rank is None:
        queries = config.hidden_size * heads * qk
    else:
        queries = config.q_lora_rank * (config.hidden_size + heads * qk)
    latents = config.hidden_size * (config.kv_lora_rank + config.qk_rope_head_dim)
    expanded = config.kv_lora_rank * heads * (config.qk_nope_head_dim + config.v_head_dim)
    output = heads * config.v_head_dim * config.hidden_size
    return queries + latents + expanded + output, heads * (qk + config.v_head_dim)


def _grouped_attention(config: Any) -> tuple[int, int]:
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    weights = 2 * config.hidden_size * size * (heads + config.num_key_value_heads)
    return weights, 2 * heads * size


def _feed_forward(config: Any) -> int:
    """Return the weights that a token uses in all layers: gate, up and down of dense or chosen parts, and routers."""
    width, layers = 3 * config.hidden_size, config.num_hidden_layers
    if config.model_type in GROUPED:
        return int(layers * width * config.intermediate_size)
    dense = min(config.first_k_dense_replace, layers)
    experts = (config.num_experts_per_tok + config.n_shared_experts) * config.moe_intermediate_size
    router = config.hidden_size * config.n_routed_experts
    return int(dense * width * config.intermediate_size + (layers - dense) * (width * experts + router))
