"""Plans a training run before it begins: memory by part, tokens a second, hours, cost.

    student's shape, recipe, lengths of the examples ─> footprint, counted; pace, rehearsed or a data sheet's ─> plan

Lengths are those of the examples, if there are any yet; else all have the length that is said.
"""

from __future__ import annotations

import gc
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from transformers import AutoConfig, PretrainedConfig

from distill.planning.devices import UTILISATION, Device
from distill.planning.footprint import Footprint, PackedRow, footprint, meta_model, sizes_of
from distill.planning.known_shapes import known_config, known_names
from distill.planning.training_speed import rehearsal_bytes, rehearse
from distill.students.architectures import check_architecture
from distill.training.packed_rows import bears_sharing, packed, parts_of
from distill.training.train_config import TrainConfig
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.machine.allowance import memory
from toolkit.model.flops import forward_flops
from toolkit.model.precision import compute_dtype
from toolkit.records import Example, read_object, read_records
from toolkit.sources.model_names import resolve
from toolkit.terminal import say
from toolkit.voice.student_format import write_student_format

DRAWS = 200
"""Batches that are drawn to find a full one: the examples of a run come in an order of chance."""
RECOMPUTED = 4 / 3
"""Checkpointing makes each forward pass twice."""
TRAINED_SHARE = 0.85
"""Of an example's tokens, where only its length is said: a thought is longer than its question."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """What is trained on: each example's tokens, and how many of them are trained."""

    lengths: tuple[int, ...]
    trained: tuple[int, ...]
    ids: tuple[list[int], ...] = ()
    """Their tokens, if they are known: what examples begin with is computed once in a row."""

    @classmethod
    def tokenized(cls, examples: Sequence[tuple[list[int], list[bool]]]) -> Self:
        """Count examples by their tokens, and which of them are trained."""
        return cls(
            lengths=tuple(len(ids) for ids, _ in examples),
            trained=tuple(sum(trained) for _, trained in examples),
            ids=tuple(ids for ids, _ in examples),
        )


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """What a training run takes."""

    parameters: int
    trained: int
    footprint: Footprint
    available_bytes: int
    """Of one device, or of this machine."""
    row_tokens: int
    update_tokens: float
    tokens: int
    """Of all epochs."""
    tokens_per_s: float | None
    """None if it is not known: of a GPU without a data sheet, or where this machine is too small for a rehearsal."""
    hours: float | None
    cost: float | None
    rehearsal_bytes: float = 0.0
    """What a rehearsal on this machine takes."""
    max_minutes: float = 0.0
    """After which the run ends, on fewer tokens where the speed is not known; 0: it ends when it has seen them all."""

    @property
    def fits(self) -> bool:
        return self.footprint.peak <= self.available_bytes

    def facts(self) -> dict[str, Any]:
        return asdict(self) | {"peak_bytes": self.footprint.peak, "fits": self.fits}


def shape_of(student: str) -> PretrainedConfig:
    """Return a student's configuration: its own, if it is here or can be had, or the known one of its name.

    Raises `InputError` if there is none, or if it cannot be trained here.
    """
    place = Path(student)
    known = known_config(student)
    if known and not place.is_dir():
        kind = known.pop("model_type")
        return AutoConfig.for_model(kind, **known)
    try:
        folder = place if (place / "config.json").is_file() else resolve(student)
    except InputError as error:
        raise InputError(f"{error}; shapes that are known without it: {', '.join(known_names())}") from error
    check_architecture(folder)
    values = read_object(folder / "config.json")
    return AutoConfig.for_model(values.pop("model_type"), **values)


def plan_training(
    config: PretrainedConfig,
    train: TrainConfig,
    examples: Examples,
    *,
    gpu: Device | None = None,
    devices: int = 1,
    price_per_hour: float | None = None,
) -> TrainingPlan:
    """Plan a run on this machine, or on so many GPUs that divide the student among them (FSDP2).

    What cannot be sharded (weights in four bits, the state of other optimizers than AdamW) is on each GPU whole. Raises
    `InputError` for adapters on layers that the student does not have.
    """
    dtype = torch.bfloat16 if gpu else compute_dtype()
    row, rows, batch_tokens, computed = fullest_row(
        examples, train, devices, on_gpu=bool(gpu) or torch.cuda.is_available()
    )
    gc.collect()
    found = footprint(
        config,
        train,
        dtype,
        row,
        rows=rows * train.accumulation_steps,
        shards=1 if train.quantization or train.optimizer != "adamw" else devices,
        on_gpu=gpu is not None,
    )
    sizes = sizes_of(meta_model(config, train, dtype), train)
    update_tokens = batch_tokens * train.accumulation_steps
    rehearsal, speed = 0.0, None
    if gpu is None:
        rehearsal = rehearsal_bytes(config, train, dtype, row)
        if rehearsal <= free_bytes():
            say("measuring a few steps of this training on this machine, a minute or so")
            speed = rehearse(config, train, dtype, row).tokens_per_s(update_tokens * computed) / computed
    elif gpu.flops_per_s is not None:
        context = float(np.mean(examples.lengths))
        flops = (2 + sizes.trained / sizes.parameters) * forward_flops(config, context)
        flops *= RECOMPUTED if train.gradient_checkpointing else 1.0
        speed = devices * UTILISATION * gpu.flops_per_s / flops
    tokens = train.epochs * sum(examples.lengths)
    if train.max_updates:
        tokens = min(tokens, round(train.max_updates * update_tokens))
    if train.max_minutes and speed is not None:
        tokens = min(tokens, round(60 * train.max_minutes * speed))
    hours = None if speed is None else tokens / speed / 3600
    return TrainingPlan(
        parameters=sizes.parameters - (sizes.trained if train.lora_rank else 0),
        trained=sizes.trained,
        footprint=found,
        available_bytes=gpu.memory_bytes if gpu else memory().available_bytes,
        row_tokens=row.tokens,
        update_tokens=update_tokens,
        tokens=tokens,
        tokens_per_s=speed,
        hours=hours,
        cost=None if price_per_hour is None or hours is None else hours * price_per_hour * devices,
        rehearsal_bytes=rehearsal,
        max_minutes=train.max_minutes,
    )


def free_bytes() -> float:
    """Return what is free where training runs: on the GPU, or on this machine."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else memory().available_bytes


def equal_examples(count: int, length: int) -> Examples:
    """Return examples of one length."""
    return Examples(lengths=(length,) * count, trained=(max(1, round(TRAINED_SHARE * length)),) * count)


def counted_examples(student: Path, train: Path) -> Examples:
    """Count the examples of a file in the student's tokens; raises `InputError` if there are none, or no tokenizer."""
    if not (student / "tokenizer.json").is_file():
        raise InputError(f"to count the tokens of {train}, {student} must be a model folder; give its path")
    examples = read_records(train, Example)
    if not examples:
        raise InputError(f"{train} has no example; name the train.jsonl of a run")
    with tempfile.TemporaryDirectory() as folder:
        return lengths_of(examples, write_student_format(student, Path(folder)))


def lengths_of(examples: Sequence[Example], chat_format: ChatFormat) -> Examples:
    """Count the examples in the tokens of a student's chat format."""
    return Examples.tokenized(
        [chat_format.training_ids(each.messages, each.reasoning, each.answer) for each in examples]
    )


def fullest_row(
    examples: Examples, train: TrainConfig, devices: int, *, on_gpu: bool
) -> tuple[PackedRow, int, float, float]:
    """Return the fullest row of many drawn batches, its batch's number of rows, the mean tokens of a batch, and the
    share of them that is computed: elsewhere than on a GPU, what examples of a row begin with is computed once."""
    shares = not on_gpu and bears_sharing(train)
    generator = np.random.default_rng(train.seed)
    size = min(max(1, train.batch_examples // devices), len(examples.lengths))
    chances = min(DRAWS, math.comb(len(examples.lengths), size)) if size < len(examples.lengths) else 1
    fullest, count, tokens, computed = PackedRow(lengths=(0,), trained_tokens=0), 1, [], []
    for _ in range(chances):
        batch = generator.choice(len(examples.lengths), size=size, replace=False).tolist()
        rows = _rows(batch, examples, train.row_tokens, shares=shares)
        tokens.append(sum(examples.lengths[i] for i in batch))
        computed.append(sum(row.tokens for row in rows))
        longest = max(rows, key=lambda row: row.tokens)
        if longest.tokens > fullest.tokens:
            fullest, count = longest, len(rows)
    return fullest, count, float(np.mean(tokens)) * devices, sum(computed) / sum(tokens)


def _rows(batch: Sequence[int], examples: Examples, tokens: int, *, shares: bool) -> list[PackedRow]:
    lengths, trained = ([values[i] for i in batch] for values in (examples.lengths, examples.trained))
    rows = []
    for row in packed(lengths, tokens):
        found = PackedRow(lengths=tuple(lengths[i] for i in row), trained_tokens=sum(trained[i] for i in row))
        if shares and examples.ids:
            parts = parts_of([examples.ids[batch[i]] for i in row])
            ends = tuple(part.end - part.begin for part in parts)
            found = replace(found, lengths=ends, earlier=tuple(part.earlier for part in parts))
        rows.append(found)
    return rows
