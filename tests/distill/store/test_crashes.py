"""Processes that fill one store are killed at any moment: no outcome is lost, doubled or glued to another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.modules import ROOT

NIGHTLY = os.environ.get("TOOLKIT_NIGHTLY") == "1"


nightly = pytest.mark.skipif(not NIGHTLY, reason="takes a minute and 400 MB: TOOLKIT_NIGHTLY=1")


def crash(folder: Path, requests: int, writers: int, kills: int) -> str:
    """Run the program; return what it says at its end."""
    words = [sys.executable, "-m", "tests.distill.store.crashing", folder, requests, writers, kills, kills]
    done = subprocess.run([*map(str, words)], check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(
    ("requests", "writers", "kills"),
    [(600, 3, 12), pytest.param(40_000, 2, 200, marks=nightly), pytest.param(60_000, 6, 200, marks=nightly)],
)
def test_kill_9_under_load_loses_doubles_and_glues_nothing(
    tmp_path: Path, requests: int, writers: int, kills: int
) -> None:
    said = crash(tmp_path / "store", requests, writers, kills)
    assert int(said.split()[2]) >= 0.8 * kills, "on a slow machine some would come after the end"


def test_processes_that_nobody_kills_ask_each_request_once(tmp_path: Path) -> None:
    assert crash(tmp_path / "store", 300, 4, 0).startswith("300 requests, 0 kills, 0 asked twice")
