"""A damaged file of conversations → a new one with all of it that can be read; the damaged one is kept beside it.

SQLite refuses a whole table for one bad page, and a page of ours a whole list for one bad row. So each row is looked up
by its number, and one that cannot be read, or does not hold what `apps.chat.conversation.store` writes, is left out, with the turns after
it. The file is there at each moment, the damaged one or the new one, whole.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from toolkit.errors import InputError
from toolkit.terminal import counted

SOUND = {
    "conversation": "typeof(title) = 'text' AND typeof(created_s) = 'real' AND typeof(changed_s) = 'real'",
    "turn": "state IN ('waiting', 'thinking', 'answering', 'done', 'stopped') "
    "AND (cut IS NULL OR cut IN ('limit', 'context')) AND typeof(tokens_before_answer) IN ('integer', 'null') "
    + "".join(f"AND typeof({name}) = 'text' " for name in ("question", "reasoning", "answer", "model"))
    + "".join(f"AND typeof({name}) IN ('real', 'null') " for name in ("first_token_s", "answering_s", "ended_s"))
    + "AND typeof(last_token_s) = 'real' "
    + "AND CASE WHEN json_valid(token_ids) THEN json_type(token_ids) = 'array' ELSE 0 END "
    + "AND CASE WHEN json_valid(settings) THEN json_type(settings) = 'object' ELSE 0 END",
}
"""Table → what is true of each row that `apps.chat.conversation.store` has written."""
MOST_TRIED = 10**6
"""Numbers of rows; a damaged one can be any."""
LEADS_TO_A_TURN = (("conversation", "shown_id"), ("turn", "parent_id"))


def is_sound(database: sqlite3.Connection) -> bool:
    """Whether the file's structure and every row are as they were written."""
    bad = [f"SELECT 1 FROM {table} WHERE ({sound}) IS NOT 1" for table, sound in SOUND.items()]
    bad += [f"SELECT 1 FROM {table} WHERE {name} NOT IN (SELECT id FROM turn)" for table, name in LEADS_TO_A_TURN]
    try:
        (said,) = database.execute("PRAGMA quick_check(1)").fetchone()
        return said == "ok" and database.execute(" UNION ALL ".join(bad)).fetchone() is None
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        return False


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error says that the file itself is broken, and not that it is held or the disk is full."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CORRUPT


def mend(path: Path, database: sqlite3.Connection, schema: str) -> str:
    """Put a new file in the damaged one's place, whose open `database` is closed; returns what to tell the user.

    Raises `InputError` where nothing can be read, and `OSError` where the disk takes no copy; the file is then untouched.
    """
    conversations = {row["id"]: dict(row) for row in _rows(database, "conversation")}
    turns: dict[int, sqlite3.Row] = {}
    for row in _rows(database, "turn"):
        if row["parent_id"] is None or row["parent_id"] in turns:
            turns[row["id"]] = row
    if not turns:
        raise InputError(f"{path} is damaged, and no chat in it can be read; move it away to start with an empty one")
    last: dict[int, sqlite3.Row] = {row["conversation_id"]: row for row in turns.values()}
    for number, row in last.items():
        title = " ".join(row["question"].split())[:60]
        fresh = {"id": number, "title": title, "created_s": 0.0, "changed_s": 0.0, "shown_id": row["id"]}
        found = conversations.setdefault(number, fresh)
        if found["shown_id"] not in turns:
            found["shown_id"] = row["id"]
    kept = [conversations[number] for number in sorted(last)]

    aside = _copy_aside(path)
    mended = path.with_name(path.name + ".partial")
    mended.unlink(missing_ok=True)
    mended.touch(mode=0o600)
    with closing(sqlite3.connect(mended)) as new:
        new.executescript(schema)
        for table, rows in (("conversation", kept), ("turn", turns.values())):
            for record in map(dict, rows):
                marks = ", ".join("?" * len(record))
                new.execute(f"INSERT INTO {table} ({', '.join(record)}) VALUES ({marks})", list(record.values()))
        new.commit()
    database.close()
    for ending in ("-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)
    os.replace(mended, path)
    return (
        f"The file of your chats was damaged. {counted(len(kept), 'chat')} with {counted(len(turns), 'question')} could be read "
        "and are here; "
        f"what could not be read is left out. The damaged file is kept as {aside}."
    )


def _rows(database: sqlite3.Connection, table: str) -> Iterator[sqlite3.Row]:
    """The rows that can be read and are sound, by number."""
    for number in _numbers(database, table):
        try:
            row = database.execute(f"SELECT * FROM {table} WHERE id = ? AND ({SOUND[table]})", (number,)).fetchone()
        except sqlite3.DatabaseError:
            continue
        if row:
            yield row


def _numbers(database: sqlite3.Connection, table: str) -> list[int]:
    """The numbers of the rows; also every one up to the last, or to `MOST_TRIED`, where a page between them is broken."""
    found: list[int] = []
    for order in ("ASC", "DESC"):
        try:
            for (number,) in database.execute(f"SELECT id FROM {table} NOT INDEXED ORDER BY id {order}"):
                found.append(number)
        except sqlite3.DatabaseError:
            continue
        return sorted(set(found))
    return sorted({*found, *range(1, min(max(found, default=0), MOST_TRIED) + 1)})


def _copy_aside(path: Path) -> Path:
    """A copy of a file and its log under a name that is free."""
    count = 1
    while (aside := path.with_name(f"{path.stem}.damaged-{count}{path.suffix}")).exists():
        count += 1
    for ending in ("", "-wal"):
        source = path.with_name(path.name + ending)
        if source.exists():
            shutil.copy2(source, aside.with_name(aside.name + ending))
    return aside
