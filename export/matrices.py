"""Makes the matrices that an export stores, one part of the model after another.

Invariant: memory holds some rows of one tensor, or one calibrated layer, at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from export.calibration.embedding import embedding_rounding
from export.calibration.rounding import Calibrated
from export.calibration.stream import CalibrationStream
from export.calibration.texts import CalibrationText
from export.checkpoint.decoder_families import MATRICES
from export.checkpoint.tensors import EMBEDDING, LM_HEAD, Checkpoint
from export.folder.model_writer import ModelWriter
from export.quantization.codes import Weight, round_nearest
from export.quantization.layout import Layout
from toolkit.generation.generate import Floats

Method = Literal[Calibrated, "nearest"]
Matrix = tuple[str, int, Iterable[Weight]]
"""A name, the number of rows, and slices of those rows, rounded as they are consumed."""


def write_parts(
    checkpoint: Checkpoint,
    method: Method,
    chosen: Mapping[str, Layout],
    norms: Mapping[str, Floats],
    texts: Sequence[CalibrationText],
    writer: ModelWriter,
) -> None:
    """Write the embedding, each layer and the head, except for those that an earlier run has finished.

    `norms`: the checkpoint's `vectors`.
    """
    journal = writer.journal
    layers = [_layer(layer) for layer in range(checkpoint.config.num_hidden_layers)]
    left = [EMBEDDING, *layers, *([LM_HEAD] if LM_HEAD in chosen else [])][len(journal.finished) :]
    stream = None
    if left and method != "nearest":
        ids = [text.ids for text in texts]
        done = sum(layer not in left for layer in layers)
        embedding = embedding_rounding(checkpoint, norms, chosen, method)
        stream = CalibrationStream(checkpoint, ids, norms, embedding, method, journal.folder, layers=done)
    for part in left:
        if stream is None:
            for name in [f"{part}.{module}.weight" for module in MATRICES] if part in layers else [part]:
                writer.write(*nearest(checkpoint, name, chosen[name]))
        elif part == EMBEDDING:
            rows, _ = checkpoint.shapes[EMBEDDING]
            writer.write(EMBEDDING, rows, map(embedding, checkpoint.slices(EMBEDDING)))
        elif part == LM_HEAD:
            rows, _ = checkpoint.shapes[checkpoint.head]
            writer.write(LM_HEAD, rows, stream.quantize_head(chosen[LM_HEAD]))
        else:
            stream.quantize_layer(layers.index(part), chosen, writer.write)
        writer.finish(part)


def nearest(checkpoint: Checkpoint, name: str, layout: Layout) -> Matrix:
    """Round a stored matrix to nearest, a slice of rows at a time."""
    stored = checkpoint.head if name == LM_HEAD else name
    rows, _ = checkpoint.stored_shape(stored)
    slices = (values_NK.numpy() for values_NK in checkpoint.parts(stored))
    return (
        name,
        rows,
        (round_nearest(slice_NK, bits=layout.bits, block_size=layout.block_size) for slice_NK in slices),
    )


def _layer(layer: int) -> str:
    return f"model.layers.{layer}"


def part_bytes(checkpoint: Checkpoint, chosen: Mapping[str, Layout]) -> dict[str, int]:
    """Count the bytes of the checkpoint from which each part is made."""
    sizes = {EMBEDDING: checkpoint.size_bytes(EMBEDDING)}
    if LM_HEAD in chosen:
        sizes[LM_HEAD] = checkpoint.size_bytes(checkpoint.head)
    for layer in range(checkpoint.config.num_hidden_layers):
        names = [name for name in checkpoint.shapes if name.startswith(f"{_layer(layer)}.")]
        sizes[_layer(layer)] = sum(map(checkpoint.size_bytes, names))
    return sizes
