"""Claims about `toolkit traces` with servers: what it says, what it refuses, what a limit leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.endpoints import chat_requests
from distill.problems.problem_set import read_problems
from distill.problems.splits import of_split, to_learn_from
from tests.distill.paced_server import paced_server, stats
from toolkit.cli.main import main
from toolkit.records import Trace, read_records
from toolkit.runs import read_manifest


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_requests, "FIRST_PAUSE_S", 0.01)


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    path = tmp_path / "problems.jsonl"
    rows = ({"question": f"What is {n} plus {n}?", "answer": str(2 * n)} for n in range(60))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["traces", "--problems", str(path), "--include-test", "--out", str(tmp_path / "run")]


def run_of(words: list[str]) -> Path:
    return Path(words[words.index("--out") + 1])


def test_a_dry_run_asks_twenty_and_says_what_all_would_take(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with paced_server(tokens=40, rate=0.0, per_event=10) as url:
        command = [*words, "--teacher", url, "--samples", "10", "--price-in", "1", "--price-out", "100"]
        assert main([*command, "--dry-run", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["requests"], found["asked"]) == (600, 20)
        assert (found["prompt_tokens"], found["completion_tokens"]) == (12_000, 24_000)
        assert found["cost"] == pytest.approx((12_000 * 1 + 24_000 * 100) / 1e6) and found["seconds"] > 0
        assert stats(url)["asked"] == 20 and not run_of(words).exists()
        assert main(command) == 0
        assert stats(url)["asked"] == 600, "the sample is not asked again"


def test_a_dry_run_asks_no_more_than_the_limit_allows(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with paced_server(tokens=4, rate=0.0) as url:
        assert main([*words, "--teacher", url, "--dry-run", "--limit", "3", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["asked"] == 3 == stats(url)["asked"]


def test_a_limit_leaves_a_finished_run_and_a_higher_one_goes_on(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = run_of(words)
    with paced_server(tokens=4, rate=0.0) as url:
        command = [*words, "--teacher", url]
        assert main([*command, "--limit", "25"]) == 0
        said = capsys.readouterr()
        assert "--limit 25 stopped it at that many of 60; raise it to go on" in said.out
        assert len(read_records(out / "traces.jsonl", Trace)) == 25 == stats(url)["asked"]
        assert main([*command, "--limit", "25"]) == 0
        assert stats(url)["asked"] == 25 and "was stopped by --limit 25; raise it" in capsys.readouterr().err
        assert main(command) == 0
        assert len(read_records(out / "traces.jsonl", Trace)) == 60 == stats(url)["asked"]
    assert "stopped_by" not in (read_manifest(out) or {})["measured"]


def test_servers_of_a_file_answer_together(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with paced_server(tokens=4, rate=20.0) as first, paced_server(tokens=4, rate=20.0) as second:
        table = tmp_path / "servers.jsonl"
        table.write_text(f'{{"url": "{first}", "concurrency": 4}}\n{{"url": "{second}", "concurrency": 4}}\n')
        assert main([*words, "--teacher", str(table)]) == 0
        assert stats(first)["asked"] + stats(second)["asked"] == 60 and stats(second)["asked"] > 10
        assert max(stats(first)["most open"], stats(second)["most open"]) <= 4
        assert (
            f"answered by {first}: {stats(first)['asked']}, {second}: {stats(second)['asked']}"
            in capsys.readouterr().err
        )


def test_servers_of_different_models_are_no_teacher(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with paced_server(model="a") as first, paced_server(model="b") as second:
        assert main([*words, "--teacher", first, "--teacher", second]) == 2
        assert f"{second} serves 'b', but the first server 'a'" in capsys.readouterr().err
        assert stats(first).get("asked", 0) == 0


@pytest.mark.parametrize(
    ("first", "second", "now", "before"),
    [
        ([], ["--system", "Be brief."], "for system 'Be brief.'", "without system"),
        (["--system", "Be brief."], [], "without system", "of system 'Be brief.'"),
        ([], ["--top-k", "9", "--effort", "low"], "for top_k 9 and for effort 'low'", "of top_k 0 and without effort"),
    ],
)
def test_another_way_of_asking_starts_another_store_and_says_so(
    words: list[str], capsys: pytest.CaptureFixture[str], first: list[str], second: list[str], now: str, before: str
) -> None:
    with paced_server(tokens=4, rate=0.0) as url:
        assert main([*words, "--teacher", url, *first]) == 0
        assert main([*words[:-1], str(run_of(words)) + "2", "--teacher", url, *second]) == 0
        assert stats(url)["asked"] == 120
    said = capsys.readouterr().err
    assert f"a new store {now}: " in said and f"; the traces {before} stay in " in said


def test_what_no_student_learns_from_is_not_paid_for(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words.remove("--include-test")
    problems = read_problems(Path(words[2]))
    held_out = of_split(problems, "test")
    learned = [problem for problem in problems if problem not in held_out]
    capsys.readouterr()
    with paced_server(tokens=4, rate=0.0) as url:
        assert main([*words, "--teacher", url]) == 0
        said = capsys.readouterr().err
        assert f"{len(held_out)} of 60 are of the test split, which no student learns from, and are not asked" in said
        asked = {trace.problem_id for trace in read_records(run_of(words) / "traces.jsonl", Trace)}
        assert asked == {problem.id for problem in learned} >= {problem.id for problem in to_learn_from(problems)}
        assert main([*words[:-1], f"{words[-1]}2", "--teacher", url, "--include-test"]) == 0
        assert stats(url)["asked"] == 60 > len(learned), "the others are asked once"


def test_another_server_and_other_problems_in_a_finished_run_are_named(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with paced_server(tokens=4, rate=0.0) as first, paced_server(tokens=4, rate=0.0) as second:
        assert main([*words, "--teacher", first, "--limit", "2"]) == 0
        asked = read_manifest(run_of(words)) or {}
        assert main([*words, "--teacher", second]) == 2
        said = capsys.readouterr().err
        assert f"its inputs.teacher ({first}#" in said and f" must equal this run's ({second}#" in said
        other = tmp_path / "others.jsonl"
        other.write_text('{"question": "1 + 1?", "answer": "2", "split": "train"}\n')
        assert main(["traces", "--problems", str(other), *words[3:], "--teacher", first]) == 2
        said = capsys.readouterr().err
        assert f"its inputs.problems ({words[2]}, digest" in said and f"this run's ({other}, digest" in said
    assert set(asked["names"]) == {"teacher", "problems"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--teacher", "builtin", "--effort", "high"], "--effort is for a teacher behind a server"),
        (["--max-cost", "3"], "--max-cost is for a teacher behind a server, not for 'builtin'"),
        (["--teacher", "builtin", "--teacher", "http://127.0.0.1:9/v1"], "'builtin' is no address of a server"),
        (["--teacher", "http://127.0.0.1:9/v1#m", "--max-cost", "1"], "needs the prices"),
        (["--teacher", "http://127.0.0.1:9/v1#m", "--concurrency", "2000"], "must be a number from 1 to 1024"),
        (["--teacher", "http://127.0.0.1:9/v1#m", "--extra-body", "{"], "is no JSON"),
        (["--teacher", "http://127.0.0.1:9/v1#m", "--extra-body", '{"a": NaN}'], "is no JSON"),
        (["--teacher", "http://127.0.0.1:9/v1#m", "--prompt-template", "x"], "has no {question}"),
        (["--teacher", "http://127.0.0.1:9/v1#m", "--top-p", "2"], "must be a number from 0 to 1"),
        (["--teacher", "http://127.0.0.1:9/v1"], "must be a server that answers"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    words: list[str], more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, *more]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1] and not run_of(words).exists()
