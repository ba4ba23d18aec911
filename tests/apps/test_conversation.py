"""The state of a chat, over a real tokenizer, the real decode loop and a decoder whose logits are written ahead."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from apps.conversation import LEAST_ROOM, UPDATES_PER_S, Conversation, Turn, run_turn
from tests.apps.scripted import SCRIPTS, ScriptedDecoder
from toolkit.chat_format import ChatFormat, split_completion
from toolkit.errors import InputError
from toolkit.generate import GREEDY, Sampling

ANSWERED = SCRIPTS[""]
STEP_S = 0.01


@pytest.fixture(scope="module")
def chat_format(tiny_student: Path) -> ChatFormat:
    return ChatFormat.from_folder(tiny_student)


class Clock:
    """A clock that moves a fixed step at each reading."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += STEP_S
        return self.now


def started(
    conversation: Conversation, question: str, chat_format: ChatFormat, sampling: Sampling = GREEDY, context: int = 4096
) -> tuple[Turn, Iterator[None]]:
    decoder = ScriptedDecoder(chat_format, max_length=context, step_s=0.0)
    messages = conversation.messages(question)
    turn = conversation.ask(question, chat_format, context)
    return turn, run_turn(decoder, chat_format, messages, turn, sampling, Clock())


def test_a_turn_thinks_then_answers_then_is_done(chat_format: ChatFormat) -> None:
    turn, updates = started(Conversation(), "84 and 36?", chat_format)
    states = [turn.state]
    for _ in updates:
        if states[-1] != turn.state:
            states.append(turn.state)
    assert [*states, turn.state] == ["waiting", "thinking", "answering", "done"]
    whole = split_completion(ANSWERED, opened=True)
    assert (turn.reasoning, turn.answer, turn.cut) == (whole.reasoning, whole.answer, None)


def test_token_counts_add_up_and_split_where_the_answer_begins(chat_format: ChatFormat) -> None:
    turn, updates = started(Conversation(), "84 and 36?", chat_format)
    list(updates)
    before, _, _ = ANSWERED.partition("The answer")
    assert turn.token_ids == [*chat_format.encode(ANSWERED), *chat_format.stop_ids]
    assert turn.reasoning_tokens == len(chat_format.encode(before))
    assert turn.reasoning_tokens + turn.answer_tokens == len(turn.token_ids)


def test_durations_and_speed_follow_the_callers_clock(chat_format: ChatFormat) -> None:
    turn, updates = started(Conversation(), "84 and 36?", chat_format)
    list(updates)
    assert turn.answering_at is not None
    assert turn.thinking_s(now=1e9) == pytest.approx(turn.answering_at - turn.started_at)
    assert turn.tokens_per_s == pytest.approx(1 / STEP_S, rel=0.05)


def test_updates_come_no_oftener_than_the_pace(chat_format: ChatFormat) -> None:
    turn, updates = started(Conversation(), "84 and 36?", chat_format)
    count = sum(1 for _ in updates)
    assert turn.ended_at is not None
    assert 1 < count <= 1 + (turn.ended_at - turn.started_at) * UPDATES_PER_S


def test_stopping_after_any_token_keeps_every_piece_of_text(chat_format: ChatFormat) -> None:
    ids = chat_format.encode(ANSWERED)
    for length in range(1, len(ids)):
        decoder = ScriptedDecoder(chat_format, max_length=4096, step_s=0.0)
        conversation = Conversation()
        turn = conversation.ask("?", chat_format, decoder.max_length)

        def stop_at_length(turn: Turn = turn, length: int = length) -> float:
            turn.stop_requested = len(turn.token_ids) >= length - 1
            return 0.0

        list(run_turn(decoder, chat_format, conversation.messages("?"), turn, GREEDY, stop_at_length))
        kept = split_completion(chat_format.decode(ids[:length]), opened=True)
        assert (turn.state, turn.reasoning, turn.answer) == ("stopped", kept.reasoning, kept.answer)


def test_closing_the_run_early_stops_the_turn_and_keeps_its_text(chat_format: ChatFormat) -> None:
    turn, updates = started(Conversation(), "a long thought", chat_format)
    for _ in range(5):
        next(updates)
    updates.close()  # type: ignore[attr-defined]
    assert turn.state == "stopped" and SCRIPTS["long thought"].startswith(turn.reasoning) and turn.reasoning


def test_the_maximum_of_tokens_and_a_full_context_are_told_apart(chat_format: ChatFormat) -> None:
    turn, updates = started(Conversation(), "a long thought", chat_format, Sampling(temperature=0, max_new_tokens=20))
    list(updates)
    assert (turn.state, turn.cut, len(turn.token_ids)) == ("done", "limit", 20)
    turn, updates = started(Conversation(), "a long thought", chat_format, GREEDY, context=100)
    list(updates)
    assert (turn.state, turn.cut, len(turn.token_ids)) == ("done", "context", turn.context_room)


def test_earlier_reasoning_is_not_sent_back(chat_format: ChatFormat) -> None:
    conversation = Conversation()
    for question in ("84 and 36?", "a long thought"):
        turn, updates = started(conversation, question, chat_format)
        next(updates)
        turn.stop_requested = question == "a long thought"
        list(updates)
    assert conversation.messages("And now?") == [
        {"role": "user", "content": "84 and 36?"},
        {"role": "assistant", "content": "The answer is **12**."},
        {"role": "user", "content": "a long thought"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "And now?"},
    ]


def test_a_conversation_that_does_not_fit_is_refused_whole(chat_format: ChatFormat) -> None:
    conversation = Conversation()
    question = "Why? " * 30
    needed = len(chat_format.question_ids(question))
    with pytest.raises(InputError, match=rf"{needed:,} tokens.*leave {LEAST_ROOM} tokens.*shorter question"):
        conversation.ask(question, chat_format, needed + LEAST_ROOM - 1)
    assert conversation.turns == []
    assert conversation.ask(question, chat_format, needed + LEAST_ROOM).context_room == LEAST_ROOM
    with pytest.raises(InputError, match="start a new chat"):
        conversation.ask(question, chat_format, needed + LEAST_ROOM)
