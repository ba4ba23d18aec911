"""Opens a graph in onnxruntime, with our own kernels where this processor runs them (`export.runtime.kernels`).

Our kernels read codes as they are in the file, which stays mapped. onnxruntime's kernels read weights in an order of
their own and repack them at each load, into memory that belongs to the process. `prepacked` repacks once and keeps the
result:

    <cache folder>/prepacked/<model>/<machine>/     machine: library, processor (`export.runtime.machine`)
    ├── model.onnx            the graph, optimized
    └── model.onnx.data       weights as they were and as they are read, larger than the exported file

From then on these are mapped too: loading copies nothing, and all processes share their pages, which the system takes
back when memory runs short. If they cannot be written or are damaged, one line says so and the weights are copied.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from filelock import FileLock
from numpy.typing import NDArray

from export.runtime.adapted_graph import AdaptedGraph
from export.runtime.aligned_data import align_data
from export.runtime.external_data import check_external_data, read_number
from export.runtime.kernels.library import kernels_digest, kernels_library
from export.runtime.machine import machine_key
from export.runtime.model_shape import GENAI_CONFIG, ModelShape
from export.runtime.rows.cached_model import LOGITS_FROM
from toolkit.disk import sync
from toolkit.errors import InputError
from toolkit.machine.allocator import give_freed_memory_back
from toolkit.machine.user_folders import cache_folder
from toolkit.runs import folder_digest
from toolkit.terminal import say

SPIN_US = "200"
"""How long an idle thread spins before it sleeps: longer than the gap between two nodes of a step, shorter than the gap
between two steps. By default onnxruntime's threads spin through both (costs: docs/explanation/running.md)."""
SILENT = 4
"""Severity below which onnxruntime writes nothing to the terminal: it raises errors as well, and its own lines would
show a file's text unescaped."""
DATA_FOLDER = "session.model_external_initializers_file_folder_path"
"""The setting that names the folder of a graph's external data, if the graph itself comes from memory."""
ROTARY_LIMIT = "rotary.limit"
"""The graph's constant that holds its number of positions."""
PACKED_FILE, PACKED_DATA = "model.onnx", "model.onnx.data"
PACKING = {
    "session.save_external_prepacked_constant_initializers": "1",
    "session.optimized_model_external_initializers_file_name": PACKED_DATA,
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
}


def open_session(
    model_path: Path,
    threads: int,
    *,
    prepacked: bool = False,
    own_kernels: bool = True,
    adapted: AdaptedGraph | None = None,
) -> ort.InferenceSession:
    """Open a graph; `own_kernels=False` runs onnxruntime's kernels on every processor.

    `adapted`: the same graph with adapters, which is not packed; its weights stay in the file.

    Raises `InputError` if onnxruntime cannot open the model, or its external data is unsafe.
    """
    check_external_data(model_path)
    if adapted:
        return _open_adapted(model_path, adapted, _options(threads, own_kernels))
    packed = _open_packed(model_path, threads, own_kernels) if prepacked else None
    return packed or _open(model_path, _options(threads, own_kernels))


def check_graph(session: ort.InferenceSession, shape: ModelShape, path: Path, *, has_int8_cache: bool) -> None:
    """Raise `InputError` if the graph is older than its runner, or does not have this `shape`."""
    if LOGITS_FROM not in {value.name for value in session.get_overridable_initializers()}:
        raise InputError(f"{path} comes from an older export and lacks the input {LOGITS_FROM}; export again")
    found = {value.name: value for value in (*session.get_inputs(), *session.get_outputs())}
    pasts = [value for name, value in found.items() if name.startswith("past_key_values.")]
    kinds = {value.type for value in pasts}
    if kinds != {"tensor(int8)" if has_int8_cache else "tensor(float)"} or "logits" not in found:
        raise InputError(f"{path} has a cache of another type than its name says ({sorted(kinds)}); export again")
    for name, in_config, in_graph in (
        ("num_hidden_layers", shape.num_hidden_layers, {len(pasts) // 2}),
        ("num_key_value_heads", shape.num_key_value_heads, {value.shape[1] for value in pasts}),
        ("head_size", shape.head_size, {value.shape[3] for value in pasts}),
        ("vocab_size", shape.vocab_size, {found["logits"].shape[2]}),
        ("context_length", shape.context_length, {read_number(path, ROTARY_LIMIT)}),
    ):
        if in_graph != {in_config}:
            raise InputError(
                f"{name} in {path.with_name(GENAI_CONFIG)} ({in_config}) must equal that of {path.name} "
                f"({', '.join(str(number).removesuffix('.0') for number in in_graph)}); "
                "export again or copy the folder again"
            )


def packed_folder(model_path: Path, *, own_kernels: bool = True) -> Path:
    """Return the folder of a graph's packed weights on this machine."""
    model = f"{folder_digest(model_path.parent)}-{model_path.stem}"
    kernels = kernels_digest() if own_kernels else ""
    return cache_folder() / "prepacked" / model / machine_key(model_path.parent, kernels)[:16]


def _open_packed(model_path: Path, threads: int, own_kernels: bool) -> ort.InferenceSession | None:
    folder = packed_folder(model_path, own_kernels=own_kernels)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / ".lock"):
            if not folder.is_dir():
                _pack(model_path, folder, threads, own_kernels)
        check_external_data(folder / PACKED_FILE)
        return _open(folder / PACKED_FILE, _options(threads, own_kernels))
    except (InputError, OSError) as error:
        say(f"packed weights cannot be used and will be made again at the next start: {error}")
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _open_adapted(model_path: Path, adapted: AdaptedGraph, options: ort.SessionOptions) -> ort.InferenceSession:
    options.add_session_config_entry(DATA_FOLDER, str(model_path.parent.resolve()))
    values = [ort.OrtValue.ortvalue_from_numpy(factor) for factor in adapted.factors.values()]
    options.add_external_initializers(list(adapted.factors), values)
    return _open(model_path, options, adapted.content)


def _pack(model_path: Path, folder: Path, threads: int, own_kernels: bool) -> None:
    """Make the folder, whole or not at all, and remove those for another library or processor."""
    for older in folder.parent.iterdir():
        if older.is_dir():
            shutil.rmtree(older)
    fresh = folder.with_suffix(".partial")
    fresh.mkdir()
    options = _options(threads, own_kernels)
    options.optimized_model_filepath = str(fresh / PACKED_FILE)
    for name, value in PACKING.items():
        options.add_session_config_entry(name, value)
    unpacked = _open(model_path, options)
    align_data(fresh / PACKED_FILE, fresh / PACKED_DATA)
    _check_equal(unpacked, _open(fresh / PACKED_FILE, _options(threads, own_kernels)))
    for path in fresh.iterdir():
        sync(path)
    os.rename(fresh, folder)
    say(f"weights packed for this processor in {folder}")


def _check_equal(unpacked: ort.InferenceSession, packed: ort.InferenceSession) -> None:
    """Raise `InputError` unless both return the same logits, bit for bit, for one token and for several."""
    for length in (1, 5):
        found, expected = (_logits(session, length) for session in (packed, unpacked))
        if not np.array_equal(found, expected):
            raise InputError(
                f"packed weights change the logits by {np.abs(found - expected).max()} in onnxruntime "
                f"{ort.__version__} on this processor; start without --prepacked"
            )


def _logits(session: ort.InferenceSession, length: int) -> NDArray[np.float32]:
    """Run a model on the first ids of its vocabulary."""
    feeds: dict[str, NDArray[Any]] = {}
    for value in session.get_inputs():
        if value.name == "input_ids":
            feeds[value.name] = np.arange(length)[None]
        elif value.name == "attention_mask":
            feeds[value.name] = np.ones((1, length), dtype=np.int64)
        else:
            _, heads, _, head_dim = value.shape
            dtype = np.int8 if value.type == "tensor(int8)" else np.float32
            feeds[value.name] = np.zeros((1, heads, length, head_dim), dtype=dtype)
    [logits_BTV] = session.run(["logits"], feeds)
    floats: NDArray[np.float32] = logits_BTV
    return floats


def _options(threads: int, own_kernels: bool) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_US)
    options.log_severity_level = SILENT
    library = kernels_library()
    if own_kernels and library:
        options.register_custom_ops_library(str(library))
    return options


def _open(model_path: Path, options: ort.SessionOptions, content: bytes | None = None) -> ort.InferenceSession:
    """Open a graph's file, or what stands for its content."""
    try:
        session = ort.InferenceSession(content or str(model_path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise InputError(
            f"onnxruntime cannot open {model_path}: {str(error).splitlines()[0]}; export again or copy the folder again"
        ) from error
    give_freed_memory_back()  # if onnxruntime widened three bits for its own kernels, seven times what it keeps
    return session
