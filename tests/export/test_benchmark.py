"""The benchmark's record and table; times themselves are never asserted on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from export.benchmark import run_benchmark, table
from export.parity import Bounds
from export.pipeline import export_int4, int4_config
from toolkit.runs import folder_bytes


def test_a_benchmark_measures_each_figure_and_prints_it(tiny_student: Path, tmp_path: Path) -> None:
    out = tmp_path / "int4"
    export_int4(replace(int4_config(tiny_student, out), bounds=Bounds(max_mean_kl=9.0, min_top1=0.0)))
    benchmark = run_benchmark(out, prompt_tokens=16, new_tokens=8, rounds=1)
    figures = benchmark.to_dict()
    assert all(value > 0 for value in figures.values())
    assert benchmark.folder_bytes == folder_bytes(out)
    assert benchmark.peak_memory_bytes > 10_000_000, "a process with onnxruntime takes more than that"
    assert f"decode               {benchmark.decode_tokens_per_s:.0f} tokens/s (8 tokens)" in table(benchmark)
