"""Writes a number as reasoning-gym does, so that its scorers can compare texts: `+1,234.50` as `1234.5`."""

from __future__ import annotations

import re

from toolkit.answers.number_notation import read_numeral

_NAME_OR_SUM = re.compile(r"\W*(?:[^\W\d_]+(?:\s+[^\W\d_]+)*\W*|\s*[^\W\d_]+\s*\([^()]*\)\s*|[\d\s+\-*/().,^$]*)")
"""What may be left of an equals sign: words, `gcd(4, 6)` or arithmetic, but not `2a` or `a^2`."""


def plain_number(text: str) -> str:
    """Write a number as reasoning-gym does, without a plus sign, thousands separators or trailing zeros.

    Of an equation (`x = 5`, `43 + 14 = 57`) the right side is read. Empty if the text is anything else.
    """
    left, is_equation, side = text.rpartition("=")
    if is_equation and not all(map(_NAME_OR_SUM.fullmatch, left.split("="))):
        return ""
    side = side.strip().strip("$€£ ").rstrip("%").strip(" .,!\"'")
    found = re.fullmatch(r"(?P<sign>[-+]?)\s*[$€£]?(?P<number>.+)", side, re.DOTALL)
    numeral = read_numeral(found["number"]) if found else None
    if numeral is None or found is None:
        return ""
    if numeral.decimals is None and numeral.value.denominator != 1:
        return ""
    places = max(numeral.decimals or 0, 0)
    digits = str(int(numeral.value * 10**places)).rjust(places + 1, "0")
    plain = (digits[:-places] + "." + digits[-places:]).rstrip("0").rstrip(".") if places else digits
    return "-" + plain if found["sign"] == "-" and plain != "0" else plain
