"""The benchmark's record and table; times themselves are never asserted on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from export.checkpoint.model_config import read_model_config
from export.checks.parity import Bounds
from export.pipeline import export_model
from export.presets import int4_config
from export.runtime.bench import run_benchmark, table
from export.runtime.kernels.library import kernels_name
from toolkit.errors import InputError
from toolkit.runs import folder_bytes


def test_a_benchmark_measures_each_figure_and_prints_it(tiny_student: Path, tmp_path: Path) -> None:
    out = tmp_path / "int4"
    export_model(replace(int4_config(tiny_student, out), bounds=Bounds(max_mean_kl=9.0, min_top1=0.0)))
    benchmark = run_benchmark(out, contexts=(16, 40), new_tokens=8, rounds=1)
    [model] = benchmark.models
    assert model.model_bytes == folder_bytes(out)
    assert [at.context for at in model.at_lengths] == [16, 40]
    assert all(at.decode_tokens_per_s > 0 and 0 < at.bandwidth_share < 1 for at in model.at_lengths)
    assert model.peak_memory_bytes > 10_000_000, "a process with onnxruntime takes more than that"
    assert f"{model.at_lengths[1].decode_tokens_per_s:.1f} tokens/s" in table(benchmark)
    assert f"medians; kernels: {kernels_name()}; this machine reads" in table(benchmark)


def test_a_step_reads_all_weights_but_an_untied_embedding(checkpoint_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "int4"
    manifest = export_model(replace(int4_config(checkpoint_folder, out), bounds=Bounds(max_mean_kl=9.0, min_top1=0.0)))
    config = read_model_config(out)
    embedding_bytes = 0 if config.tie_word_embeddings else config.vocab_size * (64 // 2 + 2 + 1)
    padding = 16 * 64
    data_bytes = (out / "model.onnx.data").stat().st_size
    assert data_bytes - padding < manifest["measured"]["step_bytes"] + embedding_bytes <= data_bytes


def test_a_length_beyond_the_context_and_a_file_that_is_no_gguf_are_refused(tiny_student: Path, tmp_path: Path) -> None:
    out = tmp_path / "int4"
    export_model(replace(int4_config(tiny_student, out), bounds=Bounds(max_mean_kl=9.0, min_top1=0.0)))
    with pytest.raises(InputError, match=r"new tokens \(608\) must fit the model's context \(512\)"):
        run_benchmark(out, contexts=(600,), new_tokens=8, rounds=1)
    with pytest.raises(InputError, match=r"model\.onnx is neither a GGUF file"):
        run_benchmark(out, versus=[out / "model.onnx"])
