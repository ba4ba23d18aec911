"""The pages' style sheets and scripts: files of `assets/`, and the one way in which Python tells a script something.

    live.js   source = new EventSource(settings.route + "/" + number);
    Python    script("live", route="/live")
    page      <script>{ const settings = {"route": "/live"}; … }</script>

The braces are a block, so that no script sees another one's names. Style sheets are told nothing: they know the page by
its ids, as scripts do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parent / "assets"


def sheets(*names: str) -> list[Path]:
    """The files of style sheets, as Gradio takes them."""
    return [ASSETS / f"{name}.css" for name in names]


def script(name: str, **settings: Any) -> str:
    """A script as an element of the page's head; what it is told stands before it as the object `settings`."""
    told = json.dumps(settings).replace("<", "\\u003c")  # nothing in it ends the element
    text = (ASSETS / f"{name}.js").read_text(encoding="utf-8")
    return f"<script>{{\nconst settings = {told};\n{text}}}</script>"
