"""Measures quality and size of each preset, compared with llama.cpp's quantizations of the same weights.

    python -m benchmarks.export.quality [--model smollm2-135m] [--hidden-size 768] [--olive] [--out runs/quality]

The model is rotated first (see `benchmarks.export.rotation`), because the weights of one from a 4-bit file are on that
file's grid; 768 is a multiple of 256, which llama.cpp's K-quants need. The texts are Python's own documentation: some
topics to calibrate on, others to compare on. Every form reads the same held-out tokens through its own runtime. If
llama-cpp-python is installed, its quantizations are made and measured in the same run; with --olive those of Olive and
of onnxruntime-genai's model builder as well. Writes the block `quality` of docs/explanation/int4.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch

from benchmarks.export.documentation import documentation
from benchmarks.export.rotation import write_rotated
from benchmarks.peers import olive
from benchmarks.peers.gguf_writer import write_gguf
from export.calibration.texts import read_texts
from export.checks.parity import Bounds, ParityReport, compare
from export.matrices import Method
from export.pipeline import export_model
from export.presets import CALIBRATION_TOKENS, ExportConfig, Preset, int4_config
from export.runtime import llama_cpp
from export.runtime.llama_cpp import Quantization
from toolkit.figures.readme import fill_file
from toolkit.figures.tables import markdown_table, percent
from toolkit.formats.chat_format import ChatFormat
from toolkit.machine.allowance import physical_cores
from toolkit.model.decoder import load_model
from toolkit.records import write_records
from toolkit.sources.model_names import resolve
from toolkit.terminal import say

DOCUMENT = Path("docs/explanation/int4.md")
WIDE = Bounds(max_mean_kl=10.0, min_top1=0.0)
"""Bounds wide enough to show poor quality instead of refusing it."""
GRAPH_BYTES = 500_000
"""Largest size of the graph's own file, which counts as part of `--sizes`."""
QUANTIZATIONS: tuple[Quantization, ...] = ("Q4_0", "Q4_K_M", "Q5_K_M")
Row = tuple[str, int, ParityReport]
"""Name, bytes, comparison."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export.quality", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--hidden-size", type=int, default=768)
    parser.add_argument("--presets", nargs="+", default=list(get_args(Preset)), choices=get_args(Preset))
    parser.add_argument(
        "--tuned", nargs="*", default=["balanced"], choices=get_args(Preset), help="presets to measure with --tune too"
    )
    parser.add_argument(
        "--methods",
        nargs="*",
        default=["searched"],
        choices=get_args(Method),
        help="methods to measure in place of the default's",
    )
    parser.add_argument("--sizes", nargs="+", type=float, default=[], help="sizes in MB of further exports")
    parser.add_argument(
        "--olive", action="store_true", help="measure Olive too, in environments made once beside the folders"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    options = parser.parse_args()
    rotated, traces = options.out / "rotated", options.out / "topics.jsonl"
    if not (rotated / "config.json").is_file():
        write_rotated(resolve(options.model), rotated, hidden_size=options.hidden_size)
    write_records(traces, documentation())
    configs = {
        f"`--{preset}`": int4_config(rotated, options.out / preset, preset=preset, calibration=traces)
        for preset in options.presets
    }
    for preset in options.tuned:
        out = options.out / f"{preset}-tuned"
        configs[f"`--{preset} --recovery scales`"] = int4_config(
            rotated, out, preset=preset, calibration=traces, recovery="scales"
        )
    for method in options.methods:
        out = options.out / method
        configs[f"`--method {method}`"] = int4_config(rotated, out, calibration=traces, method=method)
    for megabytes in options.sizes:
        max_bytes = int(megabytes * 1e6) - GRAPH_BYTES
        out = options.out / f"{megabytes}MB"
        configs[f"`--size {megabytes}MB`"] = int4_config(rotated, out, calibration=traces, max_bytes=max_bytes)
    rows = preset_rows(configs, traces) + llama_cpp_rows(rotated, traces, options.out)
    rows += olive_rows(rotated, traces, options.out) if options.olive else []
    text = table(rows)
    print(text)
    fill_file(DOCUMENT, "quality", text)


def preset_rows(configs: Mapping[str, ExportConfig], traces: Path) -> list[Row]:
    """Export by each configuration and read its gate's comparison, on the same held-out texts for all."""
    rows: list[Row] = []
    for name, config in configs.items():
        measured = export_model(replace(config, calibration=traces, bounds=WIDE))["measured"]
        rows.append((name, model_bytes(config.out), ParityReport.from_dict(measured["parity"])))
    return rows


def model_bytes(folder: Path) -> int:
    """Return the size of the graph and its weights."""
    return (folder / "model.onnx").stat().st_size + (folder / "model.onnx.data").stat().st_size


def llama_cpp_rows(model: Path, traces: Path, out: Path) -> list[Row]:
    """Compare llama.cpp's quantizations on the same held-out texts; no rows if it is not installed."""
    if not llama_cpp.is_installed():
        say("llama-cpp-python is not installed; its quantizations are left out")
        return []
    texts = read_texts(traces, ChatFormat.from_folder(model), tokens=1, max_length=2048).held_out
    reference = load_model(model, torch.float32)
    float_gguf = out / "F16.gguf"
    write_gguf(model, float_gguf)
    rows: list[Row] = []
    for kind in QUANTIZATIONS:
        path = out / f"{kind}.gguf"
        llama_cpp.quantize(float_gguf, path, kind, threads=physical_cores())
        scorer = llama_cpp.LlamaCpp(path, threads=physical_cores(), max_length=2048)
        rows.append((f"llama.cpp {kind}", path.stat().st_size, compare(reference, scorer, texts, ())))
    return rows


def olive_rows(model: Path, traces: Path, out: Path) -> list[Row]:
    """Compare models by Olive and the model builder, calibrated and compared on the same texts as ours."""
    chat_format = ChatFormat.from_folder(model)
    texts = read_texts(traces, chat_format, tokens=CALIBRATION_TOKENS, max_length=2048)
    ids = [text.ids for text in texts.calibration]
    folders = olive.write_folders(model, chat_format.tokenizer.decode_batch(ids, skip_special_tokens=False), out)
    reference = load_model(model, torch.float32)
    rows: list[Row] = []
    for name, folder in folders.items():
        scorer = olive.BuiltModel(folder, threads=physical_cores())
        rows.append((name, model_bytes(folder), compare(reference, scorer, texts.held_out, ())))
    return rows


def table(rows: list[Row]) -> str:
    """Render the rows as Markdown, the least faithful first."""
    cells = [["", "MB", "mean KL", "99th percentile", "same first choice", "perplexity ×", "tokens"]]
    for name, size, report in sorted(rows, key=lambda row: -row[2].mean_kl):
        cells.append(
            [
                name,
                f"{size / 1e6:.1f}",
                f"{report.mean_kl:.4f}",
                f"{report.p99_kl:.3f}",
                percent(report.top1),
                f"{report.perplexity_ratio:.3f}",
                str(report.tokens),
            ]
        )
    return markdown_table(cells)


if __name__ == "__main__":
    main()
