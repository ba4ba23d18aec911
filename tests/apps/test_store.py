"""Conversations on disk survive any end of the process, and other files are refused."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from apps.chat.conversation.conversation import Conversation
from apps.chat.conversation.store import COLUMNS, FILE, SCHEMA_VERSION, TITLE_LENGTH, Store, record_of
from apps.chat.conversation.turn import Turn
from toolkit.errors import InputError


def ticking() -> Callable[[], float]:
    """Make a wall clock that moves one second at each reading."""
    seconds = iter(range(1_000_000, 2_000_000))
    return lambda: float(next(seconds))


def turn(question: str, parent: Turn | None = None, answer: str = "12") -> Turn:
    return Turn(
        question=question,
        context_room=10,
        parent=parent,
        state="done",
        reasoning="So\n",
        answer=answer,
        token_ids=[3, 1, 2],
        tokens_before_answer=2,
        started_at=100.0,
        first_token_at=100.5,
        answering_at=101.0,
        last_token_at=101.25,
        ended_at=101.5,
        model="student-int4",
        settings={"temperature": 0.6, "seed": 7},
    )


def chat(*turns: Turn) -> Conversation:
    return Conversation(turns=list(turns), all_turns=list(turns))


def seen(conversation: Conversation) -> list[tuple[object, ...]]:
    """List every turn with its place in the tree."""
    turns = conversation.all_turns
    return [(turns.index(t.parent) if t.parent else None, *record_of(t).values()) for t in turns]


def test_a_conversation_is_there_after_the_file_was_closed(tmp_path: Path) -> None:
    first = turn("84 and 36?")
    second = turn("And 85?", first, answer="a\tb\n\0")
    other = turn("And 86?", first)
    conversation = chat(first, second, other)
    conversation.show(second)
    store = Store(tmp_path, ticking())
    store.write(conversation)
    store.close()
    loaded = Store(tmp_path, ticking()).load(conversation.id or 0)
    assert loaded is not None and loaded is not conversation
    assert seen(loaded) == seen(conversation)
    assert [t.question for t in loaded.turns] == ["84 and 36?", "And 85?"]
    assert (loaded.title, loaded.turns[1].thinking_s(0.0)) == ("84 and 36?", 1.0)


def test_a_record_names_every_column(tmp_path: Path) -> None:
    assert tuple(record_of(turn("?"))) == COLUMNS
    Store(tmp_path, ticking()).write(chat(turn("?")))
    table = sqlite3.connect(tmp_path / FILE).execute("SELECT * FROM turn")
    assert {name for name, *_ in table.description} == {"id", "conversation_id", "parent_id", *COLUMNS}


def test_each_write_changes_the_stored_turn(tmp_path: Path) -> None:
    store = Store(tmp_path, ticking())
    conversation = chat(turn("?"))
    for text in ("a", "ab", "abc"):
        conversation.turns[0].answer = text
        store.write(conversation, conversation.turns[0])
        rows = sqlite3.connect(tmp_path / FILE).execute("SELECT answer FROM turn").fetchall()
        assert rows == [(text,)]


WRITE_AND_WAIT = """
import pathlib, sys, time
from apps.chat.conversation.conversation import Conversation
from apps.chat.conversation.turn import Turn
from apps.chat.conversation.store import Store
store = Store(pathlib.Path(sys.argv[1]), time.time)
turn = Turn(question="?", context_room=9, state="thinking")
conversation = Conversation(turns=[turn], all_turns=[turn])
for i in range(100):
    turn.token_ids.append(i)
    turn.reasoning += f"step {i}; "
    store.write(conversation, turn)
print("written", flush=True)
time.sleep(600)
"""


def test_what_was_written_outlives_a_killed_process_and_is_found_stopped(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITE_AND_WAIT, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "written\n"
        with pytest.raises(InputError, match=rf"\({tmp_path}\) is open in another chat.*--data"):
            Store(tmp_path, ticking())
        process.send_signal(signal.SIGKILL)
    store = Store(tmp_path, ticking())
    (entry,) = store.entries()
    conversation = store.load(entry.id)
    assert conversation is not None
    (found,) = conversation.turns
    assert (found.state, found.can_go_on, found.is_thinking) == ("stopped", True, True)
    assert found.token_ids == list(range(100)) and found.reasoning == "".join(f"step {i}; " for i in range(100))


def test_two_tabs_have_one_conversation(tmp_path: Path) -> None:
    store = Store(tmp_path, ticking())
    conversation = chat(turn("?"))
    store.write(conversation)
    assert store.load(conversation.id or 0) is conversation


def test_the_list_is_searched_in_every_text_in_any_case(tmp_path: Path) -> None:
    store = Store(tmp_path, ticking())
    for question, answer in (("Größe?", "ten"), ("Colour?", "RED 100%"), ("_?", "")):
        store.write(chat(turn(question, answer=answer)))
    titles = {words: [e.title for e in store.entries(words)] for words in ("", "GRÖSSE", "red", "%", "_", " so ", "x")}
    assert titles == {
        "": ["_?", "Colour?", "Größe?"],
        "GRÖSSE": ["Größe?"],
        "red": ["Colour?"],
        "%": ["Colour?"],
        "_": ["_?"],
        " so ": ["_?", "Colour?", "Größe?"],
        "x": [],
    }


def test_the_last_changed_conversation_comes_first(tmp_path: Path) -> None:
    store = Store(tmp_path, ticking())
    a, b = chat(turn("A")), chat(turn("B"))
    for conversation in (a, b, a):
        store.write(conversation)
    assert [entry.title for entry in store.entries()] == ["A", "B"]


def test_a_title_is_the_first_questions_words_until_it_is_renamed(tmp_path: Path) -> None:
    store = Store(tmp_path, ticking())
    conversation = chat(turn("Why\n is " + "the sky blue and " * 9))
    store.write(conversation)
    assert conversation.title.startswith("Why is the sky blue") and conversation.title.endswith("…")
    assert len(conversation.title) <= TITLE_LENGTH
    for wished, kept in ((" The \n sky ", "The sky"), (" \n", "The sky")):
        store.rename(conversation, wished)
        assert [entry.title for entry in store.entries()] == [kept] == [conversation.title]


def test_a_deleted_conversation_is_gone_and_comes_back_whole_where_a_tab_goes_on_with_it(tmp_path: Path) -> None:
    store = Store(tmp_path, ticking())
    conversation = chat(turn("A"))
    store.write(conversation)
    number = conversation.id or 0
    store.delete(conversation)
    assert store.entries() == [] and [store.load(gone) for gone in (number, 2**70, -1)] == [None] * 3
    database = sqlite3.connect(tmp_path / FILE)
    assert database.execute("SELECT count(*) FROM turn").fetchone() == (0,)
    later = turn("B", conversation.turns[0])
    conversation.turns.append(later)
    conversation.all_turns.append(later)
    store.write(conversation, later)
    assert database.execute("SELECT question FROM turn ORDER BY id").fetchall() == [("A",), ("B",)]


def test_nothing_that_was_deleted_is_left_in_the_bytes_of_the_files(tmp_path: Path) -> None:
    store = Store(tmp_path, ticking())
    kept, deleted = chat(turn("the kept one")), chat(turn("the secret one"))
    for conversation in (kept, deleted):
        store.write(conversation)
    store.delete(deleted)
    written = b"".join(path.read_bytes() for path in tmp_path.glob(f"{FILE}*"))
    assert b"the kept one" in written and b"the secret one" not in written
    store.close()


def test_a_file_of_a_newer_toolkit_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    Store(tmp_path, ticking()).close()
    database = sqlite3.connect(tmp_path / FILE)
    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    database.close()
    before = (tmp_path / FILE).read_bytes()
    for _ in range(2):  # the refusal releases the folder
        with pytest.raises(InputError, match=rf"schema version {SCHEMA_VERSION + 1}, here {SCHEMA_VERSION}\)"):
            Store(tmp_path, ticking())
    assert (tmp_path / FILE).read_bytes() == before


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("Dear diary, " * 100)
    with pytest.raises(InputError, match=r"not a file of conversations; move it away.*--data"):
        Store(tmp_path, ticking())


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write to the folder of conversations \(.*file/chats\)"):
        Store(tmp_path / "file" / "chats", ticking())


def test_a_disk_that_takes_nothing_is_told_and_what_is_open_stays(tmp_path: Path) -> None:
    store = Store(tmp_path, ticking())
    store._database.execute("PRAGMA max_page_count = 1")
    conversation = chat(turn("?" * 100_000))
    with pytest.raises(InputError, match=r"cannot store the conversation.*full"):
        store.write(conversation, conversation.turns[0])
    store._database.execute("PRAGMA max_page_count = 1000")
    store.write(conversation, conversation.turns[0])
    assert [entry.id for entry in store.entries()] == [conversation.id]


def test_many_threads_write_and_read_at_once(tmp_path: Path) -> None:
    store = Store(tmp_path, ticking())

    def work(name: int) -> None:
        conversation = chat(turn(str(name)))
        for i in range(60):
            conversation.turns[0].answer = str(i)
            conversation.turns[0].state = "done" if i % 5 == 0 else "answering"
            store.write(conversation, conversation.turns[0])
            assert any(entry.id == conversation.id for entry in store.entries(str(i)))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    store.close()
    kept = Store(tmp_path, ticking())
    conversations = [kept.load(entry.id) for entry in kept.entries()]
    assert sorted(c.turns[0].question for c in conversations if c) == list("0123")
    assert {c.turns[0].answer for c in conversations if c} == {"59"}
