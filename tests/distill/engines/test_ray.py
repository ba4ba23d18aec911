"""Claims about Ray's workers, on one cluster of this machine that all of these tests share.

The tests of a file run in one process, so there is only one cluster.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from distill.collecting.job import Job
from distill.endpoints.answers import Patience
from distill.endpoints.budget import SpendingLimits
from distill.endpoints.remote_teacher import Endpoint, Serving
from distill.endpoints.servers.server import ServerSettings
from distill.engines.ray_cluster import ray_cluster
from distill.engines.ray_teacher import RayTeacher, check_machines
from distill.engines.work_list import PREFIX, STARTED, WorkList
from distill.store.sharded_store import HeldTraces, TraceStore
from distill.teachers.respondent import ModelFolder
from tests.distill.failing_server import FailingServer
from tests.distill.paced_server import paced_server, stats
from tests.house.modules import ROOT
from toolkit.cli.main import main
from toolkit.cli.options.decoders import open_decoder
from toolkit.errors import InputError
from toolkit.generation.generate import Sampling
from toolkit.records import Problem, Trace, read_jsonl, write_records

pytest.importorskip("ray", reason="Ray has no wheel for this Python")
PROBLEMS = [Problem.create(family="user", question=f"What is {n} plus {n}?", answer=str(2 * n)) for n in range(80)]
WORKERS = 2
MARK = "TEST_OF_RAY"


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with ray_cluster("", WORKERS):
        yield


def job_of(folder: Path, count: int = 80, **more: object) -> Job:
    sampling = Sampling(temperature=0.6, max_new_tokens=40)
    values = {"problems": PROBLEMS[:count], "sampling": sampling, "samples": 1, "batch_size": 64, **more}
    return Job(path=folder, shared=True, **values)  # type: ignore[arg-type]


def endpoint(url: str, model: str, concurrency: int = 8, limits: SpendingLimits | None = None) -> Endpoint:
    settings = ServerSettings(url=url, model=model, concurrency=concurrency, price_in=1000.0, price_out=1000.0)
    patience = Patience(first_event_s=20.0, stall_s=5.0)
    serving = Serving(servers=(settings,), limits=limits or SpendingLimits(), patience=patience)
    return Endpoint(url=url, model=model, serving=serving)


def answer(teacher: RayTeacher | ModelFolder, job: Job) -> HeldTraces:
    with teacher:
        traces = teacher.answer(job)
    assert isinstance(traces, HeldTraces)
    return traces


def lines_of(store: Path) -> Counter[str]:
    """Count the lines of each request in the shards of a store."""
    shards = [path for stem in ("traces", "failed") for path in store.glob(f"{stem}*.jsonl")]
    return Counter(values["request_hash"] for path in shards for _, values in read_jsonl(path))


def test_the_same_traces_and_failures_come_out_as_without_ray(cluster: None, tmp_path: Path) -> None:
    refused = {problem.question: "400" for problem in PROBLEMS[::20]}
    with FailingServer(0, fates=refused, slowest_s=0.0) as server:
        here = endpoint(server.url, "failing").answer(job_of(tmp_path / "here", samples=2))
        teacher = RayTeacher(endpoint(server.url, "failing"), workers=WORKERS)
        spread = answer(teacher, job_of(tmp_path / "ray", samples=2))
        asked = len(server.asked)
        assert list(answer(teacher, job_of(tmp_path / "ray", samples=2))) == list(spread)
        assert asked == len(server.asked) == 2 * 160, "nothing is asked twice"
    assert isinstance(here, HeldTraces)
    assert list(spread) == list(here) and len(spread) == 152
    assert list(spread.failures()) == list(here.failures()) and spread.requests == 160
    assert set(lines_of(tmp_path / "ray").values()) == {1}
    assert not list((tmp_path / "ray").glob(f"{PREFIX}*")), "the list of requests is removed"


def test_a_killed_worker_costs_no_trace_and_doubles_none(
    cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, killed = tmp_path / "store", list[int]()

    def kill_one() -> None:
        """Kill a worker when a quarter of the traces is there."""
        while len(TraceStore(store)) < len(PROBLEMS) // 4:
            time.sleep(0.05)
        started = next(store.glob(f"{PREFIX}*/{STARTED}*"))
        killed.append(int(started.name.rpartition("-")[2]))
        os.kill(killed[0], signal.SIGKILL)

    with FailingServer(0, fates={}, slowest_s=0.6) as server:
        thread = threading.Thread(target=kill_one)
        thread.start()
        traces = answer(RayTeacher(endpoint(server.url, "failing", 4), workers=WORKERS), job_of(store))
        thread.join()
        answered = [f"It is {2 * n}." for n in range(80)]
        assert [(trace.problem_id, trace.answer) for trace in traces] == [
            (problem.id, said) for problem, said in zip(PROBLEMS, answered, strict=True)
        ]
        assert len(server.asked) <= 80 + 2, "at most what the worker had in flight is asked again"
    assert killed and not psutil.pid_exists(killed[0])
    assert lines_of(store) == {trace.request_hash: 1 for trace in traces}
    assert "1 worker died" in capsys.readouterr().err


def test_workers_divide_the_limits_of_a_server_and_of_the_job(cluster: None, tmp_path: Path) -> None:
    with paced_server(tokens=10, rate=100.0) as url:
        teacher = RayTeacher(endpoint(url, "paced", 5, SpendingLimits(cost=1.5)), workers=WORKERS)
        traces = answer(teacher, job_of(tmp_path))
        cost = sum((trace.prompt_tokens or 0) + (trace.completion_tokens or 0) for trace in traces) / 1000
        assert 1.3 < cost <= 1.5 and len(traces) == stats(url)["asked"] and stats(url)["most open"] <= 5
        assert teacher.stopped_by == "--max-cost 1.5"
        assert len(teacher.teacher.answer(job_of(tmp_path))) == len(traces), "nor does the same job without Ray more"


def test_a_model_folder_answers_the_same_in_workers(cluster: None, tmp_path: Path, tiny_student: Path) -> None:
    sampling = Sampling(temperature=0.6, max_new_tokens=8)
    found: list[list[Trace]] = []
    for name in ("here", "ray"):
        folder = ModelFolder(tiny_student, open_decoder, "tiny")
        teacher = RayTeacher(folder, workers=WORKERS) if name == "ray" else folder
        job = job_of(
            tmp_path / name, 12, sampling=sampling, batch_size=1
        )  # no row of a batch shifts another one's rounding
        found.append(list(answer(teacher, job)))
    assert found[0] == found[1] and len(found[0]) == 12


def test_an_error_of_a_server_ends_the_job_in_one_line(cluster: None, tmp_path: Path) -> None:
    with (
        FailingServer(0, fates={problem.question: "401" for problem in PROBLEMS}, slowest_s=0.0) as server,
        pytest.raises(InputError, match=r"refused a chat completion .*401") as caught,
    ):
        answer(RayTeacher(endpoint(server.url, "failing"), workers=WORKERS), job_of(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_machine_that_does_not_see_the_disk_is_named_before_anything_is_asked(cluster: None, tmp_path: Path) -> None:
    import ray

    with FailingServer(0, fates={}) as server:
        teacher = endpoint(server.url, "failing")
        job = job_of(tmp_path, 4)
        plan = teacher.plan(job)
        work = WorkList.write(tmp_path, plan, plan.positions, job.problems)
        check_machines(ray, work, teacher)
        shutil.rmtree(work.folder)  # as on a machine with another disk
        with pytest.raises(InputError, match=r"does not see .*choose an --out on a disk that all"):
            check_machines(ray, work, teacher)
        assert not server.asked


def test_more_workers_than_there_is_room_for_are_refused(cluster: None, tmp_path: Path) -> None:
    with FailingServer(0, fates={}) as server, pytest.raises(InputError, match=r"--workers \(50\) is more"):
        answer(RayTeacher(endpoint(server.url, "failing"), workers=50), job_of(tmp_path, 4))


def test_a_cluster_of_the_command_is_quiet_and_ends_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems = tmp_path / "problems.jsonl"
    write_records(problems, PROBLEMS[:8])
    words = ["traces", "--include-test", "--problems", str(problems), "--max-new-tokens", "40"]
    words += ["--out", str(tmp_path / "runs" / "all")]
    with FailingServer(0, fates={}, slowest_s=0.0) as server:
        words += ["--teacher", f"{server.url}#failing"]
        program = [sys.executable, "-m", "toolkit", *words, "--engine", "ray", "--workers", "2"]
        ended = subprocess.run(
            program, check=False, cwd=ROOT, capture_output=True, text=True, env=os.environ | {MARK: str(tmp_path)}
        )
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.startswith("8 traces (8 of them whole) are in")
        assert all(line.startswith(("problems: ", "traces")) for line in ended.stderr.splitlines()), ended.stderr
        left = [process for process in psutil.process_iter() if _is_marked(process, str(tmp_path))]
        assert not psutil.wait_procs(left, timeout=30.0)[1], "those that were just ending have ended"
        assert main(words) == 0 and len(server.asked) == 8
    assert "already done" in capsys.readouterr().err, "the run is the one of the command without Ray"


def _is_marked(process: psutil.Process, mark: str) -> bool:
    """Whether a process was started, at any depth, by the command with this mark in its environment."""
    try:
        return bool(process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
