"""Converting holds some rows of one tensor, however large the model is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.export.conversion import check_memory, measure_conversion, table, write_zeros
from benchmarks.export.export_shapes import QWEN25_32B
from toolkit.errors import GateFailed

SMALL = {"hidden_size": 1024, "intermediate_size": 8192, "vocab_size": 32000, "num_attention_heads": 8}


def test_peak_memory_grows_by_far_less_than_the_weights(tmp_path: Path) -> None:
    conversion = measure_conversion(QWEN25_32B | SMALL | {"num_hidden_layers": 6}, tmp_path)
    assert conversion.source_bytes == pytest.approx(2 * conversion.parameters, rel=1e-3)
    assert conversion.source_bytes > 400_000_000
    assert conversion.written_bytes < 0.4 * conversion.source_bytes
    assert conversion.peak_memory_bytes - conversion.idle_memory_bytes < 150_000_000, "the largest tensor has 131 MB"
    check_memory(conversion)
    assert f"peak memory       {conversion.peak_memory_bytes / 1e6:.0f} MB" in table(conversion)
    with pytest.raises(GateFailed, match=r"peak memory \(\d+ bytes\) exceeds the bound of 1 bytes"):
        check_memory(replace(conversion, bound_bytes=1))


def test_the_checkpoint_of_zeros_takes_no_room_on_the_disk(tmp_path: Path) -> None:
    config = write_zeros(QWEN25_32B | {"num_hidden_layers": 5}, tmp_path / "source")
    shards = list((tmp_path / "source").glob("*.safetensors"))
    assert len(shards) > 1
    assert sum(path.stat().st_size for path in shards) > 7e9
    assert sum(path.stat().st_blocks * 512 for path in shards) < 1e6
    assert config.num_hidden_layers == 5
