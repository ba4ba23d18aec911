"""If our kernels don't compute a folder, whoever opens it is told why and what that costs."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from export.runtime.kernels import library
from export.runtime.kernels.library import SCALAR, THEIRS, VARIABLE, kernels_here, kernels_in_words, kernels_library
from tests.house.modules import ROOT
from toolkit.errors import InputError

ASK = (
    "import sys; from pathlib import Path; from export.runtime.kernels.library import *; "
    "print(what_is_slower(Path(sys.argv[1])))"
)


def said_of(folder: Path, kernels: str) -> str:
    command = [sys.executable, "-c", ASK, str(folder / "model.onnx")]
    done = subprocess.run(command, env=os.environ | {VARIABLE: kernels}, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def test_a_folder_says_why_it_is_slow_and_one_of_three_bits_what_that_costs(calibrated: Path, fast: Path) -> None:
    why = f"runs on onnxruntime's kernels, which are slower ({VARIABLE}={THEIRS} switches ours off)"
    assert said_of(calibrated, THEIRS) == f"{calibrated} {why}"
    line = said_of(fast, THEIRS)
    assert line.startswith(f"{fast} {why}; its weights of three bits are widened at each start") and "\n" not in line


@pytest.mark.skipif(not kernels_library(), reason="our kernels don't run here")
def test_where_our_fast_ones_compute_nothing_is_said_and_where_our_slow_ones_do_that_is(fast: Path) -> None:
    assert said_of(fast, "") == ""
    assert (
        said_of(fast, SCALAR) == f"{fast} runs on our kernels in plain C, very slowly and for tests ({VARIABLE}=scalar)"
    )


def test_kernels_that_the_processor_lacks_end_a_command_with_one_line(fast: Path) -> None:
    command = [sys.executable, "-m", "toolkit", "bench", str(fast), "--contexts", "4", "--rounds", "1"]
    done = subprocess.run(command, env=os.environ | {VARIABLE: "avx9"}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    said = f"({', '.join((*kernels_here(), THEIRS))}); set one of them, or unset it for the fastest"
    assert done.stderr == f"toolkit: {VARIABLE} ('avx9') must be one of the kernels that run on this processor {said}\n"


def test_every_c_file_is_compiled_and_every_header_is_a_reason_to_compile_again() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    [module] = project["tool"]["setuptools"]["ext-modules"]
    for files, ending in ((module["sources"], "c"), (module["depends"], "h")):
        assert set(files) == {str(path.relative_to(ROOT)) for path in ROOT.glob(f"export/**/*.{ending}")}
    assert {path.parent.name for path in ROOT.glob("export/runtime/kernels/*/*.c")} == set(library.IN_WORDS)


@pytest.mark.skipif(not kernels_library(), reason="our kernels don't run here")
def test_what_one_kind_of_kernels_computed_is_not_another_s(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = set()
    for wanted in (*kernels_here(), THEIRS):
        monkeypatch.setenv(VARIABLE, wanted)
        program = "from export.runtime.kernels.library import *; print(kernels_digest())"
        digests.add(
            subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True).stdout
        )
    assert len(digests) == len(kernels_here()) + 1


@pytest.mark.parametrize("wanted", library.IN_WORDS)
def test_kernels_that_were_not_compiled_are_an_error(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, wanted)
    monkeypatch.setattr(library, "kernels_here", tuple)
    for compiled, how in ((None, "not at all"), (Path("kernels.so"), "for another system or version")):
        monkeypatch.setattr(library, "_compiled", lambda compiled=compiled: compiled)
        library._chosen.cache_clear()
        with pytest.raises(InputError, match=rf"\('{wanted}'\) needs our kernels, which were compiled {how} when"):
            library._chosen()


@pytest.mark.parametrize(
    ("machine", "processor", "compiled", "here", "why"),
    [
        ("x86_64", [], "kernels.so", (SCALAR,), "ours need AVX2, which this processor lacks"),
        ("aarch64", [], "kernels.so", (SCALAR,), "ours need dot products (asimddp), which this processor lacks"),
        ("ARM64", [], "", (), "ours were not compiled when this was installed"),
        ("riscv64", [], "kernels.so", (SCALAR,), "ours are for x86-64 and arm64, not for riscv64"),
        ("x86_64", ["avx2"], "", (), "ours were not compiled when this was installed; install a C compiler"),
        ("AMD64", [], "", (), "ours were not compiled when this was installed"),
        ("x86_64", ["avx512_vnni"], "kernels.so", (), "ours were compiled for another system or processor"),
    ],
)
def test_each_reason_has_its_own_words(
    machine: str, processor: list[str], compiled: str, here: tuple[str], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(library, "instructions", lambda: processor)
    monkeypatch.setattr(library, "_compiled", lambda: Path(compiled) if compiled else None)
    monkeypatch.setattr(library, "kernels_here", lambda: here)
    monkeypatch.setattr(library, "kernels_library", lambda: None)
    assert kernels_in_words().startswith(f"onnxruntime's: {why}")
