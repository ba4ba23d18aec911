"""Reads a sequence of tokens as text while it grows: ids in, pieces of text out, in whole characters.

The pieces and the rest add up to the text of all ids decoded at once, except where bytes are not UTF-8. A vocabulary
with byte fallback then decodes every byte of the run to U+FFFD, even those of whole characters in it, and so takes back
what it decoded before the run broke. The reader keeps these characters.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from toolkit.formats.tokenizer_bounds import tokenizer_errors

REPLACED = "\N{REPLACEMENT CHARACTER}"
"""Decoders write it for bytes that are not UTF-8, or not yet."""
MOST_BYTES = 4
"""The most bytes, and so the most tokens, of one UTF-8 character."""


class TextReader:
    """Reads tokens that come one by one; the bytes of an unfinished character wait for the rest of it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._before: list[int] = []
        """The ids of the last piece, as context: decoding drops the space before the first word of a text."""
        self._text_before = ""
        self._waiting: list[int] = []
        """The ids whose text is in no piece yet."""

    def read(self, token: int) -> str:
        """Return the text that one more token makes certain; raises `InputError` if the tokenizer fails on it."""
        with tokenizer_errors(f"the token {token}"):
            self._waiting.append(token)
            piece = self._text(self._waiting)
            if piece.endswith(REPLACED):
                piece = self._whole_character_at_the_end()
            if piece:
                self._before, self._waiting = self._waiting, []
                self._text_before = self._decoded(self._before)
            return piece

    def rest(self) -> str:
        """Return the text that `read` has held back, without an unfinished character."""
        return self._text(self._waiting).rstrip(REPLACED)

    def _whole_character_at_the_end(self) -> str:
        """Take the waiting text if it ends with a whole character after bytes that can no longer become one."""
        for start in range(max(1, len(self._waiting) - MOST_BYTES), len(self._waiting)):
            ids = self._waiting[start:]
            character = self._decoded([*ids, *ids])[len(self._decoded(ids)) :]  # once more, behind itself
            if character and REPLACED not in character:
                piece = self._text(self._waiting[:start]) + character
                self._waiting = self._waiting[start:]
                return piece
        return ""

    def _text(self, ids: Sequence[int]) -> str:
        """Decode ids as they are after the last piece."""
        text = self._decoded([*self._before, *ids])
        if text.startswith(self._text_before):
            return text[len(self._text_before) :]
        return self._decoded(ids)  # its own bytes broke the run that the last piece was decoded from

    def _decoded(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text
