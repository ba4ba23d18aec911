"""The latent cache as a user chooses it on the command line, and as a run folder records it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from toolkit.cli.main import main
from toolkit.runs import file_digest, folder_digest, read_manifest
from toolkit.sources.model_names import BUILTIN_TEACHER

QUICK = ["--per-family", "1", "--max-new-tokens", "3"]


def traces(out: Path, *options: str) -> int:
    teacher = [] if "--teacher" in options else ["--teacher", str(BUILTIN_TEACHER)]  # each one that is given counts
    return main(["traces", *teacher, *QUICK, *options, "--out", str(out)])


def test_the_manifest_names_the_cache_that_was_used(tmp_path: Path) -> None:
    digest = folder_digest(BUILTIN_TEACHER)
    assert traces(tmp_path / "exact") == 0
    calibration = file_digest(tmp_path / "exact" / "traces.jsonl")[:16]
    options = ["--cache", "int8", "--cache-rank", "16", "--cache-calibration", str(tmp_path / "exact")]
    assert traces(tmp_path / "both", *options) == 0
    teachers = {name: (read_manifest(tmp_path / name) or {})["inputs"]["teacher"] for name in ("exact", "both")}
    assert teachers == {"exact": digest, "both": f"{digest} (cache: int8, rank 16 fitted to {calibration})"}


def test_an_evaluation_with_another_cache_is_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert traces(tmp_path / "asked") == 0
    command = ["eval", str(BUILTIN_TEACHER), "--problems", str(tmp_path / "asked" / "problems.jsonl")]
    command += ["--max-new-tokens", "3", "--out", str(tmp_path / "eval")]
    assert main([*command, "--cache", "int8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["model_digest"].endswith("(cache: int8)")
    assert main(command) == 2
    assert "holds another run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cache-rank", "8"], "--cache-rank (8) needs --cache-calibration too; toolkit traces writes"),
        (["--cache-calibration", "there"], "--cache-calibration (there) needs --cache-rank too"),
        (
            ["--cache-rank", "8", "--cache-calibration", "there"],
            "--cache-calibration (there) must be a folder that toolkit traces wrote",
        ),
        (["--cache", "int8", "--teacher", "http://127.0.0.1:9/v1"], "--cache (int8) does not apply to the endpoint"),
    ],
)
def test_options_that_cannot_be_met_are_refused(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert traces(tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err


def test_an_exported_model_without_an_int8_cache_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported = tmp_path / "exported"
    exported.mkdir()
    for path in BUILTIN_TEACHER.iterdir():
        (exported / path.name).write_bytes(path.read_bytes())
    (exported / "model.onnx").write_bytes(b"")
    assert traces(tmp_path / "out", "--teacher", str(exported), "--cache", "int8") == 2
    assert "model.int8-cache.onnx, which is missing" in capsys.readouterr().err
