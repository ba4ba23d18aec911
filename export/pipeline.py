"""`toolkit export --int4`: a Hugging Face folder in, a checked int4 ONNX folder out.

    check source → quantize layer by layer → model.onnx.data → model.onnx → parity with the float model → what
    `toolkit verify` compares with → manifest.json

Invariant: the folder has its final name only when the parity gate let it through; some rows of one tensor, or one
calibrated layer, are in memory at a time while weights are written. An export that was killed goes on behind its last
whole layer and ends with the same bytes (see `export.journal`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import psutil

from export.cache_scales import cache_scales
from export.calibration import CalibrationTexts, read_texts
from export.calibration_stream import CalibrationStream
from export.checkpoint import EMBEDDING, LM_HEAD, MATRICES, Checkpoint, Floats, tensor_shapes
from export.goldens import write_goldens
from export.graph import build_graph
from export.journal import Journal
from export.layout import Layout, layouts
from export.package import write_package
from export.parity import Bounds, check_parity, measure_parity
from export.quantize import QuantizedWeight, quantize_nearest
from export.session import INT8_CACHE_FILE, MODEL_FILE
from export.weights_file import Weights, WeightsFile
from toolkit import runs
from toolkit.chat_format import TOKENIZER, ChatFormat
from toolkit.errors import InputError, ToolkitError
from toolkit.progress import Progress

Method = Literal["gptq", "nearest"]
Preset = Literal["balanced", "best", "fast", "quick"]
"""balanced: large blocks and an int8 head. best: smaller blocks. fast: an int4 head. quick: not calibrated."""
BLOCK_SIZE: dict[Preset, int] = {"balanced": 128, "best": 64, "fast": 128, "quick": 32}
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
    """Of every matrix whose rows it divides; others get a smaller one."""
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
    source: Path,
    out: Path,
    *,
    preset: Preset = "balanced",
    adapter: Path | None = None,
    calibration: Path | None = None,
) -> ExportConfig:
    """What `--int4` does: calibrated on traces, given or the student's own; without any, `quick` in place of `balanced`.

    Raises `InputError` where another preset has no traces to calibrate on.
    """
    own_traces = (adapter or source) / TRACES_FILE
    traces = calibration or (own_traces if own_traces.is_file() else None)
    if preset == "quick" or (preset == "balanced" and traces is None):
        preset, traces = "quick", None
    return ExportConfig(
        source=source,
        adapter=adapter,
        out=out,
        method="nearest" if preset == "quick" else "gptq",
        calibration=traces,
        calibration_tokens=12_000,
        block_size=BLOCK_SIZE[preset],
        head_bits=4 if preset == "fast" else 8,
        bounds=Bounds(max_mean_kl=0.6, min_top1=0.6) if preset == "quick" else Bounds(max_mean_kl=0.15, min_top1=0.85),
    )


def export_int4(config: ExportConfig) -> dict[str, Any]:
    """Make `config.out` and return its manifest; a folder that is there already and is this very run is left alone.

    Raises `InputError` for a source that cannot be exported, `GateFailed` where parity is out of bounds, and
    `FolderConflict` where `out` holds something else. Whatever is raised, nothing is left under the final name.
    """
    checkpoint = Checkpoint(config.source, config.adapter)
    chosen = layouts(checkpoint.config, block_size=config.block_size, head_bits=config.head_bits)
    _check_memory(checkpoint, config)
    stage = _stage(config)
    if runs.is_complete(config.out, stage):
        return runs.read_manifest(config.out) or {}
    texts = _read_texts(checkpoint, config)
    folder = runs.partial_folder(config.out, stage)
    try:
        journal = Journal(folder)
        _write_model(checkpoint, config, chosen, texts, folder, journal)
        parity = _parity(checkpoint, config, folder, texts)
        measured = _measured(checkpoint, journal.weights, folder) | {"parity": parity}
        if parity:
            measured |= write_goldens(config.source, folder, texts.held_out)
        journal.remove()
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
    vectors = _vectors(checkpoint)
    sizes = _part_bytes(checkpoint)
    done = sum(sizes[name] for name in journal.finished)
    label = f"export ({config.method})"
    with (
        journal,
        WeightsFile(folder, end=journal.end) as file,
        Progress(label, sum(sizes.values()), done=done, in_bytes=True) as progress,
    ):
        for part, matrices in _parts(checkpoint, config, chosen, texts, journal):
            stored = {name: file.append(slices, rows) for name, rows, slices in matrices}
            file.sync()
            journal.add(part, stored, file.end)
            progress.advance(sizes[part], note=part.removesuffix(".weight").rpartition("model.")[2])
    onnx.save(build_graph(checkpoint.config, journal.weights, vectors), folder / MODEL_FILE)
    if texts.calibration:
        scales = cache_scales(folder, texts.calibration)
        onnx.save(build_graph(checkpoint.config, journal.weights, vectors, scales), folder / INT8_CACHE_FILE)


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
    checkpoint: Checkpoint,
    config: ExportConfig,
    chosen: Mapping[str, Layout],
    texts: CalibrationTexts,
    journal: Journal,
) -> Iterator[tuple[str, Iterator[Matrix]]]:
    """The embedding, the head and each layer, without those that are finished, with their matrices."""
    finished = set(journal.finished)
    for name in _ends(checkpoint):
        if name not in finished:
            yield name, iter([_nearest(checkpoint, name, [name], chosen[name])])
    layers = range(checkpoint.config.num_hidden_layers)
    first = sum(_layer(layer) in finished for layer in layers)
    if config.method == "gptq" and first < len(layers):
        calibration = [text.prompt + text.completion for text in texts.calibration]
        stream = CalibrationStream(checkpoint, calibration, chosen[EMBEDDING])
        if first:
            stream.restore(journal.load_hidden(first - 1))
        for layer in layers[first:]:
            yield _layer(layer), _calibrated_layer(stream, chosen, layer, journal)
    else:
        for layer in layers[first:]:
            yield _layer(layer), _nearest_layer(checkpoint, chosen, layer)


def _ends(checkpoint: Checkpoint) -> tuple[str, ...]:
    return (EMBEDDING,) if checkpoint.config.tie_word_embeddings else (EMBEDDING, LM_HEAD)


def _calibrated_layer(
    stream: CalibrationStream, chosen: Mapping[str, Layout], layer: int, journal: Journal
) -> Iterator[Matrix]:
    for name, weight in stream.quantize_layer(layer, chosen):
        yield name, len(weight.codes), [weight]
    journal.save_hidden(layer, stream.hidden_states())


def _nearest_layer(checkpoint: Checkpoint, chosen: Mapping[str, Layout], layer: int) -> Iterator[Matrix]:
    for module, parts in MATRICES.items():
        name = f"{_layer(layer)}.{module}.weight"
        yield _nearest(checkpoint, name, [f"{_layer(layer)}.{part}.weight" for part in parts], chosen[name])


def _nearest(checkpoint: Checkpoint, name: str, parts: Sequence[str], layout: Layout) -> Matrix:
    """The checkpoint's matrices one below the other, rounded a slice of rows at a time."""
    rows = sum(checkpoint.shapes[part][0] for part in parts)
    slices = (values_NK.numpy() for part in parts for values_NK in checkpoint.slices(part))
    return (
        name,
        rows,
        (quantize_nearest(slice_NK, bits=layout.bits, block_size=layout.block_size) for slice_NK in slices),
    )


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


def _measured(checkpoint: Checkpoint, weights: Weights, folder: Path) -> dict[str, Any]:
    parameters = sum(int(np.prod(shape)) for shape in tensor_shapes(checkpoint.config).values())
    size_bytes = runs.folder_bytes(folder)
    read_at_each_step = [w.size_bytes for name, w in weights.items() if name != EMBEDDING or LM_HEAD not in weights]
    return {
        "parameters": parameters,
        "bytes": size_bytes,
        "bytes_per_parameter": size_bytes / parameters,
        "step_bytes": sum(read_at_each_step),
    }
