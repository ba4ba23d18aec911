"""Objects that the tests of reinforcement share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distill.reinforcement.undecided import write_undecided


@pytest.fixture(scope="session")
def undecided(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_undecided(tiny_student, tmp_path_factory.mktemp("reinforcement") / "undecided")
