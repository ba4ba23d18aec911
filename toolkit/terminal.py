"""What a person reads at the terminal: whatever of it is not printable stands there as its escape.

Names of models and files, servers' messages and models' texts are written by others, and a terminal obeys what it is
sent: it moves the cursor, writes over the lines above, changes the window's title, turns the direction of the text.
So every line goes through here (a test checks it), and what goes to a program as JSON is ASCII.
"""

from __future__ import annotations

import sys
import unicodedata


def visible(text: str) -> str:
    """A text as one line: line ends, controls, marks of direction and half surrogate pairs are shown as `\\n`, `\\x1b` …"""
    if text.isprintable():
        return text
    return "".join(sign if _is_shown(sign) else sign.encode("unicode_escape").decode() for sign in text)


def visible_lines(text: str) -> str:
    """The same of a text of our own that has several lines."""
    return "\n".join(map(visible, text.split("\n")))


def say(line: str) -> None:
    """Print a line to stderr: progress, and what is wrong."""
    print(visible(line), file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Print a result of one or more lines to stdout, with escapes for what its encoding does not have either."""
    encoding = sys.stdout.encoding or "utf-8"
    print(visible_lines(text).encode(encoding, "backslashreplace").decode(encoding), flush=True)


def _is_shown(sign: str) -> bool:
    """Spaces of every width are shown, though Python calls but the plain one printable."""
    return sign.isprintable() or unicodedata.category(sign) == "Zs"
