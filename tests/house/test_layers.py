"""Imports point one way: benchmarks, roof → apps, distill, export → toolkit; and the chat path is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.modules import PACKAGES, ROOF, ROOT, module_files

MAY_IMPORT = {
    "toolkit": ("toolkit",),
    "distill": ("toolkit", "distill"),
    "export": ("toolkit", "export"),
    "apps": ("toolkit", "apps", "export.session", "export.verify"),
    "benchmarks": ("toolkit", "distill", "export", "apps", "benchmarks"),
}


def imports_of(path: Path) -> set[str]:
    """Dotted names of our own modules that a file imports anywhere, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} must import by absolute names"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in names if name.split(".")[0] in PACKAGES}


@pytest.mark.parametrize("module", module_files())
def test_imports_point_downwards(module: str) -> None:
    found = imports_of(module_files()[module])
    if module in ROOF:
        return
    allowed = MAY_IMPORT[module.split(".")[0]]
    for name in found:
        assert any(name == root or name.startswith(f"{root}.") for root in allowed), f"{module} imports {name}"
        assert not any(name == roof or name.startswith(f"{roof}.") for roof in ROOF), f"{module} imports {name}"


def test_the_chat_path_loads_without_torch_transformers_or_onnx() -> None:
    check = "import sys, apps.chat, apps.serve, export.session, export.verify\nprint(*sorted({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "onnx", "trl", "optimum"} & set(done.stdout.split())


def test_help_imports_no_stage_and_no_library() -> None:
    check = (
        "import sys, toolkit.cli\nassert toolkit.cli.main(['--help']) == 0\n"
        "print(*sorted({m.partition('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "demo" in done.stdout
    assert not {"torch", "transformers", "numpy", "gradio", "onnxruntime", "apps", "distill"} & set(done.stderr.split())
