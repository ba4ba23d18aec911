"""Takes from transformers the frequencies by which each layer rotates queries and keys.

Pair r of a head rotates by inv_freq[r] radians a position. Where `partial_rotary_factor` is below 1, there are fewer
pairs than half of the channels, and the others stay. Kinds of scaling change the frequencies (linear, dynamic, yarn,
llama3, longrope) and the length of what is rotated (yarn, longrope). Source: transformers' modeling_rope_utils, whose
values these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

ROPE_TYPES = ("default", "dynamic", "linear", "llama3", "longrope", "yarn")
"""Those that the graph computes. Dynamic ones change behind max_position_embeddings. LongRoPE has a second set, which
turns all keys of a text otherwise as soon as it outgrows the positions that the model was first trained on; so that is
where the exported model's context ends. Likewise that of Ministral 3, whose queries grow there."""


PAIRS_STEP = 8
"""onnxruntime's GroupQueryAttention rotates a multiple of so many pairs."""


@dataclass(frozen=True, kw_only=True)
class Rope:
    """How the layers of one type rotate."""

    inv_freq: tuple[float, ...]
    """In radians a position, of each rotated pair."""
    length: float = 1.0
    """What cosines and sines are multiplied by."""
    longest: int = 0
    """The positions of the longest text that has these frequencies; 0 if all have."""

    @property
    def turns(self) -> tuple[float, ...]:
        """The radians a position of each pair in the graph, where pairs that stay fill up what the kernels require."""
        return (*self.inv_freq, *[0.0] * (-len(self.inv_freq) % PAIRS_STEP))


def rope_types(theirs: Any) -> set[str]:
    """Return the types of scaling that a configuration of transformers names."""
    return {parameters["rope_type"] for parameters in _by_layer_type(theirs).values()}


def read_ropes(theirs: Any, rotary: type[nn.Module], layer_types: Sequence[str]) -> tuple[Rope, ...]:
    """Return each layer's, by its type. `rotary`: the module of transformers that computes cosines and sines."""
    module: Any = rotary(config=theirs)
    by_type = {kind: _read(parameters, module, kind) for kind, parameters in _by_layer_type(theirs).items()}
    return tuple(by_type.get(kind) or by_type[""] for kind in layer_types)


def _by_layer_type(theirs: Any) -> dict[str, dict[str, Any]]:
    """Return the parameters by layer type; those of all layers are under an empty name."""
    found: dict[str, Any] = theirs.rope_parameters
    nested = theirs.nested_rope_parameter_keys(found)
    return {kind: found[kind] for kind in nested} if nested else {"": found}


def _read(parameters: dict[str, Any], module: Any, kind: str) -> Rope:
    prefix = f"{kind}_" if kind else ""
    changes = parameters["rope_type"] == "longrope" or parameters.get("llama_4_scaling_beta")
    inv_freq_R: Tensor = getattr(module, f"{prefix}inv_freq")
    return Rope(
        inv_freq=tuple(inv_freq_R.tolist()),
        length=float(getattr(module, f"{prefix}attention_scaling")),
        longest=parameters["original_max_position_embeddings"] if changes else 0,
    )
