"""Tiny teachers that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a tiny model, by its architecture."""
    from tests.distill.local.tiny_models import write_tiny

    folders = {"llama": tiny_student}

    def folder(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = write_tiny(kind, tmp_path_factory.mktemp("tiny") / kind, tiny_student)
        return folders[kind]

    return folder
