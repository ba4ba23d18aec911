"""Every module can be imported, is small, and says what it is."""

from __future__ import annotations

import ast
import importlib
from collections import Counter

import pytest

from tests.house.modules import module_files
from toolkit.field_types import field_types, fits
from toolkit.records import Record

MOST_LINES = 400
MOST_LINES_OF_A_FUNCTION = 80
MIRRORS = {"curate", "evaluate", "grammar", "pipeline", "speed", "teach", "traces", "decoder", "export", "values"}
"""Modules of one name in several rooms: a command and the stage that it calls, the same job for another model."""
NAMES_THAT_SAY_NOTHING = {"utils", "util", "common", "helpers", "helper", "base", "manager", "factory", "misc"}
FULLER_PACKAGES = {"distill.problems.chains", "export.runtime"}
"""The first names its kinds; the second turns telemetry off before any file of it imports onnxruntime."""


@pytest.mark.parametrize("module", module_files())
def test_module_can_be_imported(module: str) -> None:
    importlib.import_module(module)


@pytest.mark.parametrize("module", module_files())
def test_module_has_a_docstring_and_at_most_400_lines(module: str) -> None:
    text = module_files()[module].read_text()
    assert ast.get_docstring(ast.parse(text)), f"{module} has no docstring"
    assert len(text.splitlines()) <= MOST_LINES


def test_module_names_are_nouns_that_say_something() -> None:
    assert not NAMES_THAT_SAY_NOTHING & {module.split(".")[-1] for module in module_files()}


def test_package_files_hold_a_docstring_only() -> None:
    for module, path in module_files().items():
        if path.name == "__init__.py" and module not in FULLER_PACKAGES:
            assert len(ast.parse(path.read_text()).body) == 1, f"{path} holds more than a docstring"


def test_the_values_of_every_kind_of_record_can_be_checked() -> None:
    for module in module_files():
        importlib.import_module(module)
    kinds: list[type] = [Record]
    for kind in kinds:
        kinds += kind.__subclasses__()
    assert len(kinds) > 15
    for kind in kinds[1:]:
        assert {fits(None, annotation) for annotation in field_types(kind).values()} <= {True, False}


@pytest.mark.parametrize("module", module_files())
def test_no_function_has_more_than_80_lines(module: str) -> None:
    for node in ast.walk(ast.parse(module_files()[module].read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < MOST_LINES_OF_A_FUNCTION, f"{module}.{node.name}"


def test_no_two_modules_have_one_name_unless_they_mirror_each_other() -> None:
    names = Counter(
        module.rpartition(".")[2] for module, path in module_files().items() if not path.name.startswith("__")
    )
    assert {name for name, count in names.items() if count > 1} <= MIRRORS


def test_no_two_classes_have_one_name() -> None:
    names = Counter(
        node.name
        for module, path in module_files().items()
        if not module.startswith("benchmarks.")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
    )
    assert not {name for name, count in names.items() if count > 1}
