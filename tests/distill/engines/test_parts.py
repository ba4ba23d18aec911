"""Claims about parts of a job: what belongs to each, and what one run of them holds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from distill.collecting.part import Part
from distill.store.shard_index import Hashes
from distill.store.sharded_store import TraceStore
from tests.distill.failing_server import FailingServer
from tests.distill.paced_server import paced_server, stats
from toolkit.cli.main import main
from toolkit.records import Problem, Trace, read_records, write_records

QUICK = {"tokens": 10, "rate": 0.0, "per_event": 5}
SAMPLES = 2


def hashes_of(count: int) -> Hashes:
    return np.random.default_rng(0).integers(0, 2**64, count, dtype=np.uint64)


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    rows = [Problem.create(family="user", question=f"What is {n} plus {n}?", answer=str(2 * n)) for n in range(40)]
    write_records(path, rows)
    return path


def collect(url: str, problems: Path, out: Path, *more: str) -> int:
    asked = ["--teacher", f"{url}#paced", "--problems", str(problems), "--samples", str(SAMPLES), "--include-test"]
    return main(["traces", *asked, "--max-new-tokens", "40", "--out", str(out), *more])


def read(run: Path) -> list[Trace]:
    return read_records(run / "traces.jsonl", Trace)


def test_every_request_belongs_to_exactly_one_part() -> None:
    hashes = hashes_of(10_000)
    for parts in (1, 2, 3, 7, 4096, 100_000):
        counts = sum(Part(number=n, parts=parts).includes(hashes).astype(int) for n in range(1, min(parts, 20) + 1))
        assert np.all(counts == 1) if parts <= 20 else np.all(counts <= 1)
    edges = np.array([0, 2**63 - 1, 2**63, 2**64 - 1], dtype=np.uint64)
    assert Part(number=1, parts=2).includes(edges).tolist() == [True, True, False, False]


def test_parts_are_of_nearly_equal_size() -> None:
    hashes = hashes_of(16_000)
    sizes = [int(Part(number=n, parts=16).includes(hashes).sum()) for n in range(1, 17)]
    assert min(sizes) > 800 and max(sizes) < 1200


@pytest.mark.parametrize("text", ["5/4", "0/4", "3", "3/0", "a/b", "-1/4", "1/4/2", "1/1000000"])
def test_a_shard_that_is_none_is_refused_before_anything_is_asked(
    text: str, tmp_path: Path, problems: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert collect("http://127.0.0.1:9/v1", problems, tmp_path / "runs" / "part", f"--shard={text}") == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("toolkit: --shard") and text in line and "\n" not in line
    if text == "5/4":
        assert "counted from 1 to 4" in line and "--array=1-4" in line


@pytest.mark.parametrize("apart", [False, True], ids=["one store", "stores of their own"])
def test_merged_parts_equal_the_whole(
    apart: bool, tmp_path: Path, problems: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [tmp_path / (f"node{n}/runs" if apart else "runs") / f"part-{n}" for n in (1, 2, 3)]
    out, whole = tmp_path / "merged" / "runs" / "all", tmp_path / "whole" / "runs" / "all"
    with paced_server(**QUICK) as url:
        for number, part in enumerate(parts, start=1):
            assert collect(url, problems, part, "--shard", f"{number}/3") == 0
        assert stats(url)["asked"] == 40 * SAMPLES, "no request is in two parts"
        assert main(["traces", "merge", *map(str, parts), "--out", str(out), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (facts["traces"], facts["missing"], facts["doubled"]) == (80, 0, 0)
        assert collect(url, problems, whole) == 0
        asked = stats(url)["asked"]
        assert collect(url, problems, out) == 0 and stats(url)["asked"] == asked, "the merged run is the whole one"
    assert read(out) == read(whole)
    assert {len(read(part)) for part in parts} < set(range(10, 45))
    measured = [json.loads((run / "manifest.json").read_text())["measured"] for run in (out, whole)]
    assert measured[0] == measured[1]


def test_a_missing_part_is_named_and_asked_for_by_the_whole_command(
    tmp_path: Path, problems: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged" / "runs" / "all"
    parts = [tmp_path / f"node{n}" / "runs" / "part" for n in (1, 3)]
    with paced_server(**QUICK) as url:
        for part, shard in zip(parts, ("1/3", "3/3"), strict=True):
            assert collect(url, problems, part, "--shard", shard) == 0
        asked = stats(url)["asked"]
        assert main(["traces", "merge", *map(str, parts), "--out", str(out)]) == 0
        assert f"{80 - asked} requests missing, whose parts may be 2/3" in capsys.readouterr().out
        assert collect(url, problems, out) == 0
        assert stats(url)["asked"] == 80, "only what was missing"
    assert len(read(out)) == 80


def test_a_request_that_two_parts_answered_is_kept_once(
    tmp_path: Path, problems: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, out = [tmp_path / f"node{n}" / "runs" / "all" for n in (1, 2)], tmp_path / "runs" / "merged"
    with paced_server(**QUICK) as url:
        for run in runs:
            assert collect(url, problems, run) == 0
    assert main(["traces", "merge", *map(str, runs), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "80 traces are in" in said and "80 answers to requests that another part had answered" in said
    assert read(out) == read(runs[0])


def test_log_probabilities_are_merged_with_their_traces(tmp_path: Path, problems: Path) -> None:
    parts, out = [tmp_path / f"node{n}" / "runs" / "part" for n in (1, 2)], tmp_path / "runs" / "all"
    with paced_server(**QUICK, logprobs=3) as url:
        for number, part in enumerate(parts, start=1):
            assert collect(url, problems, part, "--top-logprobs", "3", "--shard", f"{number}/2") == 0
    assert main(["traces", "merge", *map(str, parts), "--out", str(out)]) == 0
    stores = [TraceStore(next((run.parent / ".traces").iterdir())) for run in (*parts, out)]
    for store in stores[:2]:
        hashes = store.traces.hashes()
        found = list(store.logprobs(hashes))
        assert all(found) and list(stores[2].logprobs(hashes)) == found
    assert len(stores[2]) == 80


def test_failures_are_merged_and_not_counted_as_missing(
    tmp_path: Path, problems: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts, out = [tmp_path / f"node{n}" / "runs" / "part" for n in (1, 2)], tmp_path / "runs" / "all"
    refused = {f"What is {n} plus {n}?": "400" for n in (3, 8, 21)}
    with FailingServer(0, fates=refused, slowest_s=0.0) as server:
        for number, part in enumerate(parts, start=1):
            assert collect(server.url, problems, part, "--shard", f"{number}/2") == 0
        assert main(["traces", "merge", *map(str, parts), "--out", str(out)]) == 0
        said = capsys.readouterr().out
        assert "74 traces are in" in said and "6 requests failed" in said and "missing" not in said
        asked = len(server.asked)
        assert collect(server.url, problems, out) == 0 and len(server.asked) == asked
    assert sum(1 for _ in (out / "failed.jsonl").open()) == 6


def test_a_run_whose_store_is_elsewhere_is_merged_from_its_folder(tmp_path: Path, problems: Path) -> None:
    parts, out = [tmp_path / f"node{n}" / "runs" / "part" for n in (1, 2)], tmp_path / "runs" / "all"
    with paced_server(**QUICK) as url:
        for number, part in enumerate(parts, start=1):
            assert collect(url, problems, part, "--shard", f"{number}/2") == 0
    shutil.rmtree(parts[1].parent / ".traces")
    assert main(["traces", "merge", *map(str, parts), "--out", str(out)]) == 0
    assert len(read(out)) == 80


def test_a_store_is_merged_beside_a_run_that_has_the_problems(
    tmp_path: Path, problems: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts, out = [tmp_path / f"node{n}" / "runs" / "part" for n in (1, 2)], tmp_path / "runs" / "all"
    with paced_server(**QUICK) as url:
        for number, part in enumerate(parts, start=1):
            assert collect(url, problems, part, "--shard", f"{number}/2") == 0
    store = next((parts[1].parent / ".traces").iterdir())
    assert main(["traces", "merge", str(store), "--out", str(out)]) == 2
    assert "does not keep the problems" in capsys.readouterr().err
    assert main(["traces", "merge", str(parts[0]), str(store), "--out", str(out)]) == 0
    assert len(read(out)) == 80


def test_parts_of_different_jobs_are_refused(
    tmp_path: Path, problems: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [tmp_path / f"node{n}" / "runs" / "part" for n in (1, 2)]
    with paced_server(**QUICK) as url:
        assert collect(url, problems, parts[0], "--shard", "1/2") == 0
        assert collect(url, problems, parts[1], "--shard", "2/2", "--temperature", "0.9") == 0
    capsys.readouterr()
    assert main(["traces", "merge", *map(str, parts), "--out", str(tmp_path / "runs" / "all")]) == 2
    assert "temperature 0.9" in (line := capsys.readouterr().err) and "0.6" in line
    assert main(["traces", "merge", str(problems), "--out", str(tmp_path / "runs" / "all")]) == 2
    assert "neither a run folder" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
