"""`toolkit export`: a Hugging Face folder in, a checked ONNX folder out, its weights in four bits or more.

    check source → round layer by layer → model.onnx.data → model.onnx → parity with the float model → what
    `toolkit verify` compares with → manifest.json

Invariant: the folder has its final name only when the parity gate let it through; some rows of one tensor, or one
calibrated layer, are in memory at a time while weights are written. An export that was killed goes on behind its last
whole layer and ends with the same bytes (see `export.folder.resume_log`).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from safetensors.numpy import load_file, save_file

from export.allocation import Choice, allocate
from export.calibration.cache_scales import cache_scales
from export.calibration.texts import CalibrationTexts, read_texts
from export.checkpoint.tensors import EMBEDDING, LM_HEAD, Checkpoint, tensor_shapes
from export.checks.gate import check_source, pass_gate
from export.checks.goldens import Chats
from export.checks.parity import Bounds, float_model
from export.folder.package import write_package
from export.folder.resume_log import Journal
from export.folder.weights_file import FILE_NAME, Weights, WeightsFile, read_weight
from export.graph.model_graph import build_graph
from export.matrices import Method, part_bytes, parts, vectors
from export.merged_model import open_merged
from export.quantization.layout import Layout, layouts
from export.runtime.exported_model import INT8_CACHE_FILE, MODEL_FILE, Cache
from export.tuning import tune
from toolkit import runs
from toolkit.errors import InputError, ToolkitError
from toolkit.formats.chat_format import TOKENIZER, ChatFormat
from toolkit.generation.generate import Floats
from toolkit.machine.allowance import memory
from toolkit.model.decoder import check_loads
from toolkit.progress import Progress
from toolkit.records import TRAIN, read_records, write_records
from toolkit.terminal import say

Preset = Literal["balanced", "best", "fast", "quick"]
"""balanced: large blocks. best: smaller ones and an int8 head. fast: balanced with three bits for most weights. quick: not
calibrated."""
BLOCK_SIZE: dict[Preset, int] = {"balanced": 256, "best": 64, "fast": 256, "quick": 32}
INT8_CACHED: tuple[Preset, ...] = ("balanced", "fast")
NARROW: dict[Preset, tuple[str, ...]] = {"fast": ("mlp.gate_up_proj", "mlp.down_proj")}
"""Modules with three bits a weight."""
WeightType = Literal["int8", "fp16", "fp32"]
"""What needs no calibration."""
BITS: dict[WeightType, int] = {"int8": 8, "fp16": 16, "fp32": 32}
INT8_BLOCK_SIZE = 128
"""Activations are rounded in blocks of the same size: on SmolLM2-135M mean KL is 0.0045 with 128 and 0.0057 with 256."""
CALIBRATION_TOKENS = 24_000
CHOICES, TUNED = "choices.jsonl", "tuned.safetensors"


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """How one folder is made. `int4_config` and `nearest_config` fill in everything but the paths."""

    source: Path
    adapter: Path | None
    """PEFT folder that is merged into the source; None where there is none."""
    out: Path
    method: Method
    """gptq and searched calibrate on traces; nearest rounds each weight by itself."""
    calibration: Path | None
    """The traces (`Example` lines) that weights and the int8 cache are calibrated on and parity is measured on; None
    where there are none and the method is nearest."""
    cache: Cache
    """How the runner keeps keys and values unless it is told otherwise, or the gate finds that int8 falls short; parity is
    measured with it.

    int8 made decoding a 1.7B a quarter faster after 512 tokens, and cost SmolLM2-135M 0.0006 of a mean KL of 0.048.
    """
    calibration_tokens: int
    bits: int
    """Of a weight: 4 or 8 for codes, 16 or 32 for floats."""
    block_size: int
    """Of every matrix of codes whose rows it divides; others get a smaller one."""
    head_bits: int
    """Of the output head, and of the embedding where the two are one matrix; everything else has `bits`.

    Rounded to nearest, 8 bits lose next to nothing and 4 more than all calibrated layers together; with error feedback 4
    bits lose a tenth of what the layers do (docs/explanation/int4.md).
    """
    has_own_head: bool
    """Whether a tied head is stored beside the embedding, so that it can be calibrated: an embedding's rows are looked
    up and cannot be aimed at the head's inputs. Two matrices of 4 bits take the bytes of a shared one of 8, of which a
    step reads half. Not where a size is asked for.
    """
    narrow: tuple[str, ...]
    """The layers' modules that have 3 bits in place of `bits`, where their rows are whole blocks of 256. Not where a size
    is asked for.
    """
    max_bytes: int
    bits_per_weight: float
    """What the weights may take at most; each matrix then gets the bits and blocks that serve the whole best (see
    `export.allocation`). Both 0 where `block_size` and `head_bits` decide."""
    tune: bool
    """Whether scales and norms are tuned at the end, which takes both models as floats (see `export.tuning`)."""
    bounds: Bounds | None
    """Of the parity gate; None where parity is not measured, as the float model may not fit the memory."""

    def __post_init__(self) -> None:
        if self.method != "nearest" and self.calibration is None:
            raise InputError(
                f"method {self.method} must have traces to calibrate on (none were given); give --calibration"
            )
        if self.cache == "int8" and self.calibration is None:
            raise InputError("cache int8 must have traces to calibrate on (none were given); give --calibration")
        if self.tune and self.calibration is None:
            raise InputError("tuning must have traces to tune on (none were given); give --calibration")
        if self.is_sized and self.calibration is None:
            raise InputError("a size must have traces to measure on (none were given); give --calibration")

    @property
    def is_sized(self) -> bool:
        return bool(self.max_bytes or self.bits_per_weight)

    @property
    def chat_folder(self) -> Path:
        """Where tokenizer and template lie; an adapter that brings its own was trained with them."""
        return self.adapter if self.adapter and (self.adapter / TOKENIZER).is_file() else self.source


def int4_config(
    source: Path,
    out: Path,
    *,
    preset: Preset = "balanced",
    adapter: Path | None = None,
    calibration: Path | None = None,
    max_bytes: int = 0,
    bits_per_weight: float = 0.0,
    tune: bool = False,
    method: Method | None = None,
) -> ExportConfig:
    """What `--int4` does: calibrated on traces, given or the student's own; without any, `quick` in place of `balanced`.

    `method`: another than the preset's. Raises `InputError` where another preset, or a method that needs them, has no
    traces to calibrate on, and where `quick` is given some.
    """
    if preset == "quick" and method is None and calibration:
        raise InputError(f"--quick calibrates on nothing, and {calibration} was given; leave out one of them")
    traces = calibration or _own_traces(adapter or source)
    if preset == "quick" or (preset == "balanced" and traces is None and method is None):
        preset, traces = "quick", None if method is None else traces
    method = method or ("nearest" if preset == "quick" else "gptq")
    has_own_head = preset in ("balanced", "fast") and method == "gptq"
    return ExportConfig(
        source=source,
        adapter=adapter,
        out=out,
        method=method,
        cache="int8" if preset in INT8_CACHED else "exact",
        calibration=traces,
        calibration_tokens=CALIBRATION_TOKENS,
        bits=4,
        block_size=BLOCK_SIZE[preset],
        head_bits=4 if has_own_head else 8,
        has_own_head=has_own_head,
        narrow=NARROW.get(preset, ()),
        max_bytes=max_bytes,
        bits_per_weight=bits_per_weight,
        tune=tune,
        bounds=_int4_bounds(method, preset),
    )


def _int4_bounds(method: Method, preset: Preset) -> Bounds:
    """Two to three times the divergence of the rotated SmolLM2-135M (docs/explanation/int4.md), whose weights are hard to round."""
    if method != "gptq":
        return Bounds(max_mean_kl=0.6, min_top1=0.6)
    return Bounds(max_mean_kl=0.25, min_top1=0.75) if preset == "fast" else Bounds(max_mean_kl=0.15, min_top1=0.85)


def nearest_config(
    source: Path,
    out: Path,
    weights: WeightType,
    *,
    adapter: Path | None = None,
    calibration: Path | None = None,
) -> ExportConfig:
    """What `--int8`, `--fp16` and `--fp32` do: each weight to its nearest. Traces calibrate the int8 cache alone."""
    bits = BITS[weights]
    return ExportConfig(
        source=source,
        adapter=adapter,
        out=out,
        method="nearest",
        cache="exact",
        calibration=calibration or _own_traces(adapter or source),
        calibration_tokens=CALIBRATION_TOKENS,
        bits=bits,
        block_size=INT8_BLOCK_SIZE,
        head_bits=bits,
        has_own_head=False,
        narrow=(),
        max_bytes=0,
        bits_per_weight=0.0,
        tune=False,
        bounds=Bounds(max_mean_kl=0.03, min_top1=0.93) if bits == 8 else Bounds(max_mean_kl=0.001, min_top1=0.98),
    )


def _own_traces(folder: Path) -> Path | None:
    traces = folder / TRAIN
    return traces if traces.is_file() else None


def export_model(config: ExportConfig) -> dict[str, Any]:
    """Make `config.out` and return its manifest; a folder that is there already and is this very run is left alone.

    Raises `InputError` for a source that cannot be exported, `GateFailed` where parity is out of bounds, and
    `FolderConflict` where `out` holds something else. Whatever is raised, nothing is left under the final name.
    """
    say(f"export: checking {config.source}")
    checkpoint = open_merged(config.source, config.adapter, config.chat_folder)
    asked = config
    config = replace(config, source=checkpoint.folder, adapter=config.adapter if checkpoint.adapter else None)
    chats = check_source(config.chat_folder, checkpoint.config.max_position_embeddings) if config.bounds else []
    if config.bounds or config.tune or config.is_sized:
        check_loads(config.source)
    chosen = layouts(
        checkpoint.config,
        bits=config.bits,
        block_size=config.block_size,
        head_bits=config.head_bits,
        has_own_head=config.has_own_head and not config.is_sized,
        narrow=() if config.is_sized else config.narrow,
    )
    _check_memory(checkpoint, config)
    stage = _stage(asked)
    if runs.is_complete(config.out, stage):
        return runs.read_manifest(config.out) or {}
    texts = _read_texts(checkpoint, config)
    folder = runs.partial_folder(config.out, stage)
    try:
        journal = Journal(folder)
        choices = _allocation(checkpoint, config, texts, journal) if config.is_sized else []
        chosen |= {choice.name: choice.layout for choice in choices}
        _write_model(checkpoint, config, chosen, texts, folder, journal)
        measured = _compared(checkpoint, config, folder, texts, chats)
        if choices:
            measured["allocation"] = [choice.to_dict() for choice in choices]
        journal.remove()  # before the folder is weighed
        measured |= _measured(checkpoint, journal.weights, folder)
        return runs.finish(folder, config.out, stage, measured)
    except ToolkitError:
        runs.discard(folder)
        raise
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"{config.out} cannot be written: {why}; mend that and run the same command again") from error


def _write_model(
    checkpoint: Checkpoint,
    config: ExportConfig,
    chosen: Mapping[str, Layout],
    texts: CalibrationTexts,
    folder: Path,
    journal: Journal,
) -> None:
    write_package(config.source, config.chat_folder, folder, checkpoint.config)
    norms = vectors(checkpoint)
    sizes = part_bytes(checkpoint, chosen)
    done = sum(sizes[name] for name in journal.finished)
    label = f"export ({config.method})"
    with (
        journal,
        WeightsFile(folder, end=journal.end) as file,
        Progress(label, sum(sizes.values()), done=done, in_bytes=True) as progress,
    ):
        for part, matrices in parts(checkpoint, config.method, chosen, texts, journal):
            stored = {name: file.append(slices, rows) for name, rows, slices in matrices}
            file.sync()
            journal.add(part, stored, file.end)
            progress.advance(sizes[part], note=part.removesuffix(".weight").rpartition("model.")[2])
    if config.tune:
        norms |= _tune(checkpoint, config, texts, folder, journal)
    onnx.save(build_graph(checkpoint.config, journal.weights, norms), folder / MODEL_FILE)
    if texts.calibration:
        scales = cache_scales(folder, texts.calibration)
        onnx.save(build_graph(checkpoint.config, journal.weights, norms, scales), folder / INT8_CACHE_FILE)


def _tune(
    checkpoint: Checkpoint, config: ExportConfig, texts: CalibrationTexts, folder: Path, journal: Journal
) -> dict[str, Floats]:
    """Write tuned scales over the first ones; returns the norms. What was found is kept before it is written, because
    a run that was interrupted here must not tune what is tuned."""
    kept = journal.folder / TUNED
    if not kept.is_file():
        weights = {name: read_weight(folder / FILE_NAME, stored) for name, stored in journal.weights.items()}
        tuned = tune(float_model(config.source, checkpoint), weights, texts.calibration)
        save_file({**tuned.scales, **tuned.norms}, kept.with_suffix(".partial"))
        kept.with_suffix(".partial").replace(kept)
    found = load_file(kept)
    with WeightsFile(folder, end=journal.end) as file:
        for name in found.keys() & journal.weights.keys():
            file.replace_scales(journal.weights[name], found[name])
        file.sync()
    return {name: array for name, array in found.items() if name not in journal.weights}


def _allocation(
    checkpoint: Checkpoint, config: ExportConfig, texts: CalibrationTexts, journal: Journal
) -> list[Choice]:
    """Formats for a size; those that an interrupted run had chosen, because the next measurement may fall otherwise."""
    kept = journal.folder / CHOICES
    if kept.is_file():
        return read_records(kept, Choice)
    trial = journal.folder / "trial"
    trial.mkdir(exist_ok=True)
    room = config.max_bytes or int(config.bits_per_weight * _parameters(checkpoint) / 8)
    choices = allocate(checkpoint, config.source, config.chat_folder, texts.calibration, room, trial)
    shutil.rmtree(trial)
    write_records(kept, choices)
    return choices


def _compared(
    checkpoint: Checkpoint, config: ExportConfig, folder: Path, texts: CalibrationTexts, chats: Chats
) -> dict[str, Any]:
    """The gate's report where it lets the folder through, which then gets its record for `toolkit verify`."""
    if config.bounds is None:
        say("export: not compared with the float model (--no-parity); its quality is unknown")
        return {"parity": None}
    say(f"export: comparing with the float model in {config.source}")
    model = float_model(config.source, checkpoint)
    return pass_gate(model, config.chat_folder, folder, config.cache, config.bounds, texts.held_out, chats)


def _read_texts(checkpoint: Checkpoint, config: ExportConfig) -> CalibrationTexts:
    if config.calibration is None:
        return CalibrationTexts(calibration=[], held_out=[])
    return read_texts(
        config.calibration,
        ChatFormat.from_folder(config.chat_folder),
        tokens=config.calibration_tokens,
        max_length=checkpoint.config.max_position_embeddings,
    )


def _check_memory(checkpoint: Checkpoint, config: ExportConfig) -> None:
    """The parity gate runs the float model, and tuning two of them; the export itself never holds one."""
    model_bytes = 4 * sum(int(np.prod(shape)) for shape in checkpoint.shapes.values())
    available = memory().available_bytes
    if config.tune and 2 * model_bytes > available:
        raise InputError(
            f"two float models ({2 * model_bytes / 1e9:.1f} GB) must fit the free memory ({available / 1e9:.1f} GB) to be "
            "tuned; close programs, or leave out --tune"
        )
    if config.bounds is not None and model_bytes > available:
        raise InputError(
            f"the float model ({model_bytes / 1e9:.1f} GB) must fit the free memory ({available / 1e9:.1f} GB) to be "
            "compared with; close programs, or export without the gate: --no-parity"
        )


def _stage(config: ExportConfig) -> runs.Stage:
    """The paths are not part of what a run is; the digests of what lies there are."""
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
    parameters = _parameters(checkpoint)
    size_bytes = runs.folder_bytes(folder)
    read_at_each_step = [w.step_bytes for name, w in weights.items() if name != EMBEDDING or LM_HEAD not in weights]
    return {
        "parameters": parameters,
        "bytes": size_bytes,
        "bytes_per_parameter": size_bytes / parameters,
        "step_bytes": sum(read_at_each_step),
    }


def _parameters(checkpoint: Checkpoint) -> int:
    return sum(int(np.prod(shape)) for shape in tensor_shapes(checkpoint.config).values())
