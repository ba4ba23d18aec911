"""What others wrote reaches the terminal as text, wherever it comes from."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from distill.store.failure import Failure
from distill.teachers.trace_listing import ListedTrace, table
from export.runtime.verify.checks import Check
from export.runtime.verify.checks import table as verify_table
from tests.distill.bigram import BigramDecoder
from tests.distill.completion_server import CompletionServer, Fault
from tests.house.modules import module_files
from tests.samples import TRACE
from tests.toolkit.test_progress import Terminal
from toolkit.cli.main import main
from toolkit.figures.tables import aligned_table
from toolkit.formats.chat_format import ChatFormat
from toolkit.machine.doctor import Finding, to_text
from toolkit.progress import Progress
from toolkit.records import Problem, write_records
from toolkit.terminal import Escaped, counted, listed, say, show, visible, visible_lines

EVIL = "a\x1b]0;owned\x07\x1b[2J\r\nforged\x9b1m\u202e\u2028\ud800\udcff\x00\x7f"
SHOWN = r"a\x1b]0;owned\x07\x1b[2J\r\nforged\x9b1m\u202e\u2028\ud800\udcff\x00\x7f"
Captured = pytest.CaptureFixture[str]


def test_a_line_that_nobody_reads_to_its_end_is_cut_in_its_middle(capsys: Captured) -> None:
    say("begin " + "x" * 10**6 + " remedy")
    line = capsys.readouterr().err
    assert len(line) < 5000 and line.startswith("begin xx") and line.endswith("xx remedy\n")


def test_what_acts_on_a_terminal_is_shown_as_its_escape_and_all_other_text_as_it_is() -> None:
    assert visible(EVIL) == SHOWN
    assert visible(SHOWN) == SHOWN
    for text in ("é🙂 日本 العربية", "5\u202f% of 1\u00a0000", "", "back\\slash"):
        assert visible(text) == text
    assert visible_lines("one\ntwo\x1b\n") == "one\ntwo\\x1b\n"


def test_one_line_stays_one_line(capsys: Captured) -> None:
    say(EVIL)
    assert capsys.readouterr().err == f"{SHOWN}\n"


def test_tables_of_foreign_names_keep_their_rows_and_columns() -> None:
    lines = aligned_table([["stage", "accuracy"], [EVIL, "1"], ["b", "2"]]).split("\n")
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1 and all(map(str.isprintable, lines))
    assert verify_table([Check(name="files", outcome="failed", line=EVIL)]).isprintable()
    assert to_text([Finding(subject="python", found=EVIL, remedy=EVIL)]).isprintable()
    row = ListedTrace(problem_id=EVIL, sample=0, reason=EVIL, question=EVIL, expected=EVIL, said=EVIL)
    shown = table([row], "dropped").split("\n")
    assert len(shown) == 3 and all(map(str.isprintable, shown))


COLOURED = f"\x1b[1mnew\x1b[0m tensor {EVIL}"
WARNS = f"""
import logging, sys, threading, warnings
from toolkit.cli.main import main
from toolkit.cli.options.command import Result
from toolkit.cli.verbs import prepare

def doctor(options):
    warnings.warn({COLOURED!r}, stacklevel=1)
    logging.getLogger("library").warning("tensor %s", {EVIL!r})
    thread = threading.Thread(target=int, args=({EVIL!r},))
    thread.start()
    thread.join()
    return Result(facts={{}}, text="done")

prepare.doctor = doctor
sys.exit(main(["doctor"]))
"""


def test_what_a_library_warns_of_is_escaped_too() -> None:
    done = subprocess.run([sys.executable, "-c", WARNS], capture_output=True, text=True, check=True)
    assert done.stdout == "done\n"
    assert "new tensor a\\x1b]0;owned" in done.stderr and "ValueError" in done.stderr
    assert all(map(str.isprintable, done.stderr.split("\n")))


def test_a_library_s_live_line_stays_one() -> None:
    stream = io.StringIO()
    for text in ("\r 10 %", "\x1b[A", "\r\x1b[Kone\ttwo\n", "a\rb"):
        assert Escaped(stream).write(text) == len(text)
    assert stream.getvalue() == "\r 10 %\x1b[A\r\x1b[Kone\ttwo\na\\rb"


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_notes_of_progress_are_one_line(stream: io.StringIO) -> None:
    with Progress(f"evaluating {EVIL}", 2, stream=stream) as progress:
        progress.advance(note=EVIL)
    assert stream.getvalue().replace("\r\x1b[K", "").replace("\n", "").isprintable()


def test_a_line_stands_below_one_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("t", 2) as progress:
        say("interrupted")
        say("twice")
        progress.begin("on it")
    say("done")
    shown = terminal.getvalue().replace("\r\x1b[K", "<")
    assert shown == "<t  0/2  0 %\ninterrupted\ntwice\n<t  0/2  0 %  on it<t  0/2  0 %  on it\ndone\n"


def test_errors_and_tracebacks_are_escaped_and_json_is_ascii(tmp_path: Path, capsys: Captured) -> None:
    name = "a\x1b[2Jb\u202e"
    (tmp_path / name).mkdir()
    for more in ([], ["--debug"], ["--json"]):
        assert main(["verify", str(tmp_path / name), *more]) == 2
        out, err = capsys.readouterr()
        assert "\x1b" not in err + out and "\u202e" not in err + out
        assert r"a\x1b[2Jb\u202e" in err
        assert out.isascii()
        if more == ["--json"]:
            assert name in json.loads(out)["error"]


def test_a_servers_names_and_messages_are_escaped(tiny_student: Path, tmp_path: Path, capsys: Captured) -> None:
    chat_format = ChatFormat.from_folder(tiny_student)
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"question": "1+1?", "answer": "2"}\n')
    words = ["traces", "--problems", str(problems), "--out", str(tmp_path / "out"), "--teacher"]
    body = json.dumps({"error": {"message": EVIL}})
    for faults, models in (([Fault(status=400, body=body)] * 9, ["tiny"]), ([], [EVIL]), ([], [EVIL, "b"])):
        with CompletionServer(BigramDecoder(320), chat_format, faults=faults, models=models) as server:
            assert main([*words, server.url]) == 2
        assert all(map(str.isprintable, capsys.readouterr().err.splitlines()))


def test_a_models_answers_are_listed_escaped(tmp_path: Path, capsys: Captured) -> None:
    problem = Problem.create(family="f", question="1+1?\x1b[2J", answer="2")
    run = tmp_path / "run"
    run.mkdir()
    write_records(run / "problems.jsonl", [problem])
    write_records(run / "traces.jsonl", [replace(TRACE, problem_id=problem.id, answer=EVIL)])
    write_records(
        run / "failed.jsonl",
        [Failure(problem_id=problem.id, sample=1, reason="HTTP 400", message=EVIL, request_hash="h")],
    )
    for more in ([], ["--failed"]):
        assert main(["traces", "show", str(run), *more]) == 0
        assert all(map(str.isprintable, capsys.readouterr().out.split("\n")))


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_no_encoding_of_the_terminal_ends_a_command(encoding: str) -> None:
    environment = os.environ | {
        "PYTHONIOENCODING": f"{encoding}:strict",
        "TOOLKIT_HOME": "/tmp/caf\u00e9 \u2713 \udcff",
    }
    for more in ([], ["--json"]):
        command = [sys.executable, "-m", "toolkit", "doctor", *more]
        done = subprocess.run(command, capture_output=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        assert b"udcff" in done.stdout
    assert "caf\u00e9 \u2713 \udcff" in json.dumps(json.loads(done.stdout), ensure_ascii=False)


def test_a_result_is_shown_in_the_encoding_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    show("✓ é\x1b\nb")
    assert raw.getvalue() == b"\\u2713 \\xe9\\x1b\nb\n"


def test_nothing_is_printed_past_that_place() -> None:
    allowed = {"toolkit.terminal", "toolkit.cli.main", "distill.verification.code.confine"}
    for module, path in module_files().items():
        if module not in allowed and not module.startswith("benchmarks."):
            assert "file=sys.stderr" not in path.read_text(), f"{module} must call toolkit.terminal.say"


def test_a_count_and_its_noun_agree() -> None:
    assert [counted(n, "update") for n in (0, 1, 2, 1200)] == ["0 updates", "1 update", "2 updates", "1,200 updates"]


def test_of_many_names_the_first_are_listed_and_the_rest_counted() -> None:
    assert listed(["a", "b", "c"]) == "a, b, c"
    assert listed(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
