"""Reads the header of a GGUF file: its facts, and where its tensors are.

    magic, version │ number of tensors, of facts │ facts: key, type, value │ tensors: name, sizes, type, offset │ data

The gguf library believes an array that claims 2⁶⁰ entries and counts them, makes a thousand bytes of each entry, and
reads the weights of a big-endian file in the machine's own byte order. Invariant: this reader accepts only
little-endian files, and the file's size bounds its time and memory. Source: the GGUF specification.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import InputError

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Types of values by their numbers, as `struct` writes them."""
STRING, ARRAY = 8, 9
MOST_ENTRIES = 2**21
"""The most entries of an array: eight times the largest known vocabulary."""
LONGEST_NAME = 256
"""The most characters of a name; those of real models have fewer than 64, and errors show them."""
MOST_SIZES = 4
"""The most dimensions of a tensor."""
LEAST_BITS = 1
"""The fewest bits of a weight."""
HEADER_BYTES = 24
PART = re.compile(r"(?P<name>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf")
"""The name of one of several files, as llama.cpp names them."""
LARGEST_NUMBER = 2**31 - 1
"""The largest number in a configuration."""
ALIGNMENT, USUAL_ALIGNMENT = "general.alignment", 32
"""The fact whose multiple the data begins at, and its default."""


class DamagedHeader(Exception):
    """A number in the header cannot be right; the message says which."""


class Facts(dict[str, Any]):
    """A GGUF's metadata."""

    def __missing__(self, name: str) -> Any:
        raise InputError(f"the GGUF file lacks {name}; take the model's safetensors instead")

    def text(self, name: str) -> str:
        return str(self._checked(name, self[name], isinstance(self[name], str), "a text"))

    def texts(self, name: str) -> list[str]:
        fits = isinstance(self[name], list) and all(isinstance(value, str) for value in self[name])
        return list(self._checked(name, self[name], fits, "a list of texts"))

    def count(self, name: str) -> int:
        fits = type(self[name]) is int and 0 < self[name] <= LARGEST_NUMBER
        return int(self._checked(name, self[name], fits, f"a whole number from 1 to {LARGEST_NUMBER}"))

    def positive(self, name: str) -> float:
        fits = isinstance(self[name], float) and 0 < self[name] < math.inf
        return float(self._checked(name, self[name], fits, "a number above 0"))

    def numbers(self, name: str, count: int) -> list[float]:
        values = self[name]
        fits = isinstance(values, list) and len(values) == count and all(isinstance(x, float) and x > 0 for x in values)
        return list(self._checked(name, values, fits, f"a list of {count} numbers above 0"))

    def token_id(self, name: str) -> int:
        size = len(self["tokenizer.ggml.tokens"])
        fits = type(self[name]) is int and 0 <= self[name] < size
        return int(self._checked(name, self[name], fits, f"the id of one of its {size} tokens"))

    def _checked(self, name: str, value: Any, fits: bool, words: str) -> Any:
        if not fits:
            raise InputError(f"{name} of the GGUF file ({str(value)[:40]}) must be {words}; get it again")
        return value


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """The shape, type and place of a tensor."""

    shape: tuple[int, ...]
    """Rows first, as in numpy."""
    kind: int
    """The number of its type."""
    offset: int
    """Bytes from the beginning of the file."""


@dataclass(frozen=True, kw_only=True)
class Header:
    facts: dict[str, Any]
    tensors: dict[str, GgufTensor]
    """Tensors by name, in the order of the file."""


@dataclass
class _Walk:
    """Reads a file forward from a position that never passes its end."""

    content: mmap.mmap
    position: int = 0

    @property
    def left(self) -> int:
        return len(self.content) - self.position

    def bytes(self, count: int, what: str) -> bytes:
        if count > self.left:
            raise DamagedHeader(f"{what} ({count} bytes) is longer than the rest of the file ({self.left})")
        self.position += count
        return self.content[self.position - count : self.position]

    def number(self, kind: str) -> Any:
        (value,) = struct.unpack(f"<{kind}", self.bytes(struct.calcsize(f"<{kind}"), "a number"))
        return value

    def count(self, what: str, least_bytes: int) -> int:
        """Read a number of things, each of which takes at least so many bytes."""
        value: int = self.number("Q")
        if value * least_bytes > self.left:
            raise DamagedHeader(f"{what} ({value}) do not fit into the rest of the file ({self.left} bytes)")
        return value

    def name(self, what: str) -> str:
        name = self.text(what)
        if len(name) > LONGEST_NAME:
            raise DamagedHeader(f"{what} ({len(name)} characters) has more than {LONGEST_NAME}")
        return name

    def text(self, what: str) -> str:
        try:
            return self.bytes(self.number("Q"), what).decode()
        except UnicodeDecodeError as error:
            raise DamagedHeader(f"{what} is not text in utf-8: {error.reason}") from None

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text("a fact's text")
        if kind == ARRAY:
            return self.array()
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        raise DamagedHeader(f"a fact has an unknown type ({kind})")

    def array(self) -> list[Any]:
        kind = self.number("I")
        size_bytes = struct.calcsize(f"<{NUMBERS[kind]}") if kind in NUMBERS else 8
        entries = self.count("an array's entries", size_bytes)
        if entries > MOST_ENTRIES:
            raise DamagedHeader(f"an array's entries ({entries}) are more than {MOST_ENTRIES}")
        if kind == STRING:
            return [self.text("an array's text") for _ in range(entries)]
        if kind in NUMBERS:
            return list(struct.unpack(f"<{entries}{NUMBERS[kind]}", self.bytes(entries * size_bytes, "an array")))
        raise DamagedHeader(f"an array's entries have a type ({kind}) that no model needs")

    def tensor(self) -> GgufTensor:
        """Read a tensor's facts; its offset counts from the beginning of the data, as in the file."""
        sizes = self.number("I")
        if not 0 < sizes <= MOST_SIZES:
            raise DamagedHeader(f"a tensor's dimensions ({sizes}) are not 1 to {MOST_SIZES}")
        shape = tuple(self.number("Q") for _ in range(sizes))[::-1]
        weights = 1
        for size in shape:
            weights *= size
        if not 0 < weights * LEAST_BITS <= 8 * len(self.content):
            raise DamagedHeader(f"a tensor's weights ({weights}) do not fit into the file ({len(self.content)} bytes)")
        kind, offset = self.number("I"), self.number("Q")
        if offset > len(self.content):
            raise DamagedHeader(f"a tensor begins at {offset}, beyond the end of the file ({len(self.content)} bytes)")
        return GgufTensor(shape=shape, kind=kind, offset=offset)


def read_header(path: Path) -> Header:
    """Read a header; raises `InputError` if a number in it cannot be right."""
    try:
        if path.stat().st_size < HEADER_BYTES:
            raise DamagedHeader(f"its {path.stat().st_size} bytes are fewer than a header's {HEADER_BYTES}")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _header(_Walk(content))
    except (DamagedHeader, OSError) as error:
        raise InputError(f"{path.name} must be a whole GGUF file: {error}; get it again") from error


def parts_of(path: Path) -> list[Path]:
    """Return all files of the model of which one is given: NAME-00001-of-00003.gguf …, or that file alone.

    Raises `InputError` if one of them is not beside it.
    """
    named = PART.fullmatch(path.name)
    if not named:
        return [path]
    parts = int(named["parts"])
    paths = [path.with_name(f"{named['name']}-{i:05}-of-{parts:05}.gguf") for i in range(1, parts + 1)]
    for each in paths:
        if not each.is_file():
            raise InputError(f"{each} is missing, one of the {parts} files of {named['name']}; get it as well")
    return paths


def read_parts(path: Path) -> tuple[Facts, dict[Path, dict[str, GgufTensor]]]:
    """Read the headers of all files of a model; returns its facts, which the first has, and the tensors of each.

    Raises `InputError` if a number cannot be right, files are missing, or two of them have one tensor.
    """
    headers = {part: read_header(part) for part in parts_of(path)}
    for part, header in headers.items():
        if (count := header.facts.get("split.count", 0) or 1) != len(headers):
            raise InputError(
                f"{part.name} is one of {count!s:.40} files of a model, and {len(headers)} are named as such; give "
                "them their own names back (NAME-00001-of-00003.gguf …), or get them again"
            )
    places: dict[str, Path] = {}
    for part, header in headers.items():
        for name in header.tensors:
            if name in places:
                raise InputError(f"{name} is in {places[name].name} and in {part.name}; get both again")
            places[name] = part
    return Facts(next(iter(headers.values())).facts), {part: header.tensors for part, header in headers.items()}


def _header(walk: _Walk) -> Header:
    if walk.bytes(4, "the magic") != b"GGUF":
        raise DamagedHeader("it does not begin with GGUF")
    version = walk.number("I")
    if version & 0xFFFF == 0:
        raise DamagedHeader("its numbers have the byte order of other machines (big-endian)")
    if version not in (2, 3):
        raise DamagedHeader(f"its version ({version}) is not 2 or 3")
    tensors, facts = walk.count("tensors", 32), walk.count("facts", 13)
    header = Header(facts={}, tensors={})
    for _ in range(facts):
        _add(header.facts, walk.name("a fact's name"), walk.value(walk.number("I")))
    for _ in range(tensors):
        _add(header.tensors, walk.name("a tensor's name"), walk.tensor())
    alignment = header.facts.get(ALIGNMENT, USUAL_ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise DamagedHeader(f"{ALIGNMENT} ({alignment!r:.40}) is not a power of two")
    begin = -(-walk.position // alignment) * alignment
    moved = {
        name: GgufTensor(shape=t.shape, kind=t.kind, offset=begin + t.offset) for name, t in header.tensors.items()
    }
    return Header(facts=header.facts, tensors=moved)


def _add(found: dict[str, Any], name: str, value: Any) -> None:
    if name in found:
        raise DamagedHeader(f"{name!a} occurs twice")
    found[name] = value
