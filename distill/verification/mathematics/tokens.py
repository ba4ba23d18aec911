r"""Splits a piece of mathematics, plain or LaTeX, into tokens, and reads along them with a cursor.

Layout commands (`\left`, `\,`, `\displaystyle`) are dropped; text within mathematics (`\text{ cm}`) is one token.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from toolkit.answers.number_notation import WITH_COMMAS, WITHOUT_COMMAS
from toolkit.answers.plain_text import STYLED

LONGEST = 2_000
"""Most characters of an expression; no real result is longer."""
DEEPEST = 50
"""Deepest nesting."""
MOST_OPERATIONS = 250
"""Most terms, factors and signs in a row: each makes the tree one level deeper."""

_LAYOUT = re.compile(
    r"\\(?:left|right)\s*\.(?!\d)|\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|(?:normal|foot)?(?:size|small|"
    r"tiny|large|Large|LARGE|huge|Huge)|underline|limits|nolimits|strut|rm|bf|it)(?![A-Za-z])\s*|(?<!\\)\\[,;:! ]|"
    r"\\q?quad(?![A-Za-z])|~|\\(?:phantom|hspace|vspace|label|tag)\*?\{[^{}]*\}"
)
_TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<text>\x02[^\x03]*\x03)|(?P<number>\.?\d)|(?P<command>\\[A-Za-z]+|\\[^A-Za-z])|"
    r"(?P<word>[^\W\d_]+)|(?P<sign><=|>=|!=|==|=>|->|\*\*|!!|\.\.\.|.)",
    re.DOTALL,
)


_BASED = re.compile(
    r"(?:\x02)?([0-9A-Z]*(?:[0-9][A-Z]|[A-Z]{2}|[A-Z][0-9])[0-9A-Z]*)\x03?\s*_\s*(?:\{(1[1-9]|[23]\d)\}|(1[1-9]|[23]\d))"
)
"""`FF_{16}`: a number in a base that has letters for digits."""
_PREFIXED = re.compile(r"0(?:b([01]+)|x([0-9A-Fa-f]+))")
_FRENCH = re.compile(r"([\[\]])([^\[\]]*[,;][^\[\]]*)([\[\]])")
"""`]0, 1[`, the French open interval; also matches `[0, 1]`, which stays as it is."""


class Unreadable(Exception):
    """A text that is not read as mathematics; the message tells people why."""


class NeedsLibrary(Unreadable):
    """Mathematics that only the algebra system's own parser knows: sums, integrals, limits."""


@dataclass(frozen=True)
class MathToken:
    """A number, word, LaTeX command, text within mathematics, or sign; `spaced` if white space precedes it."""

    kind: str
    text: str
    spaced: bool

    @property
    def word(self) -> str:
        """The token in lower case, without the marks of text within mathematics."""
        return self.text.strip("\x02\x03 ,.").casefold()


END = MathToken("end", "", False)


def tokens_of(text: str, *, commas: bool) -> list[MathToken]:
    """Split a whole text; `commas`: whether a comma may belong to a number ("1,234") outside of brackets.

    Raises `Unreadable` if the text is longer than any real result.
    """
    if len(text) > LONGEST:
        raise Unreadable(f"{len(text)} characters, more than {LONGEST}")
    text = _prepared(text)
    if based := _based(text):
        return based
    tokens: list[MathToken] = []
    position, spaced, depth = 0, False, 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        assert found, "the last alternative takes any character"
        kind, piece = str(found.lastgroup), found[0]
        commas = commas and not (piece == "," and depth == 0)  # after the first, all separate items
        if kind == "number":
            number = (WITH_COMMAS if commas and depth == 0 else WITHOUT_COMMAS).match(text, position)
            piece = number[0] if number else piece
        position += len(piece)
        if kind == "space":
            spaced = True
            continue
        depth += (piece in ("(", "[", "{", "\\{")) - (piece in (")", "]", "}", "\\}"))
        tokens.append(MathToken(kind, piece, spaced))
        spaced = False
    return tokens


def _based(text: str) -> list[MathToken] | None:
    """Return the tokens of a text that is one number in a base with letters for digits, such as 16, or `0b101`."""
    if found := _PREFIXED.fullmatch(text):
        digits, base = (found[1], "2") if found[1] else (found[2].upper(), "16")
    elif (found := _BASED.fullmatch(text)) and int(max(found[1]), 36) < int(found[2] or found[3]):
        digits, base = found[1], found[2] or found[3]
    else:
        return None
    return [MathToken("number", digits, False), MathToken("sign", "_", False), MathToken("number", base, False)]


def _prepared(text: str) -> str:
    """Replace commands of the same meaning by one, and put texts between \\x02 and \\x03."""
    text = re.sub(r"(?<=\d)(?:\{,\}|,\\!)(?=\d{3})", ",", text.replace("\x02", "").replace("\x03", ""))
    text = re.sub(r"(?<=\d)\\[,;:! ](?=\d{3}(?!\d))", " ", text)
    text = text.replace("लाख", "lakh").replace("करोड़", "crore")
    text = re.sub(r"(?<=\d)\s*([万萬亿億만억])(?!\w*[万萬亿億])", r" \1 ", text)
    if "\\" in text:
        text = STYLED.sub(lambda found: f"\x02{found[1]}\x03", text)
        text = _LAYOUT.sub(" ", text).replace(r"\%", "%").replace(r"\$", "$").replace(r"\#", "#").replace(r"\&", "&")
        text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
        text = re.sub(r"\\(?:cdot|times|ast)(?![A-Za-z])", "*", text)
        text = re.sub(r"\\div(?![A-Za-z])", "/", text)
        text = re.sub(r"\\(?:[lr]?vert|mid)(?![A-Za-z])", "|", text)
        text = re.sub(r"\\lbrace(?![A-Za-z])", r"\\{", re.sub(r"\\rbrace(?![A-Za-z])", r"\\}", text))
        text = re.sub(r"\\langle(?![A-Za-z])", "(", re.sub(r"\\rangle(?![A-Za-z])", ")", text))
        text = re.sub(r"\\pi(?=[A-Za-z])", r"\\pi ", text)
    return _FRENCH.sub(lambda found: "[("[found[1] == "]"] + found[2] + "])"[found[3] == "["], text.strip())


class Cursor:
    """A position between tokens."""

    def __init__(self, tokens: list[MathToken]) -> None:
        self.tokens, self.at, self.depth, self.operations = tokens, 0, 0, 0

    def token(self, ahead: int = 0) -> MathToken:
        return self.tokens[self.at + ahead] if self.at + ahead < len(self.tokens) else END

    def peek(self, ahead: int = 0) -> str:
        return self.token(ahead).text

    def kind(self, ahead: int = 0) -> str:
        return self.token(ahead).kind

    def take(self, *expected: str) -> str:
        """Take the next token; raises `Unreadable` if it is none of those expected."""
        piece = self.peek()
        if not piece or (expected and piece not in expected):
            raise Unreadable(f"{piece or 'the end'} instead of {' or '.join(expected) or 'something'}")
        self.at += 1
        return piece

    def skip(self, *pieces: str) -> bool:
        """Take the next token if it is one of these; return whether it is."""
        if self.peek() in pieces:
            self.at += 1
            return True
        return False

    def count_operation(self) -> None:
        """Count one more operation; raises `Unreadable` beyond `MOST_OPERATIONS`."""
        self.operations += 1
        if self.operations > MOST_OPERATIONS:
            raise Unreadable(f"more than {MOST_OPERATIONS} operations")

    def deeper(self) -> None:
        """Count one more level of nesting; raises `Unreadable` beyond `DEEPEST`."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable(f"brackets, signs or powers more than {DEEPEST} deep")
