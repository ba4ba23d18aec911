"""The benchmark of products measures each kind of kernels beside the memory; times themselves are never asserted on."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.export import products
from benchmarks.export.products import measure, measure_folder, table, table_of_folder
from export.runtime.kernels.library import SCALAR, THEIRS, kernels_here, kernels_library

SMALL = ((64, 512), (32, 1024))


def test_each_kind_of_kernels_has_figures_for_each_number_of_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "SHAPES", SMALL)
    monkeypatch.setattr(products, "PAIRS", 1)
    monkeypatch.setattr(products, "MEASURED_S", 0.001)
    monkeypatch.setattr(products, "read_bandwidth", lambda threads: 1e9)
    ours = kernels_here() if kernels_library() else ()
    kinds = [*(name for name in ours if name != SCALAR), THEIRS]
    bandwidth, figures = measure(kinds, (4, 3, 8), threads=1, rounds=2, folder=tmp_path)
    assert bandwidth == 1e9
    assert set(figures) == {(kind, bits) for kind in kinds for bits in (4, 3, 8)} - {(THEIRS, 3)}
    for found in figures.values():
        assert len(found.bytes_per_s) == len(found.prompt_flop_per_s) == 2
        assert found.share == [speed / bandwidth for speed in found.bytes_per_s]
    rows = table(kinds, (4, 3, 8), figures).splitlines()
    assert len(rows) == 2 + len(figures)
    assert rows[2].startswith(f"| {kinds[0]} | 4 | ")


def test_an_exported_folder_decodes_with_each_kind_of_kernels(
    calibrated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "NEW_TOKENS", 3)
    ours = kernels_here() if kernels_library() else ()
    kinds = [*(name for name in ours if name != SCALAR), THEIRS]
    speeds = measure_folder(kinds, calibrated, (8, 20), rounds=2)
    assert {key: len(rounds) for key, rounds in speeds.items()} == {(kind, n): 2 for kind in kinds for n in (8, 20)}
    rows = table_of_folder(kinds, (8, 20), speeds).splitlines()
    assert len(rows) == 2 + len(speeds)
    assert rows[-1].startswith(f"| {THEIRS} | 20 | ") and rows[-1].count("(1.00 ×)") == 2
