"""JSON schemas as masks over the vocabulary, through llguidance.

A grammar knows what an answer holds so far and says which tokens may follow; the end-of-turn tokens may follow once the
JSON value is whole. What a schema leaves open in white space is fixed (", " and ": "), because a small model that may
write blanks can write them for ever.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from tokenizers import Tokenizer

from toolkit.errors import InputError
from toolkit.generate import Floats


class Vocabulary:
    """A tokenizer as llguidance reads it; costs about a second, so it is made once."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_ids: frozenset[int]) -> None:
        self.vocab_size = vocab_size
        self.tokens = LLTokenizer(tokenizer.to_str(), n_vocab=vocab_size, eos_token=sorted(stop_ids))


class Grammar:
    """What one answer may go on with."""

    def __init__(self, vocabulary: Vocabulary, matcher: LLMatcher) -> None:
        self._vocabulary, self._matcher = vocabulary, matcher

    @classmethod
    def of_schema(cls, vocabulary: Vocabulary, schema: str) -> Self:
        """Raises `InputError` where llguidance cannot read the schema."""
        fixed = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides=fixed)  # type: ignore[arg-type]
        except ValueError as error:
            raise InputError(f"the JSON schema cannot be followed: {error}") from error
        matcher = LLMatcher(vocabulary.tokens, grammar, log_level=0)
        if matcher.is_error():
            raise InputError(f"the JSON schema cannot be followed: {matcher.get_error().splitlines()[0]}")
        return cls(vocabulary, matcher)

    def copy(self) -> Grammar:
        """The same grammar before its own answer."""
        return Grammar(self._vocabulary, self._matcher.deep_copy())

    def masked(self, logits_V: Floats) -> Floats:
        """The logits with -inf where a token may not follow."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed_V = np.unpackbits(bits, bitorder="little")[: self._vocabulary.vocab_size].astype(bool)
        if self._matcher.is_error() or not allowed_V.any():
            raise InputError(f"the grammar has no token to go on with: {self._matcher.get_error()}")
        masked_V: Floats = np.where(allowed_V, logits_V, np.float32(-np.inf))
        return masked_V

    def take(self, token: int) -> None:
        """Note a token that was drawn under the mask."""
        if not self._matcher.consume_token(token):
            raise InputError(f"the grammar must hold token {token}: {self._matcher.get_error()}")

    def begin(self, text: str) -> None:
        """Note what came with the token that closed the thought."""
        if text and not self._matcher.consume_tokens(self._vocabulary.tokens.tokenize_str(text)):
            raise InputError("the answer began within the token that closed the thought, and not as the schema wants")
