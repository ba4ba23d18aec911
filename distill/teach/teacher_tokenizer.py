"""Makes the built-in teacher's tokenizer: whole words for the tasks' wording, single letters and digits for all else.

A word that a question is *about* splits into letters, so the model sees what it spells, counts and reverses. The
vocabulary holds 256 bytes, letters with a leading space, and the words that recur in a family's wording; a pre-token in
the vocabulary is one token (`ignore_merges`), any other is split into letters, and nothing is ever unknown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from string import ascii_letters

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from toolkit.formats.chat_format import TURN_END, TURN_START

END_OF_TEXT = "<|endoftext|>"
SPACE = "Ġ"
RECURS = 0.05
"""A word belongs to a family's wording if at least this share of its texts contains it."""


def make_tokenizer(texts: Mapping[str, Iterable[str]]) -> Tokenizer:
    """Build the tokenizer from sample texts of each family."""
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    words: set[str] = set()
    for samples in texts.values():
        counts, total = Counter[str](), 0
        for total, text in enumerate(samples, start=1):
            counts.update({piece for piece, _ in splitter.pre_tokenize_str(text)})
        words |= {word for word, count in counts.items() if count >= RECURS * total}
    merges = [(SPACE, letter) for letter in ascii_letters]
    letters = [SPACE + letter for letter in ascii_letters]
    pieces = dict.fromkeys([*sorted(pre_tokenizers.ByteLevel.alphabet()), *letters, *sorted(words)])
    vocabulary = {piece: i for i, piece in enumerate([END_OF_TEXT, TURN_START, TURN_END, *pieces])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT, TURN_START, TURN_END])
    return tokenizer
