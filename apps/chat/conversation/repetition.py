"""Token ids → whether the model goes round in circles: its last words stood there, word for word, several times before.

Counting rows, spelling and long division repeat their form but not their numbers, so only a long n-gram counts, and
copies that overlap count once.
"""

from __future__ import annotations

from collections.abc import Sequence

N_GRAM = 32
"""Tokens; two or three lines of text."""
TIMES = 4
"""Copies within the window, the last one included."""
WINDOW = 2048
"""Tokens looked back at; a circle longer than its `TIMES`-th part is not seen."""


def is_repeating(token_ids: Sequence[int]) -> bool:
    """Whether the last `N_GRAM` ids occur `TIMES` times, without overlap, among the last `WINDOW` ids."""
    if len(token_ids) < TIMES * N_GRAM:
        return False
    window = list(token_ids[-WINDOW:])
    last = window[-N_GRAM:]
    copies, end = 1, len(window) - N_GRAM
    while end >= N_GRAM and copies < TIMES:
        if window[end - 1] == last[-1] and window[end - N_GRAM : end] == last:
            copies, end = copies + 1, end - N_GRAM
        else:
            end -= 1
    return copies >= TIMES
