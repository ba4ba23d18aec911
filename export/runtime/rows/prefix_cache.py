"""Keys and values of the beginnings of long prompts, on disk: another process continues from them instead of reading
them again.

    <folder>/<key>/<digest of the ids>.prefix
    ┌────────┬──────────────┬─────────┬───────────┬──     header: MAGIC, crc32 of what follows it, positions (T)
    │ header │ ids_T int32  │ 0.key   │ 0.value   │ …     a layer's keys or values: [num_key_value_heads, T, head_dim],
    └────────┴──────────────┴─────────┴───────────┴──     as in the decoder's cache

Invariant: `key` digests model, kind of cache, library and processor, so a file holds bit for bit what this process
would compute. A damaged file is reported in one line, removed, and computed again. All models share one limit of bytes:
the least recently used files are removed first.

The ids are those of a conversation, so only the owner may read folder and files.

Shapes: T positions.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from export.runtime.rows.cached_model import CacheShape
from export.runtime.rows.prefix import PROMPT_CHUNK, common_prefix
from toolkit.machine.user_folders import cache_folder
from toolkit.terminal import say

MAGIC = b"prefix01"
HEADER = struct.Struct("<8sIIQ")
"""MAGIC, crc32, T, and padding, so that the ids begin at a multiple of 8."""
SUFFIX = ".prefix"
OWNER_ONLY = 0o700
LEAST_SAVED = 2 * PROMPT_CHUNK
"""Tokens of a prompt beyond those on disk for which a file is written."""

Ids = NDArray[np.int32]
Content = TypeVar("Content")


class Damaged(Exception):
    """A file is not as it was written; the message says how it differs."""


class PrefixCache:
    """The files of one model in a folder of many."""

    def __init__(self, folder: Path, key: str, shape: CacheShape, *, max_bytes: int) -> None:
        """Read the ids of this model's files. `max_bytes` limits all files in `folder`, other models' too."""
        self._folder, self._own, self._shape, self._max_bytes = folder, folder / key, shape, max_bytes
        self._ids: dict[Path, Ids] = {}
        for path in sorted(self._own.glob(f"*{SUFFIX}")):
            ids_T = self._guarded(path, self._read_ids)
            if ids_T is not None:
                self._ids[path] = ids_T

    def load(self, prompt: Sequence[int], row: Mapping[str, NDArray[Any]], *, beyond: int) -> int:
        """Copy the beginning of a prompt from a file into a row's arrays [G, S, A]; returns how many positions.

        Whole chunks are copied; none, if no file has a whole chunk beyond the `beyond` positions that the row holds.
        """
        known, path = self._best(prompt)
        if path is None or known - beyond < PROMPT_CHUNK:
            return 0
        count = known - known % PROMPT_CHUNK
        return self._guarded(path, lambda file: self._copy(file, row, count)) or 0

    def save(self, tokens: Sequence[int], row: Mapping[str, NDArray[Any]]) -> None:
        """Write the first positions of a row's arrays [G, S, A], those of `tokens`, if they are worth a file.

        A file that cannot be written is reported and does no harm.
        """
        if len(tokens) - self._best(tokens)[0] < LEAST_SAVED:
            return
        size_bytes = self._file_bytes(len(tokens))
        if size_bytes > self._max_bytes:
            return
        ids_T = np.asarray(tokens, dtype="<i4")
        path = self._own / f"{hashlib.sha256(ids_T.tobytes()).hexdigest()[:32]}{SUFFIX}"
        try:
            self._own.mkdir(parents=True, exist_ok=True, mode=OWNER_ONLY)
            self._drop_contained(ids_T)
            self._make_room(size_bytes)
            self._write(path, ids_T, row)
        except OSError as error:
            say(f"the prefix cache in {self._folder} cannot be written: {error.strerror}")
            return
        self._ids[path] = ids_T

    def _file_bytes(self, positions: int) -> int:
        return HEADER.size + 4 * positions + len(self._shape.names) * self._shape.array_bytes(positions)

    def _best(self, prompt: Sequence[int]) -> tuple[int, Path | None]:
        prompt_T = np.asarray(prompt, dtype=np.int32)
        found = [(common_prefix(ids_T, prompt_T), path) for path, ids_T in self._ids.items()]
        return max(found, default=(0, None))

    def _read_ids(self, path: Path) -> Ids:
        with path.open("rb") as file:
            positions = self._check_header(file.read(HEADER.size), path.stat().st_size)
            return np.frombuffer(file.read(4 * positions), dtype="<i4").astype(np.int32)

    def _check_header(self, header: bytes, size_bytes: int) -> int:
        """Check a file's header and return its number of positions."""
        if len(header) < HEADER.size:
            raise Damaged(f"it has {size_bytes} bytes, fewer than its header")
        magic, _, positions, _ = HEADER.unpack(header)
        if magic != MAGIC:
            raise Damaged("it is no prefix file")
        if size_bytes != self._file_bytes(positions):
            raise Damaged(f"it has {size_bytes} bytes instead of {self._file_bytes(positions)}")
        return int(positions)

    def _copy(self, path: Path, cache: Mapping[str, NDArray[Any]], count: int) -> int:
        """Copy the first `count` positions from the mapped file, after checking the whole of it."""
        content = np.memmap(path, dtype=np.uint8, mode="r")
        header = content[: HEADER.size].tobytes()
        positions = self._check_header(header, len(content))
        if zlib.crc32(content[HEADER.size :].data) != HEADER.unpack(header)[1]:
            raise Damaged("its checksum is wrong")
        shape, begin = self._shape, HEADER.size + 4 * positions
        for name in shape.names:
            stored = content[begin : begin + shape.array_bytes(positions)].view(shape.dtype)
            cache[name][:, :count] = stored.reshape(shape.heads, positions, shape.head_dim)[:, :count]
            begin += shape.array_bytes(positions)
        with suppress(OSError):  # the time decides only which file is removed first
            os.utime(path)
        return count

    def _write(self, path: Path, ids_T: Ids, cache: Mapping[str, NDArray[Any]]) -> None:
        """Write the whole file or none: the header comes last, and the rename after it."""
        fresh = path.with_suffix(f".{os.getpid()}.partial")
        checksum = 0
        with open(fresh, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.seek(HEADER.size)
            arrays = (cache[name][:, : len(ids_T)] for name in self._shape.names)
            for array in (ids_T, *arrays):
                content = np.ascontiguousarray(array).data.cast("B")
                checksum = zlib.crc32(content, checksum)
                file.write(content)
            file.seek(0)
            file.write(HEADER.pack(MAGIC, checksum, len(ids_T), 0))
        os.replace(fresh, path)

    def _drop_contained(self, ids_T: Ids) -> None:
        """Remove the files whose contents a new one includes."""
        for path, other_T in list(self._ids.items()):
            if common_prefix(other_T, ids_T) == len(other_T):
                self._forget(path)

    def _make_room(self, size_bytes: int) -> None:
        files = sorted(self._folder.glob("*/*"), key=lambda path: path.stat().st_mtime_ns)
        total = sum(path.stat().st_size for path in files)
        for path in files:
            if total + size_bytes <= self._max_bytes:
                return
            total -= path.stat().st_size
            self._forget(path)

    def _forget(self, path: Path) -> None:
        self._ids.pop(path, None)
        path.unlink(missing_ok=True)

    def _guarded(self, path: Path, read: Callable[[Path], Content]) -> Content | None:
        """Call `read` on a file; returns None if it is damaged or another process has removed it."""
        try:
            return read(path)
        except FileNotFoundError:
            self._ids.pop(path, None)
            return None
        except (Damaged, OSError) as error:
            say(f"{path} is damaged and will be computed again: {error}")
        with suppress(
            OSError
        ):  # after the error, which kept the file mapped, is gone; other processes may have it open
            self._forget(path)
        return None


def prefix_folder() -> Path:
    """Return the folder of all models' files."""
    return cache_folder() / "prefixes"


def forget_prefixes() -> None:
    """Remove all models' files; a process that has one of them open reads its prompts again."""
    for path in prefix_folder().glob("*/*"):
        path.unlink(missing_ok=True)
