"""A turn that can be continued or has versions gets links that act on it, and no model can write such a link."""

from __future__ import annotations

import re

import pytest

from apps.chat.conversation.conversation import Conversation
from apps.chat.conversation.turn import Turn
from apps.chat.look.look import CHAT_HEAD
from apps.chat.view.page_messages import page_messages
from apps.chat.view.turn_links import action_of, link


def texts(*turns: Turn, shown: Turn) -> list[str]:
    conversation = Conversation(all_turns=list(turns))
    conversation.show(shown)
    return [message["content"][0]["text"] for message in page_messages(conversation, 0.0)]


def labels(text: str) -> list[str]:
    return re.findall(r"\[([^\]]+)\]\(#", text)


def turn(number: int, **facts: object) -> Turn:
    return Turn(question="?", context_room=9, id=number, **{"state": "done", "answer": "12"} | facts)  # type: ignore[arg-type]


def test_what_the_script_writes_for_a_link_is_read_as_its_action() -> None:
    fragment = re.fullmatch(r"\[Go\]\(#([0-9a-f]{16})/(.+)\)", link("Go", "go-on", 7))
    assert fragment and fragment[1] in CHAT_HEAD
    assert action_of(f"{fragment[2]}/1700000000000") == ("go-on", 7)


@pytest.mark.parametrize("value", ["", "go-on/7", "go-on/x/1", "go-on/-1/1", "drop/7/1", "go-on/7/1/2"])
def test_anything_else_is_no_action(value: str) -> None:
    assert action_of(value) is None


def test_a_turn_that_the_model_ended_has_no_way_on() -> None:
    finished = turn(1)
    assert [labels(text) for text in texts(finished, shown=finished)] == [[], []]


def test_a_stopped_thought_can_go_on_or_be_answered_and_a_stopped_answer_only_go_on() -> None:
    thought = turn(1, state="stopped", reasoning="So", answer="")
    *_, note = texts(thought, shown=thought)
    assert labels(note) == ["Continue", "Answer now"]
    answer = turn(1, state="stopped", reasoning="So", tokens_before_answer=3)
    *_, note = texts(answer, shown=answer)
    assert labels(note) == ["Continue"]
    cut = turn(1, cut="limit", reasoning="So", tokens_before_answer=3)
    *_, note = texts(cut, shown=cut)
    assert labels(note) == ["Continue"]


def test_versions_lead_to_the_ones_beside_them() -> None:
    versions = [turn(number) for number in (4, 5, 9)]
    rows = [texts(*versions, shown=shown)[1] for shown in versions]
    assert [re.sub(r"\(#\w+/", "(", row) for row in rows] == [
        "version 1 of 3 [next ›](show/5)",
        "[‹ previous](show/4) version 2 of 3 [next ›](show/9)",
        "[‹ previous](show/5) version 3 of 3",
    ]
