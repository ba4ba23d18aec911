"""What a training step is planned to keep is what autograd keeps, and shapes have the sizes that are published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from distill.planning.footprint import Footprint, PackedRow, footprint, meta_model, saved_bytes, sizes_of
from distill.planning.known_shapes import known_names
from distill.planning.training_plan import shape_of
from distill.recipes.distill_recipe import shipped_recipe
from distill.training import document_attention
from distill.training.document_attention import Documents
from distill.training.student import add_adapters, load_trainable
from distill.training.train_config import TrainConfig

TRAIN = shipped_recipe().train
LORA = replace(TRAIN, lora_rank=4)
ROW = PackedRow(lengths=(40, 70, 40), trained_tokens=90)


def kept_in_fact(student: Path, lora: bool) -> int:
    """Count the bytes that autograd keeps of a real forward pass of the student's layers."""
    model = load_trainable(student)
    if lora:
        add_adapters(model, LORA)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    held = []  # a storage that was freed could come back under its address

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(storage)
        return tensor

    ids = torch.zeros(1, ROW.tokens, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.base_model(input_ids=ids, position_ids=ids, use_cache=False, documents=Documents(ROW.lengths))[0]
    kept[hidden.untyped_storage().data_ptr()] = hidden.untyped_storage().nbytes()
    return sum(kept.values())


@pytest.mark.parametrize("train", [TRAIN, LORA], ids=["all weights", "LoRA"])
@pytest.mark.parametrize("kernel", ["ours", "torch's"])
def test_what_is_counted_without_memory_is_what_autograd_keeps(
    tiny_student: Path, train: TrainConfig, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel != "ours":
        monkeypatch.setattr(document_attention, "LONG", 60)  # as rows with long documents
    config = AutoConfig.from_pretrained(tiny_student)
    dtype = next(load_trainable(tiny_student).parameters()).dtype
    planned = saved_bytes(meta_model(config, train, dtype), config, train, ROW, dtype)
    assert planned == pytest.approx(kept_in_fact(tiny_student, train.lora_rank > 0), rel=0.01)


@pytest.mark.parametrize(
    ("name", "billions"),  # as the models' cards say
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.49),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1.54),
        ("Qwen/Qwen2.5-3B-Instruct", 3.09),
        ("Qwen/Qwen2.5-7B-Instruct", 7.61),
        ("Qwen/Qwen2.5-14B-Instruct", 14.7),
        ("Qwen/Qwen2.5-32B-Instruct", 32.5),
        ("Qwen/Qwen3-0.6B", 0.6),
        ("Qwen/Qwen3-1.7B", 1.7),
        ("Qwen/Qwen3-4B", 4.0),
        ("Qwen/Qwen3-8B", 8.2),
        ("Qwen/Qwen3-14B", 14.8),
        ("Qwen/Qwen3-32B", 32.8),
        ("meta-llama/Llama-3.2-1B-Instruct", 1.23),
        ("meta-llama/Llama-3.2-3B-Instruct", 3.21),
        ("meta-llama/Llama-3.1-8B-Instruct", 8.03),
        ("HuggingFaceTB/SmolLM2-360M-Instruct", 0.36),
        ("HuggingFaceTB/SmolLM2-1.7B-Instruct", 1.71),
    ],
)
def test_known_shapes_have_the_published_sizes(name: str, billions: float) -> None:
    model = meta_model(shape_of(name), TRAIN, torch.bfloat16)
    assert sizes_of(model, TRAIN).parameters / 1e9 == pytest.approx(billions, rel=0.02)
    assert name in known_names()


def test_each_way_to_save_memory_saves_what_it_promises() -> None:
    config, row = shape_of("Qwen/Qwen2.5-0.5B-Instruct"), PackedRow(lengths=(2048,), trained_tokens=1800)

    def planned(shards: int = 1, rows: int = 1, **changes: object) -> Footprint:
        train = replace(TRAIN, **changes)  # type: ignore[arg-type]
        return footprint(config, train, torch.bfloat16, row, rows=rows, shards=shards, on_gpu=True)

    whole, lora = planned(), planned(lora_rank=16)
    parameters = sizes_of(meta_model(config, TRAIN, torch.bfloat16), TRAIN).parameters
    assert (whole.weights, whole.optimizer) == (2 * parameters, 12 * parameters)
    assert planned(optimizer="adamw_8bit").optimizer == 6 * parameters
    assert planned(shards=8).optimizer == whole.optimizer / 8
    assert lora.optimizer < 0.05 * whole.optimizer
    nf4 = planned(lora_rank=16, quantization="nf4")
    assert 0.25 < nf4.weights / lora.weights < 0.55  # the embedding, more than a quarter of it, stays in bf16
    checkpointed = planned(gradient_checkpointing=True)
    assert checkpointed.activations < 0.2 * whole.activations
    assert planned(rows=2).gradients == 2 * parameters
