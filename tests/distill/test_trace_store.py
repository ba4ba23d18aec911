"""Claims about stored traces: what was asked decides their place, and nothing that was paid for is asked again or
lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from distill.collecting.outcomes import MOST_AT_FIRST, MOST_IN_A_ROW
from distill.endpoints import chat_requests
from distill.endpoints.servers.server import CONCURRENCY
from tests.distill.failing_server import FailingServer
from tests.house.modules import ROOT
from tests.toolkit.full_disk import full_disk
from toolkit.cli.main import main
from toolkit.generation.endpoint import KEY_VARIABLE
from toolkit.records import Trace, read_records

QUESTIONS = [f"What is {n} plus {n}?" for n in range(24)]
MANY = [f"What is {n} plus {n}?" for n in range(60)]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_requests, "FIRST_PAUSE_S", 0.0005)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run one command; return its exit code, stdout and stderr."""

    def once(*words: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return once


def write_questions(folder: Path, questions: Sequence[str] = QUESTIONS) -> Path:
    path = folder / "problems.jsonl"
    path.write_text(
        "".join(json.dumps({"question": q, "answer": str(2 * int(q.split()[2]))}) + "\n" for q in questions)
    )
    return path


def collecting(
    server: FailingServer, folder: Path, out: str = "run", questions: Sequence[str] = QUESTIONS
) -> list[Any]:
    words = ["traces", "--teacher", server.url, "--problems", write_questions(folder, questions), "--include-test"]
    return [*words, "--out", folder / out]


def test_one_request_that_always_fails_is_recorded_listed_and_asked_again_on_demand(
    tmp_path: Path, run: Command
) -> None:
    fates = dict(zip(QUESTIONS, ["400", "html", "500", "cut", "429", "403"], strict=False))
    with FailingServer(seed=0, fates=fates) as server:
        words = collecting(server, tmp_path)
        code, text, said = run(*words)
        assert code == 0 and "18 traces" in text and "6 requests failed" in text
        assert "6 of 24 requests failed (" in said and "1 × HTTP 400" in said and "1 × connection lost" in said
        asked = len(server.asked)
        assert run(*words)[0] == 0 and len(server.asked) == asked, "a plain rerun asks nothing"

        code, text, _ = run("traces", "show", tmp_path / "run", "--failed", "--json")
        rows = json.loads(text)["traces"]
        assert {row["question"]: row["reason"] for row in rows} == {
            q: {"html": "no chat completion", "cut": "connection lost"}.get(fate, f"HTTP {fate}")
            for q, fate in fates.items()
        }
        assert "not this one" in next(row["said"] for row in rows if row["reason"] == "HTTP 400")

        server.fates = {QUESTIONS[0]: "400"}
        code, text, said = run(*words, "--retry-failed")
        assert code == 0 and "23 traces" in text and "1 of 24 requests failed (1 × HTTP 400)" in said
        assert set(server.asked[asked:]) == set(fates)
    assert len(read_records(tmp_path / "run" / "traces.jsonl", Trace)) == 23


@pytest.mark.parametrize("fate", ["401", "404", "400", "html", "500"])
def test_where_all_requests_fail_the_run_ends_early_with_one_line_and_nothing_is_final(
    tmp_path: Path, run: Command, fate: str
) -> None:
    with FailingServer(seed=0, fates=dict.fromkeys(QUESTIONS, fate)) as server:
        words = collecting(server, tmp_path)
        code, _, said = run(*words)
        assert code == 2 and not (tmp_path / "run").exists()
        assert f"{MOST_AT_FIRST} requests in a row failed and were not recorded" in said.splitlines()[-1]
        assert len(set(server.asked)) < len(QUESTIONS)
        assert run("traces", "show", tmp_path / "run", "--failed")[1].strip() == "none"
        server.fates = {}
        assert run(*words)[0] == 0
    assert len(read_records(tmp_path / "run" / "traces.jsonl", Trace)) == len(QUESTIONS)


def test_a_full_disk_is_one_line_and_what_was_bought_before_is_kept(tmp_path: Path, run: Command) -> None:
    with FailingServer(seed=0, fates={}) as server:
        words = collecting(server, tmp_path)
        with full_disk(5000):
            code, _, said = run(*words)
        assert code == 2 and "the disk is full while writing" in said.splitlines()[-1]
        assert "-1.jsonl; free space and run the same command again" in said
        (path,) = tmp_path.glob(".traces/*/traces-*.jsonl")
        kept, answered = len(read_records(path, Trace)), len(server.answered)
        assert kept > 0
        assert run(*words)[0] == 0 and len(server.answered) - answered == len(QUESTIONS) - kept


class Dying(FailingServer):
    """Dies after twelve answers."""

    def refuses(self, body: dict[str, Any]) -> tuple[int, str] | None:
        return (503, "out of memory") if len(self.answered) >= 12 and self.fates is not None else None


def test_a_server_that_dies_is_not_the_failure_of_each_later_question(tmp_path: Path, run: Command) -> None:
    with Dying(seed=0, fates={}) as server:
        words = collecting(server, tmp_path, questions=MANY)
        code, _, said = run(*words)
        assert code == 2 and f"{MOST_IN_A_ROW} requests in a row failed" in said and "503" in said
        (kept,) = tmp_path.glob(".traces/*/traces-*.jsonl")
        assert len(read_records(kept, Trace)) == len(server.answered) >= 12
        assert not [*kept.parent.glob("failed*")]


def test_runs_beside_each_other_share_what_was_asked_alike_and_another_sampling_begins_a_store_of_its_own(
    tmp_path: Path, run: Command
) -> None:
    with FailingServer(seed=0, fates={}) as server:
        assert run(*collecting(server, tmp_path, "first"))[0] == 0
        code, _, said = run(*collecting(server, tmp_path, "second"))
        assert code == 0 and "24 of 24 are already in" in said and len(server.asked) == 24
        (first,) = tmp_path.glob(".traces/*")
        before = {path.name: path.read_bytes() for path in first.iterdir()}

        code, _, said = run(*collecting(server, tmp_path, "third"), "--temperature", "0.7")
        (second,) = {*tmp_path.glob(".traces/*")} - {first}
        (line,) = [line for line in said.splitlines() if "a new store" in line]
        assert f"new store for temperature 0.7: {second}; the traces of temperature 0.6 stay in {first}" in line
        assert {path.name: path.read_bytes() for path in first.iterdir()} == before
        assert len(server.asked) == 48

        code, _, said = run(*collecting(server, tmp_path, "first"), "--temperature", "0.7")
        assert code == 2 and "config.temperature (0.6) must equal this run's (0.7)" in said
        assert run(*collecting(server, tmp_path, "fourth"), "--samples", "2")[0] == 0
        assert len(server.asked) == 72, "the first sample of each is there"


def test_all_runs_below_a_folder_named_runs_share_what_was_asked_and_say_what_they_will_ask(
    tiny_student: Path, tmp_path: Path, run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of the README, with each one's default sampling."""
    monkeypatch.chdir(tmp_path)
    with FailingServer(seed=0, fates={}) as server:
        code, _, said = run(*collecting(server, tmp_path, "runs/tr"))
        assert code == 0 and "0 of 24 are already in" in said and "; 24 to ask" in said
        words = ["distill", "--teacher", server.url, "--student", tiny_student, "--problems", write_questions(tmp_path)]
        code, _, said = run(*words, "--out", "runs/mine/student")
        assert code == 0 and "to ask" not in said and len(server.asked) == 24
        monkeypatch.chdir(tmp_path / "runs" / "mine")
        code, _, said = run(*collecting(server, tmp_path, "runs/a/b/c", [*QUESTIONS, *MANY]))
        assert code == 0 and "24 of 60 are already in" in said and "; 36 to ask" in said
        assert sorted(server.asked) == sorted(MANY)
    assert [path.parent for path in tmp_path.rglob(".traces")] == [tmp_path / "runs"]


def test_stores_of_earlier_versions_beside_deeper_run_folders_are_taken_over_and_stay(
    tmp_path: Path, run: Command
) -> None:
    fates = dict.fromkeys(QUESTIONS[:2], "400")
    with FailingServer(seed=0, fates=fates) as server:
        assert run(*collecting(server, tmp_path, "runs/mine/first", QUESTIONS[:12]))[0] == 0
        mine = tmp_path / "runs" / "mine" / ".traces"
        (tmp_path / "runs" / ".traces").rename(mine)
        (kept,) = mine.glob("*/traces-*.jsonl")
        kept.write_bytes(kept.read_bytes() + b'{"problem_id": "torn')
        before = {path: path.read_bytes() for path in mine.rglob("*.jsonl")}
        asked = len(server.asked)
        for out in ("runs/mine/second", "runs/third", "runs/other/fourth"):
            code, text, said = run(*collecting(server, tmp_path, out, QUESTIONS[:12]))
            assert code == 0 and "10 traces" in text and "10 of 12 are already in" in said and "2 failed before" in said
            assert len(server.asked) == asked, out
        assert (out == "runs/mine/second") == ("traces: copied" in said), "once is enough"
        assert {path: path.read_bytes() for path in mine.rglob("*.jsonl")} == before
        assert run(*collecting(server, tmp_path, "runs/fifth"))[0] == 0
        assert len(server.asked) == asked + 12


def test_the_model_of_a_server_that_is_away_is_known_from_any_run_below_runs(tmp_path: Path, run: Command) -> None:
    with FailingServer(seed=0, fates={}) as server:
        words = collecting(server, tmp_path, "runs/first")
        assert run(*words)[0] == 0
    code, _, said = run(*words[:-1], tmp_path / "runs" / "deep" / "second")
    assert code == 0 and "does not answer; earlier traces here are by its" in said and "24 of 24 are already" in said


@pytest.mark.parametrize(
    "damaged", ["", "[]", '{"teacher": 5}', '{"teacher": "a", "digest": "b"}', "[" * 200_000, "\0"]
)
def test_what_a_store_says_of_itself_is_no_reason_to_fail(tmp_path: Path, run: Command, damaged: str) -> None:
    with FailingServer(seed=0, fates={}) as server:
        assert run(*collecting(server, tmp_path, "first"))[0] == 0
        (first,) = tmp_path.glob(".traces/*")
        whole = (first / "asked.json").read_text()
        (first / "asked.json").write_text(damaged)
        assert run(*collecting(server, tmp_path, "second"), "--temperature", "0.7")[0] == 0
        code, _, said = run(*collecting(server, tmp_path, "third"))
        assert code == 0 and "24 of 24 are already in" in said and len(server.asked) == 48
    assert json.loads((first / "asked.json").read_text()) == json.loads(whole)


def test_two_processes_that_ask_the_same_at_the_same_time_buy_it_once(tmp_path: Path) -> None:
    with FailingServer(seed=0, fates={}, slowest_s=0.1) as server:
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "toolkit", *map(str, collecting(server, tmp_path, out))],
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
            for out in ("one", "two")
        ]
        said = "".join(process.communicate()[1] for process in processes)
        assert [process.returncode for process in processes] == [0, 0], said
        assert sorted(server.asked) == sorted(QUESTIONS), said
    assert (tmp_path / "one" / "traces.jsonl").read_text() == (tmp_path / "two" / "traces.jsonl").read_text()


def test_training_goes_on_from_complete_traces_with_other_options_and_without_the_server(
    tiny_student: Path, tmp_path: Path, run: Command
) -> None:
    with FailingServer(seed=0, fates={}) as server:
        words = ["distill", "--teacher", server.url, "--student", tiny_student, "--problems", write_questions(tmp_path)]
        assert run(*words, "--out", tmp_path / "one")[0] == 0
        asked = len(server.asked)
    assert run(*words, "--out", tmp_path / "one")[0] == 0, "a finished run needs no server"
    code, _, said = run(*words, "--out", tmp_path / "two", "--epochs", "2")
    assert code == 0 and f"{asked} of {asked} are already in" in said and "does not answer" in said
    assert (tmp_path / "one" / "traces.jsonl").read_text() == (tmp_path / "two" / "traces.jsonl").read_text()
    shutil.rmtree(tmp_path / ".traces")
    code, _, said = run(*words, "--traces", tmp_path / "one" / "traces.jsonl", "--out", tmp_path / "three")
    assert code == 0, said
    code, _, said = run(*words, "--out", tmp_path / "four")
    assert code == 2 and "must be a server that answers" in said


def test_a_finished_run_that_was_moved_needs_no_server(tmp_path: Path, run: Command) -> None:
    with FailingServer(seed=0, fates={}) as server:
        words = collecting(server, tmp_path)
        assert run(*words)[0] == 0
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").rename(tmp_path / "elsewhere" / "run")
    assert run(*words[:-1], tmp_path / "elsewhere" / "run")[0] == 0


def test_a_run_of_an_earlier_version_keeps_its_traces(tmp_path: Path, run: Command) -> None:
    """An earlier version kept them in the partial run folder."""
    with Dying(seed=0, fates={}) as server:
        words = collecting(server, tmp_path, questions=MANY)
        assert run(*words)[0] == 2
        (kept,) = tmp_path.glob(".traces/*/traces-*.jsonl")
        lines = [json.loads(line) | {"request_hash": "other"} for line in kept.read_text().splitlines()]
        (tmp_path / ".run.partial" / "traces.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        shutil.rmtree(tmp_path / ".traces")
        server.fates, asked = None, set(server.answered)
        before = len(server.answered)
        assert run(*words)[0] == 0
        assert len(lines) >= 12 and not asked & set(server.answered[before:])


def test_show_lists_traces_of_a_run_in_work_and_changes_nothing(tmp_path: Path, run: Command) -> None:
    with Dying(seed=0, fates=dict.fromkeys(MANY[::2], "surrogate")) as server:
        assert run(*collecting(server, tmp_path, questions=MANY))[0] == 2
    before = sorted(tmp_path.rglob("*"))
    rows = json.loads(run("traces", "show", tmp_path / "run", "--json")[1])["traces"]
    assert sorted(row["question"] for row in rows) == sorted(server.answered)
    assert all(row["reason"] == "stop" and row["said"].startswith("It is ") for row in rows)
    dropped = json.loads(run("traces", "show", tmp_path / "run", "--dropped", "--json")[1])["traces"]
    assert {row["question"] for row in dropped} == set(server.answered) & set(MANY[::2])
    assert {row["reason"] for row in dropped} == {"broken_text"}
    assert sorted(tmp_path.rglob("*")) == before
    code, _, said = run("traces", "show", tmp_path / "none")
    assert code == 2 and "is not a run folder" in said


def test_show_lists_what_a_distilled_run_dropped(tiny_student: Path, tmp_path: Path, run: Command) -> None:
    with FailingServer(seed=0, fates=dict.fromkeys(QUESTIONS[::2], "surrogate")) as server:
        words = ["distill", "--teacher", server.url, "--student", tiny_student, "--problems", write_questions(tmp_path)]
        assert run(*words, "--out", tmp_path / "run")[0] == 0
    rows = json.loads(run("traces", "show", tmp_path / "run", "--dropped", "--json")[1])["traces"]
    assert rows and {row["reason"] for row in rows} == {"broken_text"}
    assert {row["question"] for row in rows} <= set(QUESTIONS[::2])


REFUSED = {
    "max_tokens": (
        400,
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
    ),
    "temperature": (
        400,
        "Unsupported value: 'temperature' does not support 0.6 with this model. Only the default (1) …",
    ),
    "seed": (422, "Extra inputs are not permitted"),
    "top_p": (400, "`top_p` is not supported"),
}


STREAM = ("stream", "stream_options")


def test_fields_that_a_server_refuses_are_found_once_left_out_and_said(tmp_path: Path, run: Command) -> None:
    class Choosy(FailingServer):
        def refuses(self, body: dict[str, Any]) -> tuple[int, str] | None:
            field = next((field for field in REFUSED if field in body), None)
            if field is None:
                return None
            status, message = REFUSED[field]
            if field == "seed":
                return status, json.dumps(
                    {"detail": [{"type": "extra_forbidden", "loc": ["body", field], "msg": message}]}
                )
            if field == "top_p":
                return status, message
            return status, json.dumps({"error": {"message": message, "param": field, "code": "unsupported_parameter"}})

    with Choosy(seed=0, fates={}) as server:
        code, text, said = run(*collecting(server, tmp_path))
        assert code == 0 and "24 traces" in text
        for field in REFUSED:
            assert len([line for line in said.splitlines() if f"refuses {field};" in line]) == 1
        taken = [body for body in server.bodies if not REFUSED.keys() & body.keys()]
        assert len(taken) == len(QUESTIONS)
        assert all(body.keys() == {"model", "messages", "max_completion_tokens", *STREAM} for body in taken)
        assert {body["max_completion_tokens"] for body in taken} == {320}
        refused = len(server.bodies) - len(taken)
        assert refused <= len(REFUSED) * CONCURRENCY, "only those that were in flight when it was found out"


def test_a_value_out_of_range_is_a_failure_and_no_field_to_leave_out(tmp_path: Path, run: Command) -> None:
    class Narrow(FailingServer):
        def refuses(self, body: dict[str, Any]) -> tuple[int, str] | None:
            return 400, '{"error": {"message": "max_tokens is too large: this model supports at most 64"}}'

    with Narrow(seed=0, fates={}) as server:
        code, _, said = run(*collecting(server, tmp_path))
        assert code == 2 and "max_tokens is too large" in said and "refuses" not in said


def test_tokens_that_a_server_does_not_count_are_unknown(tmp_path: Path, run: Command) -> None:
    with FailingServer(seed=0, fates=dict.fromkeys(QUESTIONS, "no usage")) as server:
        assert run(*collecting(server, tmp_path))[0] == 0
        words = ["eval", server.url, "--problems", write_questions(tmp_path), "--out", tmp_path / "eval"]
        code, text, _ = run(*words)
        assert code == 0 and "–" in text
        asked = len(server.asked)
    traces = read_records(tmp_path / "run" / "traces.jsonl", Trace)
    assert {(t.prompt_tokens, t.reasoning_tokens, t.completion_tokens) for t in traces} == {(None, None, None)}
    assert run(*words)[0] == 0 and len(server.asked) == asked, "a finished evaluation needs no server"


def test_several_samples_without_a_temperature_are_refused(tiny_student: Path, tmp_path: Path, run: Command) -> None:
    with FailingServer(seed=0, fates={}) as server:
        greedy = ["--samples", "2", "--temperature", "0"]
        code, _, said = run(*collecting(server, tmp_path), *greedy)
        assert code == 2 and "samples (2) must be 1 at temperature 0" in said
        words = ["distill", "--teacher", server.url, "--student", tiny_student, "--out", tmp_path / "student"]
        code, _, said = run(*words, *greedy)
        assert code == 2 and "samples (2) must be 1 at temperature 0" in said
        assert server.asked == []


@pytest.mark.parametrize("key", ["sk-12\nX-Evil: 1", "sk-12\r\n34", "sk-12\x7f34", "sk-12 €"])
def test_a_key_that_no_header_can_carry_is_refused_and_never_shown(
    tmp_path: Path, run: Command, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    with FailingServer(seed=0, fates={}) as server:
        monkeypatch.setenv(KEY_VARIABLE, key)
        code, _, said = run(*collecting(server, tmp_path))
        assert code == 2 and KEY_VARIABLE in said.splitlines()[-1]
        assert "sk-12" not in said and "Evil" not in said and server.asked == []


def test_the_loopback_is_never_asked_through_a_proxy(
    tmp_path: Path, run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FailingServer(seed=0, fates={}) as proxy, FailingServer(seed=0, fates={}) as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        for n, host in enumerate(("127.0.0.1", "localhost")):
            words = collecting(server, tmp_path, f"run{n}")
            words[2] = server.url.replace("127.0.0.1", host)
            assert run(*words)[0] == 0
        assert len(server.asked) == 48 and proxy.asked == []
        words = collecting(server, tmp_path, "far")
        words[2] = "http://teacher.invalid/v1#failing"
        assert run(*words)[0] == 0 and len(proxy.asked) == 24, "others are"
