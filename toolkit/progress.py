"""Shows progress on stderr: a live line on a terminal, a plain line now and then elsewhere.

traces  120/400  30 %  3.1/s  1 min 30 s left, 14 min 2 s of the whole  loss 0.53
export  1.2/16.4 GB  7 %  118 MB/s  2 min 9 s left  layer 3

The time left of the whole comes from a `toolkit.timetable`, if one is followed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Self, TextIO

from toolkit import timetable
from toolkit.terminal import draw, visible

REDRAW_EVERY_S = 0.1
"""The time between redraws on a terminal."""
LINE_EVERY_S = 20.0
"""The time between lines where stderr is a file or a pipe."""
UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
FEW, EARLY_S = 3, 10.0
"""No time left is told before so many items are finished in so much time: the first ones are slower than the rest."""


class Progress:
    """Counts finished items, or bytes, of a known total, and shows the rate and the time left."""

    def __init__(
        self,
        label: str,
        total: int,
        *,
        done: int = 0,
        in_bytes: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`done` items were finished by an earlier run: they count as progress but not towards the rate."""
        self.done = done
        self._label, self._total, self._before = label, total, done
        self._in_bytes = in_bytes
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._clock = clock
        self._started = self._shown = clock()
        self._note = ""
        self._whole = timetable.current()
        if self._whole and label in self._whole.planned_s:
            self._whole.begin(label)
        if self._live or done < total:
            self._show(is_last=False)

    @property
    def left(self) -> int:
        """How many items are not finished yet."""
        return self._total - self.done

    def expect(self, total: int) -> None:
        """Count towards another total from now on."""
        self._total = total

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count finished items; `note` is shown until another one comes."""
        self.done += count
        self._note = note or self._note
        if not self._live and self.done >= self._total:
            return  # the line that closes says so, with a last note
        if self._clock() - self._shown >= (REDRAW_EVERY_S if self._live else LINE_EVERY_S):
            self._show(is_last=False)

    def begin(self, note: str) -> None:
        """Show what is being done from now on, before any item of it is finished."""
        self._note = note
        if self._live:
            self._show(is_last=False)

    def line(self) -> str:
        """Return the line as it is now."""
        elapsed_s = self._clock() - self._started
        made = self.done - self._before
        rate = made / elapsed_s if elapsed_s > 0 else 0.0
        parts = [self._label, self._amount(), f"{100 * self.done // max(self._total, 1)} %"]
        if rate > 0:
            parts.append(self._rate(rate))
            if self.done >= self._total:
                parts.append(f"in {duration(elapsed_s)}")
            elif made >= FEW and elapsed_s >= EARLY_S:
                parts.append(self._left((self._total - self.done) / rate))
        return "  ".join([*parts, self._note] if self._note else parts)

    def close(self) -> None:
        """Leave the last state on the screen."""
        self._show(is_last=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _left(self, seconds: float) -> str:
        whole_s = self._whole.left_s(seconds) if self._whole else 0.0
        return f"{duration(seconds)} left" + (f", {duration(whole_s)} of the whole" if whole_s else "")

    def _amount(self) -> str:
        if not self._in_bytes:
            return f"{self.done}/{self._total}"
        unit, name = next(((size, name) for size, name in UNITS if self._total >= size), UNITS[-1])
        return f"{self.done / unit:.1f}/{self._total / unit:.1f} {name}"

    def _rate(self, rate: float) -> str:
        if self._in_bytes:
            unit, name = UNITS[1] if rate >= 1e5 else UNITS[2]
            return f"{rate / unit:.0f} {name}/s" if rate >= 10 * unit else f"{rate / unit:.1f} {name}/s"
        return f"{rate:.1f}/s" if rate >= 1 else f"{60 * rate:.1f}/min"

    def _show(self, *, is_last: bool) -> None:
        self._shown = self._clock()
        if self._live:
            draw(self.line(), self._stream, is_last=is_last)
        else:
            self._stream.write(visible(self.line()) + "\n")
            self._stream.flush()


def duration(seconds: float) -> str:
    """Return a time span in words, such as `1 min 30 s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
