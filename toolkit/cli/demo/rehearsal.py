"""Measures a machine by a little of each part of the demo, with the models, lengths and number format of the run.

    problems → the teacher's traces → training steps on them → decoding steps → one layer of the int4 export

What is slower the first time is timed the second time. Only the rates are kept.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from distill.collecting.job import Job
from distill.pipeline import DistillConfig
from distill.problems.families import make_problems, worked_example
from distill.teachers.respondent import find_respondent
from distill.training.packed_rows import collate
from distill.training.student import add_adapters, load_student
from distill.training.train import StudentTrainer, tokenize, trainer_arguments
from distill.verification.verdicts import grade
from export.calibration.embedding import embedding_rounding
from export.calibration.stream import CalibrationStream
from export.checkpoint.tensors import LM_HEAD, Checkpoint, vectors
from export.matrices import part_bytes
from export.pipeline import chosen_layouts
from export.presets import int4_config
from toolkit.figures.ledger import TRACES
from toolkit.figures.recipe import Rates
from toolkit.formats.chat_format import ChatFormat
from toolkit.generation.generate import Decoder
from toolkit.machine.allocator import keep_freed_memory
from toolkit.machine.allowance import physical_cores
from toolkit.model.precision import compute_dtype, computes_in_bf16
from toolkit.records import Problem
from toolkit.sources.model_names import resolve
from toolkit.terminal import counted
from toolkit.voice.student_format import write_student_format

PER_FAMILY = 16
TRAINED_EXAMPLES, TRAINING_STEPS = 8, 6
STEADY_SHARE = 0.9
"""Training is measured until a step takes at least this share of the one before, or `TRAINING_STEPS` were made: the
first ones touch memory that the system, and the host of a virtual machine, hand out only then."""
DECODED_ROWS, DECODING_STEPS = 48, 6
FEW_TEXTS, MORE_TEXTS = 16, 96
"""Texts to calibrate on; the difference in time is what their tokens cost. The states of a few would stay in the
processor's cache, where those of a whole calibration don't."""


def rehearse(config: DistillConfig, open_decoder: Callable[[Path], Decoder]) -> Rates:
    """Measure the rates of this machine for this run; a model that is not here yet is downloaded."""
    begun = time.perf_counter()
    keep_freed_memory()
    student = resolve(config.student)
    problems = make_problems("train", PER_FAMILY, config.seed, config.families)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        chat_format = write_student_format(student, folder)
        rows = list(tokenize([worked_example(problem) for problem in problems], chat_format))
        lengths = [len(row["input_ids"]) for row in rows]
        teaching = _teach(config, problems, open_decoder, folder)
        measured = {
            "traces_per_s": teaching["traces_per_s"],
            "example_tokens": statistics.mean(lengths),
            "tokens_per_problem": teaching["kept_share"] * statistics.mean(lengths),
            **_decode(student, chat_format, problems, open_decoder),
            **_train(config, student, rows, chat_format, folder),
            **_calibrate(student, [row["input_ids"] for row in rows], folder),
        }
    return Rates(
        processor=processor(),
        dtype=str(compute_dtype()).removeprefix("torch."),
        measuring_s=time.perf_counter() - begun,
        **measured,
    )


def processor() -> str:
    """Describe the processor or GPU that computes here in a few words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    bf16 = " with BF16" if computes_in_bf16() else ""
    return f"{counted(physical_cores(), 'core')}, {torch.backends.cpu.get_cpu_capability()}{bf16}"


def _teach(
    config: DistillConfig, problems: Sequence[Problem], open_decoder: Callable[[Path], Decoder], folder: Path
) -> dict[str, float]:
    """Time the teacher's traces of these problems in one batch, and find the share of them that is right."""
    teacher = find_respondent(config.teacher, open_decoder)
    with teacher:
        teacher.load()
        begun = time.perf_counter()
        traces = teacher.answer(
            Job(
                problems=problems,
                sampling=config.sampling,
                samples=1,
                batch_size=config.batch_size,
                path=folder / TRACES,
                label="measuring the teacher",
            )
        )
        seconds = time.perf_counter() - begun
    right = sum(grade(problem, trace).correct for problem, trace in zip(problems, traces, strict=True))
    return {"traces_per_s": len(traces) / seconds, "kept_share": right / len(traces)}


def _decode(
    student: Path, chat_format: ChatFormat, problems: Sequence[Problem], open_decoder: Callable[[Path], Decoder]
) -> dict[str, float]:
    """Time reading prompts and writing tokens, with many rows and then with one."""
    begun = time.perf_counter()
    decoder = open_decoder(student)
    start_s = time.perf_counter() - begun
    prompts = [chat_format.prompt_ids(problem.messages) for problem in problems[:DECODED_ROWS]]
    decoder.start(prompts[:1])
    begun = time.perf_counter()
    decoder.start(prompts)
    reading_s = time.perf_counter() - begun
    many_s = _step_s(decoder, len(prompts))
    decoder.keep(np.zeros(1, dtype=np.int64))
    step_s = _step_s(decoder, 1)
    return {
        "start_s": start_s,
        "reading_tokens_per_s": sum(map(len, prompts)) / reading_s,
        "step_s": step_s,
        "row_step_s": max(many_s - step_s, 0.0) / (len(prompts) - 1),
    }


def _step_s(decoder: Decoder, rows: int) -> float:
    tokens_B = np.zeros(rows, dtype=np.int64)
    seconds = []
    for _ in range(DECODING_STEPS + 1):
        begun = time.perf_counter()
        decoder.step(tokens_B)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[1:])


def _train(
    config: DistillConfig, student: Path, rows: Sequence[Mapping[str, Any]], chat_format: ChatFormat, folder: Path
) -> dict[str, float]:
    """Time training steps on few examples: what a token takes, and what an update takes whatever their number."""
    plain = load_student(student, chat_format)
    model = add_adapters(plain, config.train) if config.train.lora_rank else plain
    trainer = StudentTrainer(
        model,
        config.train,
        args=trainer_arguments(config.train, folder),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=AutoTokenizer.from_pretrained(folder, local_files_only=True),
    )
    optimizer = trainer.create_optimizer()
    batch = trainer._prepare_inputs(collate(rows[:TRAINED_EXAMPLES], shares=trainer.shares))
    tokens = batch["labels"].numel()
    backward_s: list[float] = []
    update_s: list[float] = []
    while len(backward_s) < 3 or (len(backward_s) < TRAINING_STEPS and backward_s[-1] < STEADY_SHARE * backward_s[-2]):
        stamps = [time.perf_counter()]
        trainer.compute_loss(model, batch, num_items_in_batch=tokens).backward()
        stamps.append(_finished_at())
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        stamps.append(_finished_at())
        backward_s.append(stamps[1] - stamps[0])
        update_s.append(stamps[2] - stamps[1])
    return {
        "training_token_s": statistics.mean(backward_s[-2:]) / tokens,
        "update_s": statistics.mean(update_s[-2:]),
    }


def _finished_at() -> float:
    """Return the time once the device has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _calibrate(student: Path, texts: Sequence[list[int]], folder: Path) -> dict[str, float]:
    """Time rounding one layer on few texts and on more, and scale it up to all weights that are rounded."""
    checkpoint, config = Checkpoint(student, None), int4_config(student, folder / "int4", calibration=folder)
    chosen = chosen_layouts(checkpoint, config)
    norms = vectors(checkpoint)
    embedding = embedding_rounding(checkpoint, norms, chosen, "gptq")

    def layer_s(count: int) -> float:
        (folder / str(count)).mkdir()
        stream = CalibrationStream(checkpoint, texts[:count], norms, embedding, "gptq", folder / str(count))
        begun = time.perf_counter()
        stream.quantize_layer(0, chosen, lambda *matrix: None)
        return time.perf_counter() - begun

    layer_s(1)
    few_s, more_s = layer_s(FEW_TEXTS), layer_s(MORE_TEXTS)
    more_tokens = sum(map(len, texts[FEW_TEXTS:MORE_TEXTS]))
    token_s = max(more_s - few_s, 0.0) / more_tokens
    layers = checkpoint.config.num_hidden_layers
    layer_bytes = part_bytes(checkpoint, chosen)["model.layers.0"]
    rounded_bytes = layers * layer_bytes + part_bytes(checkpoint, chosen).get(LM_HEAD, 0)
    fixed_s = max(few_s - token_s * sum(map(len, texts[:FEW_TEXTS])), 0.0)
    return {"calibration_s": fixed_s * rounded_bytes / layer_bytes, "calibration_token_s": layers * token_s}
