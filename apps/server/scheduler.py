"""Batches continuously: many turns share one pool of rows, and each comes and goes independently.

    waiting ──admit──> reading ────────> stepping        holds a row of the pool from the first piece of its prompt on
    (bounded)          a piece of one    one token in
                       row's prompt      each step, all
                       between steps     rows at once

Every round reads one piece of one prompt (readers take turns, so a long prompt delays nobody) and steps all rows whose
prompt is read. A free place goes to the request with the fewest running rows, then to the oldest.

A turn must depend only on its prompt and seed. Our own kernels round a few rows one by one, and many rows in one way
however many they are, so a prompt is read in pieces of many tokens, up to its last piece, and up to a few turns are
stepped together as if each were alone. With other kernels every cut matters: a repeatable scheduler always cuts alike,
and steps one row after another.

One thread owns the pool; everything else is protected by one lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from apps.server.metrics import Metrics, Outcome
from apps.server.row import BatchRow
from export.runtime.rows.prefix import FEW_ROWS
from export.runtime.rows.row_pool import Row, RowPool
from toolkit.generation.generate import Floats

PIECE = 128
"""Tokens of a prompt that are read at once while no other row waits for a step."""
PIECE_BETWEEN_STEPS = 32
"""Tokens of a prompt that are read between two steps of other rows."""


class QueueFull(Exception):
    """A request has more turns than may still wait."""


@dataclass(kw_only=True, eq=False)
class _Work:
    """A turn that waits or runs."""

    turn: BatchRow
    request: object
    submitted_s: float
    row: Row | None = None
    """Its row in the pool; None before the first piece of its prompt is read."""
    token: int | None = None
    """The last drawn token; None before its prompt is read."""


class Scheduler:
    """Runs turns on a thread of its own until it is closed."""

    def __init__(
        self,
        pool: RowPool,
        metrics: Metrics,
        *,
        parallel: int,
        queue: int,
        clock: Callable[[], float],
        repeatable: bool = False,
    ) -> None:
        """`parallel`: the most rows at once. `queue`: the most turns that may wait. `clock` returns seconds.

        `repeatable`: a turn is the same whatever kernels run, at the price of the batch's speed.
        """
        self.capacity = parallel + queue
        self.pool = pool
        self._repeatable = repeatable
        self._metrics, self._parallel, self._clock = metrics, parallel, clock
        self._waiting: list[_Work] = []
        self._readers: list[_Work] = []
        """Turns in the order in which their next pieces are read."""
        self._steppers: list[_Work] = []
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    def submit(self, turns: Sequence[BatchRow]) -> None:
        """Queue the turns of one request; raises `QueueFull` if not all of them may wait."""
        request, now = object(), self._clock()
        with self._changed:
            if len(self._waiting) + len(self._at_work()) + len(turns) > self.capacity:
                raise QueueFull
            self._waiting += [_Work(turn=turn, request=request, submitted_s=now) for turn in turns]
            self._show()
            self._changed.notify()

    def cancel(self, turns: Sequence[BatchRow]) -> None:
        """Cancel turns that nobody waits for any more; those that have ended are not changed."""
        with self._changed:
            for turn in turns:
                turn.is_cancelled = True
            self._changed.notify()

    def close(self) -> None:
        """End the thread; running turns are abandoned."""
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
        """Wait for work, drop cancelled turns and fill free places; False once the scheduler is closed."""
        with self._changed:
            while not (self._waiting or self._at_work() or self._is_closed):
                self._show()
                self._changed.wait()
            for work in (*self._waiting, *self._at_work()):
                if work.turn.is_cancelled:
                    self._remove(work, "cancelled")
            while self._waiting and len(self._at_work()) < self._parallel:
                work = min(self._waiting, key=lambda w: sum(other.request is w.request for other in self._at_work()))
                self._waiting.remove(work)
                self._readers.append(work)
            self._show()
            return not self._is_closed

    def _at_work(self) -> list[_Work]:
        return self._steppers + self._readers

    def _read(self) -> None:
        """Read a piece of one prompt, and draw its first token if that was the last piece."""
        if not self._readers:
            return
        with self._changed:
            work = self._readers.pop(0)
            self._readers.append(work)
        prompt = work.turn.prompt
        if work.row is None:
            work.row = self.pool.open(
                prompt, adapter=work.turn.adapter, by_chunks=self._repeatable, anew=work.turn.reads_each
            )
            work.turn.cached_tokens = work.row.prefix.length
            self._metrics.cached_tokens.inc(work.row.prefix.length)
        size = PIECE_BETWEEN_STEPS if self._steppers and not self._repeatable else PIECE
        read = work.row.prefix.length
        if len(prompt) - read <= size + FEW_ROWS and not self._repeatable:
            size = len(prompt) - read  # so that the last piece is not only a few tokens
        piece = prompt[read : read + size]
        if work.turn.reads_each:
            logits_TV = self.pool.read_each(work.row, piece)
            work.turn.note_prompt(logits_TV)
            logits_V = logits_TV[-1]
        else:
            logits_V = self.pool.read(work.row, piece)
        self._metrics.prompt_tokens.inc(len(piece))
        if read + len(piece) < len(prompt):
            return
        with self._changed:
            self._readers.remove(work)
            self._steppers.append(work)
        self._metrics.first_token_s.observe(self._clock() - work.submitted_s)
        self._draw([work], [logits_V])

    def _step(self) -> None:
        """Append the last drawn token to every row whose prompt is read, and draw the next ones."""
        if not self._steppers:
            return
        rows = [work.row for work in self._steppers if work.row]
        tokens = [work.token for work in self._steppers if work.token is not None]
        if self._repeatable:
            logits_BV = [self.pool.read(row, [token]) for row, token in zip(rows, tokens, strict=True)]
        else:
            logits_BV = self.pool.step(rows, tokens)
        self._draw(self._steppers, logits_BV)

    def _draw(self, works: Sequence[_Work], logits_BV: Sequence[Floats]) -> None:
        """Draw one token for each turn and deliver it; remove the turns that have ended."""
        ended = [work for work, logits_V in zip(works, logits_BV, strict=True) if self._is_last(work, logits_V)]
        with self._changed:
            for work in ended:
                self._remove(work, "done")

    def _is_last(self, work: _Work, logits_V: Floats) -> bool:
        """Draw one token and deliver it; True if it was the last."""
        try:
            work.token, piece = work.turn.draw(logits_V)
        except BaseException as error:  # noqa: BLE001 – a panic of tokenizers or llguidance is no Exception
            work.turn.deliver(error)
            return True
        self._metrics.generated_tokens.inc()
        work.turn.deliver(piece)
        return piece.finish_reason is not None

    def _remove(self, work: _Work, outcome: Outcome) -> None:
        for works in (self._waiting, self._readers, self._steppers):
            if work in works:
                works.remove(work)
        if work.row:
            self.pool.close(work.row)
        self._metrics.ended(outcome)

    def _fail(self, error: BaseException) -> None:
        """End all running rows, because their cache may be half written."""
        with self._changed:
            for work in self._at_work():
                work.turn.deliver(error)
                self._metrics.ended("failed")
            self.pool.forget()
            self._readers, self._steppers = [], []

    def _show(self) -> None:
        self._metrics.running.set(len(self._at_work()))
        self._metrics.waiting.set(len(self._waiting))
