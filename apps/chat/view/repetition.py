"""Tokens → whether the model goes round in circles: its last words stood there, word for word, several times before.

Tokens are ids where the model runs here, and words where only a server knows the ids.
Counting rows, spelling and long division repeat their form but not their numbers, so only a long n-gram counts, and
copies that overlap count once.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

N_GRAM = 32
"""Tokens; two or three lines of text."""
TIMES = 4
"""Copies within the window, the last one included."""
WINDOW = 2048
"""Tokens looked back at; a circle longer than its `TIMES`-th part is not seen."""


def words(text: str) -> list[str]:
    """A text in words, signs and white space: about as many as a tokenizer would make of it."""
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
