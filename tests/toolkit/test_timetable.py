"""Claims about the time left of a whole run."""

from __future__ import annotations

import io

from tests.toolkit.test_progress import Clock
from toolkit.progress import Progress
from toolkit.timetable import Timetable, current, followed

PARTS = {"traces": 60.0, "train": 600.0, "export": 120.0}


def test_the_whole_is_what_the_part_in_hand_still_takes_and_all_later_parts() -> None:
    clock = Clock()
    timetable = Timetable(PARTS, clock)
    timetable.begin("traces")
    clock.now = 20.0
    assert timetable.left_s() == 40.0 + 720.0
    assert timetable.left_s(10.0) == 730.0
    clock.now = 90.0
    assert timetable.left_s() == 720.0
    timetable.begin("export")
    assert timetable.left_s() == 120.0
    timetable.begin(None)
    assert timetable.left_s() == 0.0
    assert timetable.taken_s == {"traces": 90.0, "export": 0.0}


def test_a_progress_says_the_time_left_of_the_whole_and_begins_the_part_of_its_name() -> None:
    clock = Clock()
    with followed(Timetable(PARTS, clock)) as timetable:
        timetable.begin("traces")
        clock.now = 50.0
        progress = Progress("train", 100, stream=io.StringIO(), clock=clock)
        clock.now = 150.0
        progress.advance(20)
        assert progress.line() == "train  20/100  20 %  12.0/min  6 min 40 s left, 8 min 40 s of the whole"
        within = Progress("evaluating x", 100, stream=io.StringIO(), clock=clock)
        clock.now = 160.0
        within.advance(10)
        assert within.line() == "evaluating x  10/100  10 %  1.0/s  1 min 30 s left, 3 min 30 s of the whole"
    assert timetable.taken_s == {"traces": 50.0, "train": 110.0}


def test_without_a_timetable_a_progress_knows_of_no_whole() -> None:
    assert current() is None
    clock = Clock()
    progress = Progress("train", 100, stream=io.StringIO(), clock=clock)
    clock.now = 10.0
    progress.advance(50)
    assert progress.line() == "train  50/100  50 %  5.0/s  10 s left"
