"""Reads the rows of a user's file, each with the place that an error names.

JSONL, JSON, CSV and TSV (also gzipped) and parquet are read by the parsers of the standard library and of pyarrow. Text
is UTF-8, with or without a byte order mark, with any line ends. A file that cannot be read whole is refused, so that a
torn file never passes for a short one.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from distill.problems.splits import split_named
from toolkit import json_files
from toolkit.errors import InputError, MissingExtra
from toolkit.terminal import counted

TEXT_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
SUFFIXES = (*TEXT_SUFFIXES, ".parquet")
MOST_UNPACKED = 200
"""Largest ratio of unpacked to packed size; gzip reaches 1,000 on zeros, and about 10 on text."""
NO_VALUES = ("", "nan", "NaN", "<NA>", "#N/A", "null", "NULL")
"""Cells of a table with which programs mark a missing value."""

_NO_TEXTS = {
    "UTF-16": (b"\xff\xfe", b"\xfe\xff", b"{\x00", b"\x00{", b"[\x00", b"\x00["),
    "a gzip file that is not named .gz": (b"\x1f\x8b",),
    "a ZIP file": (b"PK\x03\x04",),
    "a Zstandard file": (b"\x28\xb5\x2f\xfd",),
}
"""First bytes of files that are not UTF-8 text."""


@dataclass(frozen=True, kw_only=True)
class FileRow:
    """One row, with its name in errors, such as `mine.csv line 3`."""

    where: str
    values: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class FilePart:
    """Rows of one part of a data set; its name, empty if it has none, may be that of a split."""

    name: str
    rows: Iterable[FileRow]


def kind_of(path: Path) -> str:
    """Return the suffix by which a file is read, ignoring `.gz`; `.jsonl` if it is unknown."""
    suffix = Path(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix
    return suffix.lower() if suffix.lower() in SUFFIXES else ".jsonl"


def file_parts(path: Path) -> tuple[list[FilePart], list[str]]:
    """Return the parts of one file, and remarks about how they were chosen.

    Raises `InputError` naming the file, and the line or row if there is one, at the latest while rows are read.
    """
    kind = kind_of(path)
    if kind == ".parquet":
        return [FilePart(name="", rows=_parquet_rows(path))], []
    if kind in (".csv", ".tsv"):
        return [FilePart(name="", rows=_table_rows(path, kind))], []
    lines = _lines(path)
    begun = list(_until_text(lines))
    lines = chain(begun, lines)
    if kind == ".json" or (begun and begun[-1].lstrip().startswith("[")):
        return _json_parts(path, lines)
    return [FilePart(name="", rows=_json_lines(path, lines))], []


def parse_json(text: str, where: str) -> Any:
    """Parse a JSON text; raises `InputError` if it is invalid or an object has a key twice."""
    value = json_files.parse_json(text, where, constants=True, object_of=_object)
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where} holds half of a surrogate pair ({error.object[error.start]!a}), which is no character; correct "
            "that text"
        ) from error
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"the key {twice[0]!r} occurs twice in an object")
    return dict(pairs)


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file with their ends."""
    number = 0
    try:
        with _open(path) as file:
            reads = _unpacked(file, path) if path.suffix.lower() == ".gz" else file
            lines = (line for read in reads for line in (read.splitlines(keepends=True) if b"\r" in read else (read,)))
            for number, line in enumerate(lines, start=1):
                text = _decoded(line, path, number)
                yield text.removeprefix(json_files.BOM) if number == 1 else text
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{path} is a gzip file that is cut off or damaged after line {number}: {error}; get it again"
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _unpacked(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Yield the lines of a packed file, of any length, up to a size to which no text unpacks."""
    most_bytes = MOST_UNPACKED * path.stat().st_size + 2**20
    read_bytes = 0
    while line := file.readline(most_bytes - read_bytes + 1):
        read_bytes += len(line)
        if read_bytes > most_bytes:
            raise InputError(
                f"{path} unpacks to more than {MOST_UNPACKED} times its size ({most_bytes} bytes); if it is text, "
                "unpack it with gzip -d"
            )
        yield line


def _decoded(line: bytes, path: Path, number: int) -> str:
    known = _known_kinds(path)
    if number == 1 and (kind := next((kind for kind, begins in _NO_TEXTS.items() if line.startswith(begins)), None)):
        raise InputError(f"{path} is {kind}, not UTF-8 text; save it as UTF-8{known}")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} line {number} is not UTF-8 at its byte {error.start + 1} (0x{line[error.start]:02x}); save the "
            f"file as UTF-8{known}"
        ) from error


def _known_kinds(path: Path) -> str:
    """Return the end of an error that may come from reading a file of an unknown kind as JSON lines; else nothing."""
    suffix = Path(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix
    return (
        "" if suffix.lower() in SUFFIXES else f"; known kinds of files are {', '.join(SUFFIXES)}; any other is .jsonl"
    )


def _until_text(lines: Iterator[str]) -> Iterator[str]:
    """Yield the lines up to the first that is not empty."""
    for line in lines:
        yield line
        if line.strip():
            return


def _json_lines(path: Path, lines: Iterable[str]) -> Iterator[FileRow]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path} line {number}"
            try:
                row = _object_row(parse_json(line, where), where)
            except InputError as error:
                raise InputError(f"{error}{_known_kinds(path)}") from error
            yield row


def _object_row(value: Any, where: str) -> FileRow:
    if not isinstance(value, dict):
        raise InputError(f"{where} must be a JSON object, not {type(value).__name__}")
    return FileRow(where=where, values=value)


def _json_parts(path: Path, lines: Iterable[str]) -> tuple[list[FilePart], list[str]]:
    """Read a list of objects, or an object that holds such a list or one for each split."""
    text = "".join(lines)
    if not text.strip():
        return [FilePart(name="", rows=[])], []
    first, _, rest = text.lstrip().partition("\n")
    if rest.strip() and first.rstrip().endswith("}") and first.startswith("{"):
        return [FilePart(name="", rows=_json_lines(path, text.split("\n")))], [f"{path} holds one JSON object per line"]
    value = parse_json(text, str(path))
    if isinstance(value, list):
        return [FilePart(name="", rows=_list_rows(value, str(path)))], []
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a list of objects, not {type(value).__name__}")
    return _object_parts(value, path)


def _object_parts(value: dict[str, Any], path: Path) -> tuple[list[FilePart], list[str]]:
    lists = {key: rows for key, rows in value.items() if isinstance(rows, list) and rows and isinstance(rows[0], dict)}
    others = [key for key in value if key not in lists]
    if {"question", "answer"} <= value.keys() or not lists:
        raise InputError(f"{path} must hold a list of problems; it holds one object with the keys {', '.join(value)}")
    if len(lists) > 1 and not all(map(split_named, lists)):
        raise InputError(f"{path} must hold one list of problems, or one for each split; it holds {', '.join(lists)}")
    said = f"{path}: reading {', '.join(map(repr, lists))}"
    if others:
        said += f", ignoring {', '.join(map(repr, others))}"
    names = {key: key if split_named(key) else "" for key in lists}
    return [FilePart(name=names[key], rows=_list_rows(rows, f"{path} {key!r}")) for key, rows in lists.items()], [said]


def _list_rows(values: list[Any], where: str) -> Iterator[FileRow]:
    for number, value in enumerate(values, start=1):
        yield _object_row(value, f"{where} item {number}")


def _table_rows(path: Path, kind: str) -> Iterator[FileRow]:
    """Yield the rows of a CSV or TSV file whose first line names the columns; empty cells count as absent."""
    lines = _lines(path)
    *empty, header = list(_until_text(lines)) or [""]
    delimiter = "\t" if kind == ".tsv" else max(",;\t", key=header.count)
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(chain(empty, [header], lines), delimiter=delimiter, strict=True)
    number = 0
    try:
        names = [name.strip() for name in next((cells for cells in reader if cells), [])]
        _check_columns(names, path)
        number = reader.line_num + 1
        for cells in reader:
            where, number = f"{path} line {number}", reader.line_num + 1
            if not any(cells):
                continue
            if len(cells) != len(names):
                raise InputError(
                    f"{where} has {counted(len(cells), 'cell')}, but there are {len(names)} columns "
                    f"({', '.join(names)}); quote cells that hold {delimiter!r} or line ends"
                )
            yield FileRow(where=where, values=_cells(names, cells, where))
    except csv.Error as error:
        raise InputError(
            f"{path} line {max(number, 1)} is not a valid row of a {kind[1:].upper()} file: {error}; close each quoted "
            "cell, and write a quote within it twice"
        ) from error


def _cells(names: list[str], cells: list[str], where: str) -> dict[str, Any]:
    """Return the cells by column; `history`, `metadata`, `choices` and the like may hold a JSON list or object."""
    values: dict[str, Any] = {
        name: None if cell in NO_VALUES else cell for name, cell in zip(names, cells, strict=True)
    }
    for name in ("history", "metadata", "choices", "options", "messages", "conversations"):
        if (values.get(name) or "").lstrip()[:1] in ("[", "{"):
            values[name] = parse_json(values[name], f"{where}: its {name!r}")
    return values


def _check_columns(names: Iterable[str], path: Path) -> None:
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        raise InputError(f"{path} has several columns named {twice[0]!r}; rename them")


def _parquet_rows(path: Path) -> Iterator[FileRow]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "distill") from error
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if name != "__index_level_0__"]
            _check_columns(names, path)
            for batch in file.iter_batches(batch_size=1000, columns=names):
                for values in batch.to_pylist():
                    number += 1
                    yield FileRow(where=f"{path} row {number}", values=values)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        what = str(error).split("\n")[0]
        raise InputError(
            f"{path} is not a complete parquet file; row {number} is its last: {what}; get it again"
        ) from error
