"""Texts of tokens that traces hardly hold: added ones, the last of the vocabulary, and some from all over it.

They mean nothing. A model reads them all the same where a user types another script, or another program writes them.
"""

from __future__ import annotations

from toolkit.formats.chat_format import ChatFormat

LAST = 32
"""Ids at the vocabulary's end, which may lie behind all that the tokenizer knows."""
LENGTH = 32
"""Of a text: each begins with another token, which a model may give all the attention that it has no use for."""


def odd_texts(chat_format: ChatFormat, vocab_size: int, tokens: int) -> list[list[int]]:
    """Some `tokens` ids in texts of `LENGTH`, added and last ones among them."""
    added = [id for id in sorted(chat_format.tokenizer.get_added_tokens_decoder()) if id < vocab_size]
    named = list(dict.fromkeys([*range(max(vocab_size - LAST, 0), vocab_size), *added]))[: tokens // 2]
    spread = range(0, vocab_size, max(vocab_size // (tokens - len(named)), 1))
    ids = [*named, *spread]
    count = max(len(ids) // LENGTH, 1)
    return [ids[first::count][:LENGTH] for first in range(count)]
