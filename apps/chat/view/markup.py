r"""Model text → Markdown that the page can show: formatting works, and nothing in it is HTML or loads anything.

    <b>                        text: an invisible joiner after the `<` keeps it from being a tag
    ![x](URL), <img src=URL>   a chip that names the host; its title holds the source
    [x](http://host/…)         a link that says its host
    [x](javascript:…)          text, and so is every link that does not lead to an http address,
                               and every address whose host is not plain: http://bank@elsewhere looks as if it led to the bank
    $x$                        mathematics; $5 and $10 are amounts, which stay text
    - [x] done                 a box that is ticked
    ESC, U+202E, …             signs that can be seen, in code and in copies too

The joiner does not rely on telling code from prose: whatever the renderer takes a piece for, no `<` stands before a
letter and no `![` is left, but for the chips and labels that are written here. In mathematics a character reference
does the same, because KaTeX complains of a joiner. Telling code from prose decides only where chips and labels may be.
The page's sanitizer and its content security policy stand behind this; `look/assets/clipboard.js` takes all of it back
where text is copied. A text is read in pieces: no pattern runs over a character that another one begins with, and what
closes a span is looked up, so that work grows as the text does.

What a person typed is no Markdown: `as_typed` and `plain` write it as character references, which mean nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

JOINER = "\u2060"
LESS_THAN, EXCLAMATION = "&#0060;", "&#0033;"
"""With zeros that nobody else writes, so that copying turns only these back."""
DOLLAR = (f"${JOINER}", f"{JOINER}$")
"""What stands around mathematics that was written between single dollar signs."""

LONGEST_FORMATTED, MOST_LINES = 40_000, 2_000
"""What the renderer takes well under a second for; its time grows with the square of the marks in a paragraph."""
LONG_FENCE = "~~~~~ long\n"
"""Never closed, so that a growing text only grows; `conversation.css` says beside it why there is no formatting."""

SIGNS: dict[int, str] = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n\r"},
    0x7F: "\u2421",
    **{code: f"‹U+{code:04X}›" for code in (*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))},
}
"""Control characters, ANSI's escape among them, and overrides of the direction of text → what is shown of them."""

_LINE = re.compile(r"[^\n]*+\n|[^\n]++")
_FENCE = re.compile(r"(?P<before>[ \t>]*+(?:(?:[-*+]|\d{1,9}[.)])[ \t]++)?+)(?P<fence>`{3,}+|~{3,}+)(?P<info>[^\n]*+)")
_ITEM = re.compile(r"(?:[-*+]|\d{1,9}[.)])[ \t]")
_DIAGRAM = re.compile(r"(?<![`~])[`~]{3,}+[ \t]*+(?=mermaid)", re.IGNORECASE)
_PIECE = re.compile(
    r"(?P<opens>`++|\\[()\[\]]|\$\$)|(?P<dollar>(?<![A-Za-z0-9$])\$)|(?P<blank>\n[ \t]*+(?=\n))|(?P<image>!(?=\[))"
    r"|(?P<tag><(?=[A-Za-z/!?]))|(?P<link>\](?=[(:]))|(?P<guise>(?:(?i:ftp://)|(?i:https?://|www\.)"
    r"(?=[^\s/?#<>@&%\\\x80-\U0010ffff]*+[@&%\\\x80-\U0010ffff])))|\\[^\n]"
)
"""`guise`: what the renderer would make a link of, though it may lead elsewhere than it reads."""
_CLOSER = {"\\(": "\\)", "\\[": "\\]"}
_MARK = re.compile(r"<(?=[A-Za-z/!?])|!(?=\[)|\](?=[(:])")
_DOLLARS = re.compile(r"\$(?P<inner>(?=[^\s$])(?:[^\\$`\n]|\\[^\n()\[\]])++(?<!\s))\$(?![A-Za-z0-9$])")
_NO_MATHEMATICS = re.compile(r"\][(:]|!\[|\A\d.*\s[A-Za-z]{2,}(?:\s|$)")
"""In what stands between dollars: links and images, and amounts of money with a word between them."""
_IMAGE = re.compile(r"!\[[^\[\]\n]*+\]\([ ]*+(?P<source>[^()\s]*+)[^()\n]*+\)")
_IMAGE_TAG = re.compile(r"<img\b[^<>\n]*+>", re.IGNORECASE)
_SOURCE = re.compile(r"\ssrc[ ]?=[ ]?[\"']?(?P<source>[^\"'\s<>]++)", re.IGNORECASE)
_AUTOLINK = re.compile(r"<https?://[A-Za-z0-9.-]++(?::\d++)?+(?:[/?#][^\s<>`]*+)?+>")
_TARGET = re.compile(r"\]\([ ]*+https?://(?P<host>[A-Za-z0-9.-]++(?::\d++)?)(?=[/?#) ])")
_HOST = re.compile(r"(?:https?:)?//(?:[^/?#@]*+@)?+(?P<host>[^/?#@]++)", re.IGNORECASE)
_UNSAFE_IN_TITLE = re.compile(r"[^A-Za-z0-9 :/.,?=-]")
_MEANT_BY_MARKDOWN = re.compile(r"[\t\n\r#$%&()*/<>@\[\\\]^_`{|}~]|(?<=www)\.")
"""Within a line."""
_MEANT_BY_HTML = re.compile(r"[\t\n\r&<>$%\\]")
"""And by the renderer, which looks for mathematics everywhere."""


def plain(text: str) -> str:
    """Text within a line of Markdown, in which nothing means anything but itself."""
    return _MEANT_BY_MARKDOWN.sub(_reference, text.translate(SIGNS))


@lru_cache(maxsize=1024)
def as_typed(text: str) -> str:
    """What a person typed, sign by sign, as a block; `reading.css` keeps its lines and spaces."""
    return f'<div class="typed" dir="auto">{_MEANT_BY_HTML.sub(_reference, text.translate(SIGNS))}</div>'


def _reference(found: re.Match[str]) -> str:
    return f"&#{ord(found.group())};"


def harmless(text: str) -> str:
    """Markdown of the same look in which no tag, no image and no link but to http addresses is left.

    A text of more than `LONGEST_FORMATTED` characters or `MOST_LINES` lines is shown whole, but without its formatting.
    """
    if len(text) > LONGEST_FORMATTED or text.count("\n") > MOST_LINES:
        return LONG_FENCE + _code(_readable(text).replace("~~~", f"~~{JOINER}~"))
    return _formatted(text)


@lru_cache(maxsize=1024)  # all earlier messages are shown anew with each update of the last
def _formatted(text: str) -> str:
    return "".join(_code(block) if is_code else _prose(block) for block, is_code in _blocks(_readable(text)))


def _readable(text: str) -> str:
    """Control characters are seen, and a diagram's language is one that nobody knows: drawing runs what it says."""
    return _DIAGRAM.sub(lambda fence: fence.group() + JOINER, text.translate(SIGNS))


def _blocks(text: str) -> Iterator[tuple[str, bool]]:
    """The text cut into prose and code (fences are code's); the last block may be open."""
    held: list[str] = []
    fence = ""
    indented = may_indent = True  # whether this line may be code by its indentation: not in a list
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
    """Number of each piece that opens code or mathematics → where that ends, within its paragraph."""
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
    """What is shown for a piece of prose, and where the text goes on."""
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
    """An image that is not loaded: where it would come from, and in the title how it was written."""
    host = _HOST.match(source)
    name = host["host"] if host else source.partition(":")[0] + ":" if ":" in source else "this page"
    title = _UNSAFE_IN_TITLE.sub(_reference, written)
    return f'<span class="remote" title="{title}">image · {_UNSAFE_IN_TITLE.sub("", name)[:60]}</span>'


def _code(text: str) -> str:
    return _MARK.sub(lambda found: found.group() + JOINER, text)


def _mathematics(text: str) -> str:
    return text.replace("<", LESS_THAN).replace("![", EXCLAMATION + "[")
