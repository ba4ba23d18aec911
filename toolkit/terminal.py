"""Prints what a person reads at the terminal, with escapes in place of characters that are not printable.

Names of models and files, servers' messages and models' texts are written by others, and a terminal obeys control
characters in them: it moves the cursor, writes over the lines above, changes the window's title, turns the direction of
the text. So every line of ours goes through here (a test checks it), libraries' warnings go through `Escaped`, and JSON
for a program is ASCII.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

_LIVE = re.compile(r"(?:[\r\n]|\x1b\[[AK])*")
"""The beginning of a line that is drawn again and again, as progress bars are."""
LONGEST_LINE = 4000
"""The most characters of a line: an error may quote millions from a file."""
NAMED = 3
"""The most names that a line lists before it counts the rest."""
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_drawn_on: TextIO | None = None
"""The stream whose last line is being redrawn and has no line end yet."""


def visible(text: str) -> str:
    """Return a text as one line, with line ends, control characters, marks of direction and half surrogate pairs
    escaped: `\\n`, `\\x1b` …"""
    if text.isprintable():
        return text
    return "".join(sign if _is_shown(sign) else sign.encode("unicode_escape").decode() for sign in text)


def visible_lines(text: str) -> str:
    """Escape each line of a text of our own that has several lines."""
    return "\n".join(map(visible, text.split("\n")))


def say(line: str) -> None:
    """Print a line to stderr, below a progress line that is still being redrawn.

    A line longer than `LONGEST_LINE` is cut in its middle.
    """
    global _drawn_on
    below = "\n" if _drawn_on is sys.stderr else ""
    _drawn_on = None
    shown = visible(line)
    if len(shown) > LONGEST_LINE:
        shown = f"{shown[: LONGEST_LINE // 2]} … {shown[-LONGEST_LINE // 2 :]}"
    print(below + shown, file=sys.stderr, flush=True)


def draw(line: str, stream: TextIO, *, is_last: bool) -> None:
    """Draw a line on a terminal over the one drawn before it; the last one stays."""
    global _drawn_on
    stream.write("\r\x1b[K" + visible(line) + ("\n" if is_last else ""))
    stream.flush()
    _drawn_on = None if is_last else stream


def show(text: str) -> None:
    """Print a result of one or more lines to stdout; characters that its encoding lacks are escaped too."""
    encoding = sys.stdout.encoding or "utf-8"
    print(visible_lines(text).encode(encoding, "backslashreplace").decode(encoding), flush=True)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless the number is 1: `1 update`, `1,200 updates`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def listed(names: Sequence[str]) -> str:
    """List names for an error: the first few, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


class Escaped:
    """Wraps a stream so that what a library writes to it (a warning with a tensor's name, say) is escaped too, and
    without colours."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        begin = _LIVE.match(text)
        assert begin
        lines = re.split(r"([\n\t])", _COLOUR.sub("", text[begin.end() :]))
        self._stream.write(begin[0] + "".join(part if part in ("\n", "\t") else visible(part) for part in lines))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _is_shown(sign: str) -> bool:
    """Whether a character is printed as it is: spaces of every width are, though Python calls only one printable."""
    return sign.isprintable() or unicodedata.category(sign) == "Zs"
