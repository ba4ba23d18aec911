"""The events of a model that runs here hold every piece of its text, wherever the turn ends."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tokenizers import Tokenizer, decoders, models

from toolkit.formats.chat_format import TURN_END, ChatFormat, Delta
from toolkit.generation.chat_model import LocalChatModel, TurnEvent, TurnReader, Written
from toolkit.generation.generate import Floats, Ints
from toolkit.records import FinishReason

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
PIECES = {"a": "a", "b": "b", "<": "<", "aÃ": "a and the first byte of é", "©": "its second byte", TURN_END: ""}
"""Tokens as byte-level tokenizers spell them → what they are."""
A, B, TAG, A_AND_HALF, HALF, END = range(len(PIECES))


class Silent:
    """A decoder that must never be asked."""

    max_length = 100

    def start(self, prompts: Sequence[Sequence[int]]) -> Floats:
        raise AssertionError

    def step(self, tokens_B: Ints) -> Floats:
        raise AssertionError

    def keep(self, rows: Ints) -> None:
        raise AssertionError

    def replace(self, rows: Ints, prompts: Sequence[Sequence[int]]) -> Floats:
        raise AssertionError


@pytest.fixture(scope="module")
def model() -> LocalChatModel:
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(PIECES)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    return LocalChatModel(Silent(), ChatFormat(tokenizer, TEMPLATE, frozenset({END}), {}))


def events(model: LocalChatModel, ids: Sequence[int], reason: FinishReason | None = None) -> list[TurnEvent]:
    reader = TurnReader(model.chat_format)
    return [reader.read(token, reason if place == len(ids) else None) for place, token in enumerate(ids, 1)]


def text(deltas: Sequence[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def test_a_token_that_begins_a_character_keeps_what_stands_before_it(model: LocalChatModel) -> None:
    read = events(model, [B, A_AND_HALF, HALF, TAG])
    certain = [text(event.deltas) for event in read]
    assert certain == ["b", "", "aé", "<"]
    assert [text(event.held) for event in read] == ["", "a", "", ""], "it is the turn's where the turn ends there"


@pytest.mark.parametrize(("ids", "reason"), [((B, A_AND_HALF), "length"), ((B, A_AND_HALF, END), "stop")])
def test_the_last_event_holds_nothing_back(model: LocalChatModel, ids: tuple[int, ...], reason: FinishReason) -> None:
    read = events(model, ids, reason)
    assert "".join(text(event.deltas) for event in read) == "ba" and read[-1].held == ()
    assert (read[-1].finish_reason, sum(event.tokens for event in read)) == (reason, len(ids))


def test_what_is_taken_up_is_what_was_certain_and_what_was_held_back(model: LocalChatModel) -> None:
    ids = (TAG, A, B, A_AND_HALF)
    for length in range(1, len(ids) + 1):
        read = events(model, ids[:length])
        certain = "".join(text(event.deltas) for event in read)
        taken = model.taken_up(Written(answer=certain + text(read[-1].held), ids=ids[:length], tokens=length))
        assert (taken.answer, taken.held, taken.closed) == (certain, read[-1].held, True)
        assert model.reads(Written(answer=certain + text(read[-1].held), ids=ids[:length]))
