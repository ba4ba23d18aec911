"""How the chat page looks: a theme of system fonts, a style sheet and an icon; all of it is sent by our own server."""

from __future__ import annotations

import gradio as gr

from apps.markup import COPY_SCRIPT

FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
FONT_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")

ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'%3E"
    "%3Crect width='32' height='32' rx='8' fill='%230f766e'/%3E"
    "%3Cpath d='M9 11h14M9 16h9M9 21h5' stroke='white' stroke-width='2.6' stroke-linecap='round'/%3E%3C/svg%3E"
)

HEAD = f'<link rel="icon" href="{ICON}">{COPY_SCRIPT}'

CSS = """
"""


def theme() -> gr.themes.Base:
    """Teal on warm grey, light and dark, with no font to load."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_lg,
        font=FONT,
        font_mono=FONT_MONO,
    )
