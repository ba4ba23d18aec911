"""Claims about the batch API: each request is paid for once, whatever happens between sending and collecting."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from distill.endpoints import batches
from tests.distill.endpoints.batch_server import BatchServer
from toolkit.cli.main import main
from toolkit.records import Trace, read_records

QUESTIONS = [f"What is {n} plus {n}?" for n in range(30)]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "FIRST_POLL_S", 0.02)


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    rows = ({"question": question, "answer": str(2 * n)} for n, question in enumerate(QUESTIONS))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def words(server: BatchServer, problems: Path) -> list[str]:
    out = str(problems.parent / "run")
    words = ["traces", "--teacher", server.url, "--include-test", "--problems", str(problems)]
    return [*words, "--batch-api", "--out", out]


def answers(problems: Path) -> dict[str, str]:
    traces = read_records(problems.parent / "run" / "traces.jsonl", Trace)
    assert len({(trace.problem_id, trace.sample) for trace in traces}) == len(traces)
    return {trace.problem_id: trace.answer for trace in traces}


def left(problems: Path) -> list[Path]:
    return list(problems.parent.glob(".traces/*/batches/*"))


def test_a_batch_gives_what_single_requests_would(problems: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MOST_REQUESTS", 12)
    with BatchServer() as server:
        assert main(words(server, problems)) == 0
        assert len(server.asked) == len(set(server.asked)) == len(answers(problems)) and len(server.batches) == 3
    assert not left(problems), "what is collected is not kept twice"


def test_what_expires_is_asked_again_and_nothing_else(problems: Path) -> None:
    with BatchServer(expires=7) as server:
        assert main(words(server, problems)) == 0
        assert max(Counter(server.asked).values()) == 1 and len(server.batches) == 2
        assert len(answers(problems)) == len(server.asked)


def test_a_refused_field_is_left_out_of_the_next_batch(problems: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with BatchServer(refuses="seed") as server:
        assert main(words(server, problems)) == 0
        assert len(server.batches) == 2 and len(answers(problems)) == len(server.asked)
    assert capsys.readouterr().err.count("refuses seed; it is left out") == 1


def test_a_question_that_is_refused_is_a_failure_and_the_others_are_kept(
    problems: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with BatchServer(wrong=(QUESTIONS[0], QUESTIONS[1])) as server:
        assert main(words(server, problems)) == 0
    said = capsys.readouterr()
    assert "failed (2 × HTTP 400)" in said.err and "2 requests failed" in said.out


def kill_while_waiting(server: BatchServer, problems: Path) -> None:
    """Run the command until its batch is recorded, and kill it."""
    server.open.clear()
    command = [sys.executable, "-m", "toolkit", *words(server, problems)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while not any(path.suffix == ".json" for path in left(problems)):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    server.open.set()


def test_a_command_that_was_killed_finds_its_batch_again(problems: Path) -> None:
    with BatchServer() as server:
        kill_while_waiting(server, problems)
        assert main(words(server, problems)) == 0
        assert len(server.batches) == 1 and max(Counter(server.asked).values()) == 1
        assert len(answers(problems)) == len(server.asked)
    assert not left(problems)


def test_a_batch_whose_id_was_not_written_any_more_is_found_in_the_servers_list(problems: Path) -> None:
    with BatchServer() as server:
        kill_while_waiting(server, problems)
        for path in left(problems):
            if path.suffix == ".json":
                path.unlink()
        assert main(words(server, problems)) == 0
        assert len(server.batches) == 1 and len(answers(problems)) == len(server.asked)


def test_a_batch_that_fails_as_a_whole_and_a_server_without_the_api_are_one_line(
    problems: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with BatchServer(fails="quota is used up") as server:
        assert main(words(server, problems)) == 2
    assert "failed the batch batch-0" in (said := capsys.readouterr().err) and "quota is used up" in said
    with BatchServer(has_batches=False) as plain:
        assert main([*words(plain, problems)[:-1], str(problems.parent / "plain")]) == 2
    assert "leave --batch-api out" in capsys.readouterr().err


def test_a_limit_of_tokens_ends_before_it_is_passed(problems: Path) -> None:
    with BatchServer() as server:
        limited = [*words(server, problems), "--max-new-tokens", "10", "--max-tokens-total", "300"]
        assert main(limited) == 0
        assert 0 < len(server.asked) < len(QUESTIONS)


def test_a_batch_in_a_state_of_another_word_is_waited_for(problems: Path) -> None:
    with BatchServer(running="QUEUED", takes_s=0.3) as server:
        assert main(words(server, problems)) == 0
        assert len(server.batches) == 1 and len(answers(problems)) == len(server.asked)


def test_lines_that_cannot_be_read_are_asked_again_and_the_others_are_kept(
    problems: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with BatchServer(torn=2) as server:
        assert main(words(server, problems)) == 0
        assert sorted(Counter(server.asked).values()) == [1] * 28 + [2] * 2 and len(answers(problems)) == 30
    assert "2 lines of file-1 cannot be read; their requests count as unanswered" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["file-1", "batch-0"])
def test_what_the_server_has_lost_is_paid_for_again_only_if_the_user_says_so(
    problems: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with BatchServer() as server:
        server.lost.add(what)
        assert main(words(server, problems)) == main(words(server, problems)) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("toolkit: ") and len(server.asked) == 30
        record, input = (Path(said.partition("or delete ")[2].split()[n]) for n in (0, 2))
        record.unlink()
        input.unlink()
        assert main(words(server, problems)) == 0
        assert set(Counter(server.asked).values()) == {2} and len(answers(problems)) == 30
    assert not left(problems) or all(path.suffix == ".keys" for path in left(problems))


def test_two_commands_leave_each_others_batches_alone(problems: Path, tmp_path: Path) -> None:
    others = tmp_path / "others.jsonl"
    rows = ({"question": f"What is {n} plus {n}?", "answer": str(2 * n)} for n in range(100, 130))
    others.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with BatchServer() as server:
        server.open.clear()
        first = words(server, problems)
        with subprocess.Popen([sys.executable, "-m", "toolkit", *first], stdout=subprocess.DEVNULL) as process:
            while not any(path.suffix == ".json" for path in left(problems)):
                assert process.poll() is None
                time.sleep(0.01)
            server.open.set()
            second = ["--problems", str(others), "--out", str(tmp_path / "second")]
            assert main([*first[:4], *second, "--batch-api"]) == 0
            assert process.wait() == 0
        assert len(server.asked) == 60 and max(Counter(server.asked).values()) == 1
    assert len(answers(problems)) == 30 == len(read_records(tmp_path / "second" / "traces.jsonl", Trace))
    lines = [
        line for path in tmp_path.glob(".traces/*/traces-*.jsonl") for line in path.read_text().split("\n") if line
    ]
    assert len(lines) == len(set(lines)) == 60
