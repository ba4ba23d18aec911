"""A training as a folder, which the processes that train together read, and what the first of them writes back.

    checkpoints/job/    job.json  train.jsonl  validation.jsonl     written before the processes begin
                        result.json                                 what the training measured
                        error-RANK.json                             why a process failed

A process knows its place by torch's variables (`RANK`, `WORLD_SIZE`, `MASTER_ADDR` …). One process collects the traces
and writes the run folder, before the others join it. All must see the same folder.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from distill.launching.sharded import ShardedTrainer
from distill.training.journal import CHECKPOINTS
from distill.training.train import StudentTrainer, Train, train
from distill.training.train_config import TrainConfig
from toolkit.errors import InputError, ToolkitError
from toolkit.records import TRAIN, Example, read_object, read_records, write_records
from toolkit.runs import process_rank, replace_text
from toolkit.voice.student_format import write_student_format

JOB_FOLDER, JOB, RESULT, VALIDATION = "job", "job.json", "result.json", "validation.jsonl"

LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Socket closed",
    "Broken pipe",
    "remote process exited",
)
"""What gloo and NCCL say of a process that is gone."""


KNOWN, BUG, FOLLOWS = "known", "bug", "follows"
"""Kinds of failures: with a remedy, unforeseen, or of a process that another one has left."""


class LostProcess(InputError):
    """Another process is gone, which says why if it can."""


def check_processes(config: TrainConfig, processes: int, *, sharded: bool, here: bool) -> None:
    """Raise `InputError` if a recipe cannot be trained on so many processes. `here`: all of them on this machine."""
    if config.batch_examples < processes:
        raise InputError(
            f"a batch of {config.batch_examples} examples cannot be divided among {processes} processes; use at most "
            f"{config.batch_examples}"
        )
    if here and torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise InputError(
            f"{processes} processes need as many GPUs, and this machine has {torch.cuda.device_count()}; use at most "
            "that many"
        )
    if sharded and config.quantization:
        raise InputError(
            f"weights in {config.quantization} cannot be sharded; leave --fsdp out: each process then holds the "
            "quantized base, which is a quarter of its size in bf16"
        )
    if sharded and config.optimizer != "adamw":
        raise InputError(f"the state of {config.optimizer} cannot be sharded; use adamw, or leave --fsdp out")


def write_job(
    student: Path,
    examples: Sequence[Example],
    config: TrainConfig,
    folder: Path,
    validation: Sequence[Example],
    *,
    sharded: bool,
) -> Path:
    """Write a training into the partial folder of its run; return the job's own folder."""
    place = folder.absolute() / CHECKPOINTS / JOB_FOLDER
    place.mkdir(parents=True, exist_ok=True)
    for path in (place / RESULT, *place.glob("error-*.json")):
        path.unlink(missing_ok=True)
    write_student_format(student, folder)  # all processes read it
    write_records(place / TRAIN, list(examples))
    write_records(place / VALIDATION, list(validation))
    job = {"student": str(student.absolute()), "config": asdict(config), "sharded": sharded}
    replace_text(place / JOB, json.dumps(job))
    return place


def launched(run: Callable[[Path], None], *, processes: int, sharded: bool, here: bool) -> Train:
    """Return a way to train on several processes.

    `run` gets a job's folder and returns when its processes have trained. `sharded`: whether each holds shards instead
    of a copy. `here`: whether all are on this machine.
    """

    def launch(
        student: Path,
        examples: Sequence[Example],
        config: TrainConfig,
        folder: Path,
        validation: Sequence[Example] = (),
    ) -> dict[str, Any]:
        check_processes(config, processes, sharded=sharded, here=here)
        place = write_job(student, examples, config, folder, validation, sharded=sharded)
        run(place)
        return read_object(place / RESULT)

    return launch


def work(place: Path) -> None:
    """Train as one of a job's processes; raises what `train` raises, and `InputError` if another process died."""
    job = read_object(place / JOB)
    try:
        measured = train(
            Path(job["student"]),
            read_records(place / TRAIN, Example),
            TrainConfig.from_json(job["config"]),
            place.parents[1],
            read_records(place / VALIDATION, Example),
            make_trainer=ShardedTrainer if job["sharded"] else StudentTrainer,
        )
        distributed.barrier()  # the first process saves the student meanwhile
    except (RuntimeError, distributed.DistError) as error:
        if not any(sign in str(error) for sign in LOST):
            raise
        raise LostProcess(
            f"a process that trains with this one has died; the same command {last_update(place)}"
        ) from error
    if not process_rank():
        replace_text(place / RESULT, json.dumps(measured))


def note_failure(place: Path, error: BaseException) -> None:
    """Leave the reason why this process failed where whoever started it looks."""
    kind = BUG
    if isinstance(error, ToolkitError):
        kind = FOLLOWS if isinstance(error, LostProcess) else KNOWN
    text = "".join(traceback.format_exception(error)) if kind == BUG else str(error)
    replace_text(place / f"error-{process_rank()}.json", json.dumps({"kind": kind, "text": text}))


def noted_failure(place: Path) -> BaseException | None:
    """Return the failure that a process noted, or that from which others followed."""
    found = [read_object(path) for path in sorted(place.glob("error-*.json"))]
    if not found:
        return None
    first = min(found, key=lambda each: (KNOWN, BUG, FOLLOWS).index(each["kind"]))
    return RuntimeError(first["text"]) if first["kind"] == BUG else InputError(first["text"])


def last_update(place: Path) -> str:
    """Say from where the same command goes on after a process died."""
    whole = (state.parent for state in place.parent.glob("checkpoint-*/trainer_state.json"))
    kept = [int(checkpoint.name.rpartition("-")[2]) for checkpoint in whole]
    return f"resumes at update {max(kept)}" if kept else "begins the training again, as no checkpoint was written yet"


def quiet_environment() -> dict[str, str]:
    """Return this process's variables, with which torch says nothing of connections that a dead process closed."""
    return os.environ | {"TORCH_CPP_LOG_LEVEL": "ERROR", "GLOO_LOG_LEVEL": "ERROR"}
