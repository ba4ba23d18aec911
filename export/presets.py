"""The configuration of an export, and the presets that fill it in for a source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from export.checks.parity import Bounds
from export.matrices import Method
from export.recovery import Recovery
from export.runtime.exported_model import Cache
from toolkit.errors import InputError
from toolkit.records import TRAIN

Preset = Literal["balanced", "best", "fast", "quick"]
"""balanced: large blocks. best: smaller ones and an int8 head. fast: as balanced, with three bits for most weights.
quick: not calibrated."""
BLOCK_SIZE: dict[Preset, int] = {"balanced": 256, "best": 64, "fast": 256, "quick": 32}
INT8_CACHED: tuple[Preset, ...] = ("balanced", "fast")
NARROW: dict[Preset, tuple[str, ...]] = {"fast": ("mlp.gate_up_proj", "mlp.down_proj")}
"""The modules with three bits a weight."""
WeightType = Literal["int8", "fp16", "fp32"]
"""Types that need no calibration."""
BITS: dict[WeightType, int] = {"int8": 8, "fp16": 16, "fp32": 32}
INT8_BLOCK_SIZE = 128
"""Activations are rounded in such blocks too: SmolLM2-135M has a mean KL of 0.0045 with 128 and 0.0057 with 256."""
CALIBRATION_TOKENS = 32_000
CHOICES, RECOVERED = "choices.jsonl", "recovered.safetensors"


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """How a folder is made. `int4_config` and `nearest_config` fill in everything but the paths."""

    source: Path
    adapter: Path | None
    """A PEFT folder that is merged into the source, or None."""
    out: Path
    method: Method
    """gptq and searched calibrate on traces; nearest rounds each weight by itself."""
    calibration: Path | None
    """The traces (`Example` lines) on which weights and the int8 cache are calibrated and parity is measured; may be
    None if the method is nearest."""
    cache: Cache
    """How the runner keeps keys and values by default, and parity is measured; the gate may replace int8 by exact.

    int8 made decoding a 1.7B a quarter faster after 512 tokens, and cost SmolLM2-135M 0.0006 of a mean KL of 0.048.
    """
    calibration_tokens: int
    bits: int
    """Bits of a weight: 4 or 8 for codes, 16 or 32 for floats."""
    block_size: int
    """The block size of every matrix of codes whose rows it divides; others get a smaller one."""
    head_bits: int
    """Bits of the output head, and of the embedding if the two are one matrix; everything else has `bits`.

    Rounded to nearest, a head of 8 bits loses next to nothing, and one of 4 bits more than all calibrated layers
    together; with error feedback one of 4 bits loses a tenth of what the layers do (docs/explanation/int4.md).
    """
    has_own_head: bool
    """Whether a tied head is stored beside the embedding, so that it can be calibrated: the embedding's rows, which are
    looked up, cannot be aimed at the head's inputs. Two matrices of 4 bits take the bytes of a shared one of 8, and a
    step reads half of them. Ignored if a size is asked for.
    """
    narrow: tuple[str, ...]
    """The layers' modules that have 3 bits instead of `bits`, if their rows are whole blocks of 256. Ignored if a size
    is asked for.
    """
    max_bytes: int
    bits_per_weight: float
    """The most that the weights may take; each matrix then gets the bits and blocks that serve the whole best
    (`export.allocation`). If both are 0, `block_size` and `head_bits` decide."""
    recovery: Recovery
    """What is trained once all weights are rounded, with both models in memory as floats (`export.recovery`)."""
    bounds: Bounds | None
    """The bounds of the parity gate; None if parity is not measured, as the float model may not fit the memory."""

    def __post_init__(self) -> None:
        if self.method != "nearest" and self.calibration is None:
            raise InputError(f"method {self.method} needs traces to calibrate on; give --calibration")
        if self.cache == "int8" and self.calibration is None:
            raise InputError("an int8 cache needs traces to calibrate on; give --calibration")
        if self.recovery != "none" and self.calibration is None:
            raise InputError(
                f"--recovery {self.recovery} needs traces to train on; give --calibration, and leave out --quick"
            )
        if self.is_sized and self.calibration is None:
            raise InputError("--size and --bits-per-weight need traces to measure on; give --calibration")

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
    recovery: Recovery = "none",
    method: Method | None = None,
) -> ExportConfig:
    """Configure `--int4`: calibrated on given traces or the student's own; without any, `quick` replaces `balanced`.

    `method`: another than the preset's. Raises `InputError` if another preset or a method needs traces and there are
    none, and if `quick` is given some.
    """
    if preset == "quick" and method is None and calibration:
        raise InputError(
            f"--quick does not calibrate, but {calibration} was given to calibrate on; leave out one of them"
        )
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
        recovery=recovery,
        bounds=_int4_bounds(method, preset),
    )


def _int4_bounds(method: Method, preset: Preset) -> Bounds:
    """Return two to three times the divergence of the rotated SmolLM2-135M (docs/explanation/int4.md), whose weights
    are hard to round."""
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
    """Configure `--int8`, `--fp16` and `--fp32`: round each weight to nearest. Traces calibrate only the int8 cache."""
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
        recovery="none",
        bounds=Bounds(max_mean_kl=0.03, min_top1=0.93) if bits == 8 else Bounds(max_mean_kl=0.001, min_top1=0.98),
    )


def _own_traces(folder: Path) -> Path | None:
    traces = folder / TRAIN
    return traces if traces.is_file() else None
