r"""Reads one number as people write it: its exact value, and the number of decimals that it was written with.

    1,234.5  1.234,5  1 234,5  1'234.5  12,34,567  1_000  3e8  .5  5.  3,14  0.\overline{3}  0.333...  seven  forty-two

Commas with three digits after each separate thousands (also in `1,234`), another single comma is decimal (`3,14`);
`1.234` is a decimal fraction. Spaces, thin spaces and apostrophes between groups of three separate thousands. Readers
of lists use `WITHOUT_COMMAS`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from toolkit.answers.chinese_numerals import number_in_chinese

FUNCTIONS = frozenset((
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "log", "ln", "lg",
    "exp", "sqrt", "cbrt", "abs", "floor", "ceil", "max", "min", "gcd", "lcm", "det",
))  # fmt: skip
"""Names of functions of numbers."""
MOST_DIGITS = 1_000
"""The most digits of a number that is read; nobody's result is longer."""
_EXPONENT = r"(?:[eE][-+]?\d{1,7}(?![\w.]))?"
_POINTED = rf"(?:\d+\.\d+{_EXPONENT}|\.\d+{_EXPONENT}|\d+{_EXPONENT}(?:\.(?![\w.]))?)"
_SPACED = r"\d{1,3}(?:[ ']\d{3})+(?:[.,]\d+)?(?![\d']|[.,]\d| \d)|\d{1,3}(?:_\d{3})+(?:\.\d+)?(?![\d_])"
_REPEATING = r"\d*\.\d*(?:\\overline\s*\{\d+\}|\(\d+\)|\\bar\s*\{?\d+\}?|\\dot\s*\{?\d\}?)|\d*\.\d*?(\d{1,3}?)\1+(?:\.{3}|\\l?dots|\\cdots)"
_COMMAS = (
    r"\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d]|,\d)|\d{1,2}(?:,\d{2})+,\d{3}(?:\.\d+)?(?![\d]|,\d)"
    r"|\d{1,3}(?:\.\d{3})+,\d+(?![\d.]|,\d)|\d{1,3}(?:\.\d{3}){2,}(?![\d.])|\d+,\d+(?![\d.]|,\d)"
)
WITH_COMMAS = re.compile(f"(?:{_REPEATING}|{_COMMAS}|{_SPACED}|{_POINTED})")
WITHOUT_COMMAS = re.compile(f"(?:{_REPEATING}|{_SPACED}|{_POINTED})")
"""A number in a text in which commas separate items."""

_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SCALES = {"hundred": 100, "thousand": 1_000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SMALL = {name: value for value, name in enumerate(_ONES)} | {name: 10 * (i + 2) for i, name in enumerate(_TENS)}
_WORD = "|".join(sorted([*_SMALL, *_SCALES], key=len, reverse=True))
NUMBER_WORDS = re.compile(rf"\b(?:{_WORD})(?:(?:[\s-]+(?:and\s+)?|-)(?:{_WORD}))*\b", re.IGNORECASE)

_PARTS = {
    "half": 2,
    "halve": 2,
    "third": 3,
    "quarter": 4,
    "fourth": 4,
    "fifth": 5,
    "sixth": 6,
    "seventh": 7,
    "eighth": 8,
    "ninth": 9,
    "tenth": 10,
}
_PART = re.compile(
    rf"(?:(?P<whole>\d+|(?:{_WORD})(?:[\s-]+(?:{_WORD}))*)\s+and\s+)?(?:(?P<top>an?|\d+|{_WORD})[\s-]+)?(?P<part>(?:{'|'.join(_PARTS)})s?)"
)
"""`two thirds`, `7 and a half`."""


@dataclass(frozen=True)
class Numeral:
    """A number, and how it was written."""

    value: Fraction
    decimals: int | None = None
    """How many decimals it was written with; None if it is exact (an integer, a repeating decimal)."""


def read_numeral(text: str) -> Numeral | None:
    """Read a text that is one unsigned number; None if it is anything else, or too long."""
    text = text.strip()
    if len(text) > MOST_DIGITS:
        return None
    if (found := WITH_COMMAS.fullmatch(text)) is None:
        return None
    if "overline" in text or "(" in text or "\\" in text or text.endswith("..."):
        return _repeating(text, found[1])
    number = re.sub(r"(?<=\d)[ '_](?=\d)", "", text)
    if "," in number:
        number = _without_commas(number)
    elif re.fullmatch(r"\d{1,3}(?:\.\d{3}){2,}", number):
        number = number.replace(".", "")
    if number.count(".") > 1:  # 0,11,234: no number groups its digits so
        return None
    mantissa, _, exponent = number.lower().partition("e")
    if exponent and abs(int(exponent)) > MOST_DIGITS:
        return None
    whole, _, decimals = mantissa.partition(".")
    places = len(decimals) - int(exponent or 0)
    scaled = Fraction(int((whole + decimals) or "0"))
    value = scaled / 10**places if places >= 0 else scaled * 10**-places
    return Numeral(value, places if decimals or places > 0 else None)


def number_in_words(text: str) -> Fraction | None:
    """Read number words of English and Chinese, "forty-two", "seven and a half", 四十二; None for anything else."""
    text = text.strip().casefold()
    if not text.isascii():
        return number_in_chinese(text)
    if dozens := re.fullmatch(r"(?:(half )?a|(\S+)) dozens?", text):
        count = Fraction(1, 2) if dozens[1] else number_in_words(dozens[2]) if dozens[2] else Fraction(1)
        return None if count is None else 12 * count
    if re.fullmatch(rf"an? (?:{'|'.join(_SCALES)})", text):
        text = text.partition(" ")[2]
    if found := _PART.fullmatch(text):
        whole = (
            number_in_words(found["whole"])
            if found["whole"] and not found["whole"].isdigit()
            else Fraction(found["whole"] or 0)
        )
        top = (
            Fraction(1)
            if found["top"] in ("a", "an", None)
            else Fraction(found["top"])
            if found["top"].isdigit()
            else number_in_words(found["top"])
        )
        if whole is None or top is None:
            return None
        return whole + top / _PARTS[found["part"].removesuffix("s")]
    value = _whole_in_words(text)
    return None if value is None else Fraction(value)


def _whole_in_words(text: str) -> int | None:
    words = re.findall(r"[a-z]+", text)
    if not words or len(words) > 20 or not NUMBER_WORDS.fullmatch(text):
        return None
    total = group = 0
    before = ""
    for word in words:
        if word == "and":
            continue
        if word == "hundred":
            group = (group or 1) * 100
        elif word in _SCALES:
            total, group = total + (group or 1) * _SCALES[word], 0
        elif before in _SMALL and not (before in _TENS and word in _ONES[1:10]):
            return None  # two numbers side by side
        else:
            group += _SMALL[word]
        before = word
    return total + group


def _without_commas(number: str) -> str:
    """Return the number with a decimal point and without thousands separators."""
    if re.fullmatch(r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?|[1-9]\d?(?:,\d{2})+,\d{3}(?:\.\d+)?", number):
        return number.replace(",", "")
    return number.replace(".", "").replace(",", ".")


def _repeating(text: str, period: str | None) -> Numeral:
    r"""Read a repeating decimal: `0.1\overline{6}`, `0.1(6)` or `0.1666...`."""
    whole, _, behind = text.partition(".")
    if period is None:
        digits = re.findall(r"\d+", behind)
        period, fixed = digits[-1], digits[0] if len(digits) > 1 else ""
    else:
        behind = re.sub(r"\D.*", "", behind)
        while behind.endswith(period):
            behind = behind[: -len(period)]
        fixed = behind
    value = Fraction(int(whole + fixed or "0") * (10 ** len(period) - 1) + int(period))
    return Numeral(value / ((10 ** len(period) - 1) * 10 ** len(fixed)))
