"""Rows that come and go one by one over one model; each is held by a handle, from `open` to `close`.

    place   0        1        2        3
          │ row    │ closed │ row    │ row │      a closed row's place keeps what it holds until another row takes it
            steps             reads    steps

A step runs rows that lie side by side from the first place on, so rows change places where one of those is stepped that
lies behind. Where a row lies is known here alone: a handle stays good wherever its row goes.

Shapes: B rows that step, T new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from export.runtime.rows.cached_model import CachedModel, Floats
from export.runtime.rows.prefix import Prefix

LEAST_TAKEN_OVER = 32
"""Positions of a closed row that a prompt must share to take its place for their sake."""


@dataclass(kw_only=True, eq=False)
class Row:
    """A handle on one row of a pool."""

    prefix: Prefix = field(default_factory=Prefix)
    """What it holds: its prompt as far as it is read, then what was stepped."""
    _place: int
    """In the cache."""
    _closed: int = 0
    """When it was closed, as the count of rows that were; 0 while it is open."""


class RowPool:
    """The rows over one model, whose cache is theirs alone."""

    def __init__(self, model: CachedModel) -> None:
        self.model = model
        self._rows: list[Row] = []
        """By their places, closed ones among them."""
        self._closed = 0

    def open(self, prompt: Sequence[int], *, by_chunks: bool = False) -> Row:
        """A row for a prompt, of which it may hold the beginning already where a closed row has left it.

        Otherwise it takes the place that was closed first, or a new one where none is free. Positions that are taken
        over are those that `Prefix.again` names, so the rest of the prompt is read as ever. `by_chunks`: see there.
        """
        free = [row for row in self._rows if row._closed]
        if not free:
            self._rows.append(Row(_place=len(self._rows)))
            return self._rows[-1]
        best = max(free, key=lambda row: row.prefix.again(prompt, by_chunks=by_chunks))
        kept = best.prefix.again(prompt, by_chunks=by_chunks)
        if kept < LEAST_TAKEN_OVER:
            best, kept = min(free, key=lambda row: row._closed), 0
        best.prefix.cut(kept)
        row = self._rows[best._place] = Row(prefix=best.prefix, _place=best._place)
        return row

    def read(self, row: Row, tokens_T: Sequence[int]) -> Floats:
        """Append a piece of its prompt to one row while the others hold theirs; returns logits_V after the piece."""
        self._make_room([row], len(tokens_T))
        logits_V = self.model.read(row._place, tokens_T, held=row.prefix.length)
        row.prefix.note_read(tokens_T)
        return logits_V

    def step(self, rows: Sequence[Row], tokens_B: Sequence[int]) -> list[Floats]:
        """Append one token to each of these rows at once; returns each one's logits_V after it, in the same order."""
        self._make_room(rows, 1)
        self._bring_to_front(rows)
        places = [row._place for row in rows]
        placed_B = np.empty(len(rows), dtype=np.int64)
        placed_B[places] = tokens_B
        held_B = np.array([row.prefix.length for row in self._rows[: len(rows)]])
        is_reading = len(rows) < sum(not row._closed for row in self._rows)
        logits_BV = self.model.step(placed_B, held_B, is_reading=is_reading)
        for row, token in zip(rows, tokens_B, strict=True):
            row.prefix.note_steps([token])
        return [logits_BV[place] for place in places]

    def close(self, row: Row) -> None:
        """Let a row go; what it holds may serve another one that begins alike."""
        self._closed += 1
        row._closed = self._closed

    def forget(self) -> None:
        """Forget all rows, and what closed ones have left."""
        self._rows = []

    def _make_room(self, rows: Sequence[Row], count: int) -> None:
        """For so many more positions of each of these rows."""
        assert all(self._rows[row._place] is row and not row._closed for row in rows)
        length = max(row.prefix.length for row in rows) + count
        assert length <= self.model.max_length
        self.model.make_room(len(self._rows), length, used=max(row.prefix.length for row in self._rows))

    def _bring_to_front(self, rows: Sequence[Row]) -> None:
        """Let these rows lie at the first places, with as few moves as there are others at them."""
        places = {row._place for row in rows}
        behind = [row for row in rows if row._place >= len(rows)]
        in_the_way = [row for row in self._rows[: len(rows)] if row._place not in places]
        for row, other in zip(behind, in_the_way, strict=True):
            there, here = [other._place, row._place], [row._place, other._place]
            self.model.move(here, there, used=max(row.prefix.length, other.prefix.length))
            row._place, other._place = there
            self._rows[row._place], self._rows[other._place] = row, other
