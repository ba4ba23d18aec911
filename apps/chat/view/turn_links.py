"""Links that act on a turn, inside the conversation or below it: continue, answer now, show another version, edit.

The chatbot component shows only text, so an action is a link with a fragment, and `turn_links.js` turns a click into
the value of a hidden text box. The fragment begins with a secret of this process, which no model can guess. The
component's own editor would show a question as it was made harmless, so its pencil is taken over.
"""

from __future__ import annotations

import secrets
from typing import Literal, get_args

Action = Literal["go-on", "answer", "go-on-without", "answer-without", "show", "edit"]
"""`-without`: after the oldest turns have left the context."""

WORD = secrets.token_hex(8)
"""The beginning of each fragment."""


def link(label: str, action: Action, number: int | None) -> str:
    """Write a Markdown link that acts on the stored turn of this number; `edit` takes its index in the path instead."""
    return f"[{label}](#{WORD}/{action}/{number})"


def action_of(value: str) -> tuple[Action, int] | None:
    """Parse what the script wrote into the box; None for anything else."""
    parts = value.split("/")
    for action in get_args(Action):
        if len(parts) == 3 and parts[0] == action and parts[1].isdecimal():
            return action, int(parts[1])
    return None
