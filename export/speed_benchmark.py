"""How fast the presets run beside llama.cpp's quantizations of the same weights, on a model of 1.7 billion.

    python -m export.speed_benchmark [--out runs/speed] [--long]

Speed does not depend on what the weights are, so they are random, in the shape of SmolLM2-1.7B, rounded to nearest in
each preset's layout; half an hour of calibration would change no figure here. `--long` measures after 8,192 tokens with
the int8 cache. llama.cpp's files are made where llama-cpp-python is installed. Writes a block of docs/int4.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from export import llama_cpp
from export.benchmark import run_benchmark, table
from export.checkpoint import tensor_shapes
from export.model_config import read_model_config
from export.pipeline import Preset, export_int4, int4_config
from export.quality_benchmark import documentation
from export.session import physical_cores
from toolkit.chat_format import CHAT_FILES
from toolkit.models import resolve
from toolkit.readme import fill_file
from toolkit.records import write_records

DOCUMENT = Path("docs/int4.md")
SMOLLM2_1_7B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 8192 + 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 130000.0,
    "tie_word_embeddings": True,
}
"""Its config.json, with a little more room."""
PRESETS: tuple[Preset, ...] = ("fast", "balanced")
QUANTIZATIONS: tuple[llama_cpp.Quantization, ...] = ("Q4_0", "Q4_K_M")
CALIBRATION_TOKENS = 512
"""Enough for steps of the int8 cache, whose speed does not depend on them either."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m export.speed_benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/speed"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--long", action="store_true", help="after 8,192 tokens, with the int8 cache")
    options = parser.parse_args()
    source = options.out / "source"
    if not (source / "config.json").is_file():
        write_random(source)
    folders = [export(source, options.out, preset) for preset in PRESETS]
    others = quantized(source, options.out)
    benchmark = run_benchmark(
        folders[0],
        versus=[*folders[1:], *others],
        cache="int8" if options.long else "exact",
        contexts=(8192,) if options.long else (128, 512, 2048),
        rounds=options.rounds,
    )
    text = table(benchmark)
    print(text)
    fill_file(DOCUMENT, "speed-long" if options.long else "speed", f"```text\n{text}\n```")


def write_random(folder: Path) -> None:
    """Write the model in bf16, with the tokenizer of its small sister."""
    folder.mkdir(parents=True)
    sister = resolve("smollm2-135m")
    for name in CHAT_FILES:
        if (sister / name).is_file():
            shutil.copyfile(sister / name, folder / name)
    (folder / "config.json").write_text(json.dumps(SMOLLM2_1_7B))
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.ones(shape, dtype=torch.bfloat16)
        if len(shape) == 1
        else torch.randn(shape, generator=generator).mul_(0.02).bfloat16()
        for name, shape in tensor_shapes(read_model_config(folder)).items()
    }
    save_file(tensors, folder / "model.safetensors")


def export(source: Path, out: Path, preset: Preset) -> Path:
    """A folder in the preset's layout, without what takes long and changes no speed."""
    folder, texts = out / preset, out / "topics.jsonl"
    if not texts.is_file():
        write_records(texts, documentation())
    config = int4_config(source, folder, preset=preset, calibration=texts)
    export_int4(replace(config, method="nearest", calibration_tokens=CALIBRATION_TOKENS, bounds=None))
    return folder


def quantized(source: Path, out: Path) -> list[Path]:
    """llama.cpp's files of the same weights; none where it is not installed."""
    if not llama_cpp.is_installed():
        return []
    paths = {kind: out / f"{kind}.gguf" for kind in QUANTIZATIONS}
    if all(path.is_file() for path in paths.values()):
        return list(paths.values())
    float_gguf = out / "F16.gguf"
    llama_cpp.write_gguf(source, float_gguf)
    for kind, path in paths.items():
        llama_cpp.quantize(float_gguf, path, kind, threads=physical_cores())
    float_gguf.unlink()
    return list(paths.values())


if __name__ == "__main__":
    main()
