"""Opens the chat in a window of its own if this machine can show one, otherwise in a tab, otherwise prints its address.

app       pywebview (the `desktop` extra) if its backend is installed, otherwise a browser of the Chromium family
          without its bars
browser   a tab of the default browser
none      opens nothing
auto      the first of these that works
"""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Literal

from toolkit.errors import InputError
from toolkit.machine.browsers import find_browser
from toolkit.machine.user_folders import cache_folder
from toolkit.terminal import say

Window = Literal["auto", "app", "browser", "none"]

NO_WINDOW = (
    "no window of its own: pywebview is installed without a backend (on Linux WebKit for GTK, or Qt: "
    "pip install 'pywebview[pyside6]'); open the address in a browser"
)
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync")
"""Options that keep a browser from asking the network for itself: the window promises to stay on this machine."""
STARTED_S = 10
"""A browser that has exited by then did not open."""
SIZE = (1080, 820)
"""Width and height of a new window, in pixels."""


def run_in_window(run: Callable[[], None], address: str, title: str, window: Window) -> None:
    """Open `address` and run its server, which already listens, until it ends or its pywebview window is closed.

    Raises `InputError` if this machine cannot open the window that was asked for.
    """
    if window in ("auto", "app") and has_screen():
        if importlib.util.find_spec("webview"):
            _run_in_pywebview(run, address, title)
            return
        if browser := find_browser():
            open_as_app(browser, address)
            run()
            return
    if window == "app":
        raise InputError(
            "--window app needs a screen (DISPLAY) and pywebview or a browser of the Chromium family; "
            "pip install 'reasoning-edge[desktop]', or leave --window out"
        )
    if window != "none" and has_screen():
        webbrowser.open(address)
    run()


def has_screen() -> bool:
    """Whether this machine can show a window; without a screen, a text browser would take over the terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def open_as_app(browser: str, address: str) -> None:
    """Open a window without bars under a profile of its own, apart from the user's tabs, extensions and history."""
    command = app_command(browser, address, cache_folder() / "window")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    Thread(target=_tell_if_it_fails, args=(process, browser), daemon=True).start()


def app_command(browser: str, address: str, profile: Path) -> list[str]:
    width, height = SIZE
    return [
        browser,
        f"--app={address}",
        f"--user-data-dir={profile}",
        f"--window-size={width},{height}",
        "--no-first-run",
        "--no-default-browser-check",
        *QUIET,
    ]


def _tell_if_it_fails(process: subprocess.Popen[bytes], browser: str) -> None:
    """Report a browser that does not start: as root without its sandbox, or on a screen that is not there."""
    with suppress(subprocess.TimeoutExpired):
        if code := process.wait(STARTED_S):
            say(f"no window: {browser} ended with {code}; open the address in a browser")


def _run_in_pywebview(run: Callable[[], None], address: str, title: str) -> None:
    """Run the window on the main thread, which it needs, and the server on another one.

    Source: https://pywebview.flowrl.com/api (create_window, start, settings).
    """
    import webview

    logging.getLogger("pywebview").setLevel(logging.CRITICAL)  # it logs a traceback for each library it tries
    webview.settings["ALLOW_DOWNLOADS"] = True  # an exported conversation is one
    width, height = SIZE
    webview.create_window(title, address, width=width, height=height, text_select=True)
    server = Thread(target=run, daemon=True)
    server.start()
    with suppress(KeyboardInterrupt):
        try:
            webview.start()
        except webview.WebViewException:
            if browser := find_browser():
                open_as_app(browser, address)
            else:
                say(NO_WINDOW)
            server.join()
