"""The page's keyboard shortcuts: one table of keys for `assets/shortcuts.js`, and for the list that the page shows."""

from __future__ import annotations

from html import escape

SHORTCUTS = (
    ("Enter", "Send the question", ""),
    ("Shift+Enter", "Start a new line", ""),
    ("Escape", "Stop the answer", "#question .stop-button"),
    ("Alt+N", "Start a new chat", "#new-chat"),
    ("Alt+Q", "Go to the question", "#question textarea"),
    ("Alt+S", "Open or close the settings", "#settings > button"),
    ("Alt+C", "Copy the last answer", "#chat .bot-row:not(:has(.thought-group)) [aria-label='Copy message']"),
    ("Alt+B", "Show or hide the conversations", ".sidebar .toggle-button"),
    ("?", "Show this list (Alt+? while typing)", ""),
)
"""Key, effect, and the control that it presses (the last one that matches); the text box itself does the first two."""

STAND_INS = {"ask-anew": "#new-chat", "shorten": "#question textarea"}
"""Id of a button → the control that it presses instead; Gradio's own `js=` needs a policy that allows `eval`."""


def pressed() -> dict[str, str]:
    """Map each key to the control that it presses."""
    return {key: control for key, _, control in SHORTCUTS if control}


def listing() -> str:
    """Write the list as HTML."""
    rows = "".join(
        f'<tr data-control="{escape(control)}"><td>{escape(does)}</td><td><kbd>{escape(key)}</kbd></td></tr>'
        for key, does, control in SHORTCUTS
    )
    return f"<h2>Keyboard shortcuts</h2><table>{rows}</table><button autofocus>Close</button>"
