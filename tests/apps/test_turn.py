"""What a turn says of its tokens, whatever the model draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from apps.server.row import BatchRow
from toolkit.formats.chat_format import ChatFormat
from toolkit.generation.generate import Sampling


def test_a_token_s_place_counts_whole_characters(tiny_student: Path) -> None:
    tokenizer = ChatFormat.from_folder(tiny_student).tokenizer
    text = "né 🙂 is"
    ids = tokenizer.encode(text).ids
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
    begins, said = [], ""
    for token in ids:
        logits_V = np.full(tokenizer.get_vocab_size(), -100.0, dtype=np.float32)
        logits_V[token] = 100.0
        drawn, piece = turn.draw(logits_V)
        assert drawn == token and piece.drawn is not None
        begins.append(piece.drawn.begin)
        said += "".join(delta.text for delta in piece.deltas)
    assert said == text
    assert begins == [0, 1, 1, 2, 3, 3, 3, 3, 4]
