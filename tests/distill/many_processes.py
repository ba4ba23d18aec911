"""Runs one of several processes for `test_many_processes`; started by torchrun, or imported for a single process.

The first process writes `result.json` into the given folder.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    default_data_collator,
)

from distill.teach.supervised import ExpertsTrainer
from distill.teach.teach import pretrain
from distill.teach.teacher_recipe import quick
from distill.training.completion_loss import IGNORED
from distill.training.interrupts import WholeCheckpoints
from distill.training.journal import LOSS, run_trainer
from distill.training.optimizers.muon import MuonAdamW, split_parameters
from tests.samples import TINY_DEEPSEEK
from toolkit.model.balance import ExpertBalance

GLOBAL_ROWS, ROW_TOKENS, STEPS = 4, 24, 4
N_ROUTED_EXPERTS, EXPERTS_PER_TOKEN = 8, 2
OPTIMIZERS = ("adamw", "muon")


def shard(model: DeepseekV3ForCausalLM, mesh: DeviceMesh) -> None:
    """Shard by torch's `fully_shard` (FSDP2), before an optimizer is made: one unit per layer, one for everything else.

    accelerate's FSDP silently trains unsharded copies on CPUs, so the result is checked.
    """
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor), f"{name} ({type(parameter).__name__}) must be a DTensor"


def make_model() -> DeepseekV3ForCausalLM:
    torch.manual_seed(0)
    experts = {"n_routed_experts": N_ROUTED_EXPERTS, "num_experts_per_tok": EXPERTS_PER_TOKEN}
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16}
    more = {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "tie_word_embeddings": True, "pad_token_id": 0}
    return DeepseekV3ForCausalLM(DeepseekV3Config(**(TINY_DEEPSEEK | experts | sizes | more)))


def rows() -> list[dict[str, list[int]]]:
    """Make rows with unequal numbers of trained tokens, so that the mean of the processes' means is another loss."""
    ids = torch.randint(1, 64, (GLOBAL_ROWS * STEPS, ROW_TOKENS), generator=torch.Generator().manual_seed(1)).tolist()
    return [
        {"input_ids": row, "labels": [IGNORED] * (5 * (place % 4)) + row[5 * (place % 4) :]}
        for place, row in enumerate(ids)
    ]


class Biases(TrainerCallback):
    """Notes all routers' biases after each step."""

    def __init__(self, balance: ExpertBalance) -> None:
        self.balance = balance
        self.steps: list[list[list[float]]] = []

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.steps.append([router.e_score_correction_bias.tolist() for router in self.balance.routers])


def optimizer(model: torch.nn.Module, name: str) -> torch.optim.Optimizer:
    if name == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=3e-3)
    return MuonAdamW(*split_parameters(model), matrix_lr=1e-2, other_lr=3e-3, weight_decay=0.1, betas=(0.9, 0.95))


def trained(folder: Path, processes: int) -> dict[str, Any]:
    """Run the teacher's trainer, optimizer, balance and journal in fp32; return each step's loss and biases."""
    model = make_model()
    balance = ExpertBalance(model, rate=0.01)
    biases = Biases(balance)
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        use_cpu=True,
        ddp_backend="gloo" if processes > 1 else None,
        per_device_train_batch_size=GLOBAL_ROWS // processes,
        max_steps=STEPS,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = ExpertsTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows()),
        data_collator=default_data_collator,
        callbacks=[balance, biases],
        optimizers=(optimizer(model, "muon"), None),
    )
    folder.mkdir(parents=True, exist_ok=True)
    run_trainer(trainer, folder, tokens=1000, checkpoint_every_s=1e9)
    return {
        "wrapped": type(trainer.model_wrapped).__name__,
        "log": [json.loads(line) for line in (folder / LOSS).read_text().splitlines()],
        "biases": biases.steps,
    }


def staged(out: Path) -> list[float]:
    """Run a whole stage of the teacher into a run folder; return its logged losses."""
    pretrain(quick(), out)
    return logged(out)


def logged(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / LOSS).read_text().splitlines()]


def losses(model: Any, name: str, part: slice) -> list[float]:
    """Train in a plain loop over this process' part of the same batches; return the losses."""
    stepper, found = optimizer(model, name), []
    ids_BT = torch.tensor([row["input_ids"] for row in rows()])
    for batch_BT in ids_BT.split(GLOBAL_ROWS):
        loss = model.train()(input_ids=batch_BT[part], labels=batch_BT[part], use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        stepper.step()
        stepper.zero_grad()
        found.append(float(loss.detach()))
    return found


def sharded(processes: int) -> dict[str, Any]:
    """Return the losses of a sharded model, averaged over processes, and of a whole one on the whole batches."""
    mesh = init_device_mesh("cpu", (processes,))
    size, rank = GLOBAL_ROWS // processes, distributed.get_rank()
    found: dict[str, Any] = {}
    for name in OPTIMIZERS:
        model = make_model()
        values = sum(parameter.numel() for parameter in model.parameters())
        shard(model, mesh)
        held = sum(parameter.to_local().numel() for parameter in model.parameters())
        mine = torch.tensor(losses(model, name, slice(rank * size, (rank + 1) * size)))
        distributed.all_reduce(mine)
        whole = losses(make_model(), name, slice(None))
        found[name] = {"sharded": (mine / processes).tolist(), "whole": whole, "held": held, "values": values}
    return found


class Part:
    """Writes a part of a checkpoint; other processes than the first take longer."""

    def __init__(self) -> None:
        self.args = SimpleNamespace(world_size=distributed.get_world_size())

    def _save_rng_state(self, output_dir: str) -> None:
        time.sleep(0.5 * distributed.get_rank())
        (Path(output_dir) / f"part {distributed.get_rank()}").touch()


class WholePart(WholeCheckpoints, Part):
    """A part that waits for the others."""


def parts(folder: Path) -> list[str]:
    """Return the parts of a checkpoint that are there when the first process goes on to write its state."""
    folder.mkdir(exist_ok=True)
    WholePart()._save_rng_state(str(folder))
    return sorted(path.name for path in folder.iterdir())


def main() -> None:
    folder = Path(sys.argv[1])
    result: dict[str, Any] = {
        "trained": trained(folder / "trained", 2),
        "staged": staged(folder / "staged"),
        "parts": parts(folder / "parts"),
    }
    all_biases: list[Any] = [None, None]
    distributed.all_gather_object(all_biases, result["trained"]["biases"])
    result["trained"]["biases of both"] = all_biases
    result["sharded"] = sharded(2)
    if distributed.get_rank() == 0:
        (folder / "result.json").write_text(json.dumps(result))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
