"""`toolkit export --plan`: what an export takes on this machine, before it is made.

    the first layer on the whole calibration text ─┐
    two slices of the output head ─────────────────┼─ minutes and memory of rounding ─┐
    one product in fp32 ───────────────────────────┴─ about the minutes of the gate ──┴─ the plan

The layers of a model are alike, so one of them tells what all take. What is written beside `out` is removed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from export.allocation import layout_bytes
from export.calibration.embedding import embedding_rounding
from export.calibration.stream import CalibrationStream
from export.calibration.texts import CalibrationText
from export.checkpoint.decoder_families import MATRICES
from export.checkpoint.tensors import EMBEDDING, LM_HEAD, Checkpoint, vectors
from export.checks.gate import check_source
from export.matrices import nearest, part_bytes
from export.merged_model import open_source
from export.pipeline import chosen_layouts, float_bytes, parameter_count, texts_of
from export.presets import ExportConfig
from export.quantization.layout import Layout
from toolkit.errors import InputError
from toolkit.figures.tables import aligned_table
from toolkit.machine.allowance import memory
from toolkit.machine.peak_memory import peak_memory_bytes
from toolkit.model.precision import fp32_by_onednn
from toolkit.terminal import say

GATE_TOKENS = 32_000
"""Tokens that the float model and the exported one read in the gate, the search for an int8 cache and the record."""
PRODUCT_ROWS, PRODUCTS = 512, 3


@dataclass(frozen=True, kw_only=True)
class ExportPlan:
    """What an export takes; seconds and bytes."""

    parameters: int
    weight_bytes: int
    """Of the exported weights, the graph and the tokenizer left out."""
    layers: int
    layer_s: float
    """Of one layer, as it was measured."""
    rounding_s: float
    """Of all layers, the embedding and the head."""
    rounding_bytes: int
    """The most memory that the program held meanwhile, libraries included."""
    gate_s: float
    """About what the comparison with the float model takes; 0 without it."""
    gate_bytes: int
    """Of what the gate holds of the float model: all of it, or if it does not fit, a layer; 0 without a gate."""
    reads_layers: bool
    free_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        gate = ["no gate (--no-parity)", "", ""]
        if self.gate_bytes:
            name = "the gate, layer by layer" if self.reads_layers else "the gate"
            gate = [name, f"about {self.gate_s / 60:.1f}", f"{self.gate_bytes / 1e9:.1f}"]
        rounding = f"rounding: {self.layers} layers of {self.layer_s:.1f} s, and the head"
        rows = [
            ["part", "minutes", "memory, GB"],
            [rounding, f"{self.rounding_s / 60:.1f}", f"{self.rounding_bytes / 1e9:.1f}"],
            gate,
        ]
        lines = [
            (
                f"{self.parameters:,} parameters become {self.weight_bytes / 1e6:,.1f} MB; "
                f"{self.free_bytes / 1e9:.1f} GB of memory are free"
            ),
            aligned_table(rows),
        ]
        return "\n".join(lines)


def plan_export(config: ExportConfig) -> ExportPlan:
    """Measure a little of an export and plan the rest of it.

    Raises `InputError` as the export would, and for parts whose time is not known before they are made.
    """
    if config.is_sized or config.recovery != "none":
        raise InputError(
            "--plan knows neither the time of --size and --bits-per-weight nor that of --recovery; leave them out"
        )
    say(f"export: checking {config.source}")
    source = open_source(config.source, config.adapter)
    checkpoint = source.checkpoint
    if config.bounds:
        check_source(source)
    chosen = chosen_layouts(checkpoint, config)
    free_bytes = memory().available_bytes
    texts = texts_of(source, config).calibration
    config.out.parent.mkdir(parents=True, exist_ok=True)
    say("export: measuring one layer")
    with TemporaryDirectory(dir=config.out.parent, prefix=".plan-") as scratch:
        if config.method == "nearest":
            layer_s = _nearest_s(checkpoint, chosen)
            layer_bytes = part_bytes(checkpoint, chosen)["model.layers.0"]
            head_s = layer_s * checkpoint.size_bytes(checkpoint.head) / layer_bytes
        else:
            layer_s, head_s = _calibrated_s(checkpoint, chosen, texts, config, Path(scratch))
    layers, weights, whole = checkpoint.config.num_hidden_layers, parameter_count(checkpoint), float_bytes(checkpoint)
    largest = 4 * _layer_weights(checkpoint)
    return ExportPlan(
        parameters=weights,
        weight_bytes=sum(layout_bytes(checkpoint, name, layout) for name, layout in chosen.items()),
        layers=layers,
        layer_s=layer_s,
        rounding_s=layers * layer_s + head_s,
        rounding_bytes=peak_memory_bytes(),
        gate_s=2 * weights * GATE_TOKENS / _flops(checkpoint) if config.bounds else 0.0,
        gate_bytes=(whole if whole <= free_bytes else largest) if config.bounds else 0,
        reads_layers=bool(config.bounds) and whole > free_bytes,
        free_bytes=free_bytes,
    )


def _layer_weights(checkpoint: Checkpoint) -> int:
    """Count the weights of the first layer."""
    return sum(math.prod(shape) for name, shape in checkpoint.shapes.items() if name.startswith("model.layers.0."))


def _nearest_s(checkpoint: Checkpoint, chosen: Mapping[str, Layout]) -> float:
    """Time rounding the first layer to nearest."""
    begun = time.perf_counter()
    for module in MATRICES:
        name = f"model.layers.0.{module}.weight"
        _, _, slices = nearest(checkpoint, name, chosen[name])
        for _ in slices:
            pass
    return time.perf_counter() - begun


def _calibrated_s(
    checkpoint: Checkpoint,
    chosen: Mapping[str, Layout],
    texts: Sequence[CalibrationText],
    config: ExportConfig,
    folder: Path,
) -> tuple[float, float]:
    """Time rounding the first layer, and the head and the embedding by their first slices."""
    assert config.method != "nearest"
    ids, norms = [text.ids for text in texts], vectors(checkpoint)
    embedding = embedding_rounding(checkpoint, norms, chosen, config.method)
    stream = CalibrationStream(checkpoint, ids, norms, embedding, config.method, folder)
    stamps = [time.perf_counter()]
    stream.quantize_layer(0, chosen, lambda *matrix: None)
    stamps.append(time.perf_counter())
    head_s = 0.0
    if LM_HEAD in chosen:
        stored = checkpoint.shapes[checkpoint.head][0]
        rounded = []
        for weight in islice(stream.quantize_head(chosen[LM_HEAD]), 2):
            stamps.append(time.perf_counter())
            rounded.append(len(weight.codes))
        first_s, slice_s = stamps[2] - stamps[1], stamps[-1] - stamps[-2]
        head_s = first_s + slice_s * (stored / rounded[0] - 1)
    begun = time.perf_counter()
    first_XD = next(checkpoint.slices(EMBEDDING))
    embedding(first_XD)
    slices = checkpoint.shapes[EMBEDDING][0] / len(first_XD)
    return stamps[1] - stamps[0], head_s + slices * (time.perf_counter() - begun)


@fp32_by_onednn()
@torch.no_grad()
def _flops(checkpoint: Checkpoint) -> float:
    """Measure the operations a second of a product in fp32 with the widest matrix of a layer."""
    config = checkpoint.config
    a, b = torch.rand(PRODUCT_ROWS, config.hidden_size), torch.rand(config.hidden_size, config.intermediate_size)
    taken = []
    for _ in range(PRODUCTS):
        begun = time.perf_counter()
        torch.mm(a, b)
        taken.append(time.perf_counter() - begun)
    return 2 * PRODUCT_ROWS * b.numel() / min(taken)
