"""Writes the floats of a quantized checkpoint, from which it is exported like any other.

    quantized folder ─ export.checkpoint.quantized_formats ─ <cache folder>/models/<name>-<digest>/

Invariant: every tensor of the quantized folder has become part of the float one, or it is named here why it has none.
Memory holds one matrix and one shard; the floats take four bytes each on disk.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from export.checkpoint.model_config import read_model_config
from export.checkpoint.quantized_formats import FORMATS, MARKS, check_format
from export.checkpoint.tensors import read_headers, tensor_shapes
from toolkit.errors import InputError
from toolkit.machine.user_folders import cached_model_folder
from toolkit.progress import Progress
from toolkit.records import read_object
from toolkit.runs import Stage, discard, files_digest, finish, is_complete, partial_folder
from toolkit.sources.safetensors_header import INDEX
from toolkit.terminal import listed, say

SHARD_BYTES = 2**30
NOT_COPIED = ("config.json", INDEX, "manifest.json", "README.md")
WITHOUT_FLOATS = (".input_scale", ".output_scale", ".k_scale", ".v_scale", ".q_scale", ".input_zero_point")
"""Ends of names of what other programs quantize activations and caches with."""


def float_folder(folder: Path) -> Path:
    """Return the folder itself, or that of its floats if it is quantized, which is made if there is none yet.

    Raises `InputError` if the format is unknown, or the files are not what it says.
    """
    path = folder / "config.json"
    settings = read_object(path).get("quantization_config") if path.is_file() else None
    if not isinstance(settings, dict):
        return folder
    check_format(str(path), settings)
    inputs = {"model": files_digest(folder)}
    out = cached_model_folder(folder.resolve().name, inputs)
    stage = Stage(name="dequantize", config={}, inputs=inputs)
    if is_complete(out, stage):
        return out
    partial = partial_folder(out, stage)
    say(f"export: {folder} is quantized ({settings['quant_method']}); its floats are written to {out}")
    try:
        _copy_other_files(folder, partial)
        _write_floats(folder, settings, partial)
    except BaseException:
        discard(partial)
        raise
    finish(partial, out, stage, {"model": str(folder)})
    return out


def _copy_other_files(folder: Path, out: Path) -> None:
    for path in folder.iterdir():
        if path.is_file() and path.name not in NOT_COPIED and path.suffix != ".safetensors":
            shutil.copyfile(path, out / path.name)
    config = {
        name: value for name, value in read_object(folder / "config.json").items() if name != "quantization_config"
    }
    (out / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32"}, indent=1) + "\n")


def _write_floats(folder: Path, settings: Mapping[str, Any], out: Path) -> None:
    expected = tensor_shapes(read_model_config(out))
    needed, free = 4 * sum(math.prod(shape) for shape in expected.values()), shutil.disk_usage(out).free
    if needed > free:
        raise InputError(
            f"the floats of {folder} need {needed / 1e9:.1f} GB on the disk of {out.parent}, which has "
            f"{free / 1e9:.1f} GB free; free some, or set TOOLKIT_HOME to a folder on another disk"
        )
    weight_map: dict[str, str] = {}
    with Progress("dequantize", len(expected)) as progress:
        for i, shard in enumerate(_shards(_floats(folder, settings), expected)):
            file = f"model-{i:05}.safetensors"
            save_file(shard, out / file, {"format": "pt"})
            weight_map |= dict.fromkeys(shard, file)
            progress.advance(len(shard))
    (out / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}, indent=1) + "\n")


def _shards(tensors: Iterator[tuple[str, Tensor]], expected: Collection[str]) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if name not in expected and name.endswith(".bias") and not tensor.any():
            continue  # GPTQ's writers give zeros to matrices without biases
        shard[name] = tensor.contiguous()
        if sum(each.nbytes for each in shard.values()) >= SHARD_BYTES:
            yield shard
            shard = {}
    if shard:
        yield shard


def _floats(folder: Path, settings: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of the float model by name."""
    stored, _ = read_headers(folder)
    files = {name: rows.path for name, rows in stored.items()}
    quantized = {
        name.removesuffix(mark).removesuffix(".") for name in files for mark in MARKS if name.endswith(f".{mark}")
    }
    parts: dict[str, list[str]] = {module: [] for module in quantized}
    for name in sorted(files):
        module = _module(name, quantized)
        if module and not name.endswith(WITHOUT_FLOATS) and not name.endswith(".bias"):
            parts[module].append(name)
        elif not name.endswith(WITHOUT_FLOATS):
            yield name, _read(files[name], name)
    for module, names in parts.items():
        found = {name.removeprefix(f"{module}."): _read(files[name], name) for name in names}
        try:
            yield f"{module}.weight", FORMATS[settings["quant_method"]](found, settings)
        except (KeyError, RuntimeError, ValueError, ZeroDivisionError) as error:
            raise InputError(
                f"{listed(names)} of {folder} are no matrix in the format {settings['quant_method']} "
                f"({type(error).__name__}: {' '.join(str(error).split())}); get the checkpoint again"
            ) from error


def _module(name: str, quantized: Collection[str]) -> str:
    """Return the quantized module that a tensor belongs to, or nothing."""
    parts = name.split(".")
    found = (".".join(parts[:i]) for i in range(len(parts) - 1, 0, -1))
    return next((module for module in found if module in quantized), "")


def _read(path: Path, name: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor
