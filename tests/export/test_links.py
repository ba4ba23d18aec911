"""An exported folder of links is the folder: a snapshot of the hub's cache, and a backup by hard links."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from apps.model import load_model
from export.runtime.decoder import OnnxDecoder
from export.runtime.verify.checks import verify
from toolkit.errors import InputError
from toolkit.runs import file_digest

PROMPT = list(range(3, 40))


@pytest.fixture
def snapshot(calibrated: Path, tmp_path: Path) -> Path:
    """The exported folder as the hub's cache keeps it."""
    store = tmp_path / "models--me--int4"
    folder = store / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (store / "blobs").mkdir()
    for path in calibrated.iterdir():
        blob = store / "blobs" / file_digest(path)
        shutil.copy(path, blob)
        (folder / path.name).symlink_to(f"../../blobs/{blob.name}")
    return folder


def outcomes(folder: Path) -> set[str]:
    return {check.outcome for check in verify(folder, fast=False)}


@pytest.mark.parametrize("prepacked", [False, True])
def test_a_snapshot_of_the_hub_s_cache_is_verified_and_runs(
    prepacked: bool,
    snapshot: Path,
    calibrated: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TOOLKIT_HOME", str(tmp_path / "home"))
    assert outcomes(snapshot) == {"ok"}
    load_model(snapshot)
    decoder = OnnxDecoder(snapshot, prepacked=prepacked)
    assert (decoder.start([PROMPT]) == OnnxDecoder(calibrated).start([PROMPT])).all()
    assert "not used" not in capsys.readouterr().err


def test_a_backup_by_hard_links_is_the_folder_and_so_is_the_original(calibrated: Path, tmp_path: Path) -> None:
    original = Path(shutil.copytree(calibrated, tmp_path / "original"))
    backup = Path(shutil.copytree(original, tmp_path / "backup", copy_function=os.link))
    for folder in (original, backup):
        assert outcomes(folder) == {"ok"}
        load_model(folder)
        assert (OnnxDecoder(folder).start([PROMPT]) == OnnxDecoder(calibrated).start([PROMPT])).all()


def test_a_hard_link_to_another_file_of_the_user_is_refused(calibrated: Path, tmp_path: Path) -> None:
    """It has the same size, so that only its content differs."""
    folder = Path(shutil.copytree(calibrated, tmp_path / "copy"))
    data = folder / "model.onnx.data"
    (tmp_path / "secret").write_bytes(bytes(data.stat().st_size))
    data.unlink()
    os.link(tmp_path / "secret", data)
    with pytest.raises(
        InputError, match=r"model\.onnx\.data has 2 names \(hard links\) and is not the file that the manifest"
    ):
        OnnxDecoder(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(
        InputError, match=r"model\.onnx\.data has 2 names \(hard links\) and is not the file that the manifest"
    ):
        OnnxDecoder(folder)


@pytest.mark.parametrize("name", ["model.onnx.data", "model.onnx", "config.json", "chat_template.jinja"])
def test_a_link_that_leaves_the_folder_is_refused(name: str, calibrated: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(calibrated, tmp_path / "copy"))
    shutil.move(folder / name, tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(
        InputError, match=rf"{name} must be a regular file of the folder or of its store, but is a link"
    ):
        load_model(folder)
