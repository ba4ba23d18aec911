"""How a page's events are told to the browser: without progress, to one component instead of all, only what is new,
and not too fast.

Gradio tells every output of an event its state with each message, all that were ever told get a new one besides, and
each is drawn again for it: thirty components for a letter that is typed, while the model needs the same cores.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import gradio as gr
from gradio.components import Component

GAP_S = 0.1
"""Between two updates of one event."""


def quiet(told: Component, **options: Any) -> dict[str, Any]:
    """Options of an event that shows no progress; `told` is the one component that hears of its state."""
    return {"show_progress": "hidden", "show_progress_on": told, "api_visibility": "private", **options}


class News:
    """What one event has told its components so far."""

    def __init__(self) -> None:
        self._told: dict[int, Any] = {}
        self._told_at = float("-inf")

    def of(self, values: Iterable[Any]) -> tuple[Any, ...]:
        """The values without those that were told before, for each of which a component would be drawn again.

        Returns no sooner than `GAP_S` after the call before: Gradio sends what an update changes in the one before, and
        its client (6.31) changes that one in place, so what is not shown yet is lost if the next one leaves it out.
        """
        skip = gr.skip()
        news = tuple(skip if value == self._told.get(place, skip) else value for place, value in enumerate(values))
        self._told |= {place: value for place, value in enumerate(news) if value != skip}
        time.sleep(max(0.0, self._told_at + GAP_S - time.monotonic()))
        self._told_at = time.monotonic()
        return news
