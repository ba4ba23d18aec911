"""The state of a chat, over a real tokenizer, the real decode loop and a decoder whose logits are written ahead."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from apps.chat.conversation.author import UPDATES_PER_S, run_turn
from apps.chat.conversation.conversation import Conversation
from apps.chat.conversation.turn import LEAST_ROOM, Turn
from apps.chat.view.page_messages import page_messages
from tests.apps.scripted import SCRIPTS, ScriptedDecoder
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat, split_completion
from toolkit.generation.chat_model import LocalChatModel
from toolkit.generation.generate import GREEDY, Floats, Ints, Sampling

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


def scripted(chat_format: ChatFormat, context: int = 4096) -> LocalChatModel:
    return LocalChatModel(ScriptedDecoder(chat_format, max_length=context, step_s=0.0), chat_format)


def started(
    conversation: Conversation, question: str, chat_format: ChatFormat, sampling: Sampling = GREEDY, context: int = 4096
) -> tuple[Turn, Iterator[None]]:
    model = scripted(chat_format, context)
    messages = conversation.messages(question)
    turn = conversation.ask(question, model)
    return turn, run_turn(model, messages, turn, sampling, Clock())


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
        model = scripted(chat_format)
        conversation = Conversation()
        turn = conversation.ask("?", model)

        def stop_at_length(turn: Turn = turn, length: int = length) -> float:
            turn.stop_requested = len(turn.token_ids) >= length - 1
            return 0.0

        list(run_turn(model, conversation.messages("?"), turn, GREEDY, stop_at_length))
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
    with pytest.raises(InputError, match=rf"{needed:,} tokens.*fewer than {LEAST_ROOM} .*shorter question"):
        conversation.ask(question, scripted(chat_format, needed + LEAST_ROOM - 1))
    assert conversation.turns == []
    assert conversation.ask(question, scripted(chat_format, needed + LEAST_ROOM)).context_room == LEAST_ROOM
    with pytest.raises(InputError, match="start a new chat"):
        conversation.ask(question, scripted(chat_format, needed + LEAST_ROOM))


class Dice:
    """A decoder with fixed probabilities, so that a seed decides every token."""

    max_length = 400

    def __init__(self, chat_format: ChatFormat) -> None:
        generator = np.random.default_rng(7)
        self.logits_V = generator.normal(size=chat_format.tokenizer.get_vocab_size()).astype(np.float32)
        self.logits_V[list(chat_format.stop_ids)] = -1e9

    def start(self, prompts: Sequence[Sequence[int]]) -> Floats:
        self.count = len(prompts[0])
        return self._next()

    def step(self, tokens_B: Ints) -> Floats:
        self.count += 1
        return self._next()

    def keep(self, rows: Ints) -> None:
        raise AssertionError("a chat has one row")

    def replace(self, rows: Ints, prompts: Sequence[Sequence[int]]) -> Floats:
        raise AssertionError("a chat has one row")

    def _next(self) -> Floats:
        return np.roll(self.logits_V, self.count)[None]


def stop_after(turn: Turn, tokens: int) -> Callable[[], float]:
    def clock() -> float:
        turn.stop_requested = len(turn.token_ids) >= tokens - 1
        return 0.0

    return clock


def test_a_turn_that_was_stopped_and_goes_on_equals_one_that_ran_through(chat_format: ChatFormat) -> None:
    sampling = Sampling(temperature=1.3, max_new_tokens=60, seed=3)

    def dice() -> LocalChatModel:
        return LocalChatModel(Dice(chat_format), chat_format)

    def asked() -> tuple[Conversation, Turn]:
        conversation = Conversation()
        return conversation, conversation.ask("?", dice())

    conversation, whole = asked()
    list(run_turn(dice(), conversation.messages("?", whole), whole, sampling, Clock()))
    assert len(set(whole.token_ids)) > 20
    for length in (1, 2, 17, 59):
        conversation, turn = asked()
        messages = conversation.messages("?", turn)
        list(run_turn(dice(), messages, turn, sampling, stop_after(turn, length)))
        assert (turn.state, len(turn.token_ids)) == ("stopped", length)
        assert conversation.resume(turn, dice()) is turn
        rest = replace(sampling, max_new_tokens=60 - length)
        list(run_turn(dice(), messages, turn, rest, Clock()))
        assert turn.token_ids == whole.token_ids
        assert (turn.reasoning, turn.answer, turn.cut) == (whole.reasoning, whole.answer, "limit")


def test_a_turn_goes_on_after_any_token_whatever_the_parser_held_back(chat_format: ChatFormat) -> None:
    """The turn is interrupted within the tag, at every character, and its text is the same as without interruption."""
    ids = chat_format.encode(ANSWERED)
    whole = split_completion(ANSWERED, opened=True)
    for length in range(1, len(ids)):
        conversation = Conversation()
        model = scripted(chat_format)
        turn = conversation.ask("?", model)
        messages = conversation.messages("?", turn)
        list(run_turn(model, messages, turn, GREEDY, stop_after(turn, length)))
        assert turn.token_ids == ids[:length]
        list(run_turn(model, messages, turn, GREEDY, Clock()))
        assert (turn.state, turn.reasoning, turn.answer) == ("done", whole.reasoning, whole.answer)
        assert turn.reasoning_tokens == len(chat_format.encode(ANSWERED.partition("The answer")[0]))


def test_the_time_between_stopping_and_going_on_does_not_count(chat_format: ChatFormat) -> None:
    turn, updates = started(Conversation(), "84 and 36?", chat_format, Sampling(temperature=0, max_new_tokens=10))
    list(updates)
    thought_s = turn.thinking_s(0.0)
    turn.start(scripted(chat_format), 1e6)
    assert turn.thinking_s(1e6 + 2.0) == pytest.approx(thought_s + 2.0)


def test_a_thinking_budget_closes_the_thought_and_the_model_answers(chat_format: ChatFormat) -> None:
    conversation = Conversation()
    model = scripted(chat_format)
    turn = conversation.ask("a long thought", model)
    messages = conversation.messages(turn.question, turn)
    list(run_turn(model, messages, turn, GREEDY, Clock(), thinking_budget=30))
    thought = chat_format.encode(SCRIPTS["long thought"])[:30]
    closing = chat_format.encode("\n</think>\n\n")
    assert turn.token_ids[: 30 + len(closing)] == thought + closing
    assert (turn.state, turn.reasoning) == ("done", chat_format.decode(thought))
    assert turn.answer == SCRIPTS["long thought"].partition("</think>\n\n")[2]
    assert turn.reasoning_tokens == 30 + len(closing)


def test_answer_now_closes_a_thought_once_wherever_it_comes(chat_format: ChatFormat) -> None:
    ids = chat_format.encode(ANSWERED)
    for length in range(1, len(ids)):
        conversation = Conversation()
        model = scripted(chat_format)
        turn = conversation.ask("?", model)

        def clock(turn: Turn = turn, length: int = length) -> float:
            turn.answer_requested = turn.state == "thinking" and len(turn.token_ids) >= length - 1
            return 0.0

        list(run_turn(model, conversation.messages("?", turn), turn, GREEDY, clock))
        assert chat_format.decode(turn.token_ids).count("</think>") == 1
        assert (turn.state, turn.answer) == ("done", "The answer is **12**.")
        assert chat_format.decode(ids).startswith(turn.reasoning)


def test_a_turn_of_another_tokenizer_is_not_gone_on_with(chat_format: ChatFormat) -> None:
    turn = Turn(question="?", context_room=0, model="other", state="stopped", reasoning="So", token_ids=[5, 6])
    conversation = Conversation(turns=[turn], all_turns=[turn])
    with pytest.raises(InputError, match=r"cannot continue what other wrote.*open that model"):
        conversation.resume(turn, scripted(chat_format))


def test_asking_again_keeps_every_version_and_the_path_can_be_switched() -> None:
    """The tree: A then B or C; B then D."""
    conversation = Conversation()
    a, b = (asked(conversation, question) for question in "AB")
    d = asked(conversation, "D")
    c = asked(conversation, "C", instead_of=b)
    assert conversation.turns == [a, c]
    assert conversation.versions(b) == conversation.versions(c) == [b, c]
    assert conversation.versions(d) == [d]
    conversation.show(b)
    assert conversation.turns == [a, b, d]
    assert [m["content"] for m in conversation.messages("D", d)] == ["A", "", "B", "", "D"]
    other = asked(conversation, "X", instead_of=a)
    assert conversation.turns == [other] and conversation.versions(a) == [a, other]
    conversation.show(c)
    assert conversation.turns == [a, c]


def test_going_on_in_the_middle_makes_a_version_and_leaves_what_followed(chat_format: ChatFormat) -> None:
    conversation = Conversation()
    first, second = (asked(conversation, question) for question in "AB")
    first.state, first.token_ids = "stopped", chat_format.encode("So")
    first.reasoning = "So"
    resumed = conversation.resume(first, scripted(chat_format))
    assert resumed is not first and resumed.token_ids == first.token_ids is not resumed.token_ids
    assert conversation.turns == [resumed] and conversation.versions(first) == [first, resumed]
    conversation.show(first)
    assert conversation.turns == [first, second]


def asked(conversation: Conversation, question: str, instead_of: Turn | None = None) -> Turn:
    """Add a turn without a model."""
    return conversation._add(Turn(question=question, context_room=100), instead_of)


def test_a_long_chain_and_many_versions_are_shown_with_work_that_grows_as_they_do() -> None:
    def lines_run(turns: int, is_chain: bool) -> int:
        conversation = Conversation()
        for i in range(turns):
            parent = conversation.all_turns[-1] if is_chain and i else None
            conversation.all_turns.append(Turn(question="?", context_room=9, parent=parent, state="done", id=i))
        count = 0

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal count
            count += event == "line" and "/apps/" in frame.f_code.co_filename
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            conversation.show(conversation.all_turns[0])
            shown = page_messages(conversation, 0.0)
        finally:
            sys.settrace(before)
        assert len(conversation.turns) == (turns if is_chain else 1) and shown
        return count

    for is_chain in (True, False):
        assert lines_run(800, is_chain) <= 2 * lines_run(400, is_chain) + 50
