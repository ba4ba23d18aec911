"""Measures the presets' speed, compared with llama.cpp's quantizations of the same weights, at 1.7 billion parameters.

    python -m benchmarks.export.speed [--out runs/speed] [--long]

Speed does not depend on the weights' values, so they are random, in the shape of SmolLM2-1.7B, rounded to nearest in
each preset's layout; half an hour of calibration would change no figure here. Keys and values are in int8, as the
presets have them. `--long` measures after 8,192 tokens. llama.cpp's files are made if llama-cpp-python is installed.
Writes a block of docs/explanation/running.md.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from benchmarks.export.documentation import documentation
from benchmarks.export.export_shapes import SMOLLM2_1_7B
from benchmarks.export.random_model import write_random
from benchmarks.peers.gguf_writer import write_gguf
from export.pipeline import export_model
from export.presets import Preset, int4_config
from export.runtime import llama_cpp
from export.runtime.bench import run_benchmark, table
from toolkit.figures.readme import fill_file
from toolkit.machine.allowance import physical_cores
from toolkit.records import write_records

DOCUMENT = Path("docs/explanation/running.md")
PRESETS: tuple[Preset, ...] = ("fast", "balanced")
QUANTIZATIONS: tuple[llama_cpp.Quantization, ...] = ("Q4_0", "Q4_K_M")
CALIBRATION_TOKENS = 512
"""Enough to calibrate the step sizes of the int8 cache, whose values do not affect speed either."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export.speed", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/speed"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--long", action="store_true", help="measure after 8,192 tokens")
    options = parser.parse_args()
    source = options.out / "source"
    if not (source / "config.json").is_file():
        write_random(SMOLLM2_1_7B, source)
    folders = [export(source, options.out, preset) for preset in PRESETS]
    others = quantized(source, options.out)
    benchmark = run_benchmark(
        folders[0],
        versus=others[:1] if options.long else [*folders[1:], *others],  # reading so long a prompt takes minutes
        contexts=(8192,) if options.long else (128, 512, 2048),
        rounds=options.rounds,
    )
    text = table(benchmark)
    print(text)
    fill_file(DOCUMENT, "speed-long" if options.long else "speed", f"```text\n{text}\n```")


def export(source: Path, out: Path, preset: Preset) -> Path:
    """Export a folder in the preset's layout, skipping slow steps that do not affect speed."""
    folder, texts = out / preset, out / "topics.jsonl"
    if not texts.is_file():
        write_records(texts, documentation())
    config = int4_config(source, folder, preset=preset, calibration=texts)
    export_model(replace(config, method="nearest", calibration_tokens=CALIBRATION_TOKENS, bounds=None))
    return folder


def quantized(source: Path, out: Path) -> list[Path]:
    """Write llama.cpp's files of the same weights; none if it is not installed."""
    if not llama_cpp.is_installed():
        return []
    paths = {kind: out / f"{kind}.gguf" for kind in QUANTIZATIONS}
    if all(path.is_file() for path in paths.values()):
        return list(paths.values())
    float_gguf = out / "F16.gguf"
    write_gguf(source, float_gguf)
    for kind, path in paths.items():
        llama_cpp.quantize(float_gguf, path, kind, threads=physical_cores())
    float_gguf.unlink()
    return list(paths.values())


if __name__ == "__main__":
    main()
