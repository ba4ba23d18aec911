"""Reads numbers in Chinese characters, as China and Japan write them, as exact values: 四十二, 一百零五, 三点五, 二分之一, 百分之五."""

from __future__ import annotations

import re
from fractions import Fraction

_DIGITS = {digit: value for value, digits in enumerate(("零〇", "一壹", "二两兩", "三", "四", "五", "六", "七", "八", "九"))
           for digit in digits}  # fmt: skip
_TENS = {"十": 10, "百": 100, "千": 1_000}
_MYRIADS = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_SIGNS = "".join([*_DIGITS, *_TENS, *_MYRIADS])
_NUMBER = re.compile(
    rf"(负|負)?(?:([{_SIGNS}]+)分之)?([{_SIGNS}]+)(?:[点點]([{''.join(_DIGITS)}]+))?[个個只元人本条张岁天次件名位米页块]?"
)
"""A number, with or without a measure word after it."""


def number_in_chinese(text: str) -> Fraction | None:
    """Read a text that is one number; None if it is anything else."""
    found = _NUMBER.fullmatch(text.strip().rstrip("。"))
    if found is None or len(text) > 40:
        return None
    sign, parts, whole, decimals = found.groups()
    value, below = _whole(whole), _whole(parts) if parts else 1
    if value is None or not below:
        return None
    behind = "".join(str(_DIGITS[digit]) for digit in decimals or "")
    number = (Fraction(f"{value}.{behind}") if behind else Fraction(value)) / below
    return -number if sign else number


def _whole(text: str) -> int | None:
    """Read a whole number: `一百零五` is 105, and plain digits such as `二〇二四` are 2024."""
    if all(sign in _DIGITS for sign in text):
        return int("".join(str(_DIGITS[sign]) for sign in text)) if len(text) == 1 or len(text) > 2 else None
    total = group = 0
    digit: int | None = None
    for sign in text:
        if sign in _DIGITS:
            if digit:
                return None  # two numbers side by side
            digit = _DIGITS[sign]
        elif sign in _TENS:
            group, digit = group + (1 if digit is None else digit) * _TENS[sign], None
        else:
            total, group, digit = (total + group + (digit or 0)) * _MYRIADS[sign], 0, None
    return total + group + (digit or 0)
