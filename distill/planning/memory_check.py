"""Refuses a student that a machine is too small for, by the figures of `toolkit plan`.

Twice: before the teacher is asked, by what any examples take; and before training, by the examples themselves. What the
processes of this machine take together is compared with its free memory, or what one takes with a GPU's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from distill.planning.footprint import Footprint, PackedRow, footprint
from distill.planning.training_plan import (
    Examples,
    equal_examples,
    free_bytes,
    fullest_row,
    lengths_of,
    shape_of,
)
from distill.problems.splits import spread
from distill.training.train import Train
from distill.training.train_config import TrainConfig
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.model.precision import compute_dtype
from toolkit.records import Example
from toolkit.terminal import say

GB = 1e9
TOLERANCE = 1.1
"""How much more than what is free a plan may take: its figures are within 10 % of measured ones."""
SHORTEST = PackedRow(lengths=(2,), trained_tokens=1)
COUNTED = 2000
"""Examples whose tokens are counted, the longest ones among them."""
REMEDY = (
    "train adapters (--lora, on weights of four bits with --quantization nf4), compute activations again "
    "(--gradient-checkpointing), choose a smaller student, free some memory, or try all the same with --force"
)

CheckMemory = Callable[[Path], None]
"""Raises `InputError` if training the student of a folder takes more memory than there is."""


@dataclass(frozen=True, kw_only=True)
class Division:
    """How processes divide a training."""

    here: int
    """Processes of this machine."""
    shards: int
    """Processes among which weights, gradients and optimizer are divided; 1 if each has all."""
    everywhere: int
    """Processes that divide a batch."""


@dataclass(frozen=True, kw_only=True)
class _Need:
    """The memory of a training on one device, beside what is free there."""

    parts: Footprint
    times: int
    """How many processes share the device."""
    free_bytes: float

    @property
    def bytes(self) -> float:
        running = 0 if torch.cuda.is_available() or self.times > 1 else self.parts.program  # counted as used already
        return self.times * self.parts.peak - running

    @property
    def is_met(self) -> bool:
        return self.bytes <= TOLERANCE * self.free_bytes

    def __str__(self) -> str:
        parts = {part.name: getattr(self.parts, part.name) for part in fields(self.parts)}
        told = ", ".join(f"{name} {size / GB:.1f}" for name, size in parts.items() if size >= GB / 20)
        processes = f" in each of {self.times} processes" if self.times > 1 else ""
        return f"{self.bytes / GB:.1f} GB ({told}{processes}), and {self.free_bytes / GB:.1f} GB are free"


def check_least(student: Path, *, train: TrainConfig, max_tokens: int | None, division: Division) -> None:
    """Raise `InputError` if even the shortest examples take too much, and say so if the longest ones would.

    `max_tokens`: None if a student learns from its own turns, whose memory is not planned.
    """
    config = shape_of(str(student))
    least = _need(config, train, SHORTEST, rows=1, division=division)
    if not least.is_met:
        raise InputError(f"training {student} takes at least {least}; {REMEDY}")
    if max_tokens is None:
        return
    longest = min(max_tokens, train.context_tokens or config.max_position_embeddings)
    alike = equal_examples(train.batch_examples, longest)
    row, rows, *_ = fullest_row(alike, train, division.everywhere, on_gpu=torch.cuda.is_available())
    most = _need(config, train, row, rows=rows, division=division)
    if not most.is_met:
        say(f"distill: if all examples had {longest} tokens, training would take {most}; shorter ones take less")


def within_memory(train: Train, division: Division) -> Train:
    """Return a way to train that first raises `InputError` if the examples take too much."""

    def checked(
        student: Path, examples: Sequence[Example], config: TrainConfig, folder: Path, validation: Sequence[Example]
    ) -> dict[str, Any]:
        counted = _counted(examples, folder)
        row, rows, *_ = fullest_row(counted, config, division.everywhere, on_gpu=torch.cuda.is_available())
        need = _need(shape_of(str(student)), config, row, rows=rows, division=division)
        if not need.is_met:
            raise InputError(f"training on examples of up to {max(counted.lengths)} tokens takes {need}; {REMEDY}")
        return train(student, examples, config, folder, validation)

    return checked


def _need(config: PretrainedConfig, train: TrainConfig, row: PackedRow, *, rows: int, division: Division) -> _Need:
    has_gpu = torch.cuda.is_available()
    parts = footprint(
        config,
        train,
        compute_dtype(),
        row,
        rows=rows * train.accumulation_steps,
        shards=division.shards,
        on_gpu=has_gpu,
    )
    free = free_bytes()
    return _Need(parts=parts, times=1 if has_gpu else division.here, free_bytes=free)


def _counted(examples: Sequence[Example], folder: Path) -> Examples:
    by_length = sorted(examples, key=lambda each: -len(each.reasoning) - len(each.answer))
    chosen = [by_length[n] for n in spread(len(by_length), COUNTED)]
    return lengths_of(chosen, ChatFormat.from_folder(folder))
