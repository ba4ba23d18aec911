"""What an export is: its presets, and the configuration that one of them makes of a source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from export.checks.parity import Bounds
from export.matrices import Method
from export.runtime.exported_model import Cache
from toolkit.errors import InputError
from toolkit.records import TRAIN

Preset = Literal["balanced", "best", "fast", "quick"]
"""balanced: large blocks. best: smaller ones and an int8 head. fast: balanced with three bits for most weights. quick:
not calibrated."""
BLOCK_SIZE: dict[Preset, int] = {"balanced": 256, "best": 64, "fast": 256, "quick": 32}
INT8_CACHED: tuple[Preset, ...] = ("balanced", "fast")
NARROW: dict[Preset, tuple[str, ...]] = {"fast": ("mlp.gate_up_proj", "mlp.down_proj")}
"""Modules with three bits a weight."""
WeightType = Literal["int8", "fp16", "fp32"]
"""What needs no calibration."""
BITS: dict[WeightType, int] = {"int8": 8, "fp16": 16, "fp32": 32}
INT8_BLOCK_SIZE = 128
"""Activations are rounded in blocks of the same size: on SmolLM2-135M mean KL is 0.0045 with 128 and 0.0057 with
256."""
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
    """How the runner keeps keys and values unless it is told otherwise, or the gate finds that int8 falls short; parity
    is measured with it.

    int8 made decoding a 1.7B a quarter faster after 512 tokens, and cost SmolLM2-135M 0.0006 of a mean KL of 0.048.
    """
    calibration_tokens: int
    bits: int
    """Of a weight: 4 or 8 for codes, 16 or 32 for floats."""
    block_size: int
    """Of every matrix of codes whose rows it divides; others get a smaller one."""
    head_bits: int
    """Of the output head, and of the embedding where the two are one matrix; everything else has `bits`.

    Rounded to nearest, 8 bits lose next to nothing and 4 more than all calibrated layers together; with error feedback
    4 bits lose a tenth of what the layers do (docs/explanation/int4.md).
    """
    has_own_head: bool
    """Whether a tied head is stored beside the embedding, so that it can be calibrated: an embedding's rows are looked
    up and cannot be aimed at the head's inputs. Two matrices of 4 bits take the bytes of a shared one of 8, of which a
    step reads half. Not where a size is asked for.
    """
    narrow: tuple[str, ...]
    """The layers' modules that have 3 bits in place of `bits`, where their rows are whole blocks of 256. Not where a
    size is asked for.
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
    """What `--int4` does: calibrated on traces, given or the student's own; without any, `quick` in place of
    `balanced`.

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
    """Two to three times the divergence of the rotated SmolLM2-135M (docs/explanation/int4.md), whose weights are hard
    to round."""
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
