"""A damaged file of conversations is replaced by what can be read of it, kept, and reported."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.chat.conversation import store as stores
from apps.chat.conversation.conversation import Conversation
from apps.chat.conversation.store import FILE, Store
from tests.apps.test_store import chat, seen, ticking, turn
from toolkit.errors import InputError

CHATS = 12


def stored(folder: Path) -> dict[int, Conversation]:
    """Store chats of two questions each, in pages of their own, and close the file."""
    store = Store(folder, ticking())
    for i in range(CHATS):
        first = turn(f"Question {i}?", answer=f"{i} " * 2000)
        store.write(chat(first, turn(f"And {i}?", first, answer=f"{i}. " * 2000)))
    found = {entry.id: store.load(entry.id) for entry in store.entries()}
    store.close()
    return {number: conversation for number, conversation in found.items() if conversation}


def change(folder: Path, command: str, values: tuple[Any, ...] = ()) -> None:
    database = sqlite3.connect(folder / FILE, isolation_level=None)
    database.execute(command, values)
    database.close()


def opened(folder: Path) -> tuple[dict[int, Conversation], str]:
    store = Store(folder, ticking())
    found = {entry.id: store.load(entry.id) for entry in store.entries()}
    assert len(store.entries("question")) == sum("uestion" in c.turns[0].question for c in found.values() if c)
    store.close()
    return {number: conversation for number, conversation in found.items() if conversation}, store.damage


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE turn SET token_ids = '[1, 2' WHERE id = 8",
        "UPDATE turn SET token_ids = '{}' WHERE id = 8",
        "UPDATE turn SET settings = x'ff' WHERE id = 8",
        "UPDATE turn SET question = x'00ff' WHERE id = 8",
        "UPDATE turn SET state = 'dozing' WHERE id = 8",
        "UPDATE turn SET cut = '' WHERE id = 8",
        "UPDATE turn SET last_token_s = 'late' WHERE id = 8",
        "UPDATE turn SET tokens_before_answer = 'few' WHERE id = 8",
    ],
)
def test_a_damaged_turn_goes_and_everything_else_stays(tmp_path: Path, damage: str) -> None:
    before = stored(tmp_path)
    change(tmp_path, damage)
    damaged = (tmp_path / FILE).read_bytes()
    found, told = opened(tmp_path)
    assert {number: seen(c) for number, c in found.items() if number != 4} == {
        number: seen(c) for number, c in before.items() if number != 4
    }
    assert [t.question for t in found[4].turns] == ["Question 3?"]
    assert "damaged" in told and f"{CHATS} chats with {2 * CHATS - 1} questions could be read" in told
    aside = Path(re.findall(r"kept as (\S+)\.$", told)[0])
    assert aside.read_bytes() == damaged and stat.S_IMODE(aside.stat().st_mode) == 0o600
    assert opened(tmp_path)[1] == "", "it is said once"


def test_a_damaged_first_question_takes_its_chat_along_and_no_other(tmp_path: Path) -> None:
    before = stored(tmp_path)
    change(tmp_path, "UPDATE turn SET reasoning = x'00' WHERE id = 7")
    found, told = opened(tmp_path)
    assert found.keys() == before.keys() - {4} and "11 chats with 22 questions" in told


@pytest.mark.parametrize(
    "damage", ["title = x'00'", "title = 'Broken' || x'ff'", "changed_s = 'now'", "shown_id = 999"]
)
def test_a_damaged_entry_of_the_list_hides_no_chat(tmp_path: Path, damage: str) -> None:
    before = stored(tmp_path)
    change(tmp_path, f"UPDATE conversation SET {damage} WHERE id = 4")
    found, _ = opened(tmp_path)
    assert {number: seen(c) for number, c in found.items()} == {number: seen(c) for number, c in before.items()}
    assert found[4].title


def test_pages_that_are_overwritten_take_only_their_own_chats_along(tmp_path: Path) -> None:
    """Any page of the answers' texts may be hit; SQLite alone reads nothing after it."""
    before = stored(tmp_path)
    raw = (tmp_path / FILE).read_bytes()
    texts = [at for at in range(0, len(raw), 4096) if raw[at] == 0 and raw[at + 4 : at + 4096].count(b" ") > 1200]
    leaves = [at for at in range(4096, len(raw), 4096) if raw[at] == 13]
    for at in (*texts[:: len(texts) // 5], *leaves):
        for path in tmp_path.glob(f"{FILE[:-7]}*"):
            path.unlink()
        (tmp_path / FILE).write_bytes(raw[:at] + os.urandom(4096) + raw[at + 4096 :])
        try:
            found, told = opened(tmp_path)
        except InputError as error:
            assert "no chat in it can be read; move it away" in str(error)
            continue
        whole = [number for number in before if number in found and seen(found[number]) == seen(before[number])]
        assert len(whole) >= CHATS - (1 if at in texts else 4), (at, told)


def begin_anew(folder: Path, content: bytes) -> None:
    for path in folder.glob(f"{FILE[:-7]}*"):
        path.unlink()
    (folder / FILE).write_bytes(content)


def test_no_bit_of_the_first_page_costs_a_chat(tmp_path: Path) -> None:
    before = {number: seen(c) for number, c in stored(tmp_path).items()}
    raw = (tmp_path / FILE).read_bytes()
    used = [at for at in range(4096) if raw[at]]
    version = range(60, 64)  # a version that says that a newer toolkit wrote the file is believed
    for at in [*range(0, 100, 3), *used[::17], 3916]:
        if at in version:
            continue
        flipped = bytes([raw[at] ^ (1 << at % 8)])
        begin_anew(tmp_path, raw[:at] + flipped + raw[at + 1 :])
        found, _ = opened(tmp_path)
        assert {number: seen(c) for number, c in found.items()} == before, at
    for page in (bytes(4096), b"\xff" * 4096, os.urandom(4096)):
        begin_anew(tmp_path, page + raw[4096:])
        found, told = opened(tmp_path)
        assert {number: seen(c) for number, c in found.items()} == before and f"{CHATS} chats" in told


def test_of_a_file_that_is_cut_the_chats_of_its_rest_are_kept(tmp_path: Path) -> None:
    before = stored(tmp_path)
    raw = (tmp_path / FILE).read_bytes()
    for length in (len(raw) // 2, len(raw) // 2 + 77, len(raw) - 77):
        begin_anew(tmp_path, raw[:length])
        found, told = opened(tmp_path)
        whole = [number for number in before if number in found and seen(found[number]) == seen(before[number])]
        assert len(whole) >= CHATS * length // len(raw) - 3 and "damaged" in told


def test_what_stands_in_the_log_of_a_damaged_file_is_read(tmp_path: Path) -> None:
    store = Store(tmp_path / "running", ticking())
    for i in range(CHATS):
        store.write(chat(turn(f"Question {i}?", answer=f"{i} " * 2000)))
    (tmp_path / "lost").mkdir()
    for path in (tmp_path / "running").glob(f"{FILE}*"):  # as a power failure leaves them
        (tmp_path / "lost" / path.name).write_bytes(path.read_bytes())
    store.close()
    assert len((tmp_path / "lost" / f"{FILE}-wal").read_bytes()) > 4096
    (tmp_path / "lost" / FILE).write_bytes(b"\xff" * (tmp_path / "lost" / FILE).stat().st_size)
    found, _ = opened(tmp_path / "lost")
    assert sorted(c.turns[0].question for c in found.values()) == sorted(f"Question {i}?" for i in range(CHATS))


def test_a_deleted_chat_does_not_come_back(tmp_path: Path) -> None:
    stored(tmp_path)
    store = Store(tmp_path, ticking())
    for number in (4, 5, 6):
        conversation = store.load(number)
        assert conversation
        store.delete(conversation)
    store.close()
    raw = (tmp_path / FILE).read_bytes()
    begin_anew(tmp_path, b"\xff" * 4096 + raw[4096:])
    assert opened(tmp_path)[0].keys() == set(range(1, CHATS + 1)) - {4, 5, 6}


@given(st.lists(st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=40)), min_size=1, max_size=30))
@settings(max_examples=30, deadline=None)
def test_whatever_is_damaged_is_one_line_or_a_file_that_works(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[int, bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    stored(folder)
    raw = bytearray((folder / FILE).read_bytes())
    for place, content in writes:
        at = place % (len(raw) - len(content))
        raw[at : at + len(content)] = content
    begin_anew(folder, bytes(raw))
    try:
        found, _ = opened(folder)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert all(c.turns for c in found.values())


def test_a_file_in_which_nothing_can_be_read_is_refused_and_kept(tmp_path: Path) -> None:
    stored(tmp_path)
    change(tmp_path, "UPDATE turn SET state = 'dozing'")
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(InputError, match=r"no chat can be read in .*it is damaged.*move it away"):
        Store(tmp_path, ticking())
    assert (tmp_path / FILE).read_bytes() == before and len(list(tmp_path.glob("*.sqlite"))) == 1


def test_a_file_that_another_program_holds_is_no_bad_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "PATIENCE_S", 0.05)
    stored(tmp_path)
    backup = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    backup.execute("PRAGMA locking_mode = EXCLUSIVE")
    backup.execute("BEGIN EXCLUSIVE")
    with pytest.raises(InputError, match=r"another program holds .*sqlite: .*locked; close that program"):
        Store(tmp_path, ticking())
    backup.close()
    store = Store(tmp_path, ticking())
    backup = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    backup.execute("BEGIN IMMEDIATE")
    with pytest.raises(InputError, match="another program holds") as refused:
        store.write(chat(turn("?")))
    assert "move" not in str(refused.value) and len(store.entries()) == CHATS
    backup.close()
    store.close()


FULL = """
import pathlib, resource, signal, sys, time
from apps.chat.conversation.store import Store
from toolkit.errors import InputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
try:
    Store(pathlib.Path(sys.argv[1]), time.time)
except InputError as error:
    print(error)
"""


def test_a_disk_that_is_full_at_the_start_is_no_bad_file(tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="limits of the size of files are POSIX's")
    told = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout
    assert "cannot store the conversation" in told and "free some space" in told and "move it away" not in told


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps other users out of a user's folders itself")
def test_nobody_else_reads_the_file_in_a_folder_that_was_there_before(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / FILE).touch(mode=0o644)
    store = Store(tmp_path, ticking())
    store.write(chat(turn("?")))
    written = list(tmp_path.glob(f"{FILE}*"))
    assert len(written) == 3 and {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o600}
    store.close()


def test_a_folder_in_the_file_s_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir(mode=0o755)
    with pytest.raises(InputError, match="is not a file; move it away"):
        Store(tmp_path, ticking())
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o755
