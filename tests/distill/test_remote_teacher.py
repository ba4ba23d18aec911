"""Claims about models behind a server: their traces are those of the model, and a server's failures cost none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from distill.collecting.job import Job, row_seed
from distill.endpoints import chat_requests
from distill.endpoints.chat_requests import TRIES
from distill.endpoints.remote_teacher import Endpoint, connect
from distill.endpoints.servers.server import CONCURRENCY
from distill.evaluation.evaluate import EvalConfig, evaluate, evaluate_model
from tests.distill.bigram import BigramDecoder
from tests.distill.completion_server import CompletionServer, Fault, Style
from tests.distill.scripted import ScriptedDecoder
from toolkit.cli.main import main
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat, completion_text
from toolkit.generation import bounded_response
from toolkit.generation.bounded_response import TIMEOUT_VARIABLE
from toolkit.generation.endpoint import KEY_VARIABLE
from toolkit.generation.generate import Sampling, complete
from toolkit.records import Problem, Trace, read_records

PROBLEMS = [Problem.create(family="user", question=f"What is {n} plus {n}?", answer=str(2 * n)) for n in range(12)]
SAMPLING = Sampling(temperature=1.0, top_p=0.9, max_new_tokens=12, seed=5)
ESCAPE = "\x1b[31m"


def ask(server: CompletionServer, path: Path, *, sampling: Sampling = SAMPLING, batch_size: int = 8) -> Sequence[Trace]:
    return connect(server.url).answer(
        Job(problems=PROBLEMS, sampling=sampling, samples=2, batch_size=batch_size, path=path)
    )


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_requests, "FIRST_PAUSE_S", 0.001)


def said(traces: Sequence[Trace]) -> Sequence[Trace]:
    """Drop the fields that depend on a server's address."""
    return [replace(trace, teacher="", request_hash="") for trace in traces]


def serve_bigram(folder: Path, faults: Sequence[Fault | None] = ()) -> CompletionServer:
    return CompletionServer(BigramDecoder(320), ChatFormat.from_folder(folder), faults=faults)


def test_an_endpoint_says_what_its_model_draws_by_each_samples_seed(tiny_student: Path, tmp_path: Path) -> None:
    torch_decoder = pytest.importorskip("toolkit.model.decoder").TorchDecoder.open(tiny_student)
    chat_format = ChatFormat.from_folder(tiny_student)
    with CompletionServer(torch_decoder, chat_format) as server:
        traces = ask(server, tmp_path / "traces.jsonl")
        assert len({body["seed"] for body in server.bodies}) == 24
    assert [(t.problem_id, t.sample) for t in traces] == [(p.id, sample) for p in PROBLEMS for sample in (0, 1)]
    for problem, trace in zip([p for p in PROBLEMS for _ in (0, 1)], traces, strict=True):
        seed = row_seed(SAMPLING.seed, trace.problem_id, trace.sample) & 0x7FFFFFFF
        prompt = chat_format.question_ids(problem.question)
        (sampled,) = complete(torch_decoder, [prompt], SAMPLING, chat_format.stop_ids, [seed])
        text = chat_format.decode(sampled.ids)
        assert trace.reasoning.strip("\n") == text.strip("\n") and len(text) > 5
        assert (trace.finish_reason, trace.completion_tokens) == (sampled.finish_reason, len(sampled.ids))
        assert (trace.prompt_tokens, trace.closed, trace.answer) == (len(prompt), False, "")


def test_an_endpoint_is_sent_what_was_said_before_a_question(tiny_student: Path, tmp_path: Path) -> None:
    said = [{"role": "user", "content": "What is 2 plus 2?"}, {"role": "assistant", "content": "4"}]
    problem = Problem.create(family="user", question="And twice that?", answer="8", history=said)
    with serve_bigram(tiny_student) as server:
        path = tmp_path / "traces.jsonl"
        connect(server.url).answer(Job(problems=[problem], sampling=SAMPLING, samples=1, batch_size=1, path=path))
        assert [body["messages"] for body in server.bodies] == [problem.messages]


def test_few_requests_are_open_at_once_and_how_many_changes_nothing(tiny_student: Path, tmp_path: Path) -> None:
    traces = []
    for batch_size, most in ((1, 1), (3, 3), (64, CONCURRENCY)):
        with serve_bigram(tiny_student) as server:
            traces.append(said(ask(server, tmp_path / f"{batch_size}.jsonl", batch_size=batch_size)))
            assert 1 <= server.most_open <= most
    assert traces[0] == traces[1] == traces[2]


@pytest.mark.parametrize("style", ["reasoning_content", "reasoning", "thinking", "tags", "half"])
def test_a_thought_is_read_from_wherever_servers_put_it(tiny_student: Path, tmp_path: Path, style: Style) -> None:
    lines = {p.question: [completion_text(f"twice {p.question}", f"It is {p.answer}.")] for p in PROBLEMS}
    decoder, chat_format = ScriptedDecoder(tiny_student, lines), ChatFormat.from_folder(tiny_student)
    with CompletionServer(decoder, chat_format, style=style) as server:
        traces = ask(server, tmp_path / "traces.jsonl", sampling=replace(SAMPLING, max_new_tokens=99))
    for problem, trace in zip([p for p in PROBLEMS for _ in (0, 1)], traces, strict=True):
        assert (trace.reasoning, trace.answer) == (f"twice {problem.question}", f"It is {problem.answer}.")
        assert (trace.closed, trace.finish_reason) == (True, "stop")
        assert trace.reasoning_tokens and trace.completion_tokens
        assert trace.reasoning_tokens < trace.completion_tokens


@pytest.mark.parametrize("style", ["reasoning_content", "tags"])
def test_a_thought_that_was_cut_has_no_answer(tiny_student: Path, tmp_path: Path, style: Style) -> None:
    lines = {p.question: ["one step and another step"] for p in PROBLEMS}
    decoder, chat_format = ScriptedDecoder(tiny_student, lines), ChatFormat.from_folder(tiny_student)
    with CompletionServer(decoder, chat_format, style=style) as server:
        traces = ask(server, tmp_path / "traces.jsonl", sampling=replace(SAMPLING, max_new_tokens=5))
    assert {(t.closed, t.answer, t.finish_reason) for t in traces} == {(False, "", "length")}
    assert all(t.reasoning and t.reasoning_tokens == t.completion_tokens for t in traces)


@pytest.mark.parametrize(
    "faults",
    [
        [Fault(status=500, body="busy")] * 2,
        [Fault(status=0)] * 3,
        [Fault(status=429, headers=(("Retry-After", "0"),)), None, Fault(status=503), Fault(status=0)],
    ],
    ids=["500 twice", "cut connections", "a mixture"],
)
def test_what_passes_is_tried_again(tiny_student: Path, tmp_path: Path, faults: list[Fault | None]) -> None:
    with serve_bigram(tiny_student) as server:
        whole = ask(server, tmp_path / "whole.jsonl")
    with serve_bigram(tiny_student, faults) as server:
        assert said(ask(server, tmp_path / "traces.jsonl")) == said(whole)
        assert len(server.bodies) == 24 + sum(fault is not None for fault in faults)


def test_a_server_that_never_recovers_ends_the_run_with_its_address(tiny_student: Path, tmp_path: Path) -> None:
    with serve_bigram(tiny_student, [Fault(status=502, body=f"no {ESCAPE}upstream")] * 500) as server:
        with pytest.raises(InputError) as caught:
            ask(server, tmp_path / "traces.jsonl", batch_size=1)
        assert len(server.bodies) == TRIES
    assert f"{server.url} did not answer in {TRIES} tries; the last one ended with: 502 Bad Ga" in str(caught.value)
    assert "upstream" in str(caught.value) and ESCAPE not in str(caught.value)


def test_a_refusal_is_not_tried_again_and_its_words_are_shown(tiny_student: Path, tmp_path: Path) -> None:
    body = '{"error": {"message": "max_tokens is too large"}}'
    with serve_bigram(tiny_student, [Fault(status=400, body=body)]) as server:
        with pytest.raises(InputError, match=r"by 'tiny': 400 Bad Request: .*max_tokens is too large"):
            ask(server, tmp_path / "traces.jsonl", batch_size=1)
        assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "body",
    [
        "<html>hello</html>",
        "[]",
        '{"choices": []}',
        '{"choices": [{"message": {"content": 7}, "finish_reason": "stop"}], "usage": {}}',
        (
            '{"choices": [{"message": "a", "finish_reason": "stop"}], "usage": '
            '{"prompt_tokens": 1, "completion_tokens": 1}}'
        ),
    ],
)
def test_nonsense_is_one_line_with_its_beginning(tiny_student: Path, tmp_path: Path, body: str) -> None:
    with (
        serve_bigram(tiny_student, [None, Fault(status=200, body=body)]) as server,
        pytest.raises(InputError) as caught,
    ):
        ask(server, tmp_path / "traces.jsonl", batch_size=1)
    assert str(caught.value).startswith(f"{server.url} sent no chat completion but ")
    assert body[:12] in str(caught.value) and "\n" not in str(caught.value)
    assert len(read_records(tmp_path / "traces.jsonl", Trace)) == 1, "what was answered before is kept"


def test_a_broken_run_goes_on_where_it_stopped(tiny_student: Path, tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    with serve_bigram(tiny_student, [None] * 9 + [Fault(status=401)]) as server:
        with pytest.raises(InputError, match="401"):
            ask(server, path, batch_size=1)
        before = path.read_bytes()
        traces = ask(server, path)
        assert len(server.bodies) == 10 + 24 - 9
    assert len(traces) == 24 and path.read_bytes().startswith(before)
    assert sorted(read_records(path, Trace), key=lambda t: t.request_hash) == sorted(
        traces, key=lambda t: t.request_hash
    )


def test_a_redirect_is_not_followed(tiny_student: Path, tmp_path: Path) -> None:
    with serve_bigram(tiny_student) as other:
        away = Fault(status=307, headers=(("Location", f"{other.url}/chat/completions"),))
        with serve_bigram(tiny_student, [away]) as server, pytest.raises(InputError, match="307"):
            ask(server, tmp_path / "traces.jsonl", batch_size=1)
        assert other.bodies == []


def test_the_only_model_is_found_and_one_of_several_must_be_named(tiny_student: Path) -> None:
    chat_format = ChatFormat.from_folder(tiny_student)
    with CompletionServer(BigramDecoder(320), chat_format) as server:
        assert connect(server.url + "/") == connect(server.url) == Endpoint(url=server.url, model="tiny")
        assert connect(f"{server.url}#other/one").model == "other/one"
        assert connect(server.url).digest != connect(f"{server.url}#other").digest
    for models in ([], ["a", "b"], [f"a{ESCAPE}"]):
        with CompletionServer(BigramDecoder(320), chat_format, models=models) as server:
            with pytest.raises(InputError, match=rf"{server.url} lists {len(models)} models .*#MODEL") as e:
                connect(server.url)
            assert ESCAPE not in str(e.value) and all(name.isprintable() <= (name in str(e.value)) for name in models)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:9/v1", "http://127.0.0.1:9/v1 must be a server that answers"),
        ("http://127.0.0.1:9/v1#model", "http://127.0.0.1:9/v1 must be a server that answers"),
        ("http:///v1", "must have a host"),
        ("http://me:secret@127.0.0.1:9/v1", KEY_VARIABLE),
        ("http://127.0.0.1:9/v1?key=secret", KEY_VARIABLE),
        ("http://127.0.0.1:port/v1", "is no address such as"),
    ],
)
def test_an_address_that_leads_nowhere_is_one_line(address: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        connect(address)
    assert message in str(caught.value) and "secret" not in str(caught.value)


def test_the_key_of_the_environment_is_sent_and_none_without_it(
    tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_bigram(tiny_student) as server:
        monkeypatch.delenv(KEY_VARIABLE, raising=False)
        ask(server, tmp_path / "without.jsonl")
        assert not any("Authorization" in headers for headers in server.headers)
        server.headers.clear()
        monkeypatch.setenv(KEY_VARIABLE, "k-123")
        ask(server, tmp_path / "with.jsonl")
        assert {headers["Authorization"] for headers in server.headers} == {"Bearer k-123"}
    assert "k-123" not in (tmp_path / "with.jsonl").read_text()


def test_every_sampling_setting_is_sent_and_one_that_a_server_refuses_is_left_out_and_said(
    tiny_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refusal = Fault(status=400, body='{"error": {"message": "Unknown parameter: top_k", "param": "top_k"}}')
    with serve_bigram(tiny_student, [None, refusal]) as server:
        sampling = replace(SAMPLING, top_k=7, min_p=0.1, repetition_penalty=1.5)
        teacher = connect(server.url)
        teacher.answer(Job(problems=PROBLEMS, sampling=sampling, samples=1, batch_size=1, path=tmp_path / "t.jsonl"))
        first, last = server.bodies[0], server.bodies[-1]
    assert (first["top_k"], first["min_p"], first["repetition_penalty"], first["repeat_penalty"]) == (7, 0.1, 1.5, 1.5)
    assert "top_k" not in last and last["min_p"] == 0.1
    assert teacher.left_out == ["top_k"] and "refuses top_k; it is left out from now on" in capsys.readouterr().err


def test_an_endpoint_is_evaluated_as_its_folder_is(tiny_student: Path, tmp_path: Path) -> None:
    lines = {p.question: [completion_text("hm", p.answer if n % 3 else "no")] for n, p in enumerate(PROBLEMS)}
    config = EvalConfig(sampling=Sampling(temperature=0.0, max_new_tokens=40))
    near = evaluate_model(
        tiny_student, lambda folder: ScriptedDecoder(folder, lines), PROBLEMS, config, tmp_path / "near"
    )
    with CompletionServer(ScriptedDecoder(tiny_student, lines), ChatFormat.from_folder(tiny_student)) as server:
        far = evaluate(connect(server.url), PROBLEMS, config, tmp_path / "far")
        asked = len(server.bodies)
        assert evaluate(connect(server.url), PROBLEMS, config, tmp_path / "far") == far
        assert len(server.bodies) == asked, "a finished evaluation asks nothing"
    assert near.accuracy == far.accuracy == 8 / 12
    assert (near.interval, near.families, near.protocol) == (far.interval, far.families, far.protocol)
    assert (far.model, far.tokens_per_s, far.bytes) == (f"{server.url}#tiny", None, 0)


def test_toolkit_traces_takes_an_endpoint_for_a_teacher(tiny_student: Path, tmp_path: Path) -> None:
    problems, out = tmp_path / "problems.jsonl", tmp_path / "out"
    problems.write_text('{"question": "1+1?", "answer": "2"}\n{"question": "2+2?", "answer": "4"}\n')
    with serve_bigram(tiny_student) as server:
        words = ["traces", "--teacher", server.url, "--include-test", "--problems", str(problems), "--out", str(out)]
        assert main([*words, "--max-new-tokens", "5"]) == 0
        assert main([*words, "--max-new-tokens", "5"]) == 0
        assert len(server.bodies) == 2
    traces = read_records(out / "traces.jsonl", Trace)
    assert {trace.teacher for trace in traces} == {f"{server.url}#tiny@{connect_digest(server.url)}"}


def connect_digest(url: str) -> str:
    return Endpoint(url=url, model="tiny").digest


def test_an_interrupt_does_not_wait_for_the_server(tiny_student: Path, tmp_path: Path) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"question": "1+1?", "answer": "2"}\n')
    command = [sys.executable, "-m", "toolkit", "traces", "--include-test", "--problems", str(problems)]
    command += ["--out", str(tmp_path / "o")]
    with serve_bigram(tiny_student) as server:
        server.hold.clear()
        with subprocess.Popen(
            [*command, "--teacher", server.url],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
        ) as process:
            while not server.open_now and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate()
        assert server.open_now == 1, "the server is still at it"
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "toolkit: interrupted; run the same command again to resume"


def test_a_server_that_stays_silent_is_asked_twice_and_an_answer_has_a_largest_size(
    tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(problems=PROBLEMS[:1], sampling=SAMPLING, samples=1, batch_size=1, path=tmp_path / "traces.jsonl")
    with serve_bigram(tiny_student) as server:
        teacher = connect(server.url)
        monkeypatch.setenv(TIMEOUT_VARIABLE, "0.2")
        server.hold.clear()
        with pytest.raises(InputError, match=rf"did not answer in 2 tries; .* with: .*more time: {TIMEOUT_VARIABLE}"):
            teacher.answer(job)
        assert len(server.bodies) == 2
        server.hold.set()
        monkeypatch.delenv(TIMEOUT_VARIABLE)
        monkeypatch.setattr(bounded_response, "MOST_BODY_BYTES", 20)
        with pytest.raises(InputError, match="sends more than 20 bytes in one answer"):
            teacher.answer(job)
        assert len(server.bodies) == 3, "what is too large once is not asked for again"
