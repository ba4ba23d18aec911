"""FSDP2: each process holds a shard of every weight, gradient and optimizer state, by torch's `fully_shard`.

    a unit for each decoder layer, gathered when it computes and let go after it; one for everything else
    gradients are reduced in fp32, whatever the weights' dtype

accelerate refuses FSDP on a CPU, or silently trains whole copies there, so torch's own runs on CPUs (gloo) and GPUs
(NCCL) alike, and a parameter that is no `DTensor` after sharding is an error. The trainer is told that the model owns
its placement, as transformers does for models that were sharded when they were loaded.

    checkpoints/checkpoint-N/shards/    trained weights and optimizer, by torch.distributed.checkpoint: each process
                                        writes its own part, and any number of processes can read them
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from distill.training.journal import SHARDS, check_shards
from distill.training.student import causal_lm_of
from distill.training.train import StudentTrainer
from distill.training.train_config import TrainConfig

SCHEDULER = "scheduler.pt"
TRAINED_ONLY = StateDictOptions(ignore_frozen_params=True)


def shard(model: nn.Module) -> None:
    """Shard a model over all processes, before an optimizer is made; afterwards every parameter is a `DTensor`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mesh = init_device_mesh(device, (distributed.get_world_size(),))
    causal_lm = causal_lm_of(model)
    settings: Any = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32),
        "reshard_after_forward": True,
    }
    for layer in causal_lm.base_model.layers:
        fully_shard(layer, **settings)
    fully_shard(model, **settings)
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor), f"{name} ({type(parameter).__name__}) must be a DTensor"
    causal_lm._is_distributed_loading_by_transformers = True  # the trainer wraps and moves nothing


class ShardedTrainer(StudentTrainer):
    """A `StudentTrainer` whose model is sharded."""

    def __init__(self, model: PreTrainedModel | PeftModel, config: TrainConfig, **kwargs: Any) -> None:
        shard(model)
        super().__init__(model, config, **kwargs)

    @contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        """Reduce every batch's gradients: whole ones, kept until the update, would take the memory that shards save."""
        yield

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Leave the weights to the optimizer's part of a checkpoint."""

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        weights, states = get_state_dict(self._sharded, self._bare_optimizer, options=TRAINED_ONLY)
        save({"weights": weights, "states": states}, checkpoint_id=Path(output_dir) / SHARDS)
        if self.args.should_save:
            assert self.lr_scheduler is not None
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Leave the weights to the optimizer's part of a checkpoint, once it is known to have shards."""
        check_shards(Path(resume_from_checkpoint), sharded=True)

    def _load_optimizer_and_scheduler(self, checkpoint_folder: str | None) -> None:
        if checkpoint_folder is None:
            return
        assert self.lr_scheduler is not None
        weights, states = get_state_dict(self._sharded, self._bare_optimizer, options=TRAINED_ONLY)
        loaded: dict[str, Any] = {"weights": weights, "states": states}
        load(loaded, checkpoint_id=Path(checkpoint_folder) / SHARDS)
        set_state_dict(
            self._sharded,
            self._bare_optimizer,
            model_state_dict=loaded["weights"],
            optim_state_dict=loaded["states"],
            options=StateDictOptions(ignore_frozen_params=True, strict=False),
        )
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint_folder) / SCHEDULER, weights_only=True))

    def whole_model(self, load: Callable[[], PreTrainedModel | PeftModel]) -> PreTrainedModel | PeftModel | None:
        """Gather the whole model in the first process, in the machine's memory."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(self._sharded, options=options)
        if not self.is_world_process_zero():
            return None
        whole: Any = load()
        whole.load_state_dict(weights)
        gathered: PreTrainedModel | PeftModel = whole
        return gathered

    @property
    def _sharded(self) -> nn.Module:
        model: nn.Module = self.model
        return model

    @property
    def _bare_optimizer(self) -> torch.optim.Optimizer:
        optimizer: Any = self.optimizer
        bare: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
        return bare
