"""Every module imports, is small, and says what it is."""

from __future__ import annotations

import ast
import importlib

import pytest

from tests.house.modules import module_files
from toolkit.field_types import field_types, fits
from toolkit.records import Record

MOST_LINES = 400
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
