"""Claims about collecting from servers in processes of their own: rates, faults, limits, and what is sent."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from httpx2 import Response

from distill.collecting.asking import AS_IT_IS, Asking
from distill.collecting.job import Job
from distill.endpoints import chat_requests, remote_teacher
from distill.endpoints.answers import Patience
from distill.endpoints.budget import SpendingLimits
from distill.endpoints.remote_teacher import Endpoint, Serving
from distill.endpoints.servers.server import ServerSettings
from distill.store.sharded_store import HeldTraces, TraceStore
from tests.distill.paced_server import paced_server, stats
from toolkit.errors import Busy, InputError, Unreachable
from toolkit.generation.generate import Sampling
from toolkit.records import Problem, Trace

PROBLEMS = [Problem.create(family="user", question=f"What is {n} plus {n}?", answer=str(2 * n)) for n in range(200)]
SAMPLING = Sampling(temperature=0.6, max_new_tokens=40)
QUICK = {"tokens": 10, "rate": 0.0, "per_event": 5}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_requests, "FIRST_PAUSE_S", 0.01)


def job_of(folder: Path, count: int = 200, asking: Asking = AS_IT_IS) -> Job:
    return Job(
        problems=PROBLEMS[:count], sampling=SAMPLING, samples=1, batch_size=64, path=folder, shared=True, asking=asking
    )


def teacher_of(*urls: str, limits: SpendingLimits | None = None, stall_s: float = 5.0, **settings: float) -> Endpoint:
    servers = tuple(ServerSettings(url=url, model="paced", **settings) for url in urls)  # type: ignore[arg-type]
    patience = Patience(first_event_s=20.0, stall_s=stall_s)
    serving = Serving(servers=servers, limits=limits or SpendingLimits(), patience=patience)
    return Endpoint(url=urls[0], model="paced", serving=serving)


def by_server(traces: Sequence[Trace]) -> Counter[str]:
    return Counter(trace.teacher.partition("#")[0] for trace in traces)


def test_faults_of_all_kinds_cost_no_trace(tmp_path: Path) -> None:
    with paced_server(**QUICK, faults=0.2) as url:
        traces = teacher_of(url, stall_s=0.5).answer(job_of(tmp_path))
        seen = stats(url)
    assert [trace.problem_id for trace in traces] == [problem.id for problem in PROBLEMS]
    assert {(trace.answer.split()[0], trace.completion_tokens) for trace in traces} == {("word", 10)}
    assert seen["answered"] == 200 and all(seen.get(kind) for kind in ("429", "500", "cut within", "stall"))


def test_a_slow_server_gets_few_requests_and_a_dying_one_costs_none(tmp_path: Path) -> None:
    quick = {"tokens": 10, "rate": 100.0, "slots": 16}
    with (
        paced_server(**quick) as first,
        paced_server(tokens=10, rate=5.0, slots=16) as slow,
        paced_server(**quick, dies_after=20) as dying,
    ):
        traces = teacher_of(first, slow, dying).answer(job_of(tmp_path))
        answered = by_server(traces)
    assert len(traces) == 200 and len({trace.problem_id for trace in traces}) == 200
    assert 0 < answered[slow] < answered[first] and answered[dying] <= 20
    assert {trace.teacher.rpartition("@")[2] for trace in traces} == {teacher_of(first).digest}, "one teacher"


def test_a_server_that_refuses_the_key_is_left_and_the_others_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with paced_server(**QUICK) as good, paced_server(**QUICK, status=401) as closed:
        traces = teacher_of(good, closed).answer(job_of(tmp_path))
    assert by_server(traces) == {good: 200}
    assert capsys.readouterr().err.count(f"{closed} refuses access (401 Said") == 1


def test_a_server_that_is_down_is_said_and_none_at_all_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody = "http://127.0.0.1:9/v1"
    with paced_server(**QUICK) as good:
        assert len(teacher_of(nobody, good).answer(job_of(tmp_path, 10))) == 10
    assert f"{nobody} must be a server that answers" in capsys.readouterr().err
    with pytest.raises(Unreachable):
        teacher_of(nobody).answer(job_of(tmp_path / "other", 10))


def test_a_server_gets_no_more_at_once_than_it_takes(tmp_path: Path) -> None:
    with paced_server(tokens=10, rate=100.0, most=12, retry_after="0.05") as url:
        traces = teacher_of(url).answer(job_of(tmp_path))
        seen = stats(url)
    assert len(traces) == 200 and seen["most open"] <= 12 and seen["429"] < 200


def test_requests_a_minute_are_kept(tmp_path: Path) -> None:
    with paced_server(**QUICK) as url:
        begun = time.monotonic()
        teacher_of(url, requests_per_minute=1200).answer(job_of(tmp_path, 40))
        assert time.monotonic() - begun >= 39 * 60 / 1200, "a lower bound, whatever the machine"


def test_servers_whose_requests_are_spaced_end_when_all_is_answered(tmp_path: Path) -> None:
    slower = {"tokens": 10, "rate": 50.0}
    with paced_server(**QUICK) as first, paced_server(**slower) as second:
        teacher = teacher_of(first, second, requests_per_minute=300)
        for count in (8, 9, 30):
            assert len(teacher.answer(job_of(tmp_path, count))) == count
        assert stats(first)["asked"] + stats(second)["asked"] == 30


def test_a_stream_that_stalls_is_given_up_and_one_that_lasts_longer_than_the_limit_lives(tmp_path: Path) -> None:
    with paced_server(tokens=20, rate=10.0) as url:
        traces = teacher_of(url, stall_s=1.0).answer(job_of(tmp_path, 8))
        assert len(traces) == 8 and stats(url)["asked"] == 8


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (SpendingLimits(tokens=3000), "--max-tokens-total 3000"),
        (SpendingLimits(cost=0.01), "--max-cost 0.01"),
    ],
)
def test_a_limit_is_never_passed_and_a_higher_one_goes_on(tmp_path: Path, limits: SpendingLimits, says: str) -> None:
    with paced_server(**QUICK) as url:
        teacher = teacher_of(url, limits=limits, price_in=1.0, price_out=50.0)
        traces = teacher.answer(job_of(tmp_path))
        assert teacher.stopped_by == says and 0 < len(traces) < 200
        tokens = sum((trace.prompt_tokens or 0) + (trace.completion_tokens or 0) for trace in traces)
        cost = sum((trace.prompt_tokens or 0) + 50 * (trace.completion_tokens or 0) for trace in traces) / 1e6
        assert tokens <= (limits.tokens or tokens) and cost <= (limits.cost or cost)
        assert stats(url)["asked"] == len(traces), "nothing was asked and not kept"
        teacher.answer(job_of(tmp_path))
        assert stats(url)["asked"] == len(traces), "the same command spends no more"
        assert len(teacher_of(url, price_in=1.0, price_out=50.0).answer(job_of(tmp_path))) == 200
        assert stats(url)["asked"] == 200


def test_a_limit_holds_though_a_server_counts_no_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with paced_server(**QUICK, counts=False) as url:
        teacher = teacher_of(url, limits=SpendingLimits(tokens=3000))
        traces = teacher.answer(job_of(tmp_path))
        assert teacher.stopped_by == "--max-tokens-total 3000"
        assert len(traces) > 0 and 30 * len(traces) <= 3000
        assert all(trace.completion_tokens is None for trace in traces)
        assert "count as one (--no-stream may make it count)" in capsys.readouterr().err
        teacher.answer(job_of(tmp_path))
        assert stats(url)["asked"] == len(traces), "the same command spends no more"


def test_money_can_be_limited_only_with_prices(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--max-cost needs the prices of http://127.*; give --price-in"):
        teacher_of("http://127.0.0.1:9/v1", limits=SpendingLimits(cost=1.0)).answer(job_of(tmp_path, 2))


def test_log_probabilities_are_kept_beside_their_traces(tmp_path: Path) -> None:
    with paced_server(**QUICK, logprobs=4) as url:
        traces = teacher_of(url).answer(job_of(tmp_path, 5, Asking(top_logprobs=4)))
    assert isinstance(traces, HeldTraces)
    kept = list(TraceStore(tmp_path).logprobs(traces.hashes))
    assert len(kept) == 5
    for logprobs in kept:
        assert logprobs is not None and len(logprobs) == 2
        assert [each.token.text for each in logprobs[0].top] == [" word", " word1", " word2", " word3"]


def test_a_server_that_is_too_busy_to_list_its_models_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(address: str, _: str) -> Response:
        raise Busy(f"{address} takes connections but sent nothing")

    monkeypatch.setattr(remote_teacher, "ask_listing", busy)
    with paced_server(**QUICK) as url:
        assert len(teacher_of(url).answer(job_of(tmp_path, 5))) == 5
    assert f"{url} is too busy to list its models; it is asked all the same" in capsys.readouterr().err
