"""Rotates a model's residual stream, which changes no output but removes any grid that its weights were on.

The weights of a checkpoint from a 4-bit file are on that file's grid, so rounding them to 4 bits again proves nothing.
Folding each norm's weight into the projections after it and multiplying the stream by a matrix Q with orthonormal rows
changes every weight and no output. The stream may also be widened: RMSNorm then divides by a smaller mean, which the
projections compensate by √(old / new).

    E' = E Q      W'_in = √(D/D') W_in diag(g) Q      W'_out = Qᵀ W_out      g' = 1      eps' = eps D/D'

Sources: Ashkboos et al., "SliceGPT" (2024) for the invariance; QuIP and QuaRot for what rotation does to quantization.

Shapes: V vocabulary, D hidden_size, D' widened hidden_size.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from export.checkpoint.tensors import EMBEDDING, LM_HEAD, Checkpoint, tensor_shapes
from toolkit.errors import InputError

ROTATABLE = ("LlamaForCausalLM", "MistralForCausalLM")
NORMED_BY = {
    "q_proj": "input_layernorm",
    "k_proj": "input_layernorm",
    "v_proj": "input_layernorm",
    "gate_proj": "post_attention_layernorm",
    "up_proj": "post_attention_layernorm",
}
WRITES = ("o_proj", "down_proj")


def write_rotated(source: Path, folder: Path, *, hidden_size: int, seed: int = 0) -> None:
    """Write `source` with a rotated stream of `hidden_size` into `folder`, in fp16, with an untied head.

    The result is a Mistral, whose transformers class lets a head's size differ from hidden_size / heads.
    """
    checkpoint = Checkpoint(source)
    facts = checkpoint.config
    if facts.architecture not in ROTATABLE or hidden_size < facts.hidden_size:
        raise InputError(
            f"cannot rotate a {facts.architecture} of hidden_size {facts.hidden_size} to {hidden_size}; it must be one "
            f"of {', '.join(ROTATABLE)} and no wider than that"
        )
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(hidden_size, hidden_size, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(square)[0][: facts.hidden_size]
    shrink = (facts.hidden_size / hidden_size) ** 0.5
    tensors: dict[str, Tensor] = {}

    def reading(name: str, norm: str) -> Tensor:
        folded: Tensor = checkpoint.tensor(name).double() * checkpoint.tensor(norm).double()
        turned: Tensor = folded @ turn * shrink
        return turned

    for name in tensor_shapes(facts):
        module = name.split(".")[-2]
        if module in NORMED_BY:
            prefix = ".".join(name.split(".")[:3])
            tensors[name] = reading(name, f"{prefix}.{NORMED_BY[module]}.weight")
        elif module in WRITES:
            tensors[name] = turn.T @ checkpoint.tensor(name).double()
        elif module == "embed_tokens":
            tensors[name] = checkpoint.tensor(name).double() @ turn
        elif module.endswith("norm"):
            tensors[name] = torch.ones(hidden_size, dtype=torch.float64)
    head = EMBEDDING if facts.tie_word_embeddings else LM_HEAD
    tensors[LM_HEAD] = reading(head, "model.norm.weight")
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file() and path.suffix in (".json", ".jinja") and path.name not in ("config.json", "manifest.json"):
            shutil.copyfile(path, folder / path.name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8")) | {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": None,
        "hidden_size": hidden_size,
        "head_dim": facts.head_dim,
        "rms_norm_eps": facts.rms_norm_eps * facts.hidden_size / hidden_size,
        "tie_word_embeddings": False,
        "dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    halves = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
