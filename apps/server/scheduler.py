"""Continuous batching: many turns over one decoder, each of which comes and goes when it will.

    waiting ──admit──> │ stepping rows │ reading rows │        rows of the decoder's cache
    (bounded)            one token a     a piece of one
                         step, all       row's prompt
                         at once         between steps

Every round reads one piece of one prompt (the readers take turns, so a long prompt holds nobody up) and steps all rows
whose prompt is read. A row that ended changes places with the last stepping one, and that place with the last row: so
stepping rows are always the first. A free place goes to the request with the fewest rows in work, then to the oldest.

What a turn says must hang on nothing but its prompt and seed. Our own kernels round a few rows one by one, and many in one
way however many they are, so a prompt is read by many tokens at once, to its last piece, and up to a few turns are stepped
together as if each were alone. With other kernels every cut counts: a repeatable scheduler cuts always alike, and steps one
row after another.

One thread owns the decoder; everything else is behind one lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from apps.server.metrics import Metrics, Outcome
from apps.server.row import Turn
from export.runtime.decoder import FEW_ROWS
from toolkit.generation.generate import Floats, Ints

PIECE = 128
"""Tokens of a prompt that are read at once where nobody waits for a step."""
PIECE_BETWEEN_STEPS = 32
"""The same between two steps of other rows."""


class RowDecoder(Protocol):
    """A decoder whose rows come and go; see `export.runtime.decoder.OnnxDecoder`."""

    def step(self, tokens_B: Ints) -> Floats:
        """Append one token to each of the first rows; returns logits_BV after it."""

    def open(self, prompt: Sequence[int], *, by_chunks: bool) -> int:
        """Add a last row for a prompt; returns how many of its first tokens it holds already."""

    def read(self, row: int, tokens_T: Sequence[int]) -> Floats:
        """Append a piece of a prompt to one row; returns logits_V after it."""

    def swap(self, first: int, second: int) -> None:
        """Let two rows change places."""

    def drop(self) -> None:
        """Let the last row go; what it holds may serve another one that begins alike."""

    def forget(self) -> None:
        """Forget all rows, and what was let go."""


class QueueFull(Exception):
    """More turns are waiting than may wait."""


@dataclass(kw_only=True, eq=False)
class _Row:
    turn: Turn
    request: object
    submitted_s: float
    read: int = 0
    """Tokens of the prompt that the cache holds."""
    token: int = -1
    """The last one drawn."""


class Scheduler:
    """Runs turns on a thread of its own until it is closed."""

    def __init__(
        self,
        decoder: RowDecoder,
        metrics: Metrics,
        *,
        parallel: int,
        queue: int,
        clock: Callable[[], float],
        repeatable: bool = False,
    ) -> None:
        """`parallel`: rows in work at once. `queue`: turns that may wait beside them. `clock` reads seconds.

        `repeatable`: a turn says the same whatever the kernels, for what the batch would have saved.
        """
        self.capacity = parallel + queue
        self._repeatable = repeatable
        self._decoder, self._metrics, self._parallel, self._clock = decoder, metrics, parallel, clock
        self._waiting: list[_Row] = []
        self._rows: list[_Row] = []
        self._stepping = 0
        """How many rows, from the first on, have read their prompt."""
        self._next_reader = 0
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    def submit(self, turns: Sequence[Turn]) -> None:
        """Let the turns of one request wait for rows; raises `QueueFull` where not all of them may."""
        request, now = object(), self._clock()
        with self._changed:
            if len(self._waiting) + len(self._rows) + len(turns) > self.capacity:
                raise QueueFull
            self._waiting += [_Row(turn=turn, request=request, submitted_s=now) for turn in turns]
            self._show()
            self._changed.notify()

    def cancel(self, turns: Sequence[Turn]) -> None:
        """Nobody waits for these any more; those that have ended stay as they are."""
        with self._changed:
            for turn in turns:
                turn.is_cancelled = True
            self._changed.notify()

    def close(self) -> None:
        """End the thread; turns in work are left where they are."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._admit():
            try:
                self._read()
                self._step()
            except BaseException as error:  # noqa: BLE001 – these turns end, and the next ones are served
                self._fail(error)

    def _admit(self) -> bool:
        """Wait for work, let cancelled turns go and fill free places; False where the scheduler is closed."""
        with self._changed:
            while not (self._waiting or self._rows or self._is_closed):
                self._show()
                self._changed.wait()
            gone = [row for row in self._waiting if row.turn.is_cancelled]
            self._waiting = [row for row in self._waiting if not row.turn.is_cancelled]
            for row in gone:
                self._metrics.ended("cancelled")
            for i in reversed(range(len(self._rows))):
                if self._rows[i].turn.is_cancelled:
                    self._remove(i, "cancelled")
            while self._waiting and len(self._rows) < self._parallel:
                row = min(self._waiting, key=lambda w: sum(r.request is w.request for r in self._rows))
                self._waiting.remove(row)
                self._rows.append(row)
            self._show()
            return not self._is_closed

    def _read(self) -> None:
        """Read a piece of one prompt, and draw its first token where that was the last piece."""
        readers = len(self._rows) - self._stepping
        if not readers:
            return
        place = self._stepping + self._next_reader % readers
        self._next_reader += 1
        row = self._rows[place]
        size = PIECE_BETWEEN_STEPS if self._stepping and not self._repeatable else PIECE
        if row.read == 0:
            place = self._open(place)
            row.read = self._decoder.open(row.turn.prompt, by_chunks=self._repeatable)
            row.turn.cached_tokens = row.read
            self._metrics.cached_tokens.inc(row.read)
        left = len(row.turn.prompt) - row.read
        if left <= size + FEW_ROWS and not self._repeatable:
            size = left  # no last piece of a few
        piece = row.turn.prompt[row.read : row.read + size]
        logits_V = self._decoder.read(place, piece)
        row.read += len(piece)
        self._metrics.prompt_tokens.inc(len(piece))
        if row.read < len(row.turn.prompt):
            return
        self._swap(place, self._stepping)
        self._stepping += 1
        self._metrics.first_token_s.observe(self._clock() - row.submitted_s)
        if self._draw(row, logits_V):
            with self._changed:
                self._remove(self._stepping - 1, "done")

    def _open(self, place: int) -> int:
        """The decoder's rows are the first of ours, so the next to be opened is the first that has none."""
        first = next(i for i, row in enumerate(self._rows) if i >= self._stepping and row.read == 0)
        self._rows[place], self._rows[first] = self._rows[first], self._rows[place]
        return first

    def _step(self) -> None:
        """Append to every stepping row what it drew last, and draw the next ones."""
        if not self._stepping:
            return
        tokens_B = np.array([row.token for row in self._rows[: self._stepping]])
        if self._repeatable:
            logits_BV = np.stack([self._decoder.read(i, [int(token)]) for i, token in enumerate(tokens_B)])
        else:
            logits_BV = self._decoder.step(tokens_B)
        ended = [i for i in range(self._stepping) if self._draw(self._rows[i], logits_BV[i])]
        with self._changed:
            for i in reversed(ended):
                self._remove(i, "done")

    def _draw(self, row: _Row, logits_V: Floats) -> bool:
        """Draw one token of a row and hand it on; True where it was the last."""
        try:
            row.token, piece = row.turn.draw(logits_V)
        except BaseException as error:  # noqa: BLE001 – a panic of tokenizers or llguidance is no Exception
            row.turn.deliver(error)
            return True
        self._metrics.generated_tokens.inc()
        row.turn.deliver(piece)
        return piece.finish_reason is not None

    def _remove(self, place: int, outcome: Outcome) -> None:
        """Take a row out; stepping rows stay first, and the decoder's rows stay the first of ours."""
        if place < self._stepping:
            self._stepping -= 1
            self._swap(place, self._stepping)
            place = self._stepping
        opened = sum(row.read > 0 for row in self._rows)
        if self._rows[place].read:
            self._swap(place, opened - 1)
            self._decoder.drop()
            place = opened - 1
        del self._rows[place]
        self._metrics.ended(outcome)

    def _swap(self, first: int, second: int) -> None:
        self._decoder.swap(first, second)
        self._rows[first], self._rows[second] = self._rows[second], self._rows[first]

    def _fail(self, error: BaseException) -> None:
        """End all rows in work, because their cache may be half written."""
        with self._changed:
            for row in self._rows:
                row.turn.deliver(error)
                self._metrics.ended("failed")
            self._decoder.forget()
            self._rows, self._stepping = [], 0

    def _show(self) -> None:
        self._metrics.running.set(len(self._rows))
        self._metrics.waiting.set(len(self._waiting))
