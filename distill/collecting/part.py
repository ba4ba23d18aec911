"""Divides the requests of a job into parts, for jobs that run on several machines.

A part has the requests whose hashes are in one of n equal ranges. Whoever counts the same requests finds the same part,
and parts that fill one store claim different buckets of it (`distill.store.claims`), so they never wait for each other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from distill.store.shard_index import Hashes
from toolkit.errors import InputError

SHARD = "shard"
"""The part in the configuration of a run, which has it only if it asks for a part."""
MOST_PARTS = 100_000
HALF_BITS = np.uint64(32)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One of several parts of a job, counted from 1."""

    number: int
    parts: int

    @classmethod
    def of(cls, text: str) -> Self:
        """Read a part such as `3/16`; raises `InputError` if it is none."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
        number, parts = map(int, found.groups()) if found else (0, 0)
        if not found or not 1 <= parts <= MOST_PARTS:
            raise InputError(f"--shard ({text!r:.60}) must be a part and the number of parts, such as 3/16")
        if not 1 <= number <= parts:
            raise InputError(
                f"--shard ({text}) asks for part {number} of {parts}; parts are counted from 1 to {parts} (Slurm: "
                f"--array=1-{parts})"
            )
        return cls(number=number, parts=parts)

    def __str__(self) -> str:
        return f"{self.number}/{self.parts}"

    def includes(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Return which requests belong to this part."""
        found: NDArray[np.bool_] = (hashes >> HALF_BITS) * np.uint64(self.parts) >> HALF_BITS == self.number - 1
        return found
