"""The page's handlers, called as the page calls them: a scripted decoder, a real store, no browser."""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from apps.chat.conversation.author import Author
from apps.chat.conversation.conversation import Conversation
from apps.chat.conversation.store import Store
from apps.chat.conversation.tab import Tab
from apps.chat.page.dialogue import act, answer, seed_of
from apps.chat.page.updates import NOTHING, SKIP, Update, asked, follow, shown
from apps.chat.panels.settings_panel import defaults
from apps.model import Model
from tests.apps.scripted import SCRIPTS, ScriptedDecoder
from toolkit.formats.chat_format import ChatFormat, split_completion
from toolkit.generation.chat_model import LocalChatModel

CONTEXT = 600


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path, time.time)
    yield store
    store.close()


@pytest.fixture
def model(tiny_student: Path) -> Model:
    chat_format = ChatFormat.from_folder(tiny_student)
    decoder = ScriptedDecoder(chat_format, max_length=CONTEXT, step_s=0.0)
    return Model(name="scripted", size_bytes=1, chat_model=LocalChatModel(decoder, chat_format))


@pytest.fixture
def slow(model: Model) -> Model:
    assert isinstance(model.chat_model, LocalChatModel) and isinstance(model.chat_model.decoder, ScriptedDecoder)
    model.chat_model.decoder.step_s = 0.01
    return model


def ask(model: Model, store: Store, question: str, conversation: Conversation) -> list[tuple[Any, ...]]:
    return [
        *answer(
            Author(model, store), store, question, "", Tab(conversation=conversation), *defaults(CONTEXT).panel_values()
        )
    ]


def begun(model: Model, store: Store, question: str, tab: Tab) -> Generator[Update, None, None]:
    """Ask in a tab, and return what it is shown after the beginning."""
    writing = answer(Author(model, store), store, question, "", tab, *defaults(CONTEXT).panel_values())
    next(writing)
    return writing


def choose(model: Model, store: Store, chosen: str, conversation: Conversation) -> list[tuple[Any, ...]]:
    return [
        *act(
            Author(model, store),
            store,
            f"{chosen}/1",
            "",
            Tab(conversation=conversation),
            *defaults(CONTEXT).panel_values(),
        )
    ]


def notice(update: tuple[Any, ...]) -> str:
    return str(update[3]["value"])


def test_a_turn_that_filled_the_context_goes_on_once_the_user_lets_older_ones_leave(model: Model, store: Store) -> None:
    conversation = Conversation()
    ask(model, store, "What divides 84 and 36?", conversation)
    ask(model, store, "A long thought, please", conversation)
    turn = conversation.turns[1]
    assert turn.cut == "context" and len(turn.token_ids) == turn.context_room
    written = turn.reasoning

    (told,) = choose(model, store, f"go-on/{turn.id}", conversation)
    assert "must leave it: “What divides 84 and 36?”" in notice(told) and turn.reasoning == written
    link = re.search(r"#\w+/(go-on-without/\d+)\)", notice(told))
    assert link and link[1] == f"go-on-without/{turn.id}"

    choose(model, store, link[1], conversation)
    script = split_completion(SCRIPTS["long thought"], opened=True).reasoning
    assert conversation.turns[1] is turn and conversation.left_out == 1
    assert len(turn.reasoning) > len(written) and script.startswith(turn.reasoning)
    assert turn.cut == "context"

    (told,) = choose(model, store, f"go-on/{turn.id}", conversation)
    assert f"leaves fewer than 32 of the {CONTEXT} tokens of the model's context free" in notice(told)

    conversation.left_out, turn.answer = 0, "words of another model"
    told = choose(model, store, link[1], conversation)[-1]
    assert "this model cannot continue what" in notice(told).casefold()
    assert conversation.left_out == 0, "a refusal changes nothing"


def test_each_question_empties_the_box_though_gradio_takes_the_update_apart(model: Model, store: Store) -> None:
    conversation = Conversation()
    for question in ("What divides 84 and 36?", "And once more?"):
        emptied = []
        for update in ask(model, store, question, conversation):
            if update[1] != SKIP:
                emptied.append(update[1].pop("value", None))
        assert "" in emptied


def test_a_turn_that_is_over_before_it_is_shown_empties_the_box_too(model: Model, store: Store) -> None:
    conversation = Conversation()
    turn = conversation.ask("What divides 84 and 36?", model.chat_model)
    feed = Author(model, store).begin(conversation, turn, defaults(CONTEXT).sampling(0))
    for _ in feed.follow("a tab"):
        pass
    updates = [*shown(store, "", Tab(conversation=conversation), feed, box=asked(), chats=SKIP)]
    assert [update[1].get("value") for update in updates] == ["", None]
    assert updates[-1][1]["submit_btn"] == "Send"


def test_an_answer_begins_once_older_turns_have_left(model: Model, store: Store) -> None:
    conversation = Conversation()
    ask(model, store, "What divides 84 and 36?", conversation)
    ask(model, store, "A long thought, please", conversation)
    turn = conversation.turns[1]
    (told,) = choose(model, store, f"answer/{turn.id}", conversation)
    assert f"/answer-without/{turn.id}" in notice(told)
    choose(model, store, f"answer-without/{turn.id}", conversation)
    assert (turn.state, turn.answer) == ("done", "never reached")


def test_a_turn_without_a_seed_draws_one_and_keeps_it(model: Model, store: Store) -> None:
    conversation = Conversation()
    for _ in range(3):
        ask(model, store, "84 and 36?", conversation)
    seeds = [seed_of(turn) for turn in conversation.turns]
    assert len({*seeds}) > 1 and seeds == [turn.settings["seed"] for turn in conversation.turns]


def test_a_rendering_and_its_mark_are_of_one_moment(slow: Model, store: Store) -> None:
    """What the script appends begins where the mark says that the rendering ends: no letter twice, and none missing."""
    shown: list[dict[str, Any]] = []
    marks: list[str] = []
    for update in answer(Author(slow, store), store, "twenty steps", "", Tab(), *defaults(CONTEXT).panel_values()):
        shown = shown if update[0] == SKIP else update[0]
        if found := re.search(r'title="\d+/(\d*)/(\d*)"', str(update[2])):
            texts = [message["content"][0]["text"] for message in shown if message["role"] == "assistant"]
            marks.append(found[0])
            assert [int(length or 0) for length in found.groups()] == [len(text) for text in (*texts, "")[:2]]
    assert len({*marks}) > 2


def test_a_tab_that_leaves_what_another_one_follows_stops_nothing(slow: Model, store: Store) -> None:
    writer, reader = Tab(), Tab()
    panel_values = defaults(CONTEXT).panel_values()
    writing = begun(slow, store, "84 and 36?", writer)
    reader.open(writer.conversation)
    asking = answer(Author(slow, store), store, "And 7?", "", reader, *panel_values)
    assert next(asking) == NOTHING
    assert next(asking)[1]["stop_btn"] == "Stop", "one turn at a time: the tab that asks is shown the running one"
    assert [*answer(Author(slow, store), store, "And 7?", "", reader, *panel_values)] == [NOTHING], "it follows already"
    reader.open(Conversation())
    (last,) = asking
    assert (last[0], last[1]["submit_btn"]) == ([], "Send"), "it shows another chat now"
    assert writer.conversation.busy and not writer.conversation.turns[-1].stop_requested
    assert [*writing][-1][1]["submit_btn"] == "Send"


def test_a_turn_goes_on_while_its_tab_is_loaded_again(slow: Model, store: Store) -> None:
    tab = Tab()
    writing = begun(slow, store, "84 and 36?", tab)
    writing.close()
    again = Tab(conversation=tab.conversation)
    updates = [*follow(store, "", again)]
    assert updates[0][1] == {"submit_btn": False, "stop_btn": "Stop", "__type__": "update"}, "the box keeps its text"
    assert updates[-1][1]["submit_btn"] == "Send"
    (turn,) = tab.conversation.turns
    script = split_completion(SCRIPTS[""], opened=True)
    assert (turn.state, turn.reasoning, turn.answer) == ("done", script.reasoning, script.answer)
    (resting,) = follow(store, "", again)
    assert resting[1]["submit_btn"] == "Send"


def test_a_tab_ends_the_turn_that_it_alone_follows_before_it_shows_another_chat(slow: Model, store: Store) -> None:
    tab = Tab()
    writing = begun(slow, store, "A long thought, please", tab)
    left = tab.conversation
    tab.open(Conversation())
    assert not left.busy and left.turns[-1].state == "stopped" and tab.conversation is not left
    (last,) = writing
    assert (last[0], last[1]["submit_btn"]) == ([], "Send"), (
        "what was on its way may come after the chat that it opened"
    )


def test_a_tab_that_goes_to_a_chat_that_is_being_written_is_not_told_the_one_it_left(slow: Model, store: Store) -> None:
    writer, tab = Tab(), Tab()
    writing = begun(slow, store, "84 and 36?", writer)
    tab.open(writer.conversation)
    left = follow(store, "", tab)
    next(left)
    tab.open(Conversation())
    tab.open(writer.conversation)
    (last,) = left
    assert last[0] == SKIP or "84 and 36?" in str(last[0])
    assert [*writing][-1][1]["submit_btn"] == "Send"


def test_the_last_that_a_tab_is_told_is_what_it_shows(slow: Model, store: Store) -> None:
    """The turn ends by itself while the page still hears of it, and the user opens another chat in that moment."""
    tab = Tab()
    writing = answer(Author(slow, store), store, "84 and 36?", "", tab, *defaults(CONTEXT).panel_values())
    for update in writing:
        if update[1] != SKIP and update[1].get("submit_btn") == "Send":
            tab.open(Conversation())
            break
    (last,) = writing
    assert last[0] == []


def test_a_chat_is_told_where_the_disk_does_not_take_its_turn(model: Model, tmp_path: Path) -> None:
    store = Store(tmp_path / "full", time.time)
    store._database.execute("PRAGMA query_only = ON")
    conversation = Conversation()
    (told,) = ask(model, store, "84 and 36?", conversation)
    assert "cannot store the conversation" in notice(told).casefold()
    assert not conversation.busy and conversation.turns[-1].state == "stopped"
    store.close()
