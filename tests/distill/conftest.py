"""Objects that the tests of distillation share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all stages of the quick teacher."""
    from distill.teach.teach import teach
    from distill.teach.teacher_recipe import quick

    out = tmp_path_factory.mktemp("teach")
    teach(quick(), out)
    return out
