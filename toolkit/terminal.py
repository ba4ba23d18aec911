"""What a person reads at the terminal: whatever of it is not printable stands there as its escape.

Names of models and files, servers' messages and models' texts are written by others, and a terminal obeys what it is
sent: it moves the cursor, writes over the lines above, changes the window's title, turns the direction of the text. So
every line of ours goes through here (a test checks it), what libraries warn of goes through `Escaped`, and what goes to
a program as JSON is ASCII.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

_LIVE = re.compile(r"(?:[\r\n]|\x1b\[[AK])*")
"""How a line begins that is written again and again, as those of progress are."""
LONGEST_LINE = 4000
"""Characters: a file's own words in an error may be millions."""
NAMED = 3
"""Names that a line lists before it counts the rest."""
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_drawn_on: TextIO | None = None
"""The stream whose last line is drawn again and again, and has no end yet."""


def visible(text: str) -> str:
    """A text as one line: line ends, controls, marks of direction and half surrogate pairs are shown as `\\n`, `\\x1b`
    …"""
    if text.isprintable():
        return text
    return "".join(sign if _is_shown(sign) else sign.encode("unicode_escape").decode() for sign in text)


def visible_lines(text: str) -> str:
    """The same of a text of our own that has several lines."""
    return "\n".join(map(visible, text.split("\n")))


def say(line: str) -> None:
    """Print a line to stderr, progress or what is wrong, below one that is still drawn again and again.

    Of a line that nobody reads to its end its two ends are printed.
    """
    global _drawn_on
    below = "\n" if _drawn_on is sys.stderr else ""
    _drawn_on = None
    shown = visible(line)
    if len(shown) > LONGEST_LINE:
        shown = f"{shown[: LONGEST_LINE // 2]} … {shown[-LONGEST_LINE // 2 :]}"
    print(below + shown, file=sys.stderr, flush=True)


def draw(line: str, stream: TextIO, *, is_last: bool) -> None:
    """Write a line on a terminal over the one that was drawn before it; the last one stays."""
    global _drawn_on
    stream.write("\r\x1b[K" + visible(line) + ("\n" if is_last else ""))
    stream.flush()
    _drawn_on = None if is_last else stream


def show(text: str) -> None:
    """Print a result of one or more lines to stdout, with escapes for what its encoding does not have either."""
    encoding = sys.stdout.encoding or "utf-8"
    print(visible_lines(text).encode(encoding, "backslashreplace").decode(encoding), flush=True)


def counted(number: int, noun: str) -> str:
    """A number with its noun, which takes an s where there is not one of it: `1 update`, `1,200 updates`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def listed(names: Sequence[str]) -> str:
    """Names for an error: the first few, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


class Escaped:
    """A stream on which whatever a library writes (a warning with a tensor's name, say) is text too, and has no
    colours."""

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
    """Spaces of every width are shown, though Python calls but the plain one printable."""
    return sign.isprintable() or unicodedata.category(sign) == "Zs"
