"""Normalizes text so that each sign has one code point: readers need to know only one minus, one digit 4, one é.

Nothing visible is lost: a superscript becomes `^{2}`, a vulgar fraction ` 1/2`, and digits of any script become ASCII.
What is invisible (control characters, bidirectional marks, zero-width characters, lone surrogates) is removed.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

LONGEST = 60_000
"""The most characters that are read; of a longer text these are the last, since the answer is at the end."""

_SIGNS = {
    "−": "-", "–": "-", "‐": "-", "‑": "-", "‒": "-", "—": " — ", "﹣": "-", "“": '"', "”": '"', "„": '"', "«": '"',
    "»": '"', "‘": "'", "’": "'", "′": "'", "×": "*", "∙": "*", "⋅": "*", "·": "*", "✕": "*", "÷": "/", "⁄": "/",
    "∕": "/", "…": "...", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "≃": r"\approx ",
    "≅": r"\approx ", "±": r"\pm ", "√": r"\sqrt ", "π": r"\pi ", "∞": r"\infty ", "⟂": r"\perp ", "⊥": r"\perp ", "∪": r"\cup ", "∩": r"\cap ",
    "∈": r"\in ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "°": r"^\circ ",
    "∠": r"\angle ", "△": r"\triangle ", "º": r"^\circ ", "∘": r"^\circ ", "℃": r"^\circ C", "℉": r"^\circ F", "θ": r"\theta ", "٫": ".", "٬": ",", "،": ",",
    "、": ", ", "。": "。 ", "；": "; ", "：": ": ", "，": ", ", "！": "! ", "？": "? ", "（": "(", "）": ")", "％": "%",
    "［": "[", "］": "]", "｛": "{", "｝": "}", "\u00a0": " ", "\u202f": " ", "\u2009": " ", "\u2007": " ", "\u3000": " ",
    "\u2028": "\n", "\u2029": "\n", "\x0b": "\n", "\x0c": "\n", "\x85": "\n", "【": "[", "】": "]",
}  # fmt: skip
STYLED = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|mbox|hbox|mathrm|mathbf|mathit|mathsf|mathtt|operatorname\*?)\s*\{([^{}]*)\}"
)
"""Text within mathematics, `\\text{ cm}`."""
_SMALL = re.compile(r"[⁰¹²³⁴-⁹⁺⁻ⁿ]+|[₀-₉₊₋]+")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_GREEK_LETTER = re.compile(r"(?<![\u0370-\u03ff])[α-ρσ-ω](?![\u0370-\u03ff])")
"""A Greek letter of a formula, not of a Greek word."""
_TAGS = re.compile(r"</?(?:b|i|u|em|strong|span|p|sub|center)(?: [^<>]{0,80})?>|<br ?/?>", re.IGNORECASE)
_SPACES = re.compile(r"[ \t]{5,}")
_UNSEEN = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
_EMPHASIS = (
    re.compile(r"(?<![0-9A-Za-z)*])\*\*(?=[^\s*])(.+?)(?<=[^\s*])\*\*(?![0-9A-Za-z(*])", re.DOTALL),
    re.compile(r"(?<![0-9A-Za-z_])__(?=[^\s_])(.+?)(?<=[^\s_])__(?![0-9A-Za-z_])"),
    re.compile(r"(?<![0-9A-Za-z)*])\*(?=[^\s*])([^*\n]+?)(?<=[^\s*])\*(?![0-9A-Za-z(*])"),
)


@lru_cache(maxsize=4_096)
def plain_text(text: str) -> str:
    """Return the last `LONGEST` characters of the text in plain signs, as NFC."""
    text = text[-LONGEST:]
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _SPACES.sub("    ", text)
    text = re.sub(r"(?<=\d)~(?=[A-Za-z\\])", " ", text)
    if "<" in text:
        text = _TAGS.sub("", text)
    text = re.sub(r"(?<=\d)\s*x\s*(?=10\s*\^)", "*", text)
    if text.isascii():
        return _UNSEEN.sub("", text)
    text = unicodedata.normalize("NFC", text.encode("utf-8", "ignore").decode())
    text = re.sub(r"√\s*(\d+(?:\.\d+)?)", r"\\sqrt{\1}", text)
    text = _GREEK_LETTER.sub(lambda found: rf"\{unicodedata.name(found[0]).rpartition(' ')[2].lower()} ", text)
    text = _SMALL.sub(_small, re.sub(r"(?<=\d)，(?=\d{3})", ",", text))
    return _UNSEEN.sub("", _NOT_ASCII.sub(lambda found: _sign(found[0]), text))


def without_emphasis(text: str) -> str:
    """Remove the Markdown marks of bold, italic and code, and what is struck out."""
    text = re.sub(r"^[ \t]*(?:```|~~~).*$", "", text, flags=re.MULTILINE).replace("`", "")
    if "~~" in text:
        text = re.sub(r"~~[^~\n]+~~", "", text)  # struck out
    for pattern in _EMPHASIS if "*" in text or "__" in text else ():
        text = pattern.sub(r"\1", text)
    return text


def _small(found: re.Match[str]) -> str:
    """Return superscripts or subscripts as LaTeX writes them."""
    mark = "^" if found[0][0] in "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ" else "_"
    return f"{mark}{{{unicodedata.normalize('NFKC', found[0]).replace('−', '-')}}}"


@lru_cache(maxsize=4_096)
def _sign(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    if unicodedata.category(character) in ("Cf", "Cc", "Cs", "Co", "Cn"):
        return ""
    if (digit := unicodedata.decimal(character, None)) is not None:
        return str(digit)
    folded = unicodedata.normalize("NFKC", character)
    if "⁄" in folded:  # a vulgar fraction
        return " " + folded.replace("⁄", "/")
    return folded
