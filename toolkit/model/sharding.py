"""Shards a model over a mesh of processes: each holds a part of every weight, gradient and optimizer state.

torch's `fully_shard` (FSDP2), a unit a decoder layer, and one for embedding, head and norm. It works on CPUs as well,
where accelerate's FSDP trains unsharded copies without a word; so what it leaves is checked here.
"""

from __future__ import annotations

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel


def shard(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Shard in place, before an optimizer is made: it must hold the sharded parameters."""
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor), f"{name} ({type(parameter).__name__}) must be a DTensor"
