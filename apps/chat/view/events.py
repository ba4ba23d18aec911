"""Limits what a page's events send to the browser: no progress, only what is new, and not too fast.

With each message of an event, Gradio sends the event's state to all its outputs and to every component that ever got
one, and each is drawn again: thirty components for a letter that is typed, while the model needs the same cores.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import gradio as gr
from gradio.components import Component

GAP_S = 0.1
"""Least time between two updates of one event."""


def quiet(told: Component, **options: Any) -> dict[str, Any]:
    """Return options for an event that shows no progress; only the component `told` gets the event's state."""
    return {"show_progress": "hidden", "show_progress_on": told, "api_visibility": "private", **options}


class News:
    """Remembers what one event has told its components, so that it tells each only what is new."""

    def __init__(self) -> None:
        self._told: dict[int, Any] = {}
        self._told_at = float("-inf")

    def of(self, values: Iterable[Any]) -> tuple[Any, ...]:
        """Skip the values that were told before, for each of which a component would be drawn again.

        Returns at least `GAP_S` after the previous call: Gradio sends each update as a change to the previous one, and
        its client (6.31) edits that in place, so what is not yet shown is lost if the next update skips it.
        """
        skip = gr.skip()
        news = tuple(skip if value == self._told.get(place, skip) else value for place, value in enumerate(values))
        self._told |= {place: value for place, value in enumerate(news) if value != skip}
        time.sleep(max(0.0, self._told_at + GAP_S - time.monotonic()))
        self._told_at = time.monotonic()
        return news
