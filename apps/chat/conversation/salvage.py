"""A damaged file of conversations → a new one with everything readable; the damaged one is kept beside it.

SQLite refuses a whole table because of one bad page, and the whole file if its first page is bad; our page refuses a
whole list because of one bad row. So the rows are read from the pages themselves, whose format and columns are known. A
row that `apps.chat.conversation.store` cannot have written is left out, with the turns after it. Deleted chats do not
come back: the store has overwritten them. At every moment the file is there, either the damaged or the whole new one.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

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
"""Table → the condition that every row written by `apps.chat.conversation.store` meets."""
USUAL_PAGE = 4096
"""Bytes of a page, if the file no longer says how many."""
MAGIC = b"SQLite format 3\0"
LOG_MAGICS = (0x377F0682, 0x377F0683)
TABLE_LEAF = 13
"""First byte of a page that holds rows of a table."""
VERSIONS = range(1, 1000)
"""Possible versions of a schema; any other number beside our tables is damage."""
DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
"""SQLite's codes for a file that is broken or has other tables."""
INTEGER_BYTES = (0, 1, 2, 3, 4, 6, 8)
"""Sizes of the first kinds of values, in the order of their codes."""
LEADS_TO_A_TURN = (("conversation", "shown_id"), ("turn", "parent_id"))


def is_sound(path: Path, database: sqlite3.Connection, schema: str, version: int) -> bool:
    """Whether the file needs no mending: its rows are as they were written, or another version or nobody wrote it."""
    bad = [f"SELECT 1 FROM {table} WHERE ({sound}) IS NOT 1" for table, sound in SOUND.items()]
    bad += [f"SELECT 1 FROM {table} WHERE {name} NOT IN (SELECT id FROM turn)" for table, name in LEADS_TO_A_TURN]
    try:
        with path.open("rb") as file:
            header = file.read(20)
        if header and (not header.startswith(MAGIC) or not {*header[18:20]} <= {1, 2}):
            return False
        (found,) = database.execute("PRAGMA user_version").fetchone()
        with closing(_made(schema)) as made:
            has_our_tables = _tables(database) == _tables(made)
        if found != version:
            return found in VERSIONS or not has_our_tables
        (said,) = database.execute("PRAGMA integrity_check(1)").fetchone()
        return has_our_tables and said == "ok" and database.execute(" UNION ALL ".join(bad)).fetchone() is None
    except UnicodeDecodeError:  # of an error that quotes what is damaged
        return False
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in DAMAGE:
            raise
        return False


def mend(path: Path, database: sqlite3.Connection, schema: str) -> str:
    """Replace the damaged file, whose open `database` is closed, by a new one; returns what to tell the user.

    Raises `InputError` if nothing can be read, and `OSError` if the disk takes no copy; the file is then untouched.
    """
    conversations: dict[int, dict[str, Any]] = {}
    turns: dict[int, sqlite3.Row] = {}
    with closing(_salvaged(path, schema)) as found:
        for row in found.execute(f"SELECT * FROM conversation WHERE {SOUND['conversation']}"):
            conversations[row["id"]] = dict(row)
        for row in found.execute(f"SELECT * FROM turn WHERE {SOUND['turn']} ORDER BY id"):
            if row["parent_id"] is None or row["parent_id"] in turns:
                turns[row["id"]] = row
    if not turns:
        raise InputError(
            f"no chat can be read in {path}: it is damaged, or not a file of conversations; "
            "move it away to start with an empty one, or give another folder with --data"
        )
    last: dict[int, sqlite3.Row] = {row["conversation_id"]: row for row in turns.values()}
    for number, row in last.items():
        title = " ".join(row["question"].split())[:60]
        fresh = {"id": number, "title": title, "created_s": 0.0, "changed_s": 0.0, "shown_id": row["id"]}
        conversation = conversations.setdefault(number, fresh)
        if conversation["shown_id"] not in turns:
            conversation["shown_id"] = row["id"]
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
        f"The file of your chats was damaged. {counted(len(kept), 'chat')} with {counted(len(turns), 'question')} "
        f"could be read and are here; the rest is left out. The damaged file is kept as {aside}."
    )


def _made(schema: str) -> sqlite3.Connection:
    database = sqlite3.connect(":memory:")
    database.row_factory = sqlite3.Row
    database.executescript(schema)
    return database


def _tables(database: sqlite3.Connection) -> list[tuple[str, str]]:
    """List the tables and indexes with their declarations."""
    found = database.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
    return [(row["name"], " ".join(str(row["sql"]).split())) for row in found]


def _salvaged(path: Path, schema: str) -> sqlite3.Connection:
    """Read every row in the file's pages into a database in memory.

    If the file no longer says how its pages are laid out, the layout that yields the most rows is taken.
    """
    content = path.read_bytes()
    log_path = path.with_name(path.name + "-wal")
    log = log_path.read_bytes() if log_path.exists() else b""
    told = int.from_bytes(content[16:18], "big")
    sizes = {USUAL_PAGE, told} if 512 <= told <= 2**15 and not told & (told - 1) else {USUAL_PAGE}
    layouts = [(size, unused) for size in sizes for unused in {0, *content[20:21]}]
    found = max((list(_rows(_pages(content, log, size), size - unused)) for size, unused in layouts), key=len)
    database = _made(schema)
    for table in SOUND:
        columns = len(database.execute(f"SELECT * FROM {table}").description)
        insert = f"INSERT OR REPLACE INTO {table} VALUES ({', '.join('?' * columns)})"
        for number, values in found:
            if len(values) == columns and values[0] is None:  # the number is not stored twice
                with suppress(sqlite3.Error):
                    database.execute(insert, (number, *values[1:]))
    return database


def _pages(content: bytes, log: bytes, size: int) -> dict[int, bytes]:
    """Map page numbers to pages, taken from the log where it has newer ones."""
    pages = {at // size + 1: content[at : at + size] for at in range(0, len(content), size)}
    changed: dict[int, bytes] = {}
    if int.from_bytes(log[:4], "big") in LOG_MAGICS and int.from_bytes(log[8:12], "big") == size:
        for at in range(32, len(log) - size - 23, size + 24):
            number, committed = struct.unpack_from(">II", log, at)
            if log[at + 8 : at + 16] != log[16:24]:
                break  # what follows was left by an earlier log
            changed[number] = log[at + 24 : at + 24 + size]
            if committed:
                pages |= changed
                changed = {}
    return pages


def _rows(pages: dict[int, bytes], usable: int) -> Iterator[tuple[int, list[Any]]]:
    """Yield the number and values of each row that can be read; `usable`: bytes of a page.

    Source: SQLite's file format, 1.6 and 2.1.
    """
    for page_number, page in pages.items():
        head = 100 if page_number == 1 else 0
        if page[head : head + 1] != bytes([TABLE_LEAF]):
            continue
        cells = page[head + 8 : head + 8 + 2 * int.from_bytes(page[head + 3 : head + 5], "big")]
        for (at,) in struct.iter_unpack(">H", cells[: len(cells) // 2 * 2]):
            with suppress(IndexError, ValueError, struct.error):
                length, begin = _varint(page, at)
                number, begin = _varint(page, begin)
                yield number - (number >> 63 << 64), _values(_payload(pages, usable, page, begin, length))


def _payload(pages: dict[int, bytes], usable: int, page: bytes, begin: int, length: int) -> bytes:
    """Return a row's bytes, including those on overflow pages."""
    most, least = usable - 35, (usable - 12) * 32 // 255 - 23
    here = least + (length - least) % (usable - 4)
    here = length if length <= most else here if here <= most else least
    pieces = [page[begin : begin + here]]
    left, following = length - here, page[begin + here : begin + here + 4]
    for _ in range(len(pages)):  # or the chain leads back to itself
        if left <= 0:
            break
        page = pages.get(int.from_bytes(following, "big"), b"")
        pieces.append(page[4 : min(usable, 4 + left)])
        left, following = left - len(pieces[-1]), page[:4]
        if not page:
            break
    if left > 0 or len(pieces[0]) < here:
        raise ValueError(f"a row of {length} bytes lacks {left}")
    return b"".join(pieces)


def _values(record: bytes) -> list[Any]:
    """Decode a row's values; a text may have a broken character in it."""
    kinds: list[int] = []
    place, at = _varint(record, 0)
    end_of_kinds = place
    while at < end_of_kinds:
        kind, at = _varint(record, at)
        kinds.append(kind)
    values: list[Any] = []
    for kind in kinds:
        size = INTEGER_BYTES[kind] if kind < 7 else 8 if kind == 7 else max(0, (kind - 12) // 2)
        value = record[place : place + size]
        place += size
        if len(value) < size:
            raise ValueError(f"a value of {size} bytes has {len(value)}")
        if kind == 0:
            values.append(None)
        elif kind == 7:
            values.append(struct.unpack(">d", value)[0])
        elif kind < 12:
            values.append(kind - 8 if kind in (8, 9) else int.from_bytes(value, "big", signed=True))
        else:
            values.append(value.decode("utf-8", "replace") if kind % 2 else value)
    return values


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """Decode one of SQLite's variable-length integers; also returns the position after it."""
    value = 0
    for place in range(at, at + 8):
        value = value << 7 | content[place] & 127
        if content[place] < 128:
            return value, place + 1
    return value << 8 | content[at + 8], at + 9


def _copy_aside(path: Path) -> Path:
    """Copy a file and its log to a free name."""
    count = 1
    while (aside := path.with_name(f"{path.stem}.damaged-{count}{path.suffix}")).exists():
        count += 1
    for ending in ("", "-wal"):
        source = path.with_name(path.name + ending)
        if source.exists():
            shutil.copy2(source, aside.with_name(aside.name + ending))
    return aside
