"""The shapes of students that many use, so that they can be planned for before anything is downloaded.

Each is what the model's `config.json` on the Hugging Face hub says. A student that is here is read from its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_FIELDS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "vocab_size", "tie_word_embeddings", "max_position_embeddings"),
)
_ROWS: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "Qwen/Qwen2.5-0.5B-Instruct": ("qwen2", 896, 4864, 24, 14, 2, 64, 151_936, True, 32_768),
        "Qwen/Qwen2.5-1.5B-Instruct": ("qwen2", 1536, 8960, 28, 12, 2, 128, 151_936, True, 32_768),
        "Qwen/Qwen2.5-3B-Instruct": ("qwen2", 2048, 11_008, 36, 16, 2, 128, 151_936, True, 32_768),
        "Qwen/Qwen2.5-7B-Instruct": ("qwen2", 3584, 18_944, 28, 28, 4, 128, 152_064, False, 32_768),
        "Qwen/Qwen2.5-14B-Instruct": ("qwen2", 5120, 13_824, 48, 40, 8, 128, 152_064, False, 32_768),
        "Qwen/Qwen2.5-32B-Instruct": ("qwen2", 5120, 27_648, 64, 40, 8, 128, 152_064, False, 32_768),
        "Qwen/Qwen3-0.6B": ("qwen3", 1024, 3072, 28, 16, 8, 128, 151_936, True, 40_960),
        "Qwen/Qwen3-1.7B": ("qwen3", 2048, 6144, 28, 16, 8, 128, 151_936, True, 40_960),
        "Qwen/Qwen3-4B": ("qwen3", 2560, 9728, 36, 32, 8, 128, 151_936, True, 40_960),
        "Qwen/Qwen3-8B": ("qwen3", 4096, 12_288, 36, 32, 8, 128, 151_936, False, 40_960),
        "Qwen/Qwen3-14B": ("qwen3", 5120, 17_408, 40, 40, 8, 128, 151_936, False, 40_960),
        "Qwen/Qwen3-32B": ("qwen3", 5120, 25_600, 64, 64, 8, 128, 151_936, False, 40_960),
        "meta-llama/Llama-3.2-1B-Instruct": ("llama", 2048, 8192, 16, 32, 8, 64, 128_256, True, 131_072),
        "meta-llama/Llama-3.2-3B-Instruct": ("llama", 3072, 8192, 28, 24, 8, 128, 128_256, True, 131_072),
        "meta-llama/Llama-3.1-8B-Instruct": ("llama", 4096, 14_336, 32, 32, 8, 128, 128_256, False, 131_072),
        "HuggingFaceTB/SmolLM2-360M-Instruct": ("llama", 960, 2560, 32, 15, 5, 64, 49_152, True, 8192),
        "HuggingFaceTB/SmolLM2-1.7B-Instruct": ("llama", 2048, 8192, 24, 32, 32, 64, 49_152, True, 8192),
    }
)


def known_config(name: str) -> dict[str, Any] | None:
    """Return what the configuration of a hub id says of its shape; None if it is not among those known."""
    row = _ROWS.get(name)
    return None if row is None else {"model_type": row[0], **dict(zip(_FIELDS, row[1:], strict=True))}


def known_names() -> list[str]:
    return list(_ROWS)
