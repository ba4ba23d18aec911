"""Writes rows as parquet shards, split by split, as the hub keeps data sets.

    data/train-00000.parquet  data/train-00001.parquet …  data/test-00000.parquet

A row group has some megabytes, so that neither the writer nor a reader ever holds much.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.exchange.exported_rows import COLUMNS
from toolkit.errors import MissingExtra

if TYPE_CHECKING:
    import pyarrow
    from pyarrow import parquet

DATA = "data"
GROUP_BYTES = 1 << 24
"""Characters of texts in a row group, about."""
GROUP_ROWS = 10_000
SHARD_BYTES = 1 << 28
"""From this size on a shard is followed by another one."""


class DatasetFiles:
    """The parquet shards of a folder, open for writing."""

    def __init__(self, folder: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
        """Raises `MissingExtra` if pyarrow is not installed."""
        self._schema = schema()
        self._folder, self._shard_bytes = folder / DATA, shard_bytes
        self._folder.mkdir()
        self._splits: dict[str, _SplitFiles] = {}

    def append(self, row: dict[str, Any]) -> None:
        split = row["split"]
        if split not in self._splits:
            self._splits[split] = _SplitFiles(self._folder, split, self._schema, self._shard_bytes)
        self._splits[split].append(row)

    def close(self) -> None:
        for split in self._splits.values():
            split.close()

    @property
    def rows(self) -> Counter[str]:
        return Counter({name: split.rows for name, split in self._splits.items()})

    @property
    def bytes(self) -> Counter[str]:
        """Return the bytes of each split's rows in memory, as `datasets` counts them."""
        return Counter({name: split.bytes for name, split in self._splits.items()})

    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self._folder.iterdir())


class _SplitFiles:
    def __init__(self, folder: Path, name: str, schema: pyarrow.Schema, shard_bytes: int) -> None:
        self.rows = self.bytes = 0
        self._folder, self._name, self._schema, self._shard_bytes = folder, name, schema, shard_bytes
        self._shards = 0
        self._path = folder
        self._file: parquet.ParquetWriter | None = None
        self._group: list[dict[str, Any]] = []
        self._characters = 0

    def append(self, row: dict[str, Any]) -> None:
        self._group.append(row)
        self._characters += len(row["question"]) + len(row["reasoning"]) + len(row["answer"]) + len(row["metadata"])
        if self._characters >= GROUP_BYTES or len(self._group) == GROUP_ROWS:
            self._write()

    def close(self) -> None:
        if self._group:
            self._write()
        if self._file is not None:
            self._file.close()

    def _write(self) -> None:
        import pyarrow
        from pyarrow import parquet

        table = pyarrow.Table.from_pylist(self._group, schema=self._schema)
        if self._file is None:
            self._path = self._folder / f"{self._name}-{self._shards:05d}.parquet"
            self._file = parquet.ParquetWriter(self._path, self._schema, compression="zstd")
            self._shards += 1
        self._file.write_table(table)
        self.rows += len(self._group)
        self.bytes += table.nbytes
        self._group, self._characters = [], 0
        if self._path.stat().st_size >= self._shard_bytes:
            self._file.close()
            self._file = None


def schema() -> pyarrow.Schema:
    """Return the columns as parquet has them."""
    try:
        import pyarrow
    except ImportError as error:
        raise MissingExtra("pyarrow", "distill") from error
    message = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
    kinds = {
        "string": pyarrow.string(),
        "int64": pyarrow.int64(),
        "bool": pyarrow.bool_(),
        "messages": pyarrow.list_(message),
    }
    return pyarrow.schema([(column.name, kinds[column.dtype]) for column in COLUMNS])
