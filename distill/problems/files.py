"""Rows of a user's file, each with the place that an error names.

Read are JSONL, JSON, CSV and TSV (each of them also compressed by gzip) and parquet, by the parsers of the standard
library and of pyarrow. Text is UTF-8, with or without a byte order mark, whatever ends its lines. What cannot be read
whole is refused, so that a torn file never passes for a short one.
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

TEXT_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
SUFFIXES = (*TEXT_SUFFIXES, ".parquet")
MOST_UNPACKED = 200
"""Times the size of a packed file; gzip makes 1,000 of nothing but zeros, and some 10 of text."""
NO_VALUES = ("", "nan", "NaN", "<NA>", "#N/A", "null", "NULL")
"""Cells of a table that stand for no value, as programs write them."""

_NO_TEXTS = {
    "UTF-16": (b"\xff\xfe", b"\xfe\xff", b"{\x00", b"\x00{", b"[\x00", b"\x00["),
    "a gzip file that is not named .gz": (b"\x1f\x8b",),
    "a ZIP file": (b"PK\x03\x04",),
    "a Zstandard file": (b"\x28\xb5\x2f\xfd",),
}
"""What files begin with that are no text in UTF-8."""


@dataclass(frozen=True, kw_only=True)
class FileRow:
    """One row, with what an error calls it, such as `mine.csv line 3`."""

    where: str
    values: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class FilePart:
    """Rows that belong to one split of their data set, whose name is empty where the data set has none."""

    name: str
    rows: Iterable[FileRow]


def kind_of(path: Path) -> str:
    """The suffix that says how a file is read, without `.gz`: `.jsonl` where it says nothing."""
    suffix = Path(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix
    return suffix.lower() if suffix.lower() in SUFFIXES else ".jsonl"


def file_parts(path: Path) -> tuple[list[FilePart], list[str]]:
    """The parts of one file, and what must be said about the choice of them.

    Raises `InputError` naming the file, and the line or row where there is one, at the latest while rows are read.
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
    """The value of a JSON text. Raises `InputError` for a text that is none and for a key that stands there twice."""
    value = json_files.parse_json(text, where, constants=True, object_of=_object)
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where} must hold whole characters; it holds half of one ({error.object[error.start]!a})"
        ) from error
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"the key {twice[0]!r} must stand once in an object, and stands there twice")
    return dict(pairs)


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file with their ends."""
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
            f"{path} must be a whole gzip file, and breaks off or is damaged after line {number}: {error}; get it again"
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _unpacked(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """The lines of a packed file, one of which may be all that it holds, up to what no text packs so well."""
    most_bytes = MOST_UNPACKED * path.stat().st_size + 2**20
    read_bytes = 0
    while line := file.readline(most_bytes - read_bytes + 1):
        read_bytes += len(line)
        if read_bytes > most_bytes:
            raise InputError(
                f"{path} must hold at most {MOST_UNPACKED} times its size, as texts "
                f"do, and goes on after {most_bytes} bytes; "
                "unpack it with gzip -d"
            )
        yield line


def _decoded(line: bytes, path: Path, number: int) -> str:
    known = "" if kind_of(path) == path.suffix.lower() else f"; known kinds of files are {', '.join(SUFFIXES)}"
    if number == 1 and (kind := next((kind for kind, begins in _NO_TEXTS.items() if line.startswith(begins)), None)):
        raise InputError(f"{path} must be UTF-8, and is {kind}; save it as UTF-8{known}")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} line {number} must be UTF-8, and its byte {error.start + 1} (0x{line[error.start]:02x}) is not; "
            f"save it as UTF-8{known}"
        ) from error


def _until_text(lines: Iterator[str]) -> Iterator[str]:
    """The lines up to the first that is not empty."""
    for line in lines:
        yield line
        if line.strip():
            return


def _json_lines(path: Path, lines: Iterable[str]) -> Iterator[FileRow]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _object_row(parse_json(line, f"{path} line {number}"), f"{path} line {number}")


def _object_row(value: Any, where: str) -> FileRow:
    if not isinstance(value, dict):
        raise InputError(f"{where} must be a JSON object, not {type(value).__name__}")
    return FileRow(where=where, values=value)


def _json_parts(path: Path, lines: Iterable[str]) -> tuple[list[FilePart], list[str]]:
    """A list of objects, an object that holds one, or one for each split."""
    text = "".join(lines)
    if not text.strip():
        return [FilePart(name="", rows=[])], []
    first, _, rest = text.lstrip().partition("\n")
    if rest.strip() and first.rstrip().endswith("}") and first.startswith("{"):
        return [FilePart(name="", rows=_json_lines(path, text.splitlines(keepends=True)))], [
            f"{path} holds a JSON object a line"
        ]
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
    said = f"{path}: taken is what stands under {', '.join(map(repr, lists))}"
    if others:
        said += f", and not {', '.join(map(repr, others))}"
    names = {key: key if split_named(key) else "" for key in lists}
    return [FilePart(name=names[key], rows=_list_rows(rows, f"{path} {key!r}")) for key, rows in lists.items()], [said]


def _list_rows(values: list[Any], where: str) -> Iterator[FileRow]:
    for number, value in enumerate(values, start=1):
        yield _object_row(value, f"{where} item {number}")


def _table_rows(path: Path, kind: str) -> Iterator[FileRow]:
    """Rows of a CSV or TSV file whose first line names the columns; an empty cell is an absent one."""
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
                    f"{where} must have as many cells ({len(cells)}) as there are columns ({len(names)}: "
                    f"{', '.join(names)}); quote cells that hold {delimiter!r} or line ends"
                )
            yield FileRow(where=where, values=_cells(names, cells, where))
    except csv.Error as error:
        raise InputError(f"{path} line {max(number, 1)} must be a row of a {kind[1:].upper()} file: {error}") from error


def _cells(names: list[str], cells: list[str], where: str) -> dict[str, Any]:
    """Cells by column; those of `history` and `metadata`, and lists or objects of `choices`, are JSON."""
    values: dict[str, Any] = {name: cell for name, cell in zip(names, cells, strict=True) if cell not in NO_VALUES}
    for name in ("history", "metadata", "choices", "options", "messages", "conversations"):
        if name in values and values[name].lstrip()[:1] in ("[", "{"):
            values[name] = parse_json(values[name], f"{where}: its {name!r}")
    return values


def _check_columns(names: Iterable[str], path: Path) -> None:
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        raise InputError(f"{path} must have one column of each name, and has several named {twice[0]!r}; rename them")


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
        raise InputError(f"{path} must be a whole parquet file, and is not after row {number}: {what}") from error
