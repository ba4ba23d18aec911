"""Finds an installed browser of the Chromium family, which can show a page in a window without bars."""

from __future__ import annotations

import shutil

CHROMIUM_FAMILY = (
    *("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "brave-browser"),
    *("microsoft-edge", "msedge"),
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
)
"""Programs on the PATH, and the places where macOS and Windows install them."""


def find_browser() -> str | None:
    """Return the path of an installed browser; None if there is none."""
    return next((found for name in CHROMIUM_FAMILY if (found := shutil.which(name))), None)
