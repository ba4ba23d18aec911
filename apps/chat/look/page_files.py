"""Reads the pages' style sheets and scripts from `assets/`, and passes settings from Python to a script.

    live.js   source = new EventSource(settings.route + "/" + number);
    Python    script("live", route="/live")
    page      <script>{ const settings = {"route": "/live"}; … }</script>

The braces are a block, so that no script sees the names of another. Style sheets get no settings: like scripts, they
find the parts of the page by their ids.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parent / "assets"


def sheets(*names: str) -> list[Path]:
    """Return the paths of style sheets, as Gradio takes them."""
    return [ASSETS / f"{name}.css" for name in names]


def script(name: str, **settings: Any) -> str:
    """Return a script as an element for the page's head, with the object `settings` defined before it."""
    told = json.dumps(settings).replace("<", "\\u003c")  # so that nothing in it closes the element
    text = (ASSETS / f"{name}.js").read_text(encoding="utf-8")
    return f"<script>{{\nconst settings = {told};\n{text}}}</script>"
