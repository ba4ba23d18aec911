"""Claims about log-probabilities: they come back as they were given, in few bytes, and never without their trace."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from distill.store.logprobs import Candidate, ServerToken, TokenLogprobs, logprobs_path, tokens_path
from distill.store.shard_index import Hashes
from distill.store.sharded_store import TraceStore
from tests.distill.store.crashing import answer_to, job_of, plan_of
from toolkit.records import Trace

PLAN = plan_of(job_of(Path("unused"), 40))
TRACES = [answer_to(PLAN.request(position), 80) for position in range(40)]


def logprobs_of(trace: Trace, *, top: int, tokens: int = 50) -> list[TokenLogprobs]:
    """Return numbers that float16 holds; each third sampled token is not among the likeliest."""
    words = trace.reasoning
    found = []
    for n in range(tokens):
        likeliest = [Candidate(ServerToken(words[(n + m) % 20] + str(m)), -m / 8) for m in range(top)]
        sampled = Candidate(ServerToken("�", bytes.fromhex("e282"), 7), -12.5) if n % 3 == 0 else likeliest[n % top]
        found.append(TokenLogprobs(sampled=sampled, top=likeliest))
    return found


def as_kept(logprobs: list[TokenLogprobs]) -> list[TokenLogprobs]:
    """Return them with each sampled token among its candidates."""
    return [TokenLogprobs(sampled, [*top] if sampled in top else [*top, sampled]) for sampled, top in logprobs]


def hashes_of(traces: list[Trace]) -> Hashes:
    return np.array([int(trace.request_hash, 16) for trace in traces], dtype=np.uint64)


def shard_of(folder: Path) -> Path:
    (path,) = (path for path in folder.glob("traces-*.jsonl") if not path.name.endswith(".tokens.jsonl"))
    return path


def write(folder: Path, traces: list[Trace], top: int) -> None:
    with TraceStore(folder).writer() as writer:
        for trace in traces:
            writer.append(trace, logprobs_of(trace, top=top))


@pytest.mark.parametrize("top", [1, 5, 20])
def test_they_come_back_with_their_traces_and_take_at_most_10_bytes_a_candidate(tmp_path: Path, top: int) -> None:
    write(tmp_path, TRACES, top)
    store = TraceStore(tmp_path)
    assert list(store.logprobs(hashes_of(TRACES))) == [as_kept(logprobs_of(trace, top=top)) for trace in TRACES]
    assert len(store) == len(TRACES), "the file of tokens is no shard"
    candidates = sum(len(token.top) for trace in TRACES for token in as_kept(logprobs_of(trace, top=top)))
    assert logprobs_path(shard_of(tmp_path)).stat().st_size <= 10 * candidates


def test_what_is_impossible_is_a_finite_number(tmp_path: Path) -> None:
    token, low = ServerToken("a"), Candidate(ServerToken("b"), -math.inf)
    with TraceStore(tmp_path).writer() as writer:
        writer.append(TRACES[0], [TokenLogprobs(Candidate(token, -0.25), [low, Candidate(token, -0.25)])])
    (((sampled, top),),) = [*filter(None, TraceStore(tmp_path).logprobs(hashes_of(TRACES[:1])))]
    assert sampled == Candidate(token, -0.25) and top[0].logprob == float(np.finfo(np.float16).min)


@pytest.mark.parametrize("torn", [1, 11, 100])
def test_a_record_that_a_kill_cut_off_is_left_out_and_the_next_process_goes_on(tmp_path: Path, torn: int) -> None:
    write(tmp_path, TRACES[:3], 5)
    shard = shard_of(tmp_path)
    for path in (logprobs_path(shard), tokens_path(shard)):  # neither the trace's line nor all of this was written
        path.write_bytes(path.read_bytes() + path.read_bytes()[:torn].replace(b"\n", b" "))
    assert [*TraceStore(tmp_path).logprobs(hashes_of(TRACES[:4]))][2:] == [as_kept(logprobs_of(TRACES[2], top=5)), None]
    write(tmp_path, TRACES[3:], 5)
    assert [*TraceStore(tmp_path).logprobs(hashes_of(TRACES))] == [as_kept(logprobs_of(t, top=5)) for t in TRACES]


def test_without_a_trace_they_say_nothing_and_a_trace_without_them_has_none(tmp_path: Path) -> None:
    write(tmp_path, TRACES[:2], 5)
    shard = shard_of(tmp_path)
    lines = shard.read_bytes().splitlines(keepends=True)
    shard.write_bytes(lines[0])
    with TraceStore(tmp_path).writer() as writer:
        writer.append(TRACES[2])
    store = TraceStore(tmp_path)
    first, second, third = store.logprobs(hashes_of(TRACES[:3]))
    assert first == as_kept(logprobs_of(TRACES[0], top=5)) and second is None and third is None
    write(tmp_path, TRACES[1:2], 5)
    assert list(TraceStore(tmp_path).logprobs(hashes_of(TRACES[1:2]))) == [as_kept(logprobs_of(TRACES[1], top=5))]
