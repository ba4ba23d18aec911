"""A LoRA adapter as PEFT writes it, for the tests of exports, runners and servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

EVERYWHERE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TRAINED = ("lora_", "modules_to_save", "trainable_tokens")


def write_adapter(base: Path, folder: Path, *, seed: int = 5, **settings: Any) -> Path:
    """An adapter of rank 4 whose factors are all random."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = {"r": 4, "lora_alpha": 24, "target_modules": EVERYWHERE} | settings
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if any(part in name for part in TRAINED):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    adapted.save_pretrained(folder)
    return folder
