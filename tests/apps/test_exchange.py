"""Conversations as files: nothing is lost by exporting and importing, and any other file is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.chat.conversation.conversation import Conversation
from apps.chat.conversation.exchange import conversation_of, to_json, to_markdown
from apps.chat.conversation.store import Store
from apps.chat.conversation.turn import Turn
from tests.apps.scripted import ScriptedDecoder
from tests.apps.test_store import chat, turn
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.generation.chat_model import LocalChatModel, Written


def branched() -> Conversation:
    first = turn("84 & 36?")
    stopped = turn("And \N{GREEK SMALL LETTER PI}?", first)
    stopped.state, stopped.cut, stopped.tokens_before_answer, stopped.answering_at = "stopped", None, None, None
    conversation = chat(first, stopped, turn("And 86?", first))
    conversation.title = "Divisors"
    conversation.show(stopped)
    return conversation


def test_json_comes_back_byte_for_byte_through_the_store_too(tmp_path: Path) -> None:
    text = to_json(branched())
    assert "\N{GREEK SMALL LETTER PI}" in text
    imported = conversation_of(text)
    assert to_json(imported) == text
    store = Store(tmp_path, lambda: 0.0)
    store.write(imported)
    store.close()
    stored = Store(tmp_path, lambda: 0.0).load(1)
    assert stored is not None and to_json(stored) == text


PIECES = st.sampled_from(["\\", "## Question", "### Answer", "### Reasoning", "\n", "a", " ", "```"])
TEXTS = st.lists(PIECES, max_size=9).map("".join)


@given(questions=st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=3))
def test_the_texts_of_markdown_come_back_exactly(questions: list[tuple[str, str, str]]) -> None:
    turns: list[Turn] = []
    for question, reasoning, answer in questions:
        parent = turns[-1] if turns else None
        turns.append(Turn(question=question, context_room=0, parent=parent, reasoning=reasoning, answer=answer))
    conversation = chat(*turns)
    conversation.title = "A title"
    back = conversation_of(to_markdown(conversation))
    assert [(t.question, t.reasoning, t.answer) for t in back.turns] == questions
    assert back.title == "A title" and back.turns == back.all_turns


def test_markdown_reads_as_a_person_would_write_it() -> None:
    conversation = chat(turn("84 and 36?"))
    conversation.title = "Divisors"
    assert to_markdown(conversation) == (
        "# Divisors\n\n## Question\n\n84 and 36?\n\n### Reasoning\n\nSo\n\n\n### Answer\n\n12\n"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "unknown format 'other', version 1: expected"),
        ({"version": 2}, "version 2.*version 1"),
        ({"turns": None}, "a list of turns"),
        ({"shown": 3}, r"the shown turn \(3\) is not the number of an earlier turn \(0 to 2\)"),
    ],
)
def test_a_file_of_another_kind_is_refused(change: dict[str, Any], message: str) -> None:
    document = json.loads(to_json(branched()))
    with pytest.raises(InputError, match=message):
        conversation_of(json.dumps(document | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parent": 1}, r"the parent of turn 1 \(1\) is not the number of an earlier turn \(0 to 0\)"),
        ({"answer": 5}, r"answer of turn 1 is missing or of the wrong type \(5\)"),
        ({"state": "asleep"}, "turn 1 has an unknown state"),
        ({"token_ids": [1, "2"]}, "turn 1 has an unknown state, cut or token id"),
        ({"token_ids": [True]}, "turn 1 has an unknown state, cut or token id"),
        ({"cut": "short"}, "turn 1 has an unknown state, cut or token id"),
        ({"tokens_before_answer": -1}, r"tokens_before_answer of turn 1 \(-1\) is not within its \d+ tokens"),
        ({"tokens_before_answer": 99}, r"tokens_before_answer of turn 1 \(99\) is not within its \d+ tokens"),
        ({"tokens_before_answer": 10**30}, "tokens_before_answer of turn 1 is larger than"),
    ],
)
def test_a_turn_that_is_not_as_exported_is_refused(change: dict[str, Any], message: str) -> None:
    document = json.loads(to_json(branched()))
    document["turns"][1] |= change
    with pytest.raises(InputError, match=message):
        conversation_of(json.dumps(document))


@pytest.mark.parametrize("text", ["", "{", "[]", "hello", "# title\n\n### Answer\n\n12", '{"a": NaN}', "{" * 100_000])
def test_text_that_is_no_conversation_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="; paste "):
        conversation_of(text)


def test_lone_surrogates_are_refused_before_the_database_sees_them() -> None:
    document = json.loads(to_json(branched()))
    document["turns"][0]["answer"] = "\ud800"
    with pytest.raises(InputError, match="half of a character"):
        conversation_of(json.dumps(document))


def test_a_turn_that_was_running_when_it_was_exported_comes_in_as_stopped() -> None:
    conversation = branched()
    conversation.all_turns[1].state = "thinking"
    assert conversation_of(to_json(conversation)).all_turns[1].state == "stopped"


def test_an_import_of_more_questions_than_a_page_can_show_is_refused_at_once() -> None:
    with pytest.raises(
        InputError, match=r"200,000 questions are too many to import at once, at most 10,000; import a part"
    ):
        conversation_of("## Question\n" * 200_000)
    document = json.loads(to_json(branched()))
    document["turns"] *= 4000
    with pytest.raises(InputError, match=r"12,000 questions are too many to import at once, at most 10,000"):
        conversation_of(json.dumps(document))


def test_an_imported_turn_is_not_gone_on_with_where_an_id_is_no_token_of_the_model(tiny_student: Path) -> None:
    chat_format = ChatFormat.from_folder(tiny_student)
    model = LocalChatModel(ScriptedDecoder(chat_format, max_length=512, step_s=0.0), chat_format)
    ids = tuple(chat_format.encode("84 and 36"))
    assert model.reads(Written(reasoning="84 and 36", ids=ids))
    assert chat_format.decode([*ids, 10**6]) == "84 and 36", "decoding passes over it"
    assert not model.reads(Written(reasoning="84 and 36", ids=(*ids, 10**6)))


@pytest.mark.parametrize("system", [5, None, ["a"]])
def test_what_an_imported_turn_calls_its_system_prompt_is_taken_where_it_is_text(system: Any) -> None:
    document = json.loads(to_json(branched()))
    document["turns"][0]["settings"] = {"system": system}
    conversation = conversation_of(json.dumps(document))
    conversation.system = "Be brief."
    assert conversation.history(conversation.all_turns[0]) == [{"role": "system", "content": "Be brief."}]
