"""How a page's events are told to the browser: without progress, and to one component instead of all.

Gradio tells every output of an event its state with each message, all that were ever told get a new one besides, and
each is drawn again for it: thirty components for a letter that is typed, while the model needs the same cores.
"""

from __future__ import annotations

from typing import Any

from gradio.components import Component


def quiet(told: Component, **options: Any) -> dict[str, Any]:
    """Options of an event that shows no progress; `told` is the one component that hears of its state."""
    return {"show_progress": "hidden", "show_progress_on": told, "api_visibility": "private", **options}
