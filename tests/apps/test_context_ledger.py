"""The ledger's tokens are the tokenizer's own, its parts sum to the prompt, and it names what must leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps.chat.conversation.context import RESERVE_SHARE, ContextLedger, context_ledger, ledger_html
from apps.chat.conversation.turn import LEAST_ROOM
from tests.apps.scripted import ScriptedDecoder
from toolkit.formats.chat_format import ChatFormat
from toolkit.generation.chat_model import LocalChatModel
from toolkit.records import Message

TURNS = [("84 and 36?", "The answer is **12**."), ("And 90?", "6"), ("Why? " * 20, "Because.")]
QUESTION = "And now, <b>what</b>?"


@pytest.fixture(scope="module")
def chat_format(tiny_student: Path) -> ChatFormat:
    return ChatFormat.from_folder(tiny_student)


def messages(system: str, turns: list[tuple[str, str]], question: str) -> list[Message]:
    sent: list[Message] = [{"role": "system", "content": system}] if system else []
    for asked, answer in turns:
        sent += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return [*sent, {"role": "user", "content": question}]


def counted(chat_format: ChatFormat, sent: list[Message], context: int = 4096, left_out: int = 0) -> ContextLedger:
    model = LocalChatModel(ScriptedDecoder(chat_format, max_length=context, step_s=0.0), chat_format)
    return context_ledger(model, sent, max_new_tokens=256, left_out=left_out)


def test_each_part_is_as_long_as_its_own_text_in_the_template(chat_format: ChatFormat) -> None:
    def tokens(role: str, content: str) -> int:
        return len(chat_format.encode(f"<|im_start|>{role}\n{content}<|im_end|>\n"))

    ledger = counted(chat_format, messages("Be brief.", TURNS, QUESTION))
    assert ledger.system == tokens("system", "Be brief.")
    assert ledger.turns == tuple(tokens("user", asked) + tokens("assistant", answer) for asked, answer in TURNS)
    assert ledger.question == tokens("user", QUESTION) + len(chat_format.encode("<|im_start|>assistant\n<think>\n"))
    assert ledger.questions == tuple(asked for asked, _ in TURNS)


@pytest.mark.parametrize("system", ["", "Be brief."])
@pytest.mark.parametrize("turns", [0, 1, 3])
def test_the_parts_sum_up_to_the_prompt_that_the_model_reads(chat_format: ChatFormat, system: str, turns: int) -> None:
    sent = messages(system, TURNS[:turns], QUESTION)
    ledger = counted(chat_format, sent)
    assert ledger.prompt == len(chat_format.prompt_ids(sent)) == ledger.system + sum(ledger.turns) + ledger.question
    assert ledger.room == 4096 - ledger.prompt


def test_the_reserve_is_the_maximum_of_tokens_or_a_share_of_a_small_context(chat_format: ChatFormat) -> None:
    sent = messages("", [], QUESTION)
    assert counted(chat_format, sent, context=4096).reserve == 256
    assert counted(chat_format, sent, context=512).reserve == 512 // RESERVE_SHARE


def test_as_many_of_the_oldest_leave_as_make_room_for_the_reserve() -> None:
    turns = (38, 27, 127)
    for leaving in range(4):
        needed = 46 + sum(turns[leaving:]) + 32
        for context, expected in ((needed, leaving), (needed - 1, min(leaving + 1, 3))):
            ledger = ContextLedger(
                context=context, system=0, turns=turns, questions=("a", "b", "c"), question=46, reserve=32, left_out=0
            )
            assert (ledger.must_leave, ledger.fits) == (expected, context == needed and leaving == 0)
            assert ledger.leaving_helps == (expected > 0 and context >= 46 + LEAST_ROOM)


def test_a_question_that_is_too_long_alone_is_not_helped_by_leaving(chat_format: ChatFormat) -> None:
    ledger = counted(chat_format, messages("", TURNS, QUESTION * 40), context=400)
    assert ledger.room < 0 and ledger.must_leave == 3 and not ledger.leaving_helps
    assert "shorten the question" in ledger_html(ledger)


def test_the_warning_names_the_messages_that_would_leave_and_is_no_markup(chat_format: ChatFormat) -> None:
    turns = [("<b>first</b>", "a" * 200), ("second", "b"), ("third", "c")]
    whole = counted(chat_format, messages("", turns, QUESTION))
    ledger = counted(chat_format, messages("", turns, QUESTION), context=whole.prompt + LEAST_ROOM)
    shown = ledger_html(ledger)
    assert f"Without the oldest question and its answer there would be room for {ledger.reserve}: “&lt;b&gt;" in shown
    assert "“&lt;b&gt;first&lt;/b&gt;”." in shown and "third" not in shown
    assert f"room for {LEAST_ROOM} of them" in shown


def test_what_was_left_out_stays_named(chat_format: ChatFormat) -> None:
    ledger = counted(chat_format, messages("", TURNS[2:], QUESTION), left_out=2)
    assert "Left out, as you chose: the 2 oldest questions and their answers" in ledger_html(ledger)


def test_the_bar_shows_each_parts_share_and_the_legend_its_tokens(chat_format: ChatFormat) -> None:
    ledger = counted(chat_format, messages("", TURNS, QUESTION), context=1000)
    shown = ledger_html(ledger)
    assert f'class="history" style="width:{ledger.history / 10:.2f}%"' in shown
    assert f"<b>{ledger.history:,}</b> history" in shown and "system</span>" not in shown
    assert f"{ledger.prompt:,} of 1,000 tokens" in shown
    assert f"<b>{ledger.reserve:,}</b> kept for the answer" in shown


def test_while_a_turn_is_written_its_tokens_stand_in_the_reserve_s_place(chat_format: ChatFormat) -> None:
    ledger = counted(chat_format, messages("", TURNS, QUESTION), context=1000)
    shown = ledger_html(ledger, 37)
    assert f"{ledger.prompt + 37:,} of 1,000 tokens" in shown and "<b>37</b> written" in shown
    assert "kept for the answer" not in shown and 'role="status"' not in shown


def test_nothing_is_counted_for_a_question_that_nobody_asked(chat_format: ChatFormat) -> None:
    empty = counted(chat_format, messages("", [], "  "))
    assert empty.prompt == 0 and "0 of 4,096 tokens" in ledger_html(empty)
    assert (
        counted(chat_format, messages("", TURNS, "")).prompt == counted(chat_format, messages("", TURNS, "?")).history
    )


def test_of_many_that_must_leave_the_first_and_last_are_named_and_all_are_listed() -> None:
    def ledger(turns: int) -> ContextLedger:
        questions = tuple(f"question {i} of $x$" for i in range(turns))
        return ContextLedger(
            context=100, system=0, turns=(40,) * turns, questions=questions, question=40, reserve=50, left_out=0
        )

    few, many, most = (ledger_html(ledger(turns)) for turns in (3, 95, 5000))
    assert "<ul" not in few and "“question 0 of &#36;x&#36;”, “question 1" in few
    assert "the 95 oldest questions" in many and ": from “question 0 of &#36;x&#36;” to “question 94 of" in many
    assert many.count("<li>") == 95 and most.count("<li>") == 101 and "… 4,900 more …" in most
    assert len(many.partition("<ul")[0]) < 1200, "what stands above the buttons does not grow"


def test_counting_a_long_chat_reads_each_turn_once(chat_format: ChatFormat) -> None:
    asked = [(f"Question {i}?", "So.") for i in range(60)]
    ledger = counted(chat_format, messages("Be brief.", asked, QUESTION), context=100_000)
    assert ledger.prompt == len(chat_format.prompt_ids(messages("Be brief.", asked, QUESTION)))
    assert len(ledger.turns) == 60 and len({*ledger.turns}) == 2, "one digit more is one token more"
