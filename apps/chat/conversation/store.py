"""Conversations on disk: one SQLite file in the user's data folder, written while the model writes.

    conversation(id, title, created_s, changed_s, shown_id)     shown_id: the last turn of the path that is shown
         └── turn(id, conversation_id, parent_id, …)            parent_id: NULL for a first question

Once `write` has returned, what it stored survives the death of the process. (SQLite syncs its write-ahead log to the
disk when the turn has ended, so a power failure may cost a running turn its last words.) A turn that was running when
the process died is stopped at the next start, with its text. `created_s` and `changed_s` are seconds since 1970, the
times of a turn seconds since its start. `token_ids` holds a null for each token whose id only a server knows.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from filelock import FileLock, Timeout

from apps.chat.conversation.conversation import Conversation
from apps.chat.conversation.salvage import is_sound, mend
from apps.chat.conversation.turn import Turn
from toolkit.errors import InputError

FILE = "conversations.sqlite"
SCHEMA_VERSION = 1
SCHEMA = f"""
BEGIN;
CREATE TABLE conversation (
    id INTEGER PRIMARY KEY,
    title TEXT NOT NULL,
    created_s REAL NOT NULL,
    changed_s REAL NOT NULL,
    shown_id INTEGER
);
CREATE TABLE turn (
    id INTEGER PRIMARY KEY,
    conversation_id INTEGER NOT NULL REFERENCES conversation ON DELETE CASCADE,
    parent_id INTEGER REFERENCES turn,
    question TEXT NOT NULL,
    state TEXT NOT NULL,
    cut TEXT,
    reasoning TEXT NOT NULL,
    answer TEXT NOT NULL,
    token_ids TEXT NOT NULL,
    tokens_before_answer INTEGER,
    first_token_s REAL,
    answering_s REAL,
    last_token_s REAL NOT NULL,
    ended_s REAL,
    model TEXT NOT NULL,
    settings TEXT NOT NULL
);
CREATE INDEX turns_of_conversation ON turn (conversation_id);
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""

COLUMNS = (
    "question",
    "state",
    "cut",
    "reasoning",
    "answer",
    "token_ids",
    "tokens_before_answer",
    "first_token_s",
    "answering_s",
    "last_token_s",
    "ended_s",
    "model",
    "settings",
)
"""The columns of a turn besides its ids; also the fields of an exported turn."""
JSON_COLUMNS = ("token_ids", "settings")

LARGEST_ID = 2**63
"""The first number that SQLite cannot store."""
PATIENCE_S = 5.0
"""How long to wait for another program that holds the file, such as a backup."""
TITLE_LENGTH = 60
"""Most characters of a title made from a question."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A conversation in the list."""

    id: int
    title: str


class Store:
    """The conversations of one data folder, held by one process at a time."""

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        """Open or create the folder's file; `clock` gives seconds since 1970.

        Raises `InputError` if another process holds the folder, or the file is not ours or of a newer version.
        """
        self.folder = folder
        self._clock = clock
        self._guard = threading.RLock()
        self._open: WeakValueDictionary[int, Conversation] = WeakValueDictionary()
        self.damage: str
        """Sentences on what was damaged in the file; empty if nothing was."""
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = FileLock(folder / "lock")
            self._lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"the folder of conversations ({folder}) is open in another chat; "
                "close that chat, or give this one another folder with --data"
            ) from None
        except OSError as error:
            raise InputError(
                f"cannot write to the folder of conversations ({folder}): {error}; give another with --data"
            ) from None
        try:
            self._database, self.damage = _open_file(folder / FILE)
        except InputError:
            self._lock.release()
            raise

    def close(self) -> None:
        """Release the folder for another process."""
        self._database.close()
        self._lock.release()

    def entries(self, words: str = "") -> list[Entry]:
        """List the conversations whose title or texts contain these words, in any case; last changed first."""
        rows = self._all(
            "SELECT id, title FROM conversation AS c WHERE contains(CAST(title AS BLOB), :words) OR EXISTS ("
            "SELECT 1 FROM turn WHERE conversation_id = c.id AND ("
            + " OR ".join(f"contains(CAST({name} AS BLOB), :words)" for name in ("question", "answer", "reasoning"))
            + ")) "
            "ORDER BY changed_s DESC, id DESC",
            {"words": words.strip().casefold()},
        )
        return [Entry(id=row["id"], title=row["title"]) for row in rows]

    def load(self, conversation_id: int) -> Conversation | None:
        """Return the conversation, the same object for everyone who has it open; None if it was deleted."""
        if not 0 <= conversation_id < LARGEST_ID:
            return None
        with self._guard:
            if conversation := self._open.get(conversation_id):
                return conversation
            where = (conversation_id,)
            rows = self._all("SELECT * FROM conversation WHERE id = ?", where)
            if not rows:
                return None
            (found,) = rows
            conversation = Conversation(id=conversation_id, title=found["title"])
            turns: dict[int | None, Turn] = {}
            for row in self._all("SELECT * FROM turn WHERE conversation_id = ? ORDER BY id", where):
                turn = turn_of({name: json.loads(row[name]) if name in JSON_COLUMNS else row[name] for name in COLUMNS})
                turn.id, turn.parent = row["id"], turns.get(row["parent_id"])
                turns[turn.id] = turn
            conversation.all_turns = list(turns.values())
            if shown := turns.get(found["shown_id"]):
                conversation.show(shown)
            self._open[conversation_id] = conversation
            return conversation

    def write(self, conversation: Conversation, turn: Turn | None = None) -> None:
        """Store the path and a turn as it is now; all turns, if the conversation is not stored yet.

        Raises `InputError`, and changes nothing, if the disk refuses.
        """
        is_new = conversation.id is None
        unstored = [each for each in conversation.all_turns if each.id is None or is_new]
        try:
            with self._transaction():
                if is_new:
                    conversation.id = self._add(conversation)
                for each in unstored if is_new or turn is None else [turn]:
                    self._write_turn(conversation, each)
                shown_id = conversation.turns[-1].id if conversation.turns else None
                values = (self._clock(), shown_id, conversation.id)
                self._database.execute("UPDATE conversation SET changed_s = ?, shown_id = ? WHERE id = ?", values)
        except InputError:
            for each in unstored:
                each.id = None
            conversation.id = None if is_new else conversation.id
            raise
        if turn is not None and not turn.running:
            self._checkpoint("PASSIVE")

    def rename(self, conversation: Conversation, title: str) -> None:
        """Give a stored conversation another title, unless that is blank."""
        if title := " ".join(title.split()):
            with self._transaction():
                self._database.execute("UPDATE conversation SET title = ? WHERE id = ?", (title, conversation.id))
            conversation.title = title

    def delete(self, conversation: Conversation) -> None:
        """Delete a conversation with all its turns, and overwrite their bytes in the files.

        A tab that still has it open and adds to it stores it again.
        """
        with self._transaction():
            self._database.execute("DELETE FROM turn WHERE conversation_id = ?", (conversation.id,))
            self._database.execute("DELETE FROM conversation WHERE id = ?", (conversation.id,))
        self._checkpoint("TRUNCATE")  # the log has its words too
        if conversation.id is not None:
            self._open.pop(conversation.id, None)
        conversation.id = None
        for turn in conversation.all_turns:
            turn.id = None

    def _add(self, conversation: Conversation) -> int:
        conversation.title = conversation.title or title_of(conversation)
        values = (conversation.title, self._clock(), self._clock())
        added = self._database.execute(
            "INSERT INTO conversation (title, created_s, changed_s) VALUES (?, ?, ?)", values
        )
        assert added.lastrowid is not None
        self._open[added.lastrowid] = conversation
        return added.lastrowid

    def _write_turn(self, conversation: Conversation, turn: Turn) -> None:
        record = record_of(turn)
        place = (conversation.id, turn.parent.id if turn.parent else None)
        values = [*place, *(json.dumps(record[name]) if name in JSON_COLUMNS else record[name] for name in COLUMNS)]
        names = ("conversation_id", "parent_id", *COLUMNS)
        if turn.id is None:
            marks = ", ".join("?" * len(names))
            added = self._database.execute(f"INSERT INTO turn ({', '.join(names)}) VALUES ({marks})", values)
            turn.id = added.lastrowid
        else:
            changes = ", ".join(f"{name} = ?" for name in names)
            self._database.execute(f"UPDATE turn SET {changes} WHERE id = ?", [*values, turn.id])

    def _all(self, query: str, values: Any = ()) -> list[sqlite3.Row]:
        """Fetch all rows at once: the threads share one connection, and an open query on it would delay a commit."""
        with self._guard:
            return self._database.execute(query, values).fetchall()

    def _checkpoint(self, mode: str) -> None:
        """Move the write-ahead log into the file."""
        with self._refusals():
            self._all(f"PRAGMA wal_checkpoint({mode})")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._refusals(), self._guard, self._database:
            self._database.execute("BEGIN IMMEDIATE")
            yield

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Raise SQLite's errors as what is wrong and what helps."""
        try:
            yield
        except sqlite3.Error as error:
            refusal = _refusal(error, self.folder / FILE)
            raise refusal or InputError(
                f"cannot store the conversation in {self.folder / FILE}: {error}; open the chat again"
            ) from error


def record_of(turn: Turn) -> dict[str, Any]:
    """Return a turn's `COLUMNS`; `turn_of` is the inverse."""
    times = {
        "first_token_s": turn.first_token_at,
        "answering_s": turn.answering_at,
        "last_token_s": max(turn.last_token_at, turn.started_at),
        "ended_s": turn.ended_at,
    }
    offsets = {name: None if at is None else at - turn.started_at for name, at in times.items()}
    ids: list[Any] = turn.token_ids or [None] * turn.remote_tokens
    made: dict[str, Any] = offsets | {"token_ids": ids}
    return {name: made[name] if name in made else getattr(turn, name) for name in COLUMNS}


def turn_of(record: dict[str, Any]) -> Turn:
    """Make a turn from a record; its id and parent are not in it."""
    ids = record["token_ids"]
    is_remote = None in ids
    return Turn(
        question=record["question"],
        context_room=0,
        state=record["state"],
        cut=record["cut"],
        reasoning=record["reasoning"],
        answer=record["answer"],
        token_ids=[] if is_remote else ids,
        remote_tokens=len(ids) if is_remote else 0,
        tokens_before_answer=record["tokens_before_answer"],
        first_token_at=record["first_token_s"],
        answering_at=record["answering_s"],
        last_token_at=record["last_token_s"],
        ended_at=record["ended_s"],
        model=record["model"],
        settings=record["settings"],
    )


def title_of(conversation: Conversation) -> str:
    """Make a title from the first words of the first question."""
    words = conversation.all_turns[0].question.split() if conversation.all_turns else []
    text = " ".join(words)
    return text if len(text) <= TITLE_LENGTH else text[: TITLE_LENGTH - 1].rsplit(" ", 1)[0] + "…"


def _open_file(path: Path) -> tuple[sqlite3.Connection, str]:
    """Open the file, after creating or mending it if necessary; also returns what to tell the user of the damage."""
    damage = ""
    try:
        _keep_private(path)
        database = _connected(path)
        if not is_sound(path, database, SCHEMA, SCHEMA_VERSION):
            damage = mend(path, database, SCHEMA)
            database = _connected(path)
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise InputError(
                f"{path} was written by a newer toolkit (schema version {version}, here {SCHEMA_VERSION}); "
                "update this one, or give another folder with --data"
            )
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA foreign_keys = ON")
        database.execute("PRAGMA secure_delete = ON")  # what was deleted is overwritten with zeros
        if version == 0:
            database.executescript(SCHEMA)
        database.execute(
            "UPDATE turn SET state = 'stopped', ended_s = last_token_s "
            "WHERE state IN ('waiting', 'thinking', 'answering')"
        )
        return database, damage
    except sqlite3.Error as error:
        raise _refusal(error, path) or InputError(
            f"{path} is not a file of conversations: {error}; move it away, or give another folder with --data"
        ) from None
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error}; give another folder with --data") from None


def _keep_private(path: Path) -> None:
    """Let only its owner read the file, even in a folder that others may read."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a file; move it away, or give another folder with --data")
    path.touch(mode=0o600)
    for ending in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError, PermissionError):  # another user's file, or a disk without owners
            path.with_name(path.name + ending).chmod(0o600)


def _connected(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=PATIENCE_S)
    database.row_factory = sqlite3.Row
    database.text_factory = _text
    database.create_function("contains", 2, lambda raw, words: words in _text(raw).casefold(), deterministic=True)
    return database


def _text(raw: bytes) -> str:
    """Decode a text of the file; one broken character must not hide all others."""
    return raw.decode("utf-8", "replace")


def _refusal(error: sqlite3.Error, path: Path) -> InputError | None:
    """Say what is wrong and what helps, if the fault is not in the file itself."""
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return InputError(f"another program holds {path}: {error}; close that program, and try again")
        case sqlite3.SQLITE_FULL | sqlite3.SQLITE_IOERR:
            return InputError(f"cannot store the conversation in {path}: {error}; free some space on the disk")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return InputError(
                f"cannot store the conversation in {path}: {error}; "
                "allow writing to it, or give another folder with --data"
            )
    return None
