"""How a page's events are told to the browser: without progress, to one component instead of all, and not too fast.

Gradio tells every output of an event its state with each message, all that were ever told get a new one besides, and
each is drawn again for it: thirty components for a letter that is typed, while the model needs the same cores.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from typing import Any, TypeVar

from gradio.components import Component

Update = TypeVar("Update")

GAP_S = 0.1
"""Between two updates of one event."""


def quiet(told: Component, **options: Any) -> dict[str, Any]:
    """Options of an event that shows no progress; `told` is the one component that hears of its state."""
    return {"show_progress": "hidden", "show_progress_on": told, "api_visibility": "private", **options}


def spaced(updates: Generator[Update, None, None]) -> Generator[Update, None, None]:
    """The same, none sooner than `GAP_S` after the one before.

    Gradio sends what an update changes in the one before, and its client (6.31) changes that one in place: where it is
    not shown yet, what the next one leaves out is lost.
    """
    told_at = float("-inf")
    with closing(updates):
        for update in updates:
            time.sleep(max(0.0, told_at + GAP_S - time.monotonic()))
            told_at = time.monotonic()
            yield update
