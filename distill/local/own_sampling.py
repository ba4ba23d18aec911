"""How a model's authors sample it: the sampling of its `generation_config.json`, the default where the user gives none.

A file that names any of these fields means the rest to be neutral, as vLLM reads it; a file that names none says
nothing of the sampling, and greedy decoding (`do_sample: false`, transformers' default) is no choice for thoughts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from toolkit.errors import InputError
from toolkit.generation.generate import Sampling
from toolkit.records import read_object

GENERATION_CONFIG = "generation_config.json"
NEUTRAL: Mapping[str, float | int] = MappingProxyType(
    {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
)


def own_sampling(folder: Path) -> dict[str, Any]:
    """Return the sampling that a model folder names; empty if it names none.

    Raises `InputError` if the file holds a value that is none.
    """
    path = folder / GENERATION_CONFIG
    values = read_object(path) if path.is_file() else {}
    named = {name: values[name] for name in NEUTRAL if values.get(name) is not None}
    if values.get("do_sample") is False or not (named or values.get("do_sample")):
        return {}
    for name, value in named.items():
        kinds = (int,) if isinstance(NEUTRAL[name], int) else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise InputError(f"{path}: {name} must be a number, but is {value!r}; correct it, or give the option")
    sampling = {**NEUTRAL, **named}
    try:
        Sampling(**sampling)
    except InputError as error:
        raise InputError(f"{path}: {error}; correct it") from error
    return sampling


def in_words(sampling: Mapping[str, Any]) -> str:
    """Name the fields of a sampling that have an effect."""
    return ", ".join(f"{name} {value:g}" for name, value in sampling.items() if value != NEUTRAL[name]) or "unchanged"
