"""The presets of `toolkit distill`: what its options are if they are not given.

This module imports nothing heavy, so that the command's help can show the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

LORA_LEARNING_RATE = 2e-3
"""LoRA wants several times the learning rate of full tuning (Schulman et al. 2025)."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The values of a preset, each that of the option of its name, and how often it writes a checkpoint."""

    per_family: int
    samples: int
    temperature: float
    max_new_tokens: int
    max_tokens: int
    per_problem: int
    epochs: int
    learning_rate: float
    """That of full tuning. After 60 of the demo's 160 updates the loss was 0.257 with 4e-4; with 1e-3 it was 0.337, and
    with 2e-4 at most 5 % higher."""
    seed: int
    checkpoint_every_s: float


_DEMO = Preset(
    per_family=500,
    samples=1,
    temperature=0.6,  # R1's sampling
    max_new_tokens=320,
    max_tokens=512,
    per_problem=1,
    epochs=1,
    learning_rate=4e-4,
    seed=0,
    checkpoint_every_s=240.0,
)
PRESETS: Mapping[str, Preset] = MappingProxyType(
    {"demo": _DEMO, "full": replace(_DEMO, per_family=2400, epochs=2, checkpoint_every_s=600.0)}
)
"""demo: the built-in teacher in some minutes on two cores. full: several times the problems, seen twice, in up to two
hours."""


def default_text(option: str) -> str:
    """Return an option's default for a person: its value, and those of the presets that have another one."""
    values = {name: f"{getattr(preset, option):g}" for name, preset in PRESETS.items()}
    text = values["demo"]
    if option == "learning_rate":
        text += f", or {LORA_LEARNING_RATE:g} with --lora"
    others = [f"{value} with --preset {name}" for name, value in values.items() if value != values["demo"]]
    return ", or ".join([text, *others])
