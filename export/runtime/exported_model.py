"""Opens an exported folder as a `CachedModel`, with one of its graphs and a choice of kernels.

    model.onnx              keeps its cache as float32
    model.int8-cache.onnx   the same weights, its cache rounded to a quarter of the bytes

A calibrated folder has both, and its manifest names the one that runs by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from export.runtime.adapted_graph import add_adapters
from export.runtime.model_shape import read_model_shape
from export.runtime.rows.cached_model import CachedModel, CacheShape
from export.runtime.session import check_graph, open_session
from toolkit.errors import InputError
from toolkit.machine.allowance import physical_cores
from toolkit.runs import files_digest, read_manifest
from toolkit.sources.model_names import MODEL_FILE, is_exported
from toolkit.terminal import counted, say

INT8_CACHE_FILE = "model.int8-cache.onnx"
Cache = Literal["exact", "int8"]
"""How keys and values are kept: in float32, or in int8, which takes a quarter of the bytes."""


class OpenModel(Protocol):
    """Opens a folder: `open_exported`, or a `functools.partial` of it with the user's options."""

    def __call__(self, folder: Path, /, *, adapters: Sequence[Path] = ()) -> CachedModel: ...


def open_exported(
    folder: Path,
    *,
    cache: Cache | Literal["auto"] = "auto",
    prepacked: bool = False,
    own_kernels: bool = True,
    adapters: Sequence[Path] = (),
) -> CachedModel:
    """Open a folder's graph with its cache; `cache="auto"` takes what `chosen_cache` says.

    `prepacked`: map the weights from a copy that is made once in the cache folder. `own_kernels`: False to run
    onnxruntime's kernels on every processor. `export.runtime.session` describes both.
    `adapters`: PEFT's folders of low-rank adapters; each row of the model names one by its place from 1 on, or 0 for
    none (`export.runtime.adapted_graph`).

    Raises `InputError` if the folder is not an exported one, its files are damaged or unsafe, or an adapter is
    another model's.
    """
    cache = chosen_cache(folder, adapters) if cache == "auto" else cache
    model_path = folder / (INT8_CACHE_FILE if cache == "int8" else MODEL_FILE)
    if cache == "int8" and is_exported(folder) and not model_path.is_file():
        fault = (read_manifest(folder) or {}).get("measured", {}).get("int8_cache_fault")
        why = f"keep it exact, because {fault}" if fault else "export again with traces to calibrate it on"
        raise InputError(f"an int8 cache needs {model_path}, which is missing; {why}")
    if not model_path.is_file():
        raise InputError(f"{model_path} is missing; make the folder with: toolkit export MODEL --int4 --out {folder}")
    shape = read_model_shape(folder)
    if adapters and prepacked:
        raise InputError(f"--prepacked packs {folder} without its {counted(len(adapters), 'adapter')}; leave it out")
    adapted = add_adapters(model_path, adapters, shape, own_kernels=own_kernels) if adapters else None
    for adapter in adapters:
        _check_unmerged(folder, adapter)
    session = open_session(
        model_path, threads=physical_cores(), prepacked=prepacked, own_kernels=own_kernels, adapted=adapted
    )
    check_graph(session, shape, model_path, has_int8_cache=cache == "int8")
    kept = CacheShape(
        names=tuple(f"{layer}.{kind}" for layer in range(shape.num_hidden_layers) for kind in ("key", "value")),
        heads=shape.num_key_value_heads,
        head_dim=shape.head_size,
        dtype=np.dtype(np.int8 if cache == "int8" else np.float32),
    )
    return CachedModel(
        session, kept, vocab_size=shape.vocab_size, max_length=shape.context_length, adapters=len(adapters)
    )


def _check_unmerged(folder: Path, adapter: Path) -> None:
    """Raise `InputError` if an adapter was merged into a folder when it was exported; another one's is said."""
    merged = (read_manifest(folder) or {}).get("inputs", {}).get("adapter")
    if merged is None:
        return
    if merged == files_digest(adapter):
        raise InputError(f"{adapter} is merged into {folder} and would count twice; leave --adapter out")
    say(f"{folder} has another adapter merged into it, and {adapter} is added to that")


def chosen_cache(folder: Path, adapters: Sequence[Path] = ()) -> Cache:
    """Return the kind of cache with which the gate compared a folder; exact if its manifest does not say, and beside
    adapters, whose keys and values may exceed what int8 steps of the base alone can hold."""
    if adapters:
        return "exact"
    manifest = read_manifest(folder) or {}
    asked = manifest.get("config", {}).get("cache")  # written by older exports, and by those without a gate
    return "int8" if manifest.get("measured", {}).get("cache", asked) == "int8" else "exact"
