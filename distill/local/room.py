"""Chooses how many rows a decoder runs at once: as many as were asked for, or as many as the memory has room for."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from toolkit.errors import InputError
from toolkit.generation.generate import Decoder
from toolkit.terminal import say

ROOM_AHEAD = 1.4
"""What a cache takes beyond its rows: the room ahead of them, and the layer that exists twice while it grows."""


@runtime_checkable
class Weighed(Protocol):
    """A decoder that knows what its cache takes, and what there is."""

    position_bytes: int
    """Of one position of one row."""

    def free_bytes(self) -> int: ...


def rows_that_fit(decoder: Decoder, wanted: int, longest: int) -> int:
    """Return how many rows of so many positions to run at once, and say so if they are fewer than wanted.

    Fewer rows change no answer. Raises `InputError` if there is no room for one.
    """
    if not isinstance(decoder, Weighed):
        return wanted
    row_bytes, free = decoder.position_bytes * longest * ROOM_AHEAD, decoder.free_bytes()
    rows = int(free / row_bytes)
    if rows < 1:
        raise InputError(
            f"the cache of one answer of up to {longest} tokens takes {row_bytes / 1e9:.1f} GB, but "
            f"{free / 1e9:.1f} GB are free; lower max_new_tokens"
        )
    if rows < wanted:
        say(f"teacher: {rows} answers at once instead of {wanted}, as the cache of more would not fit the memory")
    return min(rows, wanted)
