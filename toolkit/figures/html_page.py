"""Builds a self-contained page: its content security policy forbids scripts and requests, its style is in it.

Everything that a model or a user wrote is escaped, and characters that act on the text around them (control characters,
direction overrides) are shown by their codes.
"""

from __future__ import annotations

import unicodedata
from html import escape
from pathlib import Path

STYLE = Path(__file__).parent / "assets" / "report.css"
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def text(value: str) -> str:
    """Escape foreign text for a page, and show characters that would act on other text by their codes."""
    return "".join(_visible(character) for character in escape(value))


def _visible(character: str) -> str:
    acts = unicodedata.category(character) in ("Cc", "Cf", "Cs") and character not in "\n\t"
    return f'<span class="code">U+{ord(character):04X}</span>' if acts else character


def section(heading: str, *parts: str) -> str:
    """Return a section; the parts are HTML."""
    return f"<section><h2>{heading}</h2>{''.join(parts)}</section>"


def figure(svg: str, caption: str) -> str:
    """Return a figure, which scrolls sideways where it is too wide."""
    return f'<figure><div class="scroll">{svg}</div><figcaption>{caption}</figcaption></figure>'


def page(title: str, body: str) -> str:
    """Return the whole page; `body` is HTML."""
    style = STYLE.read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{text(title)}</title><style>\n{style}</style></head><body><main>{body}</main></body></html>\n"
    )
