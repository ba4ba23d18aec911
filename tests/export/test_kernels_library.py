"""Who opens a folder that our kernels don't compute hears why, and what that costs."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from export.runtime.kernels import library
from export.runtime.kernels.library import THEIRS, VARIABLE, kernels_in_words, kernels_library

ASK = "import sys; from pathlib import Path; from export.runtime.kernels.library import *; print(what_is_slower(Path(sys.argv[1])))"


def said_of(folder: Path, kernels: str) -> str:
    command = [sys.executable, "-c", ASK, str(folder / "model.onnx")]
    done = subprocess.run(command, env=os.environ | {VARIABLE: kernels}, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def test_a_folder_says_why_it_is_slow_and_one_of_three_bits_what_that_costs(calibrated: Path, fast: Path) -> None:
    why = f"onnxruntime's kernels compute, which is slower ({VARIABLE}={THEIRS} switches ours off)"
    assert said_of(calibrated, THEIRS) == f"{calibrated}: {why}"
    line = said_of(fast, THEIRS)
    assert line.startswith(f"{fast}: {why}; its weights of three bits are widened at each start") and "\n" not in line


@pytest.mark.skipif(not kernels_library(), reason="our kernels don't run here")
def test_where_ours_compute_nothing_is_said(fast: Path) -> None:
    assert said_of(fast, "") == ""


@pytest.mark.parametrize(
    ("machine", "processor", "compiled", "why"),
    [
        ("x86_64", ["avx2"], "kernels.so", "ours need AVX-512 VNNI, which this processor lacks"),
        ("x86_64", ["avx2"], "", "ours need AVX-512 VNNI, which this processor lacks"),
        ("aarch64", [], "", "ours need AVX-512 VNNI, which this processor lacks"),
        ("x86_64", ["avx2", "avx512_vnni"], "", "ours were not compiled when this was installed; install a C compiler"),
        ("AMD64", [], "", "ours were not compiled when this was installed"),
        ("x86_64", ["avx512_vnni"], "kernels.so", "ours were compiled for another system or processor"),
    ],
)
def test_each_reason_has_its_own_words(
    machine: str, processor: list[str], compiled: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(library, "instructions", lambda: processor)
    monkeypatch.setattr(library, "_compiled", lambda: Path(compiled) if compiled else None)
    monkeypatch.setattr(library, "kernels_library", lambda: None)
    assert kernels_in_words().startswith(f"onnxruntime's: {why}")
