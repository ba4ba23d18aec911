"""Gives the pages their look and behaviour: a theme of system fonts, an icon, and the files of `assets/` for each page.

Our own server sends all of it. `README.md` beside this file lists what works around Gradio.
"""

from __future__ import annotations

import gradio as gr

from apps.chat.look import badge
from apps.chat.look.page_files import script, sheets
from apps.chat.look.shortcuts import STAND_INS, listing, pressed
from apps.chat.view import live, markup, turn_links

FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
FONT_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")

ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'%3E"
    "%3Crect width='32' height='32' rx='8' fill='%230f766e'/%3E"
    "%3Cpath d='M9 11h14M9 16h9M9 21h5' stroke='white' stroke-width='2.6' stroke-linecap='round'/%3E%3C/svg%3E"
)

_EVERY_PAGE = (
    f'<link rel="icon" href="{ICON}">'
    + script(
        "clipboard",
        joiner=markup.JOINER,
        lessThan=markup.LESS_THAN,
        exclamation=markup.EXCLAMATION,
        longFence=markup.LONG_FENCE,
    )
    + script("shortcuts", pressed=pressed(), content=listing(), standIns=STAND_INS)
    + script("spoken")
    + script("reading")
    + script("badge", route=badge.ROUTE)
)
CHAT_HEAD = (
    _EVERY_PAGE
    + script("import_file")
    + script("sidebar")
    + script("returning")
    + script("turn_links", word=turn_links.WORD)
    + script("live", route=live.ROUTE, signs={chr(code): text for code, text in markup.SIGNS.items()})
)
COMPARE_HEAD = _EVERY_PAGE
"""HTML for the head of each page."""

_SHEETS = ("reading", "page", "conversation", "shortcuts", "spoken", "badge")
CHAT_SHEETS = sheets(*_SHEETS, "context", "panels", "sidebar", "turn_links", "live")
COMPARE_SHEETS = sheets(*_SHEETS, "side_by_side")
"""Of two rules with the same specificity, the one in the later sheet wins."""


def theme() -> gr.themes.Base:
    """Make a theme of teal on warm grey, light and dark, with no font to load."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_lg,
        font=FONT,
        font_mono=FONT_MONO,
    ).set(body_text_color_subdued="*neutral_500", body_text_color_subdued_dark="*neutral_400")
