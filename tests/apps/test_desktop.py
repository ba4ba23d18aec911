"""Which window opens, by programs that write down how they were called."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from apps.desktop import find_browser, has_screen, run_in_window
from toolkit.errors import InputError

ADDRESS = "http://127.0.0.1:1/open/token"
PATIENCE_S = 60
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the screen is told by DISPLAY on Linux")


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with a screen and an empty PATH; a cache folder of its own."""
    monkeypatch.setenv("DISPLAY", ":9")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TOOLKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(sys.modules, "webview", None)  # as where it is not installed
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    return tmp_path


def install(folder: Path, name: str) -> Path:
    """A browser that writes its arguments into a file and ends."""
    program, written = folder / name, folder / f"{name}.arguments"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {written}.part\n/bin/mv {written}.part {written}\n')
    program.chmod(0o755)
    return written


def arguments(written: Path) -> list[str]:
    deadline = time.monotonic() + PATIENCE_S
    while not written.exists():
        assert time.monotonic() < deadline, "the browser must be started"
        time.sleep(0.01)
    return written.read_text().splitlines()


@pytest.mark.parametrize("window", ["auto", "app"])
def test_an_installed_browser_opens_the_address_without_bars_under_its_own_profile(desk: Path, window: str) -> None:
    written = install(desk, "google-chrome")
    run: list[str] = []
    run_in_window(lambda: run.append("served"), ADDRESS, "title", window)  # type: ignore[arg-type]
    assert f"--app={ADDRESS}" in arguments(written)
    assert f"--user-data-dir={desk / 'home' / 'window'}" in arguments(written)
    assert run == ["served"]


def test_a_window_that_cannot_be_had_is_one_line(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_browser() is None
    with pytest.raises(InputError, match=r"--window app needs a screen .*reasoning-edge\[desktop\]"):
        run_in_window(lambda: None, ADDRESS, "title", "app")
    install(desk, "chromium")
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert not has_screen()
    with pytest.raises(InputError):
        run_in_window(lambda: None, ADDRESS, "title", "app")


def test_none_opens_nothing_and_serves(desk: Path) -> None:
    written = install(desk, "chromium")
    run: list[str] = []
    run_in_window(lambda: run.append("served"), ADDRESS, "title", "none")
    assert run == ["served"] and not written.exists()
