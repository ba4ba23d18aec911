r"""Model text → Markdown that the page can show: formatting works, and nothing in it is HTML or loads anything.

    <b>                        text: an invisible joiner after the `<` keeps it from being a tag
    ![x](URL), <img src=URL>   a chip that names the host; its title holds the source
    [x](http://host/…)         a link that shows its host
    [x](javascript:…)          text, like every link that does not lead to an http address, and every
                               address whose host is disguised: http://bank@elsewhere does not lead to the bank
    $x$                        mathematics; $5 and $10 are amounts, which stay text
    - [x] done                 a ticked box
    ESC, U+202E, …             visible signs, in code and in copies too

The joiner does not rely on telling code from prose: whatever the renderer takes a piece for, no `<` comes before a
letter and no `![` is left, except in the chips and labels that are written here. In mathematics a character reference
does the same, because KaTeX rejects a joiner. Telling code from prose only decides where chips and labels may be. The
page's sanitizer and content security policy are a second line of defence. `look/assets/clipboard.js` undoes all of this
in copied text. A text is read in pieces: no pattern runs over a character at which another one begins, and the end of a
span is looked up, so the work is linear in the text's length.

A user's own text is not Markdown: `as_typed` and `plain` write it as character references, which mean only themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

JOINER = "\u2060"
LESS_THAN, EXCLAMATION = "&#0060;", "&#0033;"
"""Written with zeros, as nobody else does, so that copying restores only these."""
DOLLAR = (f"${JOINER}", f"{JOINER}$")
"""Delimiters of mathematics that was written between single dollar signs."""

LONGEST_FORMATTED, MOST_LINES = 40_000, 2_000
"""The renderer takes well under a second for these; its time is quadratic in the marks of a paragraph."""
LONG_FENCE = "~~~~~ long\n"
"""Never closed, so that a growing text only grows; `conversation.css` explains beside it why there is no formatting."""

SIGNS: dict[int, str] = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n\r"},
    0x7F: "\u2421",
    **{code: f"‹U+{code:04X}›" for code in (*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))},
}
"""Control characters, including ANSI's escape, and overrides of text direction → the signs that are shown instead."""

_LINE = re.compile(r"[^\n]*+\n|[^\n]++")
_FENCE = re.compile(r"(?P<before>[ \t>]*+(?:(?:[-*+]|\d{1,9}[.)])[ \t]++)?+)(?P<fence>`{3,}+|~{3,}+)(?P<info>[^\n]*+)")
_ITEM = re.compile(r"(?:[-*+]|\d{1,9}[.)])[ \t]")
_DIAGRAM = re.compile(r"(?<![`~])[`~]{3,}+[ \t]*+(?=mermaid)", re.IGNORECASE)
_PIECE = re.compile(
    r"(?P<opens>`++|\\[()\[\]]|\$\$)|(?P<dollar>(?<![A-Za-z0-9$])\$)|(?P<blank>\n[ \t]*+(?=\n))|(?P<image>!(?=\[))"
    r"|(?P<tag><(?=[A-Za-z/!?]))|(?P<link>\](?=[(:]))|(?P<guise>(?:(?i:ftp://)|(?i:https?://|www\.)"
    r"(?=[^\s/?#<>@&%\\\x80-\U0010ffff]*+[@&%\\\x80-\U0010ffff])))|\\[^\n]"
)
"""`guise`: an address that the renderer would turn into a link, though it may lead elsewhere than it seems to."""
_CLOSER = {"\\(": "\\)", "\\[": "\\]"}
_MARK = re.compile(r"<(?=[A-Za-z/!?])|!(?=\[)|\](?=[(:])")
_DOLLARS = re.compile(r"\$(?P<inner>(?=[^\s$])(?:[^\\$`\n]|\\[^\n()\[\]])++(?<!\s))\$(?![A-Za-z0-9$])")
_NO_MATHEMATICS = re.compile(r"\][(:]|!\[|\A\d.*\s[A-Za-z]{2,}(?:\s|$)")
"""Signs that a text between dollars is not mathematics: links, images, amounts of money with a word between them."""
_IMAGE = re.compile(r"!\[[^\[\]\n]*+\]\([ ]*+(?P<source>[^()\s]*+)[^()\n]*+\)")
_IMAGE_TAG = re.compile(r"<img\b[^<>\n]*+>", re.IGNORECASE)
_SOURCE = re.compile(r"\ssrc[ ]?=[ ]?[\"']?(?P<source>[^\"'\s<>]++)", re.IGNORECASE)
_AUTOLINK = re.compile(r"<https?://[A-Za-z0-9.-]++(?::\d++)?+(?:[/?#][^\s<>`]*+)?+>")
_TARGET = re.compile(r"\]\([ ]*+https?://(?P<host>[A-Za-z0-9.-]++(?::\d++)?)(?=[/?#) ])")
_HOST = re.compile(r"(?:https?:)?//(?:[^/?#@]*+@)?+(?P<host>[^/?#@]++)", re.IGNORECASE)
_UNSAFE_IN_TITLE = re.compile(r"[^A-Za-z0-9 :/.,?=-]")
_MEANT_BY_MARKDOWN = re.compile(r"[\t\n\r#$%&()*/<>@\[\\\]^_`{|}~]|(?<=www)\.")
"""Characters that have a meaning within a line of Markdown."""
_MEANT_BY_HTML = re.compile(r"[\t\n\r&<>$%\\]")
"""Characters with a meaning in HTML, or to the renderer, which looks for mathematics everywhere."""


def plain(text: str) -> str:
    """Escape text within a line of Markdown, so that every character means only itself."""
    return _MEANT_BY_MARKDOWN.sub(_reference, text.translate(SIGNS))


@lru_cache(maxsize=1024)
def as_typed(text: str) -> str:
    """Show a user's text as a block, character by character; `reading.css` keeps its lines and spaces."""
    return f'<div class="typed" dir="auto">{_MEANT_BY_HTML.sub(_reference, text.translate(SIGNS))}</div>'


def _reference(found: re.Match[str]) -> str:
    return f"&#{ord(found.group())};"


def harmless(text: str) -> str:
    """Return Markdown that looks the same, without tags and images, and with links to http addresses only.

    A text of more than `LONGEST_FORMATTED` characters or `MOST_LINES` lines is shown whole but without formatting.
    """
    if len(text) > LONGEST_FORMATTED or text.count("\n") > MOST_LINES:
        return LONG_FENCE + _code(_readable(text).replace("~~~", f"~~{JOINER}~"))
    return _formatted(text)


@lru_cache(maxsize=1024)  # each update of the last message shows all earlier ones again
def _formatted(text: str) -> str:
    return "".join(_code(block) if is_code else _prose(block) for block, is_code in _blocks(_readable(text)))


def _readable(text: str) -> str:
    """Make control characters visible, and a diagram's language unknown, because drawing a diagram runs its text."""
    return _DIAGRAM.sub(lambda fence: fence.group() + JOINER, text.translate(SIGNS))


def _blocks(text: str) -> Iterator[tuple[str, bool]]:
    """Split the text into prose and code, to which its fences belong; the last block may be open."""
    held: list[str] = []
    fence = ""
    indented = may_indent = True  # whether indentation may make this line code: not in a list
    for line in _LINE.findall(text):
        found = _FENCE.match(line)
        if fence:
            held.append(line)
            if found and found["fence"].startswith(fence) and not found["info"].strip():
                yield "".join(held), True
                held, fence = [], ""
        elif found and not ("`" in found["fence"] and "`" in found["info"]):
            yield "".join(held), False
            held, fence = [line], found["fence"]
        elif line.startswith(("    ", "\t")) and indented and may_indent and line.strip():
            yield "".join(held), False
            yield line, True
            held = []
        else:
            held.append(line)
            indented = not line.strip()
            may_indent = may_indent if indented or line[0] in " \t" else not _ITEM.match(line)
    yield "".join(held), bool(fence)


def _prose(text: str) -> str:
    pieces = list(_PIECE.finditer(text))
    closers = _closers(pieces)
    shown: list[str] = []
    position = 0
    for i, piece in enumerate(pieces):
        if piece.start() < position:
            continue
        shown.append(text[position : piece.start()])
        if closer := closers.get(i):
            inner = text[piece.start() : closer]
            shown.append(_code(inner) if piece.group().startswith("`") else _mathematics(inner))
            position = closer
        else:
            marked, position = _mark(text, piece)
            shown.append(marked)
    return "".join(shown) + text[position:]


def _closers(pieces: Sequence[re.Match[str]]) -> dict[int, int]:
    """Map the number of each piece that opens code or mathematics to where that ends, within its paragraph."""
    ends: dict[str, int] = {}
    found: dict[int, int] = {}
    for i in reversed(range(len(pieces))):
        if pieces[i]["blank"]:
            ends.clear()
        elif opener := pieces[i]["opens"]:
            if end := ends.get(_CLOSER.get(opener, opener)):
                found[i] = end
            ends[opener] = pieces[i].end()
    return found


def _mark(text: str, piece: re.Match[str]) -> tuple[str, int]:
    """Return what to show for a piece of prose, and the position after it."""
    start = piece.start()
    if piece["image"] and (image := _IMAGE.match(text, start)):
        return _chip(image.group(), image["source"]), image.end()
    if piece["tag"] and (image := _IMAGE_TAG.match(text, start)) and (source := _SOURCE.search(image.group())):
        return _chip(image.group(), source["source"]), image.end()
    if piece["tag"] and (link := _AUTOLINK.match(text, start)):
        return link.group(), link.end()
    if piece["dollar"] and (found := _DOLLARS.match(text, start)) and not _NO_MATHEMATICS.search(found["inner"]):
        return DOLLAR[0] + _mathematics(found["inner"]) + DOLLAR[1], found.end()
    if piece["link"] and (target := _TARGET.match(text, start)):
        return f' <span class="host">{target["host"]}</span>]', piece.end()
    is_cut = piece["guise"] or _MARK.match(text, piece.end() - 1)
    return piece.group() + (JOINER if is_cut else ""), piece.end()


def _chip(written: str, source: str) -> str:
    """Write a chip for an image that is not loaded: its host, and in the title how it was written."""
    host = _HOST.match(source)
    name = host["host"] if host else source.partition(":")[0] + ":" if ":" in source else "this page"
    title = _UNSAFE_IN_TITLE.sub(_reference, written)
    return f'<span class="remote" title="{title}">image · {_UNSAFE_IN_TITLE.sub("", name)[:60]}</span>'


def _code(text: str) -> str:
    return _MARK.sub(lambda found: found.group() + JOINER, text)


def _mathematics(text: str) -> str:
    return text.replace("<", LESS_THAN).replace("![", EXCLAMATION + "[")
