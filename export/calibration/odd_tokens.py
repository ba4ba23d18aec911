"""Makes texts of tokens that are rare in traces: added ones, the last of the vocabulary, and some from all over it.

The texts mean nothing, but a model must read such tokens when a user types another script, or a program sends them.
"""

from __future__ import annotations

from toolkit.formats.chat_format import ChatFormat

LAST = 32
"""How many ids at the vocabulary's end are taken; the tokenizer may not know them."""
LENGTH = 32
"""Tokens of a text; each begins with another token, because a model may attend mostly to the first one."""


def odd_texts(chat_format: ChatFormat, vocab_size: int, tokens: int) -> list[list[int]]:
    """Make texts of `LENGTH` ids, about `tokens` in all, which include added ids and the last ones."""
    added = [id for id in sorted(chat_format.tokenizer.get_added_tokens_decoder()) if id < vocab_size]
    named = list(dict.fromkeys([*range(max(vocab_size - LAST, 0), vocab_size), *added]))[: tokens // 2]
    spread = range(0, vocab_size, max(vocab_size // (tokens - len(named)), 1))
    ids = [*named, *spread]
    count = max(len(ids) // LENGTH, 1)
    return [ids[first::count][:LENGTH] for first in range(count)]
