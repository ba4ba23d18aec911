"""`toolkit export --int4`: a Hugging Face folder in, a checked int4 ONNX folder out.

    check source → quantize layer by layer → model.onnx.data → model.onnx → parity with the float model → what
    `toolkit verify` compares with → manifest.json

Invariant: the folder has its final name only when the parity gate let it through; one tensor or one layer is in memory at
a time while weights are written.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from export.calibration import CalibrationTexts, read_texts
from export.calibration_stream import CalibrationStream
from export.checkpoint import MATRICES, Checkpoint, tensor_shapes
from export.goldens import write_goldens
from export.graph import build_graph
from export.layout import Layout, layouts
from export.package import write_package
from export.parity import Bounds, check_parity, measure_parity
from export.quantize import QuantizedWeight, quantize_nearest
from export.session import MODEL_FILE
from export.weights_file import StoredWeight, WeightsFile
from toolkit import runs
from toolkit.chat_format import ChatFormat
from toolkit.errors import InputError
from toolkit.progress import Progress

Method = Literal["gptq", "nearest"]
TRACES_FILE = "train.jsonl"
EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """How one folder is made. `int4_config` fills in everything but the paths."""

    source: Path
    out: Path
    method: Method
    """gptq calibrates on traces; nearest rounds each weight by itself."""
    calibration: Path | None
    """The traces (`Example` lines) for gptq; None where there are none and the method is nearest."""
    calibration_tokens: int
    block_size: int
    """Of every matrix whose rows it divides; others get a smaller one."""
    head_bits: int
    """Of the output head, and of the embedding where the two are tied; everything else has 4.

    8 costs a tied 135M model 14 MB (0.11 bytes a parameter). Rounded to 4 bits, head and embedding alone lost twice as
    much as all calibrated layers together (mean KL 0.033 against 0.017), at 8 bits next to nothing (0.0001).
    """
    bounds: Bounds

    def __post_init__(self) -> None:
        if self.method == "gptq" and self.calibration is None:
            raise InputError("method gptq must have traces to calibrate on (none were given); give --calibration")


def int4_config(source: Path, out: Path, *, calibration: Path | None = None) -> ExportConfig:
    """The default for `--int4`: calibrated where there are traces (given, or the student's own), else to nearest."""
    own_traces = source / TRACES_FILE
    traces = calibration or (own_traces if own_traces.is_file() else None)
    return ExportConfig(
        source=source,
        out=out,
        method="gptq" if traces else "nearest",
        calibration=traces,
        calibration_tokens=12_000,
        block_size=128,
        head_bits=8,
        bounds=Bounds(max_mean_kl=0.1, min_top1=0.9) if traces else Bounds(max_mean_kl=0.6, min_top1=0.6),
    )


def export_int4(config: ExportConfig) -> dict[str, Any]:
    """Make `config.out` and return its manifest; a folder that is there already and is this very run is left alone.

    Raises `InputError` for a source that cannot be exported, `GateFailed` where parity is out of bounds, and
    `FolderConflict` where `out` holds something else. Whatever is raised, nothing is left under the final name.
    """
    checkpoint = Checkpoint(config.source)
    layouts(checkpoint.config, block_size=config.block_size, head_bits=config.head_bits)  # refuses before any work
    stage = _stage(config)
    if runs.is_complete(config.out, stage):
        return runs.read_manifest(config.out) or {}
    checkpoint.check_values()
    texts = _read_texts(checkpoint, config)
    folder = runs.partial_folder(config.out, stage)
    try:
        step_bytes = _write_model(checkpoint, config, texts, folder)
        report = measure_parity(config.source, folder, texts.held_out)
        check_parity(report, config.bounds)
        goldens = write_goldens(config.source, folder, texts.held_out)
        facts = _measured(checkpoint, folder) | {"step_bytes": step_bytes}
        return runs.finish(folder, config.out, stage, facts | {"parity": report.to_dict()} | goldens)
    except OSError as error:
        raise InputError(f"{config.out} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        checkpoint.close()


def _write_model(checkpoint: Checkpoint, config: ExportConfig, texts: CalibrationTexts, folder: Path) -> int:
    """Write everything but the manifest; returns the bytes of weights that a step reads."""
    tied = checkpoint.config.tie_word_embeddings
    write_package(config.source, folder, checkpoint.config)
    shapes = tensor_shapes(checkpoint.config)
    vectors = {name: checkpoint.array(name) for name, shape in shapes.items() if len(shape) == 1}
    if checkpoint.config.has_qkv_bias:
        vectors |= {
            f"model.layers.{layer}.self_attn.qkv_proj.bias": np.concatenate(
                [vectors.pop(f"model.layers.{layer}.self_attn.{letter}_proj.bias") for letter in "qkv"]
            )
            for layer in range(checkpoint.config.num_hidden_layers)
        }
    stored: dict[str, StoredWeight] = {}
    layers = checkpoint.config.num_hidden_layers
    with WeightsFile(folder) as file, Progress(f"export ({config.method}), layers", layers) as progress:
        for name, weight in _weights(checkpoint, config, texts):
            stored[name] = file.append(weight)
            if name.endswith("down_proj.weight"):
                progress.advance()
    onnx.save(build_graph(checkpoint.config, stored, vectors), folder / MODEL_FILE)
    return sum(weight.size_bytes for name, weight in stored.items() if name != EMBEDDING or tied)


def _weights(
    checkpoint: Checkpoint, config: ExportConfig, texts: CalibrationTexts
) -> Iterator[tuple[str, QuantizedWeight]]:
    """Every matrix that is stored: embedding and head rounded to nearest, the layers by the method."""
    chosen = layouts(checkpoint.config, block_size=config.block_size, head_bits=config.head_bits)
    embedding = _nearest(checkpoint, [EMBEDDING], chosen[EMBEDDING])
    yield EMBEDDING, embedding
    if not checkpoint.config.tie_word_embeddings:
        yield LM_HEAD, _nearest(checkpoint, [LM_HEAD], chosen[LM_HEAD])
    layers = range(checkpoint.config.num_hidden_layers)
    if config.method == "gptq":
        calibration = [text.prompt + text.completion for text in texts.calibration]
        stream = CalibrationStream(checkpoint, calibration, embedding)
        for layer in layers:
            yield from stream.quantize_layer(layer, chosen)
        return
    for layer in layers:
        for module, parts in MATRICES.items():
            name = f"model.layers.{layer}.{module}.weight"
            yield name, _nearest(checkpoint, [f"model.layers.{layer}.{part}.weight" for part in parts], chosen[name])


def _nearest(checkpoint: Checkpoint, names: Sequence[str], layout: Layout) -> QuantizedWeight:
    weight_NK = np.concatenate([checkpoint.array(name) for name in names])
    return quantize_nearest(weight_NK, bits=layout.bits, block_size=layout.block_size)


def _read_texts(checkpoint: Checkpoint, config: ExportConfig) -> CalibrationTexts:
    if config.calibration is None:
        return CalibrationTexts(calibration=[], held_out=[])
    return read_texts(
        config.calibration,
        ChatFormat.from_folder(config.source),
        tokens=config.calibration_tokens,
        max_length=checkpoint.config.max_position_embeddings,
    )


def _stage(config: ExportConfig) -> runs.Stage:
    """The paths are not part of what a run is; the digests of what lies there are."""
    settings = {name: value for name, value in asdict(config).items() if not isinstance(value, Path)}
    settings.pop("calibration", None)
    inputs = {"source": runs.folder_digest(config.source)}
    if config.calibration is not None:
        inputs["calibration"] = runs.file_digest(config.calibration)
    return runs.Stage(name="export", config=settings, inputs=inputs)


def _measured(checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    parameters = sum(int(np.prod(shape)) for shape in tensor_shapes(checkpoint.config).values())
    size_bytes = runs.folder_bytes(folder)
    return {"parameters": parameters, "bytes": size_bytes, "bytes_per_parameter": size_bytes / parameters}
