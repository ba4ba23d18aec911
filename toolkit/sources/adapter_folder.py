"""Reads a PEFT folder of low-rank adapters, which change a base model's tensors.

    adapter_config.json           r, lora_alpha, the base model's name
    adapter_model.safetensors     …q_proj.lora_A.weight [r, K], …q_proj.lora_B.weight [N, r]

W + scale · B A with scale = lora_alpha / r, or lora_alpha / √r where use_rslora. Source: Hu et al., "LoRA" (2021);
Kalajdzievski, "rsLoRA" (2023); peft.tuners.lora.

An export adds the change to the base's tensors while it reads them (`export.checkpoint.tensors`); a running model
computes it beside its own products (`export.runtime.adapted_graph`).

Invariant: every tensor of the file counts; if this formula would lose something, an error names it, and the folder is
left to PEFT (`export.merged_model`).

Shapes: N output features, K input features, L rank of the adapter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import InputError
from toolkit.field_types import fits
from toolkit.records import read_object
from toolkit.sources.model_names import ADAPTER_CONFIG
from toolkit.sources.safetensors_header import INDEX, SINGLE, VALUE_BYTES, read_floats, read_header
from toolkit.sources.unfinished import refuse_unfinished

Floats = NDArray[np.float32]

CONFIG, WEIGHTS, PICKLED = ADAPTER_CONFIG, "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
ALL_LINEAR = "all-linear"
PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""The values of `init_lora_weights` that leave the base model's weights alone."""
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
    "exclude_modules",
    "layers_to_transform",
)
"""Options of LoraConfig that go beyond the formula."""


class NeedsPeft(InputError):
    """An adapter goes beyond the formula, but PEFT may merge it."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}, so PEFT merges the adapter")
        self.reason = reason


class Adapter:
    """An open adapter folder."""

    def __init__(self, folder: Path) -> None:
        """Open a folder; raises `NeedsPeft` if only PEFT can merge it, and `InputError` if it is damaged."""
        config = read_adapter_config(folder)
        _leave_to_peft(folder, config)
        self._rank: int = config["r"]
        self._modules: list[str] | str = config["target_modules"]
        self.scale = config["lora_alpha"] / (math.sqrt(self._rank) if config.get("use_rslora") else self._rank)
        self._tensors = read_header(folder / WEIGHTS)
        for name, facts in self._tensors.items():
            if facts.dtype not in VALUE_BYTES:
                raise InputError(
                    f"{name} in {folder / WEIGHTS} has type {facts.dtype}: expected one of {', '.join(VALUE_BYTES)}; "
                    "convert it to one of them"
                )
        self.folder = folder
        self.targets = {_target(folder, name) for name in self._tensors}
        """The names of the base model's tensors that change."""
        for name in self.targets:
            parts = self._parts(name)
            if not all(part in self._tensors for part in parts):
                raise InputError(f"{folder / WEIGHTS} holds only one of {' and '.join(parts)}; get the adapter again")

    def check_targets(self, matrices: Iterable[str]) -> None:
        """Raise `NeedsPeft` unless the file changes exactly the base's linear layers that the configuration names: PEFT
        ignores a tensor without a target, and reports a missing one."""
        named = {name for name in matrices if self._names(name.removesuffix(".weight"))}
        if differing := sorted(named ^ self.targets):
            raise NeedsPeft(f"target_modules of {self.folder} and {WEIGHTS} differ in {differing[0]}")

    def _names(self, module: str) -> bool:
        """Whether `target_modules` matches a module: by the end of its name, or by a pattern (source: PEFT)."""
        if self._modules == ALL_LINEAR:
            return module != "lm_head"
        if isinstance(self._modules, str):
            try:
                return re.fullmatch(self._modules, module) is not None
            except re.error:  # PEFT will report it
                return False
        return module in self._modules or module.endswith(tuple(f".{end}" for end in self._modules))

    def check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise `InputError` if the adapter's factors don't multiply to the base tensor's shape, or their rank is not
        the configured one, by which they are scaled."""
        down, up = (self._tensors[part].shape for part in self._parts(name))
        if (*up[:1], *down[1:]) != shape or up[1:] != down[:1]:
            raise InputError(
                f"{self.folder} changes {name} {shape} by {up} x {down}; give the base that it was trained on"
            )
        if down[0] != self._rank:
            raise InputError(
                f"r ({self._rank}) in {self.folder / CONFIG} must equal the rank of {name} in {WEIGHTS} ({down[0]}); "
                "get both files of one adapter"
            )

    def factors(self, name: str) -> tuple[Floats, Floats]:
        """Read the factors of a target's change, down_LK and up_NL, the latter times the scale.

        Raises `InputError` if they are not finite.
        """
        down_LK, up_NL = (read_floats(self.folder / WEIGHTS, self._tensors[part]) for part in self._parts(name))
        up_NL *= np.float32(self.scale)
        if not (np.isfinite(down_LK).all() and np.isfinite(up_NL).all()):
            raise InputError(f"the adapter {self.folder} changes {name} by NaN or infinite values; train it again")
        return down_LK, up_NL

    @staticmethod
    def _parts(name: str) -> list[str]:
        return [f"{PREFIX}{name.removesuffix('.weight')}.lora_{letter}.weight" for letter in "AB"]


def is_adapter(folder: Path) -> bool:
    """Whether a folder is an adapter; a whole model beside an adapter's configuration is none.

    Raises `InputError` if the folder holds the weights of both.
    """
    if not (folder / CONFIG).is_file():
        return False
    model, adapter = (
        [name for name in names if (folder / name).is_file()] for names in ((SINGLE, INDEX), (WEIGHTS, PICKLED))
    )
    if model and adapter:
        raise InputError(
            f"{folder} holds both a whole model and an adapter ({model[0]}, {adapter[0]}); "
            "move away the one that you don't mean"
        )
    return not model


def base_model(folder: Path) -> str:
    """Return the model argument that an adapter names as its base."""
    base = read_adapter_config(folder).get("base_model_name_or_path")
    if not base:
        raise InputError(f"{folder / CONFIG} names no base model; give it with --base")
    return str(base)


def read_adapter_config(folder: Path) -> Mapping[str, Any]:
    """Read `adapter_config.json`; raises `InputError` if the folder is no adapter's."""
    refuse_unfinished(folder)
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} is no adapter folder: {CONFIG} is missing; give the folder that PEFT wrote")
    return read_object(folder / CONFIG)


def _leave_to_peft(folder: Path, config: Mapping[str, Any]) -> None:
    start = config.get("init_lora_weights", True)
    for name, found, is_supported, supported in (
        ("peft_type", config.get("peft_type"), config.get("peft_type") == "LORA", "LORA"),
        ("bias", config.get("bias", "none"), config.get("bias", "none") == "none", "none"),
        ("init_lora_weights", start, start in PLAIN_STARTS, "one that keeps the base model's weights"),
        *((name, config.get(name), not config.get(name), "off") for name in MUST_BE_OFF),
    ):
        if not is_supported:
            raise NeedsPeft(f"{name} ({found}) of {folder} is not {supported}")
    if not (folder / WEIGHTS).is_file() and (folder / PICKLED).is_file():
        raise NeedsPeft(f"{folder} holds {PICKLED} instead of {WEIGHTS}")
    for name, kind, words in (("r", int, "a whole number"), ("lora_alpha", float, "a number")):
        value: Any = config.get(name)
        if not fits(value, kind) or value <= 0:
            raise InputError(f"{name} ({value}) in {folder / CONFIG} must be {words} above 0; get the file again")
    if not fits(config.get("target_modules"), list[str] | str):
        raise NeedsPeft(f"{folder} names no target_modules")


def _target(folder: Path, name: str) -> str:
    module, found, _ = name.removeprefix(PREFIX).rpartition(".lora_")
    if not found or not name.startswith(PREFIX) or not name.endswith((".lora_A.weight", ".lora_B.weight")):
        raise NeedsPeft(f"{name} in {folder / WEIGHTS} is neither lora_A nor lora_B of a linear layer")
    return f"{module}.weight"
