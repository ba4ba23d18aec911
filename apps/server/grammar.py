"""Turns JSON schemas into masks over the vocabulary, with llguidance.

A grammar follows an answer and says which tokens may come next; the end-of-turn tokens may come once the JSON value is
complete. White space, which a schema leaves open, is fixed (", " and ": "), because a small model that may write blanks
can write them forever. What would fail in the middle of an answer (a schema that only an endless value fits, a pattern
with too many states) fails before, in the random walks that try each schema.
"""

from __future__ import annotations

import json
from typing import Self

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from tokenizers import Tokenizer

from apps.server.requests.json_schema import check_keywords
from toolkit.errors import InputError
from toolkit.generation.generate import Floats

WALKS, WALK_TOKENS = 4, 32
"""How many random answers try a schema, and how many tokens of each are drawn."""


class Vocabulary:
    """A tokenizer as llguidance reads it; it takes about a second, so it is made once."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_ids: frozenset[int]) -> None:
        self.vocab_size = vocab_size
        self.tokens = LLTokenizer(tokenizer.to_str(), n_vocab=vocab_size, eos_token=sorted(stop_ids))


class Grammar:
    """Says which tokens may follow in one answer."""

    def __init__(self, vocabulary: Vocabulary, matcher: LLMatcher) -> None:
        self._vocabulary, self._matcher = vocabulary, matcher

    @classmethod
    def of_schema(cls, vocabulary: Vocabulary, schema: str) -> Self:
        """Make a grammar; raises `InputError` if llguidance does not support the schema, or cannot follow it."""
        check_keywords(json.loads(schema))
        fixed = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        try:
            rules = LLMatcher.grammar_from_json_schema(schema, overrides=fixed)  # type: ignore[arg-type]
        except ValueError as error:
            raise InputError(f"the JSON schema cannot be followed: {error}; change the schema") from error
        matcher = LLMatcher(vocabulary.tokens, rules, log_level=0)
        if matcher.is_error():
            raise InputError(f"the JSON schema cannot be followed: {_said(matcher)}; change the schema")
        grammar = cls(vocabulary, matcher)
        for seed in range(WALKS):
            grammar.copy()._walk(np.random.default_rng(seed))
        return grammar

    def copy(self) -> Grammar:
        """Return the same grammar for another answer."""
        return Grammar(self._vocabulary, self._matcher.deep_copy())

    def masked(self, logits_V: Floats) -> Floats:
        """Return the logits with -inf for tokens that may not follow."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed_V = np.unpackbits(bits, bitorder="little")[: self._vocabulary.vocab_size].astype(bool)
        if self._matcher.is_error() or not allowed_V.any():
            raise InputError(f"the JSON schema allows no next token: {_said(self._matcher)}; change the schema")
        masked_V: Floats = np.where(allowed_V, logits_V, np.float32(-np.inf))
        return masked_V

    def take(self, token: int) -> None:
        """Follow a token that was drawn under the mask."""
        if not self._matcher.consume_token(token):
            raise InputError(f"the JSON schema cannot be followed: {_said(self._matcher)}; change the schema")

    def begin(self, text: str) -> None:
        """Follow the text that came with the token that closed the thought."""
        if text and not self._matcher.consume_tokens(self._vocabulary.tokens.tokenize_str(text)):
            raise InputError(
                "the token that closed the thought also began an answer that does not fit the schema; ask again"
            )

    def _walk(self, generator: np.random.Generator) -> None:
        """Draw the beginning of an answer at random; raises `InputError` if the schema fails on it."""
        for _ in range(WALK_TOKENS):
            token = int(self.masked(generator.random(self._vocabulary.vocab_size, dtype=np.float32)).argmax())
            self.take(token)
            if self._matcher.is_stopped():
                return


def _said(matcher: LLMatcher) -> str:
    """Return what went wrong in one line, without the matcher's state."""
    return " ".join(matcher.get_error().partition("<state>")[0].split())[:300] or "no value can end there"
