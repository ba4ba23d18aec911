"""Detects a model that goes round in circles: its last words have already occurred several times, word for word.

Tokens are ids if the model runs here, and words if only a server knows the ids. Counting rows, spelling and long
division repeat their form but not their numbers, so only a long n-gram counts, and overlapping copies count once.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

N_GRAM = 32
"""Tokens that must recur: two or three lines of text."""
TIMES = 4
"""Copies within the window, including the last one."""
WINDOW = 2048
"""Tokens that are searched; a circle longer than a `TIMES`-th of them is not detected."""


def words(text: str) -> list[str]:
    """Split a text into words, signs and white space: about as many pieces as a tokenizer would make."""
    return re.findall(r" ?\w+|\s+|[^\w\s]", text)


def is_repeating(tokens: Sequence[Hashable]) -> bool:
    """Whether the last `N_GRAM` tokens occur `TIMES` times, without overlap, among the last `WINDOW`."""
    if len(tokens) < TIMES * N_GRAM:
        return False
    window = list(tokens[-WINDOW:])
    last = window[-N_GRAM:]
    copies, end = 1, len(window) - N_GRAM
    while end >= N_GRAM and copies < TIMES:
        if window[end - 1] == last[-1] and window[end - N_GRAM : end] == last:
            copies, end = copies + 1, end - N_GRAM
        else:
            end -= 1
    return copies >= TIMES
