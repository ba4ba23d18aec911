"""Measures what converting a model of a given shape costs in memory and time: `python -m benchmarks.export.conversion`.

The checkpoint is made here: sharded bf16 safetensors of zeros in sparse files, which take no space on disk and are read
like any others. It is rounded to nearest in a separate process, because peak memory belongs to a process. The output is
as large as for real weights.

The bound on memory is 2 GiB plus the largest tensor in float32, for models of any size.

`--calibrated` instead converts random weights in the shape of SmolLM2-1.7B, with `--layers` layers, by the default
preset, which shows the cost of a layer.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.export.documentation import documentation
from benchmarks.export.export_shapes import QWEN25_32B, SMOLLM2_1_7B
from export.checkpoint.model_config import ModelConfig, read_model_config
from export.checkpoint.tensors import tensor_shapes
from toolkit.errors import GateFailed
from toolkit.figures.tables import columns
from toolkit.formats.chat_format import REASONING_TEMPLATE, TURN_END, TURN_START, write_chat_files
from toolkit.machine.peak_memory import peak_memory_bytes
from toolkit.records import Record, write_records
from toolkit.sources.safetensors_header import write_header
from toolkit.terminal import say

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
SHARD_BYTES = 4_000_000_000
BASE_BYTES = 2 * 2**30


@dataclass(frozen=True, kw_only=True)
class Conversion(Record):
    """The cost of one export without its parity gate, in a fresh process."""

    parameters: int
    source_bytes: int
    written_bytes: int
    seconds: float
    """Total time: digests of source and result, reading, rounding, writing."""
    cpu_seconds: float
    """Processor time, which does not grow on a busy machine."""
    idle_memory_bytes: int
    """Peak memory before the export starts, with its libraries loaded."""
    peak_memory_bytes: int
    bound_bytes: int


def measure_conversion(config_json: Mapping[str, Any], folder: Path, *, calibrated: bool = False) -> Conversion:
    """Make the checkpoint of a config.json in `folder / "source"` and convert it into `folder / "int4"`."""
    source, traces = folder / "source", folder / "topics.jsonl"
    if calibrated:
        from benchmarks.export.random_model import (
            write_random,  # imported here, because the measured process imports this file
        )

        write_random(config_json, source)
        write_records(traces, documentation())
    else:
        write_zeros(config_json, source)
    sizes = [math.prod(shape) for shape in tensor_shapes(read_model_config(source)).values()]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        facts = executor.submit(_convert, source, folder / "int4", traces if calibrated else None).result()
    source_bytes = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    bound_bytes = BASE_BYTES + 4 * max(sizes)
    return Conversion(parameters=sum(sizes), source_bytes=source_bytes, bound_bytes=bound_bytes, **facts)


def write_zeros(config_json: Mapping[str, Any], folder: Path) -> ModelConfig:
    """Write a model folder of zeros whose shards are sparse files of about `SHARD_BYTES`."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config_json), encoding="utf-8")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<|endoftext|>", TURN_START, TURN_END, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", TURN_START, TURN_END])
    write_chat_files(folder, tokenizer, template=REASONING_TEMPLATE, eos_token=TURN_END, pad_token="<|endoftext|>")
    config = read_model_config(folder)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in tensor_shapes(config).items():
        if 2 * sum(map(math.prod, shards[-1].values())) >= SHARD_BYTES:
            shards.append({})
        shards[-1][name] = shape
    weight_map: dict[str, str] = {}
    for index, shard in enumerate(shards):
        path = folder / f"model-{index:05}.safetensors"
        _write_sparse(path, shard)
        weight_map |= dict.fromkeys(shard, path.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    return config


def table(conversion: Conversion) -> str:
    """Format the figures for a terminal."""
    rows = (
        ("parameters", f"{conversion.parameters / 1e9:.3f} billion"),
        ("source", f"{conversion.source_bytes / 1e9:.2f} GB of bf16"),
        ("written", f"{conversion.written_bytes / 1e9:.2f} GB"),
        ("time", f"{conversion.seconds:.1f} s, digests included"),
        ("rate", f"{conversion.source_bytes / 1e6 / conversion.seconds:.0f} MB/s of bf16"),
        ("rate a core", f"{conversion.source_bytes / 1e6 / conversion.cpu_seconds:.0f} MB/s of processor time"),
        ("peak memory", f"{conversion.peak_memory_bytes / 1e6:.0f} MB"),
        ("before it starts", f"{conversion.idle_memory_bytes / 1e6:.0f} MB"),
        ("bound", f"{conversion.bound_bytes / 1e6:.0f} MB: 2 GiB and the largest tensor in float32"),
    )
    return columns(rows)


def check_memory(conversion: Conversion) -> None:
    """Raise `GateFailed` if the conversion took more memory than its bound."""
    if conversion.peak_memory_bytes > conversion.bound_bytes:
        raise GateFailed(
            f"peak memory ({conversion.peak_memory_bytes} bytes) exceeds the bound of {conversion.bound_bytes} bytes"
        )


def _convert(source: Path, out: Path, traces: Path | None) -> dict[str, Any]:
    from dataclasses import replace

    from export.pipeline import export_model
    from export.presets import int4_config

    idle = peak_memory_bytes()
    started, cpu_started = time.perf_counter(), time.process_time()
    manifest = export_model(replace(int4_config(source, out, calibration=traces), bounds=None))
    return {
        "written_bytes": manifest["measured"]["bytes"],
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu_started,
        "idle_memory_bytes": idle,
        "peak_memory_bytes": peak_memory_bytes(),
    }


def _write_sparse(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    with path.open("wb") as file:
        tensor_bytes = write_header(file, shapes)
        file.truncate(file.tell() + tensor_bytes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, or one JSON object with --json; return 1 if memory exceeds its bound."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export.conversion", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--layers", type=int, default=QWEN25_32B["num_hidden_layers"], help="a part of the model; default: %(default)s"
    )
    for name in SIZES:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=QWEN25_32B[name], help="%(default)s")
    parser.add_argument("--calibrated", action="store_true", help="random weights of SmolLM2-1.7B's shape, calibrated")
    parser.add_argument("--folder", type=Path, help="where to work; default: the folder for temporary files")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    sizes = {name: getattr(options, name) for name in SIZES} | {"num_hidden_layers": options.layers}
    folder = Path(tempfile.mkdtemp(prefix="memory-benchmark-", dir=options.folder))
    try:
        shape = SMOLLM2_1_7B | {"num_hidden_layers": options.layers} if options.calibrated else QWEN25_32B | sizes
        conversion = measure_conversion(shape, folder, calibrated=options.calibrated)
        print(json.dumps(conversion.to_dict()) if options.json else table(conversion))
        check_memory(conversion)
    except GateFailed as error:
        say(str(error))
        return error.exit_code
    finally:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
