"""An environment counts as made only if its packages can be used there, by the Python that asks."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from toolkit.errors import InputError
from toolkit.machine.environment import interpreter, is_made, python_of


def write_wheel(path: Path, files: dict[str, str]) -> str:
    """Write a wheel of one distribution, `tiny`; returns its path, which pip takes as a requirement."""
    facts = {
        "METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files = files | {f"tiny-1.dist-info/{name}": text for name, text in facts.items()}
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
        wheel.writestr("tiny-1.dist-info/RECORD", "".join(f"{name},,\n" for name in files))
    return str(path)


def test_an_environment_is_made_once_its_module_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    home = tmp_path / "home"
    path = tmp_path / "tiny-1-py3-none-any.whl"
    requirements = [write_wheel(path, {"tiny.py": "", "broken.py": "import absent_module"})]
    with pytest.raises(InputError, match=r"broken was installed into .*, but does not work: .*No module named 'absent"):
        interpreter(home, requirements, module="broken")
    assert not is_made(home, requirements)

    python = interpreter(home, requirements, module="tiny")
    assert is_made(home, requirements) and not (tmp_path / "elsewhere").exists()
    ready = (home / "ready").read_text()
    (home / "ready").write_text(ready.replace("Python ", "Python 2 and "))
    assert not is_made(home, requirements), "another Python's"
    (home / "ready").write_text(ready)
    assert is_made(home, requirements)
    python.unlink()
    assert python == python_of(home) and not is_made(home, requirements)


@pytest.mark.skipif(os.environ.get("TOOLKIT_NIGHTLY") != "1", reason="another venv takes seconds: TOOLKIT_NIGHTLY=1")
def test_what_pip_says_is_passed_on_without_a_guess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(InputError, match=r"pip cannot install tiny==1 into .*: ERROR: No matching .*; mend") as caught:
        interpreter(tmp_path / "home", ["tiny==1"])
    assert "\n" not in str(caught.value)
    assert not is_made(tmp_path / "home", ["tiny==1"])
