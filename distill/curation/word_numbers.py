"""Turns a text into the numbers of its words, by which overlapping and nearly equal texts are found.

Words are runs of letters and digits without regard to case; where a script puts no spaces, each character is one. A
word's number is its CRC-32, and a run of words has a number of 64 bits, so they are the same in every process.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from distill.verification.loops import UNSPACED

_SIGN = re.compile(r"[^\w\x00-\x7f]+")
"""Signs beyond ASCII; those of ASCII are found faster as bytes."""
_SPACES = bytes(byte if chr(byte).isalnum() or byte > 127 else 32 for byte in range(256))
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def words_of(text: str) -> list[bytes]:
    """Return the words of a text, in UTF-8."""
    folded = text.casefold()
    if not folded.isascii():
        folded = UNSPACED.sub(r" \g<0> ", _SIGN.sub(" ", folded))
    return folded.encode(errors="replace").translate(_SPACES).split()


def numbers_of(words: list[bytes]) -> np.ndarray:
    """Return the number of each word."""
    return np.fromiter(map(zlib.crc32, words), dtype=np.uint64, count=len(words))


def runs_of(numbers: np.ndarray, length: int) -> np.ndarray:
    """Return the number of each run of `length` words; empty if there are fewer words."""
    count = len(numbers) - length + 1
    if count <= 0:
        return np.empty(0, dtype=np.uint64)
    return mixed(numbers[k : k + count] for k in range(length))


def mixed(columns: Iterable[np.ndarray | np.uint64]) -> np.ndarray:
    """Return one number for each row of columns of numbers, which differs if any of them does or their order does."""
    total: Any = np.uint64(0)
    for column in columns:
        total = (total ^ column) * _FACTOR
        total ^= total >> np.uint64(29)
    numbers: np.ndarray = total
    return numbers
