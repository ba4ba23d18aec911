"""`toolkit export --int4`: a Hugging Face folder in, a checked int4 ONNX folder out.

    check source → quantize layer by layer → model.onnx.data → model.onnx → parity with the float model → manifest.json

Invariant: the folder has its final name only when the parity gate let it through; some rows of one tensor, or one
calibrated layer, are in memory at a time while weights are written. An export that was killed goes on behind its last
whole layer and ends with the same bytes (see `export.journal`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import psutil

from export.calibration import CalibrationTexts, read_texts
from export.checkpoint import EMBEDDING, LM_HEAD, MATRICES, Checkpoint, Floats, tensor_shapes
from export.gptq import CalibrationStream
from export.graph import build_graph
from export.journal import Journal
from export.package import write_package
from export.parity import Bounds, check_parity, measure_parity
from export.quantize import QuantizedWeight, quantize_nearest
from export.session import MODEL_FILE
from export.weights_file import WeightsFile
from toolkit import runs
from toolkit.chat_format import TOKENIZER, ChatFormat
from toolkit.errors import InputError, ToolkitError
from toolkit.progress import Progress

Method = Literal["gptq", "nearest"]
TRACES_FILE = "train.jsonl"

Matrix = tuple[str, int, Iterable[QuantizedWeight]]
"""Name, rows, and slices of the rows, quantized while they are taken."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """How one folder is made. `int4_config` fills in everything but the paths."""

    source: Path
    adapter: Path | None
    """PEFT folder that is merged into the source; None where there is none."""
    out: Path
    method: Method
    """gptq calibrates on traces; nearest rounds each weight by itself."""
    calibration: Path | None
    """The traces (`Example` lines) for gptq; None where there are none and the method is nearest."""
    calibration_tokens: int
    block_size: int
    head_bits: int
    """Of the output head, and of the embedding where the two are tied; everything else has 4.

    8 costs a tied 135M model 14 MB (0.11 bytes a parameter). Rounded to 4 bits, head and embedding alone lost twice as
    much as all calibrated layers together (mean KL 0.033 against 0.017), at 8 bits next to nothing (0.0001).
    """
    bounds: Bounds | None
    """Of the parity gate; None where parity is not measured, as the float model may not fit the memory."""

    def __post_init__(self) -> None:
        if self.method == "gptq" and self.calibration is None:
            raise InputError("method gptq must have traces to calibrate on (none were given); give --calibration")

    @property
    def chat_folder(self) -> Path:
        """Where tokenizer and template lie; an adapter that brings its own was trained with them."""
        return self.adapter if self.adapter and (self.adapter / TOKENIZER).is_file() else self.source


def int4_config(
    source: Path, out: Path, *, adapter: Path | None = None, calibration: Path | None = None
) -> ExportConfig:
    """The default for `--int4`: calibrated where there are traces (given, or the student's own), else to nearest."""
    own_traces = (adapter or source) / TRACES_FILE
    traces = calibration or (own_traces if own_traces.is_file() else None)
    return ExportConfig(
        source=source,
        adapter=adapter,
        out=out,
        method="gptq" if traces else "nearest",
        calibration=traces,
        calibration_tokens=12_000,
        block_size=32,
        head_bits=8,
        bounds=Bounds(max_mean_kl=0.1, min_top1=0.9) if traces else Bounds(max_mean_kl=0.6, min_top1=0.6),
    )


def export_int4(config: ExportConfig) -> dict[str, Any]:
    """Make `config.out` and return its manifest; a folder that is there already and is this very run is left alone.

    Raises `InputError` for a source that cannot be exported, `GateFailed` where parity is out of bounds, and
    `FolderConflict` where `out` holds something else. Whatever is raised, nothing is left under the final name.
    """
    checkpoint = Checkpoint(config.source, config.adapter)
    _check_block_size(checkpoint, config.block_size)
    _check_memory(checkpoint, config)
    stage = _stage(config)
    if runs.is_complete(config.out, stage):
        return runs.read_manifest(config.out) or {}
    texts = _read_texts(checkpoint, config)
    folder = runs.partial_folder(config.out, stage)
    try:
        journal = Journal(folder)
        _write_model(checkpoint, config, texts, folder, journal)
        parity = _parity(checkpoint, config, folder, texts)
        journal.remove()
        return runs.finish(folder, config.out, stage, _measured(checkpoint, folder) | {"parity": parity})
    except ToolkitError:
        runs.discard(folder)
        raise
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"{config.out} cannot be written: {why}; mend that and run the same command again") from error


def _write_model(
    checkpoint: Checkpoint, config: ExportConfig, texts: CalibrationTexts, folder: Path, journal: Journal
) -> None:
    write_package(config.source, config.chat_folder, folder, checkpoint.config)
    vectors = _vectors(checkpoint)
    sizes = _part_bytes(checkpoint)
    done = sum(sizes[name] for name in journal.finished)
    label = f"export ({config.method})"
    with (
        journal,
        WeightsFile(folder, end=journal.end) as file,
        Progress(label, sum(sizes.values()), done=done, in_bytes=True) as progress,
    ):
        for part, matrices in _parts(checkpoint, config, texts, journal):
            stored = {name: file.append(slices, rows) for name, rows, slices in matrices}
            file.sync()
            journal.add(part, stored, file.end)
            progress.advance(sizes[part], note=part.removesuffix(".weight").rpartition("model.")[2])
    onnx.save(build_graph(checkpoint.config, journal.weights, vectors), folder / MODEL_FILE)


def _vectors(checkpoint: Checkpoint) -> dict[str, Floats]:
    """Norm weights and biases, those of q, k and v as one."""
    vectors = {name: checkpoint.array(name) for name, shape in checkpoint.shapes.items() if len(shape) == 1}
    if checkpoint.config.has_qkv_bias:
        vectors |= {
            f"model.layers.{layer}.self_attn.qkv_proj.bias": np.concatenate(
                [vectors.pop(f"model.layers.{layer}.self_attn.{letter}_proj.bias") for letter in "qkv"]
            )
            for layer in range(checkpoint.config.num_hidden_layers)
        }
    return vectors


def _parts(
    checkpoint: Checkpoint, config: ExportConfig, texts: CalibrationTexts, journal: Journal
) -> Iterator[tuple[str, Iterator[Matrix]]]:
    """The embedding, the head and each layer, without those that are finished, with their matrices."""
    finished = set(journal.finished)
    for name in _ends(checkpoint):
        if name not in finished:
            yield name, _end(checkpoint, config, name)
    layers = range(checkpoint.config.num_hidden_layers)
    first = sum(_layer(layer) in finished for layer in layers)
    if config.method == "gptq" and first < len(layers):
        stream = CalibrationStream(checkpoint, [text.prompt + text.completion for text in texts.calibration])
        if first:
            for (hidden_BTD, _), kept_BTD in zip(stream.batches, journal.load_hidden(first - 1), strict=True):
                hidden_BTD.copy_(kept_BTD)
        for layer in layers[first:]:
            yield _layer(layer), _calibrated_layer(stream, config, layer, journal)
    else:
        for layer in layers[first:]:
            yield _layer(layer), _nearest_layer(checkpoint, config, layer)


def _ends(checkpoint: Checkpoint) -> tuple[str, ...]:
    return (EMBEDDING,) if checkpoint.config.tie_word_embeddings else (EMBEDDING, LM_HEAD)


def _end(checkpoint: Checkpoint, config: ExportConfig, name: str) -> Iterator[Matrix]:
    """Embedding or head, rounded to nearest."""
    is_head = name == LM_HEAD or checkpoint.config.tie_word_embeddings
    yield name, *_nearest(checkpoint, [name], bits=config.head_bits if is_head else 4, block_size=config.block_size)


def _calibrated_layer(
    stream: CalibrationStream, config: ExportConfig, layer: int, journal: Journal
) -> Iterator[Matrix]:
    for name, weight in stream.quantize_layer(layer, block_size=config.block_size):
        yield name, len(weight.codes), [weight]
    journal.save_hidden(layer, [hidden_BTD for hidden_BTD, _ in stream.batches])


def _nearest_layer(checkpoint: Checkpoint, config: ExportConfig, layer: int) -> Iterator[Matrix]:
    for name, parts in MATRICES.items():
        names = [f"{_layer(layer)}.{part}.weight" for part in parts]
        yield f"{_layer(layer)}.{name}.weight", *_nearest(checkpoint, names, bits=4, block_size=config.block_size)


def _nearest(
    checkpoint: Checkpoint, names: Iterable[str], *, bits: int, block_size: int
) -> tuple[int, Iterator[QuantizedWeight]]:
    """Rows, and slices of them, of the checkpoint's matrices one below the other."""
    rows = sum(checkpoint.shapes[name][0] for name in names)
    slices = (values_NK.numpy() for name in names for values_NK in checkpoint.slices(name))
    return rows, (quantize_nearest(weight_NK, bits=bits, block_size=block_size) for weight_NK in slices)


def _layer(layer: int) -> str:
    return f"model.layers.{layer}"


def _part_bytes(checkpoint: Checkpoint) -> dict[str, int]:
    """Bytes that each part takes in the checkpoint."""
    sizes = {name: checkpoint.size_bytes(name) for name in _ends(checkpoint)}
    for layer in range(checkpoint.config.num_hidden_layers):
        names = [name for name in checkpoint.shapes if name.startswith(f"{_layer(layer)}.")]
        sizes[_layer(layer)] = sum(map(checkpoint.size_bytes, names))
    return sizes


def _parity(
    checkpoint: Checkpoint, config: ExportConfig, folder: Path, texts: CalibrationTexts
) -> dict[str, Any] | None:
    """The report where the gate lets it through, None where there is no gate."""
    if config.bounds is None:
        print("export: not compared with the float model (--no-parity); its quality is unknown", file=sys.stderr)
        return None
    report = measure_parity(config.source, folder, texts.held_out, merged=checkpoint if config.adapter else None)
    check_parity(report, config.bounds)
    return report.to_dict()


def _read_texts(checkpoint: Checkpoint, config: ExportConfig) -> CalibrationTexts:
    if config.calibration is None:
        return CalibrationTexts(calibration=[], held_out=[])
    return read_texts(
        config.calibration,
        ChatFormat.from_folder(config.chat_folder),
        tokens=config.calibration_tokens,
        max_length=checkpoint.config.max_position_embeddings,
    )


def _check_block_size(checkpoint: Checkpoint, block_size: int) -> None:
    facts = checkpoint.config
    for name, size in (
        ("hidden_size", facts.hidden_size),
        ("intermediate_size", facts.intermediate_size),
        ("num_attention_heads * head_dim", facts.qkv_sizes[0]),
    ):
        if size % block_size:
            raise InputError(
                f"{name} ({size}) must be a multiple of the block size ({block_size}); choose a smaller one"
            )


def _check_memory(checkpoint: Checkpoint, config: ExportConfig) -> None:
    """The parity gate runs the float model, which the export itself never holds."""
    needed = 4 * sum(int(np.prod(shape)) for shape in checkpoint.shapes.values())
    available = psutil.virtual_memory().available
    if config.bounds is not None and needed > available:
        raise InputError(
            f"the float model ({needed / 1e9:.1f} GB) must fit the free memory ({available / 1e9:.1f} GB) to be compared "
            "with; close programs, or export without the gate: --no-parity"
        )


def _stage(config: ExportConfig) -> runs.Stage:
    """The paths are not part of what a run is; the digests of what lies there are."""
    settings = {name: value for name, value in asdict(config).items() if not isinstance(value, Path)}
    for name in ("calibration", "adapter"):
        settings.pop(name, None)
    inputs = {"source": runs.folder_digest(config.source)}
    if config.adapter is not None:
        inputs["adapter"] = runs.folder_digest(config.adapter)
    if config.calibration is not None:
        inputs["calibration"] = runs.file_digest(config.calibration)
    return runs.Stage(name="export", config=settings, inputs=inputs)


def _measured(checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    parameters = sum(int(np.prod(shape)) for shape in tensor_shapes(checkpoint.config).values())
    size_bytes = runs.folder_bytes(folder)
    return {"parameters": parameters, "bytes": size_bytes, "bytes_per_parameter": size_bytes / parameters}
