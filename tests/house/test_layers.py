"""Imports point one way: benchmarks, roof → apps, distill, export → toolkit; and modules for the edge are light."""

from __future__ import annotations

import ast

import pytest

from tests.house.modules import module_files
from tests.house.rooms import arrows, circle, drawing, files_of_rooms, house_of, imports_of, is_roof, neighbours
from tests.processes import modules_loaded_by

MOST_FILES, MOST_NEIGHBOURS = 10, 8
MAY_IMPORT = {
    "toolkit": ("toolkit",),
    "distill": ("toolkit", "distill"),
    "export": ("toolkit", "export"),
    "apps": ("toolkit", "apps", "export.runtime"),
    "benchmarks": ("toolkit", "distill", "export", "apps", "benchmarks"),
}
HEAVY = {"torch", "transformers", "onnx", "trl", "peft", "optimum", "accelerate", "datasets"}
LIGHT = ("apps", "export.runtime", "toolkit")
"""Houses and rooms whose functions import nothing that an edge box lacks; except `toolkit.model` and the roof."""


@pytest.mark.parametrize("module", module_files())
def test_imports_point_downwards(module: str) -> None:
    if is_roof(module):
        return
    allowed = MAY_IMPORT[module.split(".")[0]]
    for name in imports_of(module_files()[module]):
        assert any(name == root or name.startswith(f"{root}.") for root in allowed), f"{module} imports {name}"
        assert not is_roof(name), f"{module} imports {name}"


def test_no_rooms_import_each_other_in_a_circle() -> None:
    assert not circle(arrows())


def test_a_circle_would_be_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


@pytest.mark.parametrize("room", arrows())
def test_a_room_has_at_most_ten_files_and_eight_neighbours(room: str) -> None:
    assert len(files_of_rooms()[room]) <= MOST_FILES
    assert len(neighbours(room, arrows()[room])) <= MOST_NEIGHBOURS


def test_the_drawing_shows_every_room() -> None:
    assert {line.split()[0] for line in drawing().splitlines()} == set(arrows())


@pytest.mark.parametrize("module", [name for name in module_files() if name.startswith(LIGHT)])
def test_what_runs_at_the_edge_imports_nothing_heavy(module: str) -> None:
    if house_of(module) == "toolkit.cli" or module.startswith("toolkit.model."):
        return
    tree = ast.parse(module_files()[module].read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not HEAVY & {name.split(".")[0] for name in names}


def test_the_chat_path_loads_without_torch_transformers_or_onnx() -> None:
    program = "import apps.chat.run_chat, apps.server.run_server, export.runtime.decoder, export.runtime.verify.checks"
    assert not {"torch", "transformers", "onnx", "trl", "optimum"} & modules_loaded_by(program)


def test_help_imports_no_stage_and_no_library() -> None:
    loaded = modules_loaded_by("from toolkit.cli.main import main; assert main(['--help']) == 0")
    assert not {"torch", "transformers", "numpy", "gradio", "onnxruntime", "apps", "distill"} & loaded
