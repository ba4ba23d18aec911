"""`toolkit export`: turns a Hugging Face folder into a checked ONNX folder, its weights in four bits or more.

    check source → round layer by layer → model.onnx.data → model.onnx → parity with the float model → record for
    `toolkit verify` → manifest.json

Invariant: the folder gets its final name only if the parity gate passes. While weights are written, memory holds some
rows of one tensor, or one calibrated layer. An export that was killed resumes after its last whole layer and ends with
the same bytes (`export.folder.resume_log`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from export.allocation import Choice, allocate
from export.calibration.cache_scales import cache_scales
from export.calibration.texts import CalibrationTexts, read_texts
from export.checkpoint.model_config import ModelConfig
from export.checkpoint.source import Source
from export.checkpoint.tensors import EMBEDDING, LM_HEAD, Checkpoint, vectors
from export.checks.gate import check_source, leave_out_gate, pass_gate
from export.checks.goldens import Chats
from export.checks.layerwise import LayerwiseModel
from export.folder.model_writer import ModelWriter
from export.folder.package import discarded_if_refused, write_package
from export.folder.resume_log import ResumeLog
from export.folder.weights_file import FILE_NAME, Weights, WeightsFile, read_weight
from export.graph.model_graph import build_graph
from export.matrices import part_bytes, write_parts
from export.merged_model import open_source
from export.presets import CHOICES, RECOVERED, ExportConfig
from export.quantization.layout import Layout, layouts
from export.recovery import TOKENS, check_recovery, recover
from export.runtime.exported_model import INT8_CACHE_FILE
from toolkit import runs
from toolkit.errors import InputError
from toolkit.generation.generate import Floats
from toolkit.machine.allowance import memory
from toolkit.model.decoder import check_loads
from toolkit.progress import Progress
from toolkit.records import read_records, write_records
from toolkit.sources.made_card import write_export_card
from toolkit.sources.model_names import MODEL_FILE
from toolkit.terminal import counted, say

REPORT = "report"
"""The key of the recovery's report in the header of its file."""


def export_model(config: ExportConfig) -> dict[str, Any]:
    """Make `config.out` and return its manifest; a folder that this very run has made already is left alone.

    Raises `InputError` if the source cannot be exported, `GateFailed` if parity is out of bounds, and `FolderConflict`
    if `out` holds something else. Whatever is raised, nothing is left under the final name.
    """
    say(f"export: checking {config.source}")
    source = open_source(config.source, config.adapter)
    checkpoint = source.checkpoint
    if any(rope and rope.longest for rope in checkpoint.config.ropes):
        say(
            f"export: it will read up to {checkpoint.config.max_position_embeddings:,} tokens: for longer texts, "
            "it turns or scales queries and keys otherwise, which is not exported"
        )
    _say_padding(checkpoint.config)
    chats = check_source(source) if config.bounds else []
    if config.recovery != "none":
        check_recovery(checkpoint.config)
    if config.bounds or config.recovery != "none" or config.is_sized:
        check_loads(checkpoint.folder)
    chosen = chosen_layouts(checkpoint, config)
    _check_memory(checkpoint, config)
    stage = _stage(config)
    if runs.is_complete(config.out, stage):
        runs.say_done(config.out)
        write_export_card(config.out, config.source)
        return runs.read_manifest(config.out) or {}
    texts = texts_of(source, config)
    folder = runs.partial_folder(config.out, stage)
    with discarded_if_refused(folder, config.out):
        journal = ResumeLog(folder)
        choices = _allocation(source, config, texts, journal) if config.is_sized else []
        chosen |= {choice.name: choice.layout for choice in choices}
        recovered = _write_model(source, config, chosen, texts, folder, journal)
        measured = _compared(source, config, folder, texts, chats) | recovered
        if choices:
            measured["allocation"] = [choice.to_dict() for choice in choices]
        journal.remove()  # before the folder is weighed
        measured |= _measured(checkpoint, journal.weights, folder)
        manifest = runs.finish(folder, config.out, stage, measured)
        write_export_card(config.out, config.source)
        return manifest


def _say_padding(config: ModelConfig) -> None:
    """Say what heads cost that the kernels do not take as they are."""
    size, padded = config.head_dim, config.padded_head_dim
    if padded != size:
        say(
            f"export: zeros fill up heads of {size} channels to {padded}, which attention's kernels require; keys and "
            f"values take {100 * (padded / size - 1):.0f} % more memory, and the results are the same"
        )


def _write_model(
    source: Source,
    config: ExportConfig,
    chosen: Mapping[str, Layout],
    texts: CalibrationTexts,
    folder: Path,
    journal: ResumeLog,
) -> dict[str, Any]:
    """Write weights and graphs; returns what recovery measured, for the manifest."""
    checkpoint = source.checkpoint
    measured: dict[str, Any] = {}
    write_package(source, folder)
    norms = vectors(checkpoint)
    sizes = part_bytes(checkpoint, chosen)
    done = sum(sizes[name] for name in journal.finished)
    if journal.finished:
        say(
            f"export: resuming after {_shown(journal.finished[-1])}; "
            f"{done / 1e6:.1f} of {sum(sizes.values()) / 1e6:.1f} MB were converted before"
        )
    label = f"export ({config.method})"
    with (
        journal,
        WeightsFile(folder, end=journal.end) as file,
        Progress(label, sum(sizes.values()), done=done, in_bytes=True) as progress,
    ):
        writer = ModelWriter(
            file,
            journal,
            lambda part: progress.advance(sizes[part], note=_shown(part)),
        )
        write_parts(checkpoint, config.method, chosen, norms, texts.calibration, writer)
    if config.recovery != "none":
        recovered, measured["recovery"] = _recover(source, texts, folder, journal)
        norms |= recovered
    onnx.save(build_graph(checkpoint.config, journal.weights, norms), folder / MODEL_FILE)
    if texts.calibration:
        scales = cache_scales(source, folder, texts.calibration)
        onnx.save(build_graph(checkpoint.config, journal.weights, norms, scales), folder / INT8_CACHE_FILE)
    return measured


def _shown(part: str) -> str:
    return part.removesuffix(".weight").rpartition("model.")[2]


def _recover(
    source: Source, texts: CalibrationTexts, folder: Path, journal: ResumeLog
) -> tuple[dict[str, Floats], dict[str, Any]]:
    """Overwrite the scales with recovered ones; returns the norms, and a report. The result is saved before it is
    written, because a run that was interrupted here must not train what is trained already."""
    kept = journal.folder / RECOVERED
    if not kept.is_file():
        weights = {name: read_weight(folder / FILE_NAME, stored) for name, stored in journal.weights.items()}
        recovered = recover(source.float_model, source.checkpoint.config, weights, texts.for_recovery)
        report = {REPORT: json.dumps(recovered.report.to_dict())}
        save_file({**recovered.scales, **recovered.norms}, kept.with_suffix(".partial"), report)
        kept.with_suffix(".partial").replace(kept)
    found = load_file(kept)
    with safe_open(kept, "np") as stored_file:
        measured = json.loads(stored_file.metadata()[REPORT])
    with WeightsFile(folder, end=journal.end) as file:
        for name in found.keys() & journal.weights.keys():
            file.replace_scales(journal.weights[name], found[name])
        file.sync()
    return {name: array for name, array in found.items() if name not in journal.weights}, measured


def _allocation(source: Source, config: ExportConfig, texts: CalibrationTexts, journal: ResumeLog) -> list[Choice]:
    """Choose formats for a size, or reuse those of an interrupted run: another measurement might differ."""
    kept = journal.folder / CHOICES
    if kept.is_file():
        return read_records(kept, Choice)
    trial = journal.folder / "trial"
    trial.mkdir(exist_ok=True)
    room = config.max_bytes or int(config.bits_per_weight * parameter_count(source.checkpoint) / 8)
    is_needed_later = config.bounds or config.recovery != "none"
    choices = allocate(source if is_needed_later else replace(source), texts.calibration, room, trial)
    shutil.rmtree(trial)
    write_records(kept, choices)
    return choices


def _compared(
    source: Source, config: ExportConfig, folder: Path, texts: CalibrationTexts, chats: Chats
) -> dict[str, Any]:
    """Run the gate, which writes the record for `toolkit verify`; returns its report."""
    if config.bounds is None:
        return leave_out_gate()
    say(
        f"export: comparing with the float model in {source.checkpoint.folder}, which may take minutes (--no-parity "
        "leaves it out: the quality is then unknown, and toolkit verify cannot check the folder)"
    )
    available = memory().available_bytes
    layerwise = float_bytes(source.checkpoint) > available and "float_model" not in vars(source)
    if layerwise:
        say(
            f"export: the float model ({float_bytes(source.checkpoint) / 1e9:.1f} GB) does not fit the "
            f"{available / 1e9:.1f} GB that are free, so it is read layer by layer; greedy answers are not compared"
        )
    model = LayerwiseModel(source.checkpoint) if layerwise else None
    return pass_gate(source, folder, config.cache, config.bounds, texts.held_out, chats, layerwise=model)


def chosen_layouts(checkpoint: Checkpoint, config: ExportConfig) -> dict[str, Layout]:
    """Assign a layout to each stored matrix; a size that is asked for replaces it by what its measurements choose."""
    return layouts(
        checkpoint.config,
        bits=config.bits,
        block_size=config.block_size,
        head_bits=config.head_bits,
        has_own_head=config.has_own_head and not config.is_sized,
        narrow=() if config.is_sized else config.narrow,
    )


def texts_of(source: Source, config: ExportConfig) -> CalibrationTexts:
    """Read the texts that an export calibrates on, recovers on and is compared on."""
    if config.calibration is None:
        return CalibrationTexts(calibration=[], further=[], held_out=[])
    return read_texts(
        config.calibration,
        source.chat_format,
        tokens=config.calibration_tokens,
        max_length=source.checkpoint.config.max_position_embeddings,
        further_tokens=0 if config.recovery == "none" else TOKENS,
    )


def _check_memory(checkpoint: Checkpoint, config: ExportConfig) -> None:
    """Check that what needs the float model whole finds the memory for it; rounding and the gate need not."""
    available = memory().available_bytes
    whole = {f"--recovery {config.recovery}": 2 * (config.recovery != "none"), "a size": int(config.is_sized)}
    for name, models in whole.items():
        needed = models * float_bytes(checkpoint)
        if needed > available:
            raise InputError(
                f"{name} needs memory for {counted(models, 'float model')} ({needed / 1e9:.1f} GB; "
                f"{available / 1e9:.1f} GB are free); close programs, or leave it out"
            )


def float_bytes(checkpoint: Checkpoint) -> int:
    """Count the bytes of the float model in memory."""
    return 4 * parameter_count(checkpoint)


def _stage(config: ExportConfig) -> runs.Stage:
    """Identify a run by its settings and its inputs' digests, not by their paths."""
    settings = {name: value for name, value in asdict(config).items() if not isinstance(value, Path)}
    for name in ("calibration", "adapter"):
        settings.pop(name, None)
    inputs = {"source": runs.files_digest(config.source)}
    if config.adapter is not None:
        inputs["adapter"] = runs.files_digest(config.adapter)
    if config.calibration is not None:
        inputs["calibration"] = runs.file_digest(config.calibration)
    return runs.Stage(name="export", config=settings, inputs=inputs)


def _measured(checkpoint: Checkpoint, weights: Weights, folder: Path) -> dict[str, Any]:
    parameters = parameter_count(checkpoint)
    size_bytes = runs.folder_bytes(folder)
    read_at_each_step = [w.step_bytes for name, w in weights.items() if name != EMBEDDING or LM_HEAD not in weights]
    return {
        "parameters": parameters,
        "bytes": size_bytes,
        "bytes_per_parameter": size_bytes / parameters,
        "step_bytes": sum(read_at_each_step),
    }


def parameter_count(checkpoint: Checkpoint) -> int:
    """Count the weights of a checkpoint."""
    return sum(int(np.prod(shape)) for shape in checkpoint.shapes.values())
