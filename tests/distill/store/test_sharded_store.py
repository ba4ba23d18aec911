"""Claims about a store: its shards are the truth, whatever became of its indexes, its machine or its disk."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from distill.collecting.job import Job, Plan
from distill.collecting.outcomes import Refusal
from distill.collecting.trace_log import TraceLog
from distill.collecting.traces import collect
from distill.store import shards
from distill.store.sharded_store import LAYOUT, HeldTraces, TraceStore
from tests.distill.store.crashing import Asked, answer_to, fails, fill, job_of, plan_of
from tests.house.modules import ROOT
from tests.toolkit.full_disk import full_disk
from toolkit.errors import InputError
from toolkit.records import Message, Problem, Trace, read_records, write_records

MANY = 100


class Teacher:
    """Answers at once, and remembers what it was asked."""

    def __init__(self, *, most: int = 10**9, failing: bool = True) -> None:
        """`most`: after so many requests it stops, as where a limit is reached."""
        self.asked: list[str] = []
        self._most, self._failing = most, failing

    def draw(self, requests: Iterator[Asked], log: TraceLog) -> None:
        for request in requests:
            self.asked.append(request.hash)
            if self._failing and fails(request):
                assert not log.failed(request, Refusal("no", reason="HTTP 400", cause="request", said="not this one"))
            else:
                log.answered(answer_to(request, 400))
            if len(self.asked) == self._most:
                return


def collected(folder: Path, requests: int = MANY, teacher: Teacher | None = None) -> tuple[list[Trace], Teacher]:
    """Collect a job's traces; return them and who was asked."""
    job, teacher = job_of(folder, requests), teacher or Teacher()
    return list(collect(plan_of(job), teacher.draw, job)), teacher


def right(requests: int = MANY) -> list[Trace]:
    plan = plan_of(job_of(Path("unused"), requests))
    asked = map(plan.request, range(len(plan)))
    return [answer_to(request, 400) for request in asked if not fails(request)]


def one(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store that holds all of a job."""
    traces, teacher = collected(tmp_path / "store")
    assert traces == right() and len(teacher.asked) == MANY
    return tmp_path / "store"


def test_traces_come_in_the_order_of_their_requests_and_none_is_asked_again(folder: Path) -> None:
    traces, teacher = collected(folder)
    assert traces == right() and teacher.asked == []
    plan = plan_of(job_of(folder, MANY))
    held = HeldTraces(TraceStore(folder), plan.hashes)
    assert len(held) == len(traces) and held[3] == traces[3] and held[-1] == traces[-1]
    assert list(held[10:20]) == traces[10:20] and list(held) == list(held)
    assert [json.loads(line)["request_hash"] for line in held.lines()] == [trace.request_hash for trace in traces]
    failed = [f.request_hash for f in held.failures()]
    assert sorted(failed) == sorted({r.hash for r in map(plan.request, range(MANY))} - {t.request_hash for t in traces})


def test_more_samples_and_more_problems_cost_only_those(folder: Path) -> None:
    traces, teacher = collected(folder, MANY + 20)
    assert traces == right(MANY + 20) and len(teacher.asked) == 20


def test_reading_changes_nothing_and_a_missing_folder_is_an_empty_store(folder: Path, tmp_path: Path) -> None:
    one(folder, "traces-*.index").unlink()
    before = files(folder)
    store = TraceStore(folder)
    assert len(list(store.traces.records())) == len(store) == len(right())
    assert files(folder) == before
    assert len(TraceStore(tmp_path / "none")) == 0 and not (tmp_path / "none").exists()


def test_a_store_of_the_first_layout_is_read_as_it_is_and_never_written(folder: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    for stem in ("traces", "failed"):
        shutil.copy(one(folder, f"{stem}-*.jsonl"), old / f"{stem}.jsonl")
    with (old / "traces.jsonl").open("ab") as file:
        file.write(b'{"problem_id": "torn')
    before = files(old)
    traces, teacher = collected(old, MANY + 20)
    assert traces == right(MANY + 20) and len(teacher.asked) == 20
    assert {name: files(old)[name] for name in before} == before


def test_requests_are_made_when_they_are_sent(tmp_path: Path) -> None:
    made: list[int] = []
    job = job_of(tmp_path, 2 * MANY)

    class Counting(Plan[list[Message]]):
        def request(self, position: int) -> Asked:
            made.append(position)
            return super().request(position)

    plan = Counting(list, job, "teacher@0123")
    teacher = Teacher(most=MANY)
    collect(plan, teacher.draw, job)
    assert len(made) <= len(teacher.asked) + 1


@pytest.mark.parametrize("most", [1, 16, 50])
def test_a_limit_that_ends_a_job_early_leaves_a_store_that_the_next_one_completes(tmp_path: Path, most: int) -> None:
    first, teacher = collected(tmp_path, teacher=Teacher(most=most))
    assert len(teacher.asked) == most and {t.request_hash for t in first} <= set(teacher.asked)
    traces, second = collected(tmp_path)
    assert traces == right() and sorted(teacher.asked + second.asked) == sorted(
        request.hash for request in map(plan_of(job_of(tmp_path, MANY)).request, range(MANY))
    )


def test_failures_are_asked_again_only_on_demand_and_then_once(folder: Path) -> None:
    job = job_of(folder, MANY, retry_failed=True)
    again, never = Teacher(), Teacher(failing=False)
    collect(plan_of(job), again.draw, job)
    assert len(again.asked) == MANY - len(right())
    assert collected(folder)[1].asked == []
    traces = collect(plan_of(job), never.draw, job)
    assert sorted(never.asked) == sorted(again.asked) and len(traces) == MANY
    assert len(list(TraceStore(folder).failures.records())) == len(again.asked), "they stay, but say nothing any more"


def cut(path: Path, size: int) -> None:
    os.truncate(path, size)


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def without(path: Path, start: int, end: int) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:start] + content[end:])


DAMAGED: dict[str, Callable[[Path, Path], object]] = {
    "missing": lambda index, shard: index.unlink(),
    "empty": lambda index, shard: cut(index, 0),
    "half a header": lambda index, shard: cut(index, 9),
    "no entry": lambda index, shard: cut(index, 16),
    "half": lambda index, shard: cut(index, index.stat().st_size // 2 // 16 * 16),
    "half an entry": lambda index, shard: cut(index, index.stat().st_size - 7),
    "a gap": lambda index, shard: without(index, 64, 96),
    "of another version": lambda index, shard: (
        index.write_bytes(b"TRACEIDX" + bytes(8) + index.read_bytes()[16:]) and None
    ),
    "another file": lambda index, shard: write(index, b"\x00\xff" * 999),
    "zeros at its end": lambda index, shard: write(index, index.read_bytes()[:-320] + bytes(320)),
    "beyond its shard": lambda index, shard: write(index, index.read_bytes() + index.read_bytes()[16:]),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_an_index_is_a_cache_whatever_became_of_it(folder: Path, damage: str) -> None:
    shard, index = one(folder, "traces-*.jsonl"), one(folder, "traces-*.index")
    whole, content = index.read_bytes(), shard.read_bytes()
    DAMAGED[damage](index, shard)
    store = TraceStore(folder)
    assert list(store.read(plan_of(job_of(folder, MANY)).hashes)) == right()
    traces, teacher = collected(folder, MANY + 20)
    assert traces == right(MANY + 20) and len(teacher.asked) == 20
    assert index.read_bytes().startswith(whole) and shard.read_bytes().startswith(content), "it is complete again"


def test_the_index_of_another_shard_is_not_believed(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    job = job_of(other, MANY)
    problems = [Problem.create(family="user", question=f"And {n}?", answer="") for n in range(MANY)]
    mixed = Job(**(vars(job) | {"problems": problems}))
    collect(plan_of(mixed), Teacher().draw, mixed)
    shutil.copy(one(other, "traces-*.index"), one(folder, "traces-*.index"))
    assert list(TraceStore(folder).read(plan_of(job_of(folder, MANY)).hashes)) == right()


@pytest.mark.parametrize("torn", [1, 2, 200, 400])
def test_a_shard_that_ends_in_half_a_line_is_read_without_it_and_mended_by_the_next_writer(
    folder: Path, torn: int
) -> None:
    shard = one(folder, "traces-*.jsonl")
    cut(shard, shard.stat().st_size - torn)
    content = shard.read_bytes()
    store = TraceStore(folder)
    assert len(store) == len(right()) - 1
    held = [*store.traces.records()]
    assert list(store.read(plan_of(job_of(folder, MANY)).hashes)) == [trace for trace in right() if trace in held]
    traces, teacher = collected(folder)
    assert traces == right() and len(teacher.asked) == 1
    whole = content[: content.rindex(b"\n") + 1]
    assert shard.read_bytes().startswith(whole) and len(read_records(shard, Trace)) == len(right())
    assert one(folder, "*.torn").read_bytes() == content[len(whole) :] + b"\n"


@pytest.mark.parametrize(
    "line", [b"not json\n", b"\x00" * 300 + b"\n", b'{"problem_id": "a", "sam{"problem_id": "b"}\n']
)
def test_a_damaged_line_is_said_left_out_and_asked_again(
    folder: Path, line: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = one(folder, "traces-*.jsonl")
    lines = shard.read_bytes().splitlines(keepends=True)
    shard.write_bytes(b"".join([*lines[:5], line, *lines[6:]]))
    one(folder, "traces-*.index").unlink()
    traces, teacher = collected(folder)
    assert traces == right() and teacher.asked == [json.loads(lines[5])["request_hash"]]
    said = capsys.readouterr().err
    assert f"1 line of {shard} cannot be read (byte {sum(map(len, lines[:5]))})" in said
    assert collected(folder)[1].asked == [] and "cannot be read" not in capsys.readouterr().err, "once is enough"


def test_a_line_that_was_changed_behind_its_index_is_an_error_that_names_both(folder: Path) -> None:
    shard, hashes = one(folder, "traces-*.jsonl"), plan_of(job_of(folder, MANY)).hashes
    content = shard.read_bytes()
    lines = content.splitlines(keepends=True)
    start = sum(map(len, lines[:5]))
    shard.write_bytes(content[: start + 20] + b"\0" + content[start + 21 :])
    with pytest.raises(InputError, match=rf"{shard} byte {start} must be JSON.*delete that line and the file's .index"):
        list(TraceStore(folder).read(hashes))
    shard.write_bytes(b"".join([*lines[:5], lines[6], lines[5], *lines[7:]]))
    assert len(lines[5]) == len(lines[6])
    with pytest.raises(
        InputError, match=rf"{shard} byte \d+ is not the .*; delete {shard.with_suffix('.index')} and run"
    ):
        list(TraceStore(folder).read(hashes))


def test_a_store_of_a_later_version_is_an_error_before_anything_is_asked(folder: Path) -> None:
    (folder / "asked.json").write_text(json.dumps({"layout": LAYOUT + 1}))
    teacher = Teacher()
    with pytest.raises(InputError, match=rf"is a store of layout {LAYOUT + 1}, .* up to {LAYOUT}; update"):
        collected(folder, MANY + 20, teacher)
    (folder / "asked.json").unlink()
    later = [json.loads(line) | {"effort": "high"} for line in one(folder, "traces-*.jsonl").read_text().splitlines()]
    (folder / "traces-later-1.jsonl").write_text(json.dumps(later[0]) + "\n")
    with pytest.raises(InputError, match=r"traces-later-1.jsonl byte 0: no Trace .* no key 'effort'.*; update"):
        collected(folder, MANY + 20, teacher)
    assert teacher.asked == []


@pytest.mark.parametrize("largest", [0, 100, 5_000, 50_000])
def test_a_full_disk_is_an_error_that_loses_nothing_of_what_was_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], largest: int
) -> None:
    teacher = Teacher()
    with full_disk(largest), pytest.raises(OSError) as caught:
        collected(tmp_path / "store", 400, teacher)
    assert str(tmp_path / "store") in str(caught.value.filename)
    held = TraceStore(tmp_path / "store")
    assert len(teacher.asked) - 20 <= len(held) + len(held.failures) <= len(teacher.asked)
    traces, again = collected(tmp_path / "store", 400)
    assert traces == right(400) and len({*teacher.asked} & {*again.asked}) <= 20


def test_a_full_disk_that_has_no_room_for_an_index_costs_only_the_index(folder: Path) -> None:
    one(folder, "traces-*.index").unlink()
    with full_disk(one(folder, "traces-*.jsonl").stat().st_size):
        assert collected(folder)[0] == right()


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([2**33, 0, 1, 2**32, *([-5.0] * 10**5)])
    monkeypatch.setattr(time, "time", lambda: next(times))
    collected(tmp_path, MANY // 2)
    for n, path in enumerate(sorted(tmp_path.iterdir())):
        os.utime(path, (10**9 * (n % 3), 4 * 10**9 * (n % 2)))
    traces, teacher = collected(tmp_path)
    assert traces == right() and len(teacher.asked) == MANY // 2
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    assert collected(tmp_path)[1].asked == []


def test_shards_are_rolled_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "ROLL_BYTES", 5000)
    traces, _ = collected(tmp_path)
    assert traces == right() and collected(tmp_path)[1].asked == []
    sizes = [path.stat().st_size for path in tmp_path.glob("traces-*.jsonl")]
    assert len(sizes) > 5 and max(sizes) < 5000 + 1000


HOLDER = """
import sys, time
from pathlib import Path
from distill.collecting.trace_log import Collected
from distill.store.sharded_store import TraceStore
from tests.distill.store.crashing import job_of, plan_of
job = job_of(Path(sys.argv[1]), int(sys.argv[2]))
with Collected(job, plan_of(job), TraceStore(job.path)) as collected:
    requests = next(collected.rounds())
    for _ in range(int(sys.argv[2])):
        next(requests)
    print("holds", flush=True)
    time.sleep(60)
"""


WAITER = """
import sys
from pathlib import Path
from tests.distill.store.crashing import fill, job_of
fill(job_of(Path(sys.argv[1]), int(sys.argv[2])), Path(sys.argv[3]))
"""


def test_requests_of_a_process_that_dies_are_asked_by_those_that_wait_for_it(tmp_path: Path) -> None:
    words = [sys.executable, "-c", HOLDER, str(tmp_path / "store"), str(MANY)]
    holder = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert holder.stdout and holder.stdout.readline() == "holds\n"
    words = [sys.executable, "-c", WAITER, str(tmp_path / "store"), str(MANY), str(tmp_path / "asked")]
    waiting = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert waiting.stderr
    for line in waiting.stderr:
        if "waiting for other processes" in line:
            break
    assert (tmp_path / "asked").read_text() == ""
    holder.kill()
    holder.communicate()
    assert waiting.wait() == 0
    waiting.stderr.close()
    assert len((tmp_path / "asked").read_text().split()) == MANY


def test_traces_of_a_run_folder_are_taken_over_under_the_hashes_of_now(tmp_path: Path) -> None:
    plan = plan_of(job_of(tmp_path, MANY))
    before = [Trace(**(vars(trace) | {"request_hash": "other"})) for trace in right()[:30]]
    write_records(tmp_path / "before.jsonl", before)
    job, teacher = job_of(tmp_path / "store", MANY, before=tmp_path / "before.jsonl"), Teacher()
    assert list(collect(plan, teacher.draw, job)) == right() and len(teacher.asked) == MANY - 30


def test_held_says_which_of_many_requests_have_a_trace(folder: Path) -> None:
    plan = plan_of(job_of(folder, 2 * MANY))
    held = TraceStore(folder).held(plan.hashes)
    assert [plan.hash(n) for n in np.flatnonzero(held).tolist()] == [trace.request_hash for trace in right()]


def test_filling_beside_a_writer_of_another_job_shares_what_both_ask(folder: Path, tmp_path: Path) -> None:
    fill(job_of(folder, MANY + 40), tmp_path / "asked", pause_s=0.0)
    assert len((tmp_path / "asked").read_text().split()) == 40


def test_a_shard_that_the_disk_does_not_list_yet_is_known_to_who_claims_requests(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a shared disk, whose list of a folder may be some time old."""
    listed = [name for name in os.listdir(folder) if not name.startswith("traces-")]
    monkeypatch.setattr(os, "listdir", lambda path: listed)
    assert len(TraceStore(folder)) == 0
    traces, teacher = collected(folder)
    assert traces == right() and teacher.asked == []


def test_a_machine_goes_on_with_its_own_shards_and_never_writes_those_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "node", lambda: "node-7.cluster")
    collected(tmp_path, MANY // 2)
    theirs = one(tmp_path, "traces-*.jsonl")
    assert theirs.name == "traces-node_7.cluster-1.jsonl"
    cut(theirs, theirs.stat().st_size - 5)
    before = theirs.read_bytes()
    monkeypatch.setattr(platform, "node", lambda: "")
    traces, teacher = collected(tmp_path)
    assert traces == right() and len(teacher.asked) == MANY // 2 + 1
    assert theirs.read_bytes() == before and (tmp_path / "traces-unnamed-1.jsonl").is_file()
    collected(tmp_path, MANY + 20)
    assert len([*tmp_path.glob("traces-*.jsonl")]) == 2
    monkeypatch.setattr(platform, "node", lambda: "node-7.cluster")
    collected(tmp_path, MANY + 40)
    assert len(read_records(theirs, Trace)) > before.count(b"\n"), "its own machine mends it and goes on"


def test_a_shard_from_elsewhere_is_found_under_any_name(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    shutil.copy(one(folder, "traces-*.jsonl"), tmp_path / "other" / "traces of spring.jsonl")
    traces, teacher = collected(tmp_path / "other")
    assert traces == right() and len(teacher.asked) == MANY - len(right()), "failures are asked again"
