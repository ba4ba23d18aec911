"""All memory that a process holds while it answers is counted; how much is never asserted on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.export.running import measure, table
from export.checks.parity import Bounds
from export.pipeline import export_model
from export.presets import int4_config
from toolkit.errors import InputError


def test_each_prompt_is_told_without_its_cache(tiny_student: Path, tmp_path: Path) -> None:
    out = tmp_path / "int4"
    export_model(replace(int4_config(tiny_student, out), bounds=Bounds(max_mean_kl=9.0, min_top1=0.0)))
    held = measure(out, (40, 300))
    assert [each.prompt_tokens for each in held] == [40, 300]
    assert all(10_000_000 < size < 1_000_000_000 for each in held for size in (each.read_bytes, each.answering_bytes))
    second = f"| 2: 300 tokens | {held[1].read_bytes / 1e8:.2f} × | {held[1].answering_bytes / 1e8:.2f} × |"
    assert second in table(held, 10**8)
    with pytest.raises(InputError, match=r"prompts and answers \(10000024 tokens\) exceed the text"):
        measure(out, (10_000_000,))
