"""Keys and values of what long prompts begin with, on disk: another process goes on from there instead of reading
again.

    <folder>/<key>/<digest of the ids>.prefix
    ┌────────┬──────────────┬─────────┬───────────┬──     header: MAGIC, crc32 of what follows it, positions (T)
    │ header │ ids_T int32  │ 0.key   │ 0.value   │ …     a layer's keys or values: [num_key_value_heads, T, head_dim],
    └────────┴──────────────┴─────────┴───────────┴──     as the decoder's cache has them

Invariant: `key` names model, kind of cache, library and processor, so what a file holds is bit for bit what this
process would compute. A file that is damaged is said to be so in one line, removed, and computed again. All models
together keep to a size: the files that were not used for longest go first.

The ids are those of the conversation, so folder and files are readable by their owner alone.

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
"""MAGIC, crc32, T, and nothing: the ids begin at a multiple of 8."""
SUFFIX = ".prefix"
OWNER_ONLY = 0o700
LEAST_SAVED = 2 * PROMPT_CHUNK
"""Tokens of a prompt, beyond what is on disk already, that are worth a file."""

Ids = NDArray[np.int32]
Content = TypeVar("Content")


class Damaged(Exception):
    """A file is not as it was written; the message says in what."""


class PrefixCache:
    """The files of one model in a folder of many."""

    def __init__(self, folder: Path, key: str, shape: CacheShape, *, max_bytes: int) -> None:
        """`max_bytes`: of all files in `folder`, other models' too."""
        self._folder, self._own, self._shape, self._max_bytes = folder, folder / key, shape, max_bytes
        self._ids: dict[Path, Ids] = {}
        for path in sorted(self._own.glob(f"*{SUFFIX}")):
            ids_T = self._guarded(path, self._read_ids)
            if ids_T is not None:
                self._ids[path] = ids_T

    def load(self, prompt: Sequence[int], row: Mapping[str, NDArray[Any]], *, beyond: int) -> int:
        """Copy into a row's arrays [G, S, A] what a file has of a prompt, in whole chunks; returns how many positions.

        Nothing, and 0, where no file has a whole chunk more than the `beyond` positions that the row holds.
        """
        known, path = self._best(prompt)
        if path is None or known - beyond < PROMPT_CHUNK:
            return 0
        count = known - known % PROMPT_CHUNK
        return self._guarded(path, lambda file: self._copy(file, row, count)) or 0

    def save(self, tokens: Sequence[int], row: Mapping[str, NDArray[Any]]) -> None:
        """Keep the first positions of a row's arrays [G, S, A] for these tokens, where that is worth a file.

        Where it cannot be written, that is said, and all goes on.
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
        """How many positions a file has."""
        if len(header) < HEADER.size:
            raise Damaged(f"it has {size_bytes} bytes, fewer than its header")
        magic, _, positions, _ = HEADER.unpack(header)
        if magic != MAGIC:
            raise Damaged("it does not begin as such a file does")
        if size_bytes != self._file_bytes(positions):
            raise Damaged(f"it has {size_bytes} bytes, and must have {self._file_bytes(positions)}")
        return int(positions)

    def _copy(self, path: Path, cache: Mapping[str, NDArray[Any]], count: int) -> int:
        """Copy the first `count` positions from the mapped file, when the whole of it is as it was written."""
        content = np.memmap(path, dtype=np.uint8, mode="r")
        header = content[: HEADER.size].tobytes()
        positions = self._check_header(header, len(content))
        if zlib.crc32(content[HEADER.size :].data) != HEADER.unpack(header)[1]:
            raise Damaged("its checksum is another")
        shape, begin = self._shape, HEADER.size + 4 * positions
        for name in shape.names:
            stored = content[begin : begin + shape.array_bytes(positions)].view(shape.dtype)
            cache[name][:, :count] = stored.reshape(shape.heads, positions, shape.head_dim)[:, :count]
            begin += shape.array_bytes(positions)
        with suppress(OSError):  # when it was used decides only which file goes first
            os.utime(path)
        return count

    def _write(self, path: Path, ids_T: Ids, cache: Mapping[str, NDArray[Any]]) -> None:
        """The whole file under its name, or none: the header comes last, and the name after it."""
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
        """Files of which a new one holds everything."""
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
        """What `read` makes of a file; None where it is damaged or another process has removed it."""
        try:
            return read(path)
        except FileNotFoundError:
            self._ids.pop(path, None)
            return None
        except (Damaged, OSError) as error:
            say(f"{path} is damaged and will be computed again: {error}")
        with suppress(OSError):  # where the error is gone, which kept the file mapped; others may have it open still
            self._forget(path)
        return None


def prefix_folder() -> Path:
    """Where the files of all models lie."""
    return cache_folder() / "prefixes"


def forget_prefixes() -> None:
    """Remove the files of all models; who has one of them open reads anew what it held."""
    for path in prefix_folder().glob("*/*"):
        path.unlink(missing_ok=True)
