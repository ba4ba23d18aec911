"""Reads a sequence of tokens as text while it grows: ids in, pieces of text out, in whole characters.

The pieces and the rest are the text of all ids decoded at once, but for bytes that are no UTF-8. A vocabulary with byte
fallback decodes every byte of such a run to U+FFFD, even those of whole characters in it, and so takes back what it had
decoded before the run broke. Here these characters stay.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from toolkit.formats.tokenizer_bounds import told_failures

REPLACED = "\N{REPLACEMENT CHARACTER}"
"""Stands for bytes that are no UTF-8, or not yet."""
MOST_BYTES = 4
"""The bytes of a character in UTF-8, and so the tokens of one, at most."""


class TextReader:
    """The text of tokens that come one by one; the bytes of an unfinished character wait for the others."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._before: list[int] = []
        """The ids of the last piece: behind them a word keeps its space, which the first one of a text loses."""
        self._text_before = ""
        self._waiting: list[int] = []
        """The ids that no piece holds yet."""

    def read(self, token: int) -> str:
        """The text that one more token makes certain; raises `InputError` where the tokenizer fails on it."""
        with told_failures(f"the token {token}"):
            self._waiting.append(token)
            piece = self._text(self._waiting)
            if piece.endswith(REPLACED):
                piece = self._whole_character_at_the_end()
            if piece:
                self._before, self._waiting = self._waiting, []
                self._text_before = self._decoded(self._before)
            return piece

    def rest(self) -> str:
        """The text of the tokens that `read` has not returned, without an unfinished character."""
        return self._text(self._waiting).rstrip(REPLACED)

    def _whole_character_at_the_end(self) -> str:
        """The text that waits, where it ends with a whole character behind bytes that can no longer become one."""
        for start in range(max(1, len(self._waiting) - MOST_BYTES), len(self._waiting)):
            character = self._decoded(self._waiting[start:])
            if character and REPLACED not in character:
                piece = self._text(self._waiting[:start]) + character
                self._waiting = self._waiting[start:]
                return piece
        return ""

    def _text(self, ids: Sequence[int]) -> str:
        """The text of ids behind the last piece."""
        text = self._decoded([*self._before, *ids])
        if text.startswith(self._text_before):
            return text[len(self._text_before) :]
        return self._decoded(ids)  # its own bytes broke the run that the last piece was decoded from

    def _decoded(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text
