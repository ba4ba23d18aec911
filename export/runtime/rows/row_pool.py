"""A pool of rows over one model, which come and go one by one; a handle stands for each, from `open` to `close`.

    place   0        1        2        3
          │ row    │ closed │ row    │ row │      a closed row's place keeps what it holds until another row takes it
            steps             reads    steps

A step runs adjacent rows from the first place on, so a row that is stepped changes places with one in front of it that
is not. Only the pool knows a row's place: its handle stays valid when the row moves.

Shapes: B rows that step, T new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from export.runtime.rows.cached_model import CachedModel, Floats
from export.runtime.rows.prefix import Prefix

LEAST_TAKEN_OVER = 32
"""The fewest positions that a prompt must share with a closed row to reuse them."""


@dataclass(kw_only=True, eq=False)
class Row:
    """A handle on one row of a pool."""

    prefix: Prefix = field(default_factory=Prefix)
    """The row's contents: its prompt as far as it is read, then the stepped tokens."""
    _place: int
    """The row's index in the cache."""
    _closed: int = 0
    """The number of rows that had been closed when this one was, itself included; 0 while it is open."""


class RowPool:
    """The rows of one model, whose cache only the pool uses."""

    def __init__(self, model: CachedModel) -> None:
        self.model = model
        self._rows: list[Row] = []
        """Open and closed rows, by place."""
        self._closed = 0

    def open(self, prompt: Sequence[int], *, adapter: int = 0, by_chunks: bool = False, anew: bool = False) -> Row:
        """Open a row for a prompt; it may already hold a beginning that a closed row has left, unless `anew`.

        `adapter`: the number of the one that computes the row, 0 for none. A beginning of another's is not reused.

        Otherwise it takes the place that was closed first, or a new one if none is free. It reuses the positions that
        `Prefix.again` counts (also `by_chunks`), so the rest of the prompt is read as usual.
        """
        free = [row for row in self._rows if row._closed]
        if not free:
            self._rows.append(Row(prefix=Prefix(adapter=adapter), _place=len(self._rows)))
            return self._rows[-1]

        def reused(row: Row) -> int:
            return row.prefix.again(prompt, by_chunks=by_chunks, adapter=adapter)

        best = max(free, key=reused)
        kept = 0 if anew else reused(best)
        if kept < LEAST_TAKEN_OVER:
            best, kept = min(free, key=lambda row: row._closed), 0
        best.prefix.cut(kept)
        best.prefix.adapter = adapter
        row = self._rows[best._place] = Row(prefix=best.prefix, _place=best._place)
        return row

    def read(self, row: Row, tokens_T: Sequence[int]) -> Floats:
        """Append a piece of its prompt to one row and leave the others; returns logits_V after the piece."""
        self._make_room([row], len(tokens_T))
        logits_V = self.model.read(row._place, tokens_T, held=row.prefix.length, adapter=row.prefix.adapter)
        row.prefix.note_read(tokens_T)
        return logits_V

    def read_each(self, row: Row, tokens_T: Sequence[int]) -> Floats:
        """Append a piece of its prompt to one row, as `read` does; returns logits_TV after each of its tokens."""
        self._make_room([row], len(tokens_T))
        held, adapter = row.prefix.length, row.prefix.adapter
        logits_TV = self.model.read_each(row._place, tokens_T, held=held, adapter=adapter)
        row.prefix.note_read(tokens_T)
        return logits_TV

    def step(self, rows: Sequence[Row], tokens_B: Sequence[int]) -> list[Floats]:
        """Append one token to each of these rows at once; returns logits_V after it for each row, in their order."""
        self._make_room(rows, 1)
        self._bring_to_front(rows)
        places = [row._place for row in rows]
        placed_B = np.empty(len(rows), dtype=np.int64)
        placed_B[places] = tokens_B
        prefixes = [row.prefix for row in self._rows[: len(rows)]]
        held_B = np.array([prefix.length for prefix in prefixes])
        adapters_B = np.array([prefix.adapter for prefix in prefixes])
        is_reading = len(rows) < sum(not row._closed for row in self._rows)
        logits_BV = self.model.step(placed_B, held_B, is_reading=is_reading, adapters_B=adapters_B)
        for row, token in zip(rows, tokens_B, strict=True):
            row.prefix.note_steps([token])
        return [logits_BV[place] for place in places]

    def close(self, row: Row) -> None:
        """Close a row; another one with the same beginning may reuse its contents."""
        self._closed += 1
        row._closed = self._closed

    def forget(self) -> None:
        """Forget all rows and the contents of closed ones."""
        self._rows = []

    def _make_room(self, rows: Sequence[Row], count: int) -> None:
        """Make room for `count` more positions in each of these rows."""
        assert all(self._rows[row._place] is row and not row._closed for row in rows)
        length = max(row.prefix.length for row in rows) + count
        assert length <= self.model.max_length
        self.model.make_room(len(self._rows), length, used=max(row.prefix.length for row in self._rows))

    def _bring_to_front(self, rows: Sequence[Row]) -> None:
        """Move these rows to the first places, with one exchange for each other row there."""
        places = {row._place for row in rows}
        behind = [row for row in rows if row._place >= len(rows)]
        in_the_way = [row for row in self._rows[: len(rows)] if row._place not in places]
        for row, other in zip(behind, in_the_way, strict=True):
            there, here = [other._place, row._place], [row._place, other._place]
            self.model.move(here, there, used=max(row.prefix.length, other.prefix.length))
            row._place, other._place = there
            self._rows[row._place], self._rows[other._place] = row, other
