"""Claims about what workers share: lists of requests, limits, places; and about what is refused before Ray starts."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from distill.collecting.job import Job
from distill.endpoints.budget import Reservation, SpendingLimits
from distill.endpoints.remote_teacher import Endpoint
from distill.endpoints.servers.server import ServerSettings
from distill.engines import ray_cluster, work_list
from distill.engines.shared_budget import Purse
from distill.engines.vllm_processor import VllmFolder, row_of, trace_of
from distill.engines.work_list import PREFIX, WorkList
from distill.store.claims import BUCKET_BITS
from distill.teachers.respondent import ModelFolder
from tests.house.modules import ROOT
from toolkit.cli.main import main
from toolkit.formats.chat_format import ChatFormat
from toolkit.generation.generate import Sampling
from toolkit.records import Problem

PROBLEMS = [Problem.create(family="user", question=f"What is {n} plus {n}?", answer="") for n in range(3000)]
SERVER = ServerSettings(url="http://127.0.0.1:9/v1", model="paced", price_in=1.0, price_out=1.0)


def list_of(store: Path, count: int = 3000, samples: int = 1) -> WorkList:
    sampling = Sampling(temperature=0.6, max_new_tokens=40)
    job = Job(problems=PROBLEMS[:count], sampling=sampling, samples=samples, batch_size=64, path=store, shared=True)
    plan = Endpoint(url=SERVER.url, model="paced").plan(job)
    return WorkList.write(store, plan, plan.positions, job.problems)


def test_chunks_have_every_request_once_and_share_no_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_list, "CHUNK", 100)
    work = list_of(tmp_path)
    chunks = work.chunks()
    assert [start for start, _ in chunks] == [0, *(end for _, end in chunks[:-1])] and chunks[-1][1] == 3000
    buckets = [set((work.read(chunk)[1] >> np.uint64(64 - BUCKET_BITS)).tolist()) for chunk in chunks]
    assert sum(map(len, buckets)) == len(set.union(*buckets)) and len(chunks) >= 28


def test_a_chunk_has_the_problems_of_its_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_list, "CHUNK", 20)
    work = list_of(tmp_path, 50, samples=3)
    found = [work.read(chunk) for chunk in work.chunks()]
    assert sum(len(hashes) for _, hashes in found) == 150
    by_id = {problem.id: problem for problem in PROBLEMS}
    assert all(by_id[problem.id] == problem for problems, _ in found for problem in problems)
    assert {problem.id for problems, _ in found for problem in problems} == {problem.id for problem in PROBLEMS[:50]}


def test_the_list_of_a_killed_job_is_removed_and_that_of_a_running_one_is_not(tmp_path: Path) -> None:
    left, running = list_of(tmp_path, 4), list_of(tmp_path, 4)
    assert not left.folder.exists()
    with running.owned():
        fresh = list_of(tmp_path, 4)
        assert running.folder.exists() and running.is_seen()
    assert list(tmp_path.glob(f"{PREFIX}*")) == [fresh.folder]


@pytest.mark.parametrize("most", [1, 3, 8, 64, 1000])
@pytest.mark.parametrize("weight", [1.0, 0.3, 2.5])
def test_workers_together_have_the_limits_of_one(most: int, weight: float) -> None:
    whole = ServerSettings(
        url="http://x/v1", model="m", concurrency=most, weight=weight, requests_per_minute=90, tokens_per_minute=900
    )
    for workers in (1, 2, 3, 7, 2000):
        shares = [share for n in range(workers) if (share := whole.share_of(n, workers))]
        assert sum(share.most for share in shares) == whole.most
        assert sum(share.requests_per_minute or 0 for share in shares) == pytest.approx(90)
        assert sum(share.tokens_per_minute or 0 for share in shares) == pytest.approx(900)
        assert max(share.most for share in shares) - min(share.most for share in shares) <= 1


def test_what_a_dead_worker_had_in_flight_counts_as_spent() -> None:
    purse, wanted = Purse(SpendingLimits(tokens=100), [SERVER], (0.0, 0.0)), Reservation(tokens=40.0, cost=0.0)
    assert purse.reserve(0, wanted) == (True, "") and purse.reserve(1, wanted) == (True, "")
    assert purse.reserve(1, wanted) == (False, ""), "others may give some of theirs back"
    purse.begin(0)
    purse.settle(1, wanted, 10.0, 0.0)
    assert purse.reserve(1, wanted) == (True, ""), "40 spent by the dead one, 10 by this"
    purse.settle(1, wanted, 30.0, 0.0)
    assert purse.reserve(0, wanted) == (False, "--max-tokens-total 100")


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that is refused; return its one line."""
    assert main(["traces", "--out", "runs/never", *words]) == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    "words, says",
    [
        (["--workers", "2"], "--workers is for --engine ray"),
        (["--ray-address", "auto"], "--ray-address is for --engine ray"),
        (["--engine", "ray", "--gpus-per-worker", "2"], "--gpus-per-worker is for --engine ray-vllm"),
        (["--engine", "ray", "--ray-address", "ray://head:10001"], "is for Ray's client"),
        (["--engine", "ray", "--ray-address", "head"], "must be auto or HOST:PORT"),
        (["--engine", "ray", "--ray-address", "127.0.0.1:9"], "no Ray cluster answers at 127.0.0.1:9"),
        (["--engine", "ray-vllm"], "needs vLLM, which is not installed"),
        (["--engine", "rya"], "did you mean ray?"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(words, capsys)


def test_where_ray_is_not_installed_the_line_says_what_brings_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None)
    assert "pip install 'reasoning-edge[scale]'" in refused(["--engine", "ray"], capsys)
    monkeypatch.setattr(sys, "version_info", (3, 99, 0, "final", 0))
    line = refused(["--engine", "ray"], capsys)
    assert "no wheel for Python 3.99" in line and "--shard" in line


def test_the_newest_python_for_ray_is_the_one_of_the_extra() -> None:
    found = re.search(r'"ray\[data\][^"]*python_version < \'3\.(\d+)\'"', (ROOT / "pyproject.toml").read_text())
    assert found and (3, int(found[1]) - 1) == ray_cluster.NEWEST_PYTHON


def test_a_row_for_vllm_says_all_of_the_sampling_and_its_answer_is_read_as_ours(
    tiny_student: Path,
) -> None:
    chat_format = ChatFormat.from_folder(tiny_student)
    sampling = Sampling(temperature=0.6, top_p=0.9, top_k=5, min_p=0.1, repetition_penalty=1.1, max_new_tokens=6)
    job = Job(problems=PROBLEMS[:1], sampling=sampling, samples=1, batch_size=1, path=Path("x"), shared=True)
    folder = ModelFolder(tiny_student, lambda _: None, "tiny")  # type: ignore[arg-type, return-value]
    teacher = VllmFolder(folder, workers=1, gpus=1, address="")
    assert teacher.digest == f"{folder.digest} (engine: vllm)"
    with teacher:
        request = teacher.plan(job).request(0)
    row = row_of(request, sampling, chat_format.stop_ids)
    assert row["tokenized_prompt"] == chat_format.prompt_ids(PROBLEMS[0].messages)
    asked = row["sampling_params"]
    assert {name: asked[name] for name in ("temperature", "top_p", "top_k", "min_p", "max_tokens")} == {
        "temperature": 0.6, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "max_tokens": 6
    }  # fmt: skip
    assert 0 <= asked["seed"] < 2**63 and asked["stop_token_ids"] == sorted(chat_format.stop_ids)
    stop = min(chat_format.stop_ids)
    ids = np.array([*chat_format.encode("4"), stop])
    whole = trace_of(request, {"generated_tokens": ids}, chat_format, "tiny@0", sampling)
    cut = trace_of(request, {"generated_tokens": np.full(6, ids[0])}, chat_format, "tiny@0", sampling)
    assert (whole.finish_reason, cut.finish_reason) == ("stop", "length")
    assert whole.request_hash == request.hash and whole.completion_tokens == len(ids)
