"""Claims about the progress line."""

from __future__ import annotations

import io

from toolkit.progress import LINE_EVERY_S, Progress, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_rate_leaves_out_what_an_earlier_run_finished() -> None:
    clock = Clock()
    progress = Progress("traces", 400, done=100, stream=io.StringIO(), clock=clock)
    clock.now = 10.0
    progress.advance(20)
    assert progress.line() == "traces  120/400  30 %  2.0/s  2 min 20 s left"


def test_bytes_are_said_in_units_that_fit_their_total() -> None:
    clock = Clock()
    large = Progress("export", 16_400_000_000, done=200_000_000, in_bytes=True, stream=io.StringIO(), clock=clock)
    small = Progress("export", 52_000_000, in_bytes=True, stream=io.StringIO(), clock=clock)
    tiny = Progress("reading", 25_600, in_bytes=True, stream=io.StringIO(), clock=clock)
    clock.now = 10.0
    large.advance(1_000_000_000, note="layer 3")
    small.advance(13_000_000)
    tiny.advance(12_800)
    assert large.line() == "export  1.2/16.4 GB  7 %  100 MB/s  2 min 32 s left  layer 3"
    assert small.line() == "export  13.0/52.0 MB  25 %  1.3 MB/s  30 s left"
    assert tiny.line() == "reading  12.8/25.6 kB  50 %  1.3 kB/s  10 s left"


def test_the_time_left_is_told_once_some_items_are_finished_by_this_process() -> None:
    clock = Clock()
    progress = Progress("train", 400, done=100, stream=io.StringIO(), clock=clock)
    lefts = []
    for finished_at in (30.0, 32.0, 36.0, 40.0):  # the first one is slow
        clock.now = finished_at
        progress.advance()
        lefts.append(progress.line().partition("  25 %  ")[2])
    assert lefts == ["2.0/min", "3.8/min", "5.0/min  59 min 24 s left", ""]
    assert progress.line().endswith("6.0/min  49 min 20 s left")


def test_what_was_finished_before_is_not_announced_as_begun() -> None:
    stream = io.StringIO()
    with Progress("traces", 4, done=4, stream=stream, clock=Clock()):
        pass
    assert stream.getvalue() == "traces  4/4  100 %\n"


def test_a_finished_line_says_how_long_it_took() -> None:
    clock = Clock()
    progress = Progress("traces", 4, stream=io.StringIO(), clock=clock)
    clock.now = 75.0
    progress.advance(4, note="loss 0.53")
    assert progress.line() == "traces  4/4  100 %  3.2/min  in 1 min 15 s  loss 0.53"


def test_a_pipe_gets_whole_lines_now_and_then_and_a_terminal_one_line_that_changes() -> None:
    clock, pipe, terminal = Clock(), io.StringIO(), Terminal()
    with Progress("t", 100, stream=pipe, clock=clock) as one, Progress("t", 100, stream=terminal, clock=clock) as two:
        for _ in range(100):
            clock.now += LINE_EVERY_S / 40
            one.advance()
            two.advance()
    assert "\r" not in pipe.getvalue() and "\x1b" not in pipe.getvalue()
    assert len(pipe.getvalue().splitlines()) == 4 and pipe.getvalue().startswith("t  0/100  0 %\n")
    assert terminal.getvalue().count("\n") == 1 and terminal.getvalue().count("\r") == 102


def test_a_pipe_gets_one_line_of_the_end() -> None:
    clock, pipe = Clock(), io.StringIO()
    with Progress("train", 2, stream=pipe, clock=clock) as progress:
        clock.now = LINE_EVERY_S
        progress.advance()
        clock.now = 2 * LINE_EVERY_S
        progress.advance()
    assert [line.split("  ")[1] for line in pipe.getvalue().splitlines()] == ["0/2", "1/2", "2/2"]


def test_durations_read_as_people_say_them() -> None:
    assert [duration(s) for s in (0.4, 59.4, 59.6, 3599, 3600, 7265)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "59 min 59 s",
        "1 h 0 min",
        "2 h 1 min",
    ]
