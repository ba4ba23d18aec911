r"""A piece of mathematics, plain or LaTeX → its tokens, and a cursor that reads along them.

Marks that only lay out (`\left`, `\,`, `\displaystyle`) are left out; what is written as text (`\text{ cm}`) is one
token.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from toolkit.answers.number_notation import WITH_COMMAS, WITHOUT_COMMAS
from toolkit.answers.plain_text import STYLED

LONGEST = 2_000
"""Characters of an expression; nobody's result is longer."""
DEEPEST = 50
"""Parts within parts."""
MOST_OPERATIONS = 250
"""Terms, factors and signs behind each other: each makes the tree one level deeper."""

_LAYOUT = re.compile(
    r"\\(?:left|right)\s*\.(?!\d)|\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|(?:normal|foot)?(?:size|small|tiny|large|Large|LARGE|huge|Huge)|underline|limits|nolimits|strut|rm|bf|it)(?![A-Za-z])\s*"
    r"|(?<!\\)\\[,;:! ]|\\q?quad(?![A-Za-z])|~|\\(?:phantom|hspace|vspace|label|tag)\*?\{[^{}]*\}"
)
_TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<text>\x02[^\x03]*\x03)|(?P<number>\.?\d)|(?P<command>\\[A-Za-z]+|\\[^A-Za-z])|(?P<word>[^\W\d_]+)"
    r"|(?P<sign><=|>=|!=|==|=>|->|\*\*|!!|\.\.\.|.)",
    re.DOTALL,
)


_BASED = re.compile(
    r"(?:\x02)?([0-9A-Z]*(?:[0-9][A-Z]|[A-Z]{2}|[A-Z][0-9])[0-9A-Z]*)\x03?\s*_\s*(?:\{(1[1-9]|[23]\d)\}|(1[1-9]|[23]\d))"
)
"""`FF_{16}`, a number in a base with letters among its digits."""
_PREFIXED = re.compile(r"0(?:b([01]+)|x([0-9A-Fa-f]+))")
_FRENCH = re.compile(r"([\[\]])([^\[\]]*[,;][^\[\]]*)([\[\]])")
"""`]0, 1[`, an open interval in France; fits `[0, 1]` too, which stays as it is."""


class Unreadable(Exception):
    """Why a text is not read as mathematics, in words for people."""


class NeedsLibrary(Unreadable):
    """Mathematics that only the algebra system's own reader knows: sums, integrals, limits."""


@dataclass(frozen=True)
class MathToken:
    """A number, a word, a command of LaTeX, a text within mathematics, or a sign; `spaced` where white space
    precedes."""

    kind: str
    text: str
    spaced: bool

    @property
    def word(self) -> str:
        """In small letters, without the marks of a text within mathematics."""
        return self.text.strip("\x02\x03 ,.").casefold()


END = MathToken("end", "", False)


def tokens_of(text: str, *, commas: bool) -> list[MathToken]:
    """Split a whole text; `commas` says that a comma may belong to a number ("1,234") outside of brackets.

    Raises `Unreadable` where the text is longer than anybody's result.
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
        commas = commas and not (piece == "," and depth == 0)  # from the first on they separate items
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
    """The tokens of a whole text that is a number in base 16 or another one with letters for digits, or `0b101`."""
    if found := _PREFIXED.fullmatch(text):
        digits, base = (found[1], "2") if found[1] else (found[2].upper(), "16")
    elif (found := _BASED.fullmatch(text)) and int(max(found[1]), 36) < int(found[2] or found[3]):
        digits, base = found[1], found[2] or found[3]
    else:
        return None
    return [MathToken("number", digits, False), MathToken("sign", "_", False), MathToken("number", base, False)]


def _prepared(text: str) -> str:
    """One command for each meaning; texts between \\x02 and \\x03."""
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
    """A place between tokens."""

    def __init__(self, tokens: list[MathToken]) -> None:
        self.tokens, self.at, self.depth, self.operations = tokens, 0, 0, 0

    def token(self, ahead: int = 0) -> MathToken:
        return self.tokens[self.at + ahead] if self.at + ahead < len(self.tokens) else END

    def peek(self, ahead: int = 0) -> str:
        return self.token(ahead).text

    def kind(self, ahead: int = 0) -> str:
        return self.token(ahead).kind

    def take(self, *expected: str) -> str:
        """The token here, which must be one of those expected. Raises `Unreadable`."""
        piece = self.peek()
        if not piece or (expected and piece not in expected):
            raise Unreadable(f"{' or '.join(expected) or 'something'} must follow, not {piece or 'the end'}")
        self.at += 1
        return piece

    def skip(self, *pieces: str) -> bool:
        """Take the token here where it is one of these."""
        if self.peek() in pieces:
            self.at += 1
            return True
        return False

    def count_operation(self) -> None:
        """Count one more operation. Raises `Unreadable` beyond `MOST_OPERATIONS`."""
        self.operations += 1
        if self.operations > MOST_OPERATIONS:
            raise Unreadable(f"more than {MOST_OPERATIONS} operations")

    def deeper(self) -> None:
        """Count one more level of brackets. Raises `Unreadable` beyond `DEEPEST`."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable(f"brackets, signs or powers more than {DEEPEST} deep")
