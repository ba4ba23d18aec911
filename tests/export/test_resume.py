"""An export that is killed resumes after its last whole layer and ends with the same bytes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from export.checks.parity import Bounds
from export.folder.resume_log import FOLDER, LINES
from export.pipeline import export_model
from export.presets import WeightType, int4_config, nearest_config
from toolkit.errors import InputError
from toolkit.runs import file_digest

WIDE = Bounds(max_mean_kl=9.0, min_top1=0.0)
KILLED = """
import os, signal, sys
from pathlib import Path
from dataclasses import replace
from export.folder import weights_file
from export.checks.parity import Bounds
from export.pipeline import export_model
from export.presets import int4_config, nearest_config

class Killed(weights_file.WeightsFile):
    def _write(self, array, offset):
        super()._write(array, offset)
        if offset >= int(sys.argv[4]):
            self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

import export.pipeline
export.pipeline.WeightsFile = Killed
calibration = Path(sys.argv[3]) if sys.argv[3] else None
source, out, weights = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[5]
if weights == "int4":
    config = int4_config(source, out, calibration=calibration)
else:
    config = nearest_config(source, out, weights, calibration=calibration)
export_model(replace(config, bounds=Bounds(max_mean_kl=9.0, min_top1=0.0)))
"""
"""The process that kills itself, as kill -9 does, once it wrote at or beyond an offset of the weights file."""


def kill_at(share: float, size: int, source: Path, out: Path, calibration: Path | None, weights: str = "int4") -> None:
    arguments = [str(source), str(out), str(calibration or ""), str(int(share * size)), weights]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def finished_parts(out: Path) -> int:
    return len((out.parent / f".{out.name}.partial" / FOLDER / LINES).read_text().splitlines())


@pytest.mark.parametrize("method", ["nearest", "gptq"])
def test_an_export_killed_twice_ends_with_the_same_bytes(
    method: str, tiny_student: Path, traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calibration = traces if method == "gptq" else None
    config = replace(int4_config(tiny_student, tmp_path / "whole", calibration=calibration), bounds=WIDE)
    assert config.method == method
    export_model(config)
    size = (config.out / "model.onnx.data").stat().st_size
    out = tmp_path / "killed"
    kill_at(0.75, size, tiny_student, out, calibration)  # in the last layer
    assert finished_parts(out) == 2, "the embedding and the first of two layers are whole"
    kill_at(0.95, size, tiny_student, out, calibration)
    assert finished_parts(out) == (3 if method == "gptq" else 2), "a calibrated head is the last part"
    assert not out.exists()
    capsys.readouterr()
    manifest = export_model(replace(config, out=out))
    last = "layers.1" if method == "gptq" else "layers.0"
    assert f"export: resuming after {last}; " in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "whole"]
    assert {path.name for path in out.iterdir()} == {*manifest["outputs"], "manifest.json", "README.md"}
    for name in ("model.onnx", "model.onnx.data"):
        assert file_digest(out / name) == file_digest(config.out / name), name


@pytest.mark.parametrize("weights", ["int8", "fp16"])
def test_an_export_of_more_bits_goes_on_as_well(weights: WeightType, tiny_student: Path, tmp_path: Path) -> None:
    config = replace(nearest_config(tiny_student, tmp_path / "whole", weights), bounds=WIDE)
    export_model(config)
    data = config.out / "model.onnx.data"
    kill_at(0.75, data.stat().st_size, tiny_student, tmp_path / "killed", None, weights)
    assert finished_parts(tmp_path / "killed") == 2
    export_model(replace(config, out=tmp_path / "killed"))
    assert file_digest(tmp_path / "killed" / "model.onnx.data") == file_digest(data)


def test_finished_layers_are_not_made_again(tiny_student: Path, tmp_path: Path) -> None:
    """The first layer's bytes are changed behind the journal's back: they must still be there at the end."""
    config = replace(int4_config(tiny_student, tmp_path / "whole"), bounds=None)
    export_model(config)
    size = (config.out / "model.onnx.data").stat().st_size
    kill_at(0.75, size, tiny_student, tmp_path / "killed", None)
    # an export without its gate is another run, so the process that was killed had one
    partial = tmp_path / ".killed.partial" / "model.onnx.data"
    with partial.open("rb+") as file:
        file.seek(size // 2)
        before = file.read(1)
        file.seek(size // 2)
        file.write(bytes([before[0] ^ 1]))
    export_model(replace(config, out=tmp_path / "killed", bounds=WIDE))
    found, whole = ((tmp_path / name / "model.onnx.data").read_bytes() for name in ("killed", "whole"))
    assert [i for i in range(size) if found[i] != whole[i]] == [size // 2]


def test_weights_shorter_than_the_journal_says_begin_anew(tiny_student: Path, tmp_path: Path) -> None:
    config = replace(int4_config(tiny_student, tmp_path / "whole"), bounds=WIDE)
    export_model(config)
    data = config.out / "model.onnx.data"
    kill_at(0.9, data.stat().st_size, tiny_student, tmp_path / "killed", None)
    os.truncate(tmp_path / ".killed.partial" / "model.onnx.data", 1000)
    export_model(replace(config, out=tmp_path / "killed"))
    assert file_digest(tmp_path / "killed" / "model.onnx.data") == file_digest(data)


def test_other_weights_in_the_source_begin_anew(tiny_student: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = Path(shutil.copytree(tiny_student, tmp_path / "source"))
    kill_at(0.0, 1, source, tmp_path / "int4", None)
    kill_at(30_000, 1, source, tmp_path / "int4", None)
    assert finished_parts(tmp_path / "int4") == 1
    tensors = load_file(source / "model.safetensors")
    tensors["model.embed_tokens.weight"] *= -1
    save_file(tensors, source / "model.safetensors")
    config = replace(int4_config(source, tmp_path / "int4"), bounds=WIDE)
    export_model(config)
    export_model(replace(config, out=tmp_path / "whole"))
    digests = {file_digest(tmp_path / name / "model.onnx.data") for name in ("int4", "whole")}
    assert len(digests) == 1


def test_a_bad_value_met_halfway_removes_everything(tiny_student: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = Path(shutil.copytree(tiny_student, tmp_path / "source"))
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 3] = float("inf")
    save_file(tensors, source / "model.safetensors")
    for _ in range(2):
        with pytest.raises(InputError, match=r"layers\.1\.mlp\.down_proj\.weight .* holds 1 NaN or infinite"):
            export_model(int4_config(source, tmp_path / "int4"))
        assert [path.name for path in tmp_path.iterdir()] == ["source"]
