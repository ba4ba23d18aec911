"""Chooses the bits of each matrix by what its rounding costs the whole model in divergence.

1. With all matrices in int8, a model is nearly the float one.
2. One matrix at a time gets its smallest format, three bits, or four in large blocks. The KL divergence from the float
   model is then measured on calibration texts through ONNX Runtime, as the exported model will run: this is its cost.
3. In another format the same matrix costs in proportion to the mean square of its rounding error.
4. From the smallest formats on, the step that saves the most divergence per byte is taken, as long as one fits.

This assumes that costs add up, and that nearest rounding stands for the calibrated one. Both hold for the order of the
matrices better than for the sum, which the gate measures at the end as for any export.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from export.calibration.texts import CalibrationText
from export.checkpoint.decoder_families import MATRICES
from export.checkpoint.source import Source
from export.checkpoint.tensors import LM_HEAD, Checkpoint, vectors
from export.checks.parity import divergence, expectations, scored_expectations
from export.folder.package import write_package
from export.folder.weights_file import StoredWeight, WeightsFile
from export.graph.model_graph import build_graph
from export.matrices import nearest
from export.quantization.codes import THREE_BITS_BLOCK, dequantize
from export.quantization.layout import BLOCK_SIZES, Layout, layouts
from export.runtime.decoder import OnnxDecoder
from toolkit.errors import InputError
from toolkit.figures.tables import columns
from toolkit.progress import Progress
from toolkit.records import Record
from toolkit.sources.model_names import MODEL_FILE

TOKENS = 400
"""Completion tokens on which a cost is measured."""


@dataclass(frozen=True, kw_only=True)
class Choice(Record):
    """The format of one matrix."""

    name: str
    bits: int
    block_size: int
    size_bytes: int
    cost: float
    """The KL divergence, in nats a token, that its rounding is assumed to cost."""

    @property
    def layout(self) -> Layout:
        return Layout(bits=self.bits, block_size=self.block_size)


def allocate(source: Source, texts: Sequence[CalibrationText], max_bytes: int, folder: Path) -> list[Choice]:
    """Choose a format for each stored matrix, all together in `max_bytes`; trial files are written into `folder`.

    Raises `InputError` if not even the smallest formats fit.
    """
    checkpoint = source.checkpoint
    options = _options(checkpoint)
    smallest = sum(layout_bytes(checkpoint, name, formats[0]) for name, formats in options.items())
    if smallest > max_bytes:
        raise InputError(
            f"the size that was asked for ({max_bytes:,} bytes) must hold the weights in their smallest format "
            f"({smallest:,} bytes); ask for more"
        )
    measured = _measure(source, texts[: _enough(texts)], options, folder)
    candidates = {
        name: [
            Choice(
                name=name,
                bits=layout.bits,
                block_size=layout.block_size,
                size_bytes=layout_bytes(checkpoint, name, layout),
                cost=measured[name] * error,
            )
            for layout, error in zip(formats, _relative_errors(checkpoint, name, formats), strict=True)
        ]
        for name, formats in options.items()
    }
    return choose(candidates, max_bytes)


def choose(candidates: Mapping[str, Sequence[Choice]], max_bytes: int) -> list[Choice]:
    """Choose a format for each matrix: start with the first, the smallest, and save the most divergence per byte while
    bytes are left."""
    chosen = {name: choices[0] for name, choices in candidates.items()}
    room = max_bytes - sum(choice.size_bytes for choice in chosen.values())
    while True:
        steps = [
            ((chosen[name].cost - other.cost) / (other.size_bytes - chosen[name].size_bytes), other)
            for name, choices in candidates.items()
            for other in choices
            if 0 < other.size_bytes - chosen[name].size_bytes <= room and other.cost < chosen[name].cost
        ]
        if not steps:
            return list(chosen.values())
        _, best = max(steps, key=lambda step: step[0])
        room -= best.size_bytes - chosen[best.name].size_bytes
        chosen[best.name] = best


def choices_table(choices: Sequence[Mapping[str, Any]]) -> str:
    """Lay out for a terminal each matrix's format and assumed cost, the costliest first."""
    found = sorted((Choice.from_dict(choice) for choice in choices), key=lambda choice: -choice.cost)
    rows = [
        (
            choice.name,
            f"{choice.bits} bits, blocks of {choice.block_size}",
            f"{choice.size_bytes / 1e6:.2f} MB",
            f"costs {choice.cost:.5f} nats",
        )
        for choice in found
    ]
    return columns(rows, right=[2])


def layout_bytes(checkpoint: Checkpoint, name: str, layout: Layout) -> int:
    """Count the bytes of a stored matrix in a format, scales and zero points included."""
    stored = checkpoint.head if name == LM_HEAD else name
    rows, columns = checkpoint.stored_shape(stored)
    return StoredWeight(
        bits=layout.bits, block_size=layout.block_size, out_features=rows, in_features=columns, offset=0
    ).size_bytes


def _options(checkpoint: Checkpoint) -> dict[str, list[Layout]]:
    """List the possible formats of each stored matrix, smallest first: three bits for a layer's matrix whose rows are
    whole blocks of 256, four in large to small blocks, then eight."""
    coded = partial(layouts, checkpoint.config, bits=4, head_bits=4)
    by_size = [coded(block_size=THREE_BITS_BLOCK, narrow=MATRICES), *(coded(block_size=size) for size in BLOCK_SIZES)]
    options = {}
    for name, coarsest in by_size[0].items():
        formats = list(dict.fromkeys(chosen[name] for chosen in by_size))
        options[name] = [*formats, Layout(bits=8, block_size=coarsest.block_size)]
    return options


def _enough(texts: Sequence[CalibrationText]) -> int:
    totals = np.cumsum([len(text.completion) for text in texts])
    return int(np.searchsorted(totals, TOKENS)) + 1


def _relative_errors(checkpoint: Checkpoint, name: str, formats: Sequence[Layout]) -> list[float]:
    """Return the mean square rounding error of each format over that of the first."""
    weight_NK = checkpoint.whole(name).numpy()
    errors = []
    for layout in formats:
        _, _, slices = nearest(checkpoint, name, layout)
        restored_NK = np.concatenate([dequantize(piece) for piece in slices])
        errors.append(float(np.square(restored_NK - weight_NK).mean()))
    smallest = float(np.finfo(np.float32).tiny)
    return [error / max(errors[0], smallest) for error in errors]


@torch.no_grad()
def _measure(
    source: Source,
    texts: Sequence[CalibrationText],
    options: Mapping[str, Sequence[Layout]],
    folder: Path,
) -> dict[str, float]:
    """Measure the divergence that each matrix costs in its smallest format, with the others in int8."""
    checkpoint = source.checkpoint
    expected = [expectations(source.float_model, text) for text in texts]
    write_package(source, folder)
    norms = vectors(checkpoint)
    with WeightsFile(folder, end=0) as file:
        stored = [
            {
                name: file.append(slices, rows)
                for name, rows, slices in (nearest(checkpoint, *place) for place in places)
            }
            for places in (
                [(name, formats[0]) for name, formats in options.items()],
                [(name, formats[-1]) for name, formats in options.items()],
            )
        ]
        file.sync()
    small, large = stored

    def total_divergence(weights: Mapping[str, StoredWeight]) -> float:
        onnx.save(build_graph(checkpoint.config, weights, norms), folder / MODEL_FILE)
        decoder = OnnxDecoder(folder)
        pairs = zip(texts, expected, strict=True)
        return float(
            torch.cat([divergence(float_TV, scored_expectations(decoder, text)) for text, float_TV in pairs]).mean()
        )

    floor = total_divergence(large)
    costs = {}
    with Progress("what each matrix costs", len(options)) as progress:
        for name in options:
            costs[name] = max(total_divergence({**large, name: small[name]}) - floor, 0.0)
            progress.advance()
    return costs
