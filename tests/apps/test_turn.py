"""What a turn says of its tokens, whatever the model draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models

from apps.server.row import BatchRow, Piece
from toolkit.formats.chat_format import ChatFormat
from toolkit.generation.generate import Sampling


def drawn(tokenizer: Tokenizer, ids: Sequence[int]) -> list[Piece]:
    """Draw the pieces of a turn whose model is certain of each of these tokens, and which ends with the last."""
    turn = BatchRow(
        [0],
        tokenizer=tokenizer,
        stop_ids=frozenset(),
        sampling=Sampling(max_new_tokens=len(ids)),
        parser=None,
        stop=(),
        grammar=None,
        top_logprobs=0,
        deliver=lambda piece: None,
    )
    pieces = []
    for token in ids:
        logits_V = np.full(tokenizer.get_vocab_size(), -100.0, dtype=np.float32)
        logits_V[token] = 100.0
        drawn, piece = turn.draw(logits_V)
        assert drawn == token
        pieces.append(piece)
    return pieces


def said(pieces: Sequence[Piece]) -> str:
    return "".join(delta.text for piece in pieces for delta in piece.deltas)


def test_a_token_s_place_counts_whole_characters(tiny_student: Path) -> None:
    tokenizer = ChatFormat.from_folder(tiny_student).tokenizer
    text = "né 🙂 is"
    pieces = drawn(tokenizer, tokenizer.encode(text).ids)
    assert said(pieces) == text
    assert [piece.drawn.begin for piece in pieces if piece.drawn] == [0, 1, 1, 2, 3, 3, 3, 3, 4]


def test_a_turn_cut_within_a_character_says_what_stands_before_it() -> None:
    tokenizer = Tokenizer(models.BPE({"b": 0, "aÃ": 1}, []))  # the second is a, and the first byte of é
    tokenizer.decoder = decoders.ByteLevel()
    assert said(drawn(tokenizer, [0, 1])) == "ba"
