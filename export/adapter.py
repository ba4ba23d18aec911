"""A PEFT folder of low-rank adapters, merged into the base model's tensors while they are read.

    adapter_config.json           r, lora_alpha, the base model's name
    adapter_model.safetensors     …q_proj.lora_A.weight [r, K], …q_proj.lora_B.weight [N, r]

W + scale · B A with scale = lora_alpha / r, or lora_alpha / √r where use_rslora. Source: Hu et al., "LoRA" (2021);
Kalajdzievski, "rsLoRA" (2023); peft.tuners.lora.

Invariant: every tensor of the file is merged, or the folder is refused by the name of what would be lost.

Shapes: N output features, K input features, L rank of the adapter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from export.safetensors_file import open_safetensors
from toolkit.errors import InputError
from toolkit.records import read_object

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""`init_lora_weights` that leave the base model's weights alone."""
MUST_BE_OFF = (
    "use_dora",
    "fan_in_fan_out",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
)
"""What LoraConfig offers beyond the formula."""


class Adapter:
    """An open adapter folder."""

    def __init__(self, folder: Path) -> None:
        """Raises `InputError` where the folder is no adapter of the plain kind, or is damaged."""
        config = read_adapter_config(folder)
        _refuse_unsupported(folder, config)
        rank = config["r"]
        self.scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
        self._tensors = open_safetensors(folder / WEIGHTS)
        for name, stored in self._tensors.items():
            stored.check_type(name)
        self._folder = folder
        self.targets = {_target(folder, name) for name in self._tensors}
        """Names of the base model's tensors that change."""
        for name in self.targets:
            parts = [self._part(name, letter) for letter in "AB"]
            if not all(part in self._tensors for part in parts):
                raise InputError(f"{folder / WEIGHTS} must hold {' and '.join(parts)}; it holds one of them")

    def check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises `InputError` where the adapter's factors don't multiply to the base tensor's shape."""
        down, up = (self._tensors[self._part(name, letter)].shape for letter in "AB")
        if (*up[:1], *down[1:]) != shape or up[1:] != down[:1]:
            raise InputError(
                f"{self._folder} changes {name} by {up} x {down}, which must make {shape}; give its --base"
            )

    def delta(self, name: str, begin: int, end: int) -> Tensor:
        """What rows from `begin` up to `end` of a target gain."""
        down, up = (self._tensors[self._part(name, letter)] for letter in "AB")
        down_LK, up_NL = down.read(0, down.shape[0]), up.read(begin, end)
        return (up_NL @ down_LK).mul_(self.scale)

    def _part(self, name: str, letter: str) -> str:
        return f"{PREFIX}{name.removesuffix('.weight')}.lora_{letter}.weight"


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def base_model(folder: Path) -> str:
    """The model argument that an adapter names as its base."""
    base = read_adapter_config(folder).get("base_model_name_or_path")
    if not base:
        raise InputError(f"{folder / CONFIG} must name the base model, but names none; give it with --base")
    return str(base)


def read_adapter_config(folder: Path) -> Mapping[str, Any]:
    return read_object(folder / CONFIG)


def _refuse_unsupported(folder: Path, config: Mapping[str, Any]) -> None:
    start = config.get("init_lora_weights", True)
    for name, found, is_supported, supported in (
        ("peft_type", config.get("peft_type"), config.get("peft_type") == "LORA", "LORA"),
        ("bias", config.get("bias", "none"), config.get("bias", "none") == "none", "none"),
        ("init_lora_weights", start, start in PLAIN_STARTS, "one that keeps the base model's weights"),
        *((name, config.get(name), not config.get(name), "off") for name in MUST_BE_OFF),
    ):
        if not is_supported:
            raise InputError(f"{name} ({found}) must be {supported}; merge {folder} with peft and export the result")
    for name in ("r", "lora_alpha"):
        value = config.get(name)
        if not isinstance(value, int | float) or value <= 0:
            raise InputError(f"{name} ({value}) must be a number above 0; {folder / CONFIG} holds it")


def _target(folder: Path, name: str) -> str:
    module, found, _ = name.removeprefix(PREFIX).rpartition(".lora_")
    if not found or not name.startswith(PREFIX) or not name.endswith((".lora_A.weight", ".lora_B.weight")):
        raise InputError(f"{name} in {folder / WEIGHTS} must be lora_A or lora_B of a linear layer; merge it with peft")
    return f"{module}.weight"
