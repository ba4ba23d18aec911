"""Detects whether a text is looping: repeating the same words again and again, with nothing else between.

In a run with period p, each token equals the one p tokens before it. Whether a run counts as a loop depends on what is
repeated. A thinker does not say a sentence five times in a row, but may well repeat figures, signs and single words: a
board of zeros, a row of switches, a long number; so these runs must be long to count. Fenced code and table rows are
ignored, and text that changes from line to line (numbered steps, counting, `57 - 10 = 47`) has no period at all.

`apps.chat.view.repetition` watches the end of a text while it is written, and only informs the reader;
this module judges a whole text that nobody reads before it is trained on, so it must not take figures for a loop.
"""

from __future__ import annotations

import re

import numpy as np

LONGEST_PERIOD = 512
"""Longest period in tokens: a loop of several paragraphs."""
SENTENCE_WORDS, SENTENCE_TIMES, SENTENCE_TOKENS = 3, 5, 60
"""Least different words of a sentence, and the repetitions and tokens from which it is a loop."""
SHORT_TIMES = 15
"""Repetitions from which a sentence with fewer words, such as `Wait, no.`, is a loop."""
OTHER_TIMES, OTHER_TOKENS = 50, 600
"""The same for figures, signs or one or two words: longer than a board of 20 × 20."""
LONGEST_CHARACTER_RUN = 1000
"""Most characters of a token that repeats within itself, as `hahaha…`; 10**999 has fewer zeros."""

_TABLE_ROW = re.compile(r"^[ \t]*\|.*\|[ \t]*$", re.MULTILINE)
_FENCED = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
"""Scripts whose characters stand for several letters, and that put no spaces between words."""
_TOKEN = re.compile(rf"[^\W_]+|{UNSPACED.pattern}|[^\w\s]|_")
_SENTENCE_ENDS = frozenset(".!?。！？…")
_SHORT_CYCLE = re.compile(rf"(\S{{1,8}}?)\1{{{LONGEST_CHARACTER_RUN // 8},}}")
_LONG_TOKEN = re.compile(rf"\S{{{LONGEST_CHARACTER_RUN + 1}}}")
_KNOWN = 4
"""Tokens of the pieces that `_longest_period` looks up among those before."""


def is_looping(text: str) -> bool:
    """Return whether words or characters repeat as often as the module's limits say."""
    prose = _TABLE_ROW.sub(" ", _FENCED.sub(" ", text))
    if _LONG_TOKEN.search(prose) and any(
        len(found.group()) > LONGEST_CHARACTER_RUN for found in _SHORT_CYCLE.finditer(prose)
    ):
        return True
    tokens = _TOKEN.findall((prose if prose.isascii() else UNSPACED.sub(r"\g<0> ", prose)).casefold())
    if len(tokens) < SENTENCE_TOKENS:
        return False
    numbers = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    ids = np.fromiter(map(numbers.__getitem__, tokens), dtype=np.int64, count=len(tokens))
    for period in range(1, min(_longest_period(ids), len(ids) // 2) + 1):
        begin, length = _longest_run(ids[period:] == ids[:-period])
        repeated = length + period  # a run starts at the second copy
        if length and _is_loop(tokens[begin : begin + period], repeated):
            return True
    return False


def _longest_period(ids: np.ndarray) -> int:
    """Return a bound on the period of any loop in the tokens: 0 for most texts, which then need no search.

    A loop has at least `SENTENCE_TIMES` copies. From its second copy on, each few tokens in a row occur one period
    before, so a stretch of such tokens is at least as long as all copies but the first, less the few.
    """
    pieces = ids[: len(ids) - _KNOWN + 1].copy()
    for k in range(1, _KNOWN):
        pieces = pieces * len(ids) + ids[k : len(ids) - _KNOWN + 1 + k]  # an overflow loosens the bound
    order = np.argsort(pieces, kind="stable")
    near = (pieces[order[1:]] == pieces[order[:-1]]) & (order[1:] - order[:-1] <= LONGEST_PERIOD)
    is_known = np.zeros(len(pieces), dtype=bool)
    is_known[order[1:][near]] = True
    _, stretch = _longest_run(is_known)
    if stretch < SENTENCE_TOKENS - SENTENCE_TOKENS // SENTENCE_TIMES - _KNOWN + 1:
        return 0
    return min(LONGEST_PERIOD, (stretch + _KNOWN - 1) // (SENTENCE_TIMES - 1))


def _is_loop(piece: list[str], repeated: int) -> bool:
    """Return whether a piece that fills `repeated` tokens in a row is a loop."""
    words = {token for token in piece if token.isalpha() and (len(token) > 1 or UNSPACED.match(token))}
    times = repeated // len(piece)
    if len(words) >= SENTENCE_WORDS or (words and not _SENTENCE_ENDS.isdisjoint(piece)):
        least = SENTENCE_TIMES if len(words) >= SENTENCE_WORDS else SHORT_TIMES
        return times >= least and repeated >= SENTENCE_TOKENS
    return times >= OTHER_TIMES and repeated >= OTHER_TOKENS


def _longest_run(is_equal: np.ndarray) -> tuple[int, int]:
    """Return the start and the length of the longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], is_equal, [False])).astype(np.int8)))
    if not len(edges):
        return 0, 0
    lengths = edges[1::2] - edges[::2]
    longest = int(lengths.argmax())
    return int(edges[2 * longest]), int(lengths[longest])
