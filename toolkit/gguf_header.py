"""Whether the lengths and counts in a GGUF file's header fit the file, before a library believes them.

    magic, version │ number of tensors, of facts │ facts: key, type, value │ tensors: name, sizes, type, offset │ data

The gguf library takes an array of 2⁶⁰ entries at its word and counts them, and reads the weights of a big-endian file as if
they were its machine's own. Invariant: what passes here is little-endian, and read in time and memory that the file's size
bounds. Source: the GGUF specification.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import InputError

SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""By the numbers of the value types."""
STRING, ARRAY = 8, 9
MOST_ENTRIES = 2**21
"""Of an array: eight times the largest vocabulary that is known."""
MOST_SIZES = 4
"""Dimensions of a tensor."""
LEAST_BITS = 1
"""Of a weight."""
HEADER_BYTES = 24


class Damaged(Exception):
    """A number in the header can't be right; the message says which."""


@dataclass
class _Walk:
    """A place in the file that only moves on, and never behind its end."""

    content: mmap.mmap
    position: int = 0

    @property
    def left(self) -> int:
        return len(self.content) - self.position

    def skip(self, size_bytes: int, what: str) -> None:
        if size_bytes > self.left:
            raise Damaged(f"{what} ({size_bytes} bytes) is longer than the rest of the file ({self.left})")
        self.position += size_bytes

    def number(self, kind: str) -> int:
        """A number of 4 ("I") or 8 ("Q") bytes."""
        begin = self.position
        self.skip(struct.calcsize(f"<{kind}"), "a number")
        value: int = struct.unpack_from(f"<{kind}", self.content, begin)[0]
        return value

    def count(self, what: str, least_bytes: int) -> int:
        """A number of things that take so many bytes each at least."""
        value = self.number("Q")
        if value * least_bytes > self.left:
            raise Damaged(f"{what} ({value}) do not fit into the rest of the file ({self.left} bytes)")
        return value

    def text(self, what: str) -> None:
        self.skip(self.number("Q"), what)

    def fact(self) -> None:
        self.text("a fact's name")
        self.value(self.number("I"))

    def value(self, kind: int) -> None:
        if kind == STRING:
            self.text("a fact's text")
        elif kind == ARRAY:
            self.array()
        elif kind in SCALAR_BYTES:
            self.skip(SCALAR_BYTES[kind], "a fact's number")
        else:
            raise Damaged(f"the type of a fact ({kind}) is none")

    def array(self) -> None:
        kind = self.number("I")
        entries = self.count("an array's entries", SCALAR_BYTES.get(kind, 8))
        if entries > MOST_ENTRIES:
            raise Damaged(f"an array's entries ({entries}) are more than {MOST_ENTRIES}")
        if kind == STRING:
            for _ in range(entries):
                self.text("an array's text")
        elif kind in SCALAR_BYTES:
            self.skip(entries * SCALAR_BYTES[kind], "an array")
        else:
            raise Damaged(f"the type of an array's entries ({kind}) is none that a model needs")

    def tensor(self) -> None:
        self.text("a tensor's name")
        sizes = self.number("I")
        if not 0 < sizes <= MOST_SIZES:
            raise Damaged(f"a tensor's dimensions ({sizes}) are not 1 to {MOST_SIZES}")
        weights = 1
        for _ in range(sizes):
            weights *= self.number("Q")
        if not 0 < weights * LEAST_BITS <= 8 * len(self.content):
            raise Damaged(f"a tensor's weights ({weights}) do not fit into the file ({len(self.content)} bytes)")
        self.number("I")
        offset = self.number("Q")
        if offset > len(self.content):
            raise Damaged(f"a tensor begins at {offset}, behind the end of the file ({len(self.content)} bytes)")


def check_header(path: Path) -> None:
    """Raises `InputError` where a number in the header can't be right."""
    try:
        if path.stat().st_size < HEADER_BYTES:
            raise Damaged(f"its {path.stat().st_size} bytes are fewer than a header's {HEADER_BYTES}")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _walk(_Walk(content))
    except (Damaged, OSError) as error:
        raise InputError(f"{path.name} must be a whole GGUF file: {error}; get it again") from error


def _walk(walk: _Walk) -> None:
    if walk.content[:4] != b"GGUF":
        raise Damaged("it does not begin with GGUF")
    walk.skip(4, "the magic")
    if walk.number("I") & 0xFFFF == 0:  # the version
        raise Damaged("its numbers have the byte order of other machines (big-endian)")
    tensors, facts = walk.count("tensors", 24), walk.count("facts", 13)
    for _ in range(facts):
        walk.fact()
    for _ in range(tensors):
        walk.tensor()
