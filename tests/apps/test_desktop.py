"""The window that opens, by programs that record how they were called."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from apps.chat.desktop import QUIET, has_screen, open_as_app, run_in_window
from toolkit.errors import InputError
from toolkit.machine.browsers import find_browser

ADDRESS = "http://127.0.0.1:1/open/token"
PATIENCE_S = 60
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the screen is told by DISPLAY on Linux")


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Simulate a machine with a screen, an empty PATH, no pywebview and a cache folder of its own."""
    for name, value in surroundings(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    return tmp_path


def surroundings(folder: Path) -> dict[str, str]:
    return {"DISPLAY": ":9", "PATH": str(folder), "TOOLKIT_HOME": str(folder / "home")}


def install(folder: Path, name: str) -> Path:
    """Install a browser that writes its arguments into a file and exits."""
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


def test_a_browser_that_does_not_start_is_told(desk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program = desk / "chromium"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    open_as_app(str(program), ADDRESS)
    said, deadline = "", time.monotonic() + PATIENCE_S
    while not said.endswith("\n"):
        assert time.monotonic() < deadline, "the failure must be reported"
        time.sleep(0.01)
        said += capfd.readouterr().err
    assert said == f"no window: {program} ended with 3; open the address in a browser\n"


@pytest.mark.parametrize("window", ["auto", "app"])
def test_an_installed_browser_opens_the_address_without_bars_under_its_own_profile(desk: Path, window: str) -> None:
    written = install(desk, "google-chrome")
    run: list[str] = []
    run_in_window(lambda: run.append("served"), ADDRESS, "title", window)  # type: ignore[arg-type]
    assert {f"--app={ADDRESS}", *QUIET} < {*arguments(written)}
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


@pytest.mark.parametrize("has_browser", [True, False])
def test_pywebview_without_what_draws_its_windows_leaves_the_window_to_a_browser(
    tmp_path: Path, has_browser: bool
) -> None:
    """pywebview is the real one as pip installs it on Linux, in a process of its own."""
    written = install(tmp_path, "chromium") if has_browser else None
    call = (
        "from apps.chat.desktop import run_in_window as run; run(lambda: "
        f"print('served'), {ADDRESS!r}, 'title', 'auto')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", call], env=surroundings(tmp_path), capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert ran.stdout == "served\n"
    if written:
        assert f"--app={ADDRESS}" in arguments(written) and ran.stderr == ""
    else:
        assert ran.stderr.startswith("no window of its own: pywebview is installed") and ran.stderr.count("\n") == 1
