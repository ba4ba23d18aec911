"""Tokens read one by one give the text of all of them, and lose no character where bytes are not UTF-8."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from tests.toolkit.made_tokenizers import GPT_2, LLAMA, byte_level, sentence_piece, unigram, word_piece
from toolkit.formats.text_reader import REPLACED, TextReader

MADE = {
    "legacy": lambda: sentence_piece("legacy"),
    "first": lambda: sentence_piece("first"),
    "never": lambda: sentence_piece("never"),
    "gpt2": lambda: byte_level(GPT_2),
    "llama3": lambda: byte_level(LLAMA, ignore_merges=True),
    "unigram": lambda: unigram("first", control=[], nfkc=False),
    "bert": lambda: word_piece(split_signs=True),
}
FIRST_BYTE = 3
"""The id of <0x00> in `sentence_piece`."""
RUNS = st.one_of(
    st.integers(0, 255).map(lambda byte: [FIRST_BYTE + byte]),
    st.just([FIRST_BYTE + ord(" ")]),
    st.characters(codec="utf-8", exclude_characters=REPLACED).map(
        lambda character: [FIRST_BYTE + byte for byte in character.encode()]
    ),
    st.integers(FIRST_BYTE + 256, 399).map(lambda piece: [piece]),
)


@lru_cache
def made(kind: str) -> Tokenizer:
    return MADE[kind]()


def read(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    reader = TextReader(tokenizer)
    return "".join(map(reader.read, ids)) + reader.rest()


def of_bytes(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Decode a SentencePiece-like tokenizer's ids from their bytes."""
    written = b"".join(
        bytes([token - FIRST_BYTE])
        if FIRST_BYTE <= token < FIRST_BYTE + 256
        else (tokenizer.id_to_token(token) or "").replace("▁", " ").encode()
        for token in ids
    )
    return written.decode(errors="replace").removeprefix(" ")


@pytest.mark.parametrize("kind", MADE)
@given(text=st.text(max_size=40))
def test_pieces_are_the_text_of_all_ids_decoded_at_once(kind: str, text: str) -> None:
    tokenizer = made(kind)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    whole = tokenizer.decode(ids, skip_special_tokens=False)
    assert read(tokenizer, ids).rstrip(REPLACED) == whole.rstrip(REPLACED)


@pytest.mark.parametrize("kind", ["legacy", "first", "never"])
@given(runs=st.lists(RUNS, max_size=12))
def test_no_character_and_no_space_is_lost_where_bytes_are_no_utf_8(kind: str, runs: list[list[int]]) -> None:
    tokenizer, ids = made(kind), [token for run in runs for token in run]
    said = read(tokenizer, ids)
    assert said.replace(REPLACED, "") == of_bytes(tokenizer, ids).replace(REPLACED, "")
    whole = tokenizer.decode(ids, skip_special_tokens=False)
    if REPLACED not in whole:
        assert said == whole
    left = iter(said)
    assert all(character in left for character in whole.replace(REPLACED, "")), "decoding all at once says no more"


def test_a_run_that_breaks_behind_a_whole_character_is_read_on() -> None:
    tokenizer = made("first")
    broken = [*(FIRST_BYTE + byte for byte in "你".encode()), FIRST_BYTE + 0xFF, tokenizer.get_vocab()["a"]]
    stream = DecodeStream(skip_special_tokens=False)
    with pytest.raises(Exception, match="Invalid prefix"):
        [stream.step(tokenizer, token) for token in broken]
    assert read(tokenizer, broken) == f"你{REPLACED}a"
    assert read(tokenizer, [*broken[:4], *broken[:3], *broken]) == f"你{REPLACED}你你{REPLACED}a"


@pytest.mark.parametrize("kind", ["first", "gpt2"])
def test_an_unfinished_character_waits_and_what_stands_before_it_in_its_token_is_the_rest(kind: str) -> None:
    tokenizer = made(kind)
    ids = tokenizer.encode("a 🙂", add_special_tokens=False).ids
    reader = TextReader(tokenizer)
    pieces = [reader.read(token) for token in ids]
    assert "".join(pieces) == "a 🙂" and set(pieces[-3:-1]) == {""}
    assert read(tokenizer, ids[:-1]).strip() == "a"
