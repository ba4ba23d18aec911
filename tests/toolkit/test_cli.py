"""The command line: one result on stdout, one line on stderr, and an exit code that says which."""

from __future__ import annotations

import argparse
import errno
import inspect
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from tests.house.modules import ROOT
from toolkit.cli.bugs import Bug
from toolkit.cli.main import explain, main
from toolkit.cli.options.values import data_of, name_of, path_of
from toolkit.cli.parser import build_parser
from toolkit.cli.verbs import distill
from toolkit.errors import FolderConflict, GateFailed, InputError, MissingExtra

Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["distil", "--out", "x"], "argument COMMAND: 'distil' must be one of doctor, "),
        (["distil"], "(did you mean distill?); see: toolkit --help"),
        (["--verison"], "unrecognized option '--verison' (did you mean --version?); see: toolkit --help"),
        (["distill", "--probelms", "x"], "'--probelms' (did you mean --problems?); see: toolkit distill --help"),
        (["traces", "show", "x", "--faild"], "'--faild' (did you mean --failed?); see: toolkit traces show --help"),
        (["eval", "x", "--split", "tset"], "'tset' must be one of test, validation, train, all (did you mean test?)"),
        (["doctor", "x"], "unrecognized arguments: x; see: toolkit doctor --help"),
        (["traces"], "the following arguments are required: --out; see: toolkit traces --help"),
        (["distill"], "the following arguments are required: --out"),
        (["pull"], "the following arguments are required: model"),
        (["export", "x", "--int8", "--fp16", "--out", "y"], "argument --fp16: not allowed with argument --int8"),
        (["export", "x", "--int8", "--fast", "--out", "y"], "--fast needs --int4, not --int8"),
        (["export", "x", "--fp32", "--size", "9MB", "--out", "y"], "--size needs --int4, not --fp32"),
        (["distill", "--out", "x", "--epochs", "0"], "argument --epochs: '0' must be a whole number of at least 1"),
        (["distill", "--out", "x", "--epochs", "two"], "argument --epochs: 'two' must be a whole number of at least 1"),
        (["distill", "--out", "x", "--epochs", "9" * 5000], "must be a whole number of at least 1"),
        (
            ["distill", "--out", "x", "--seed", "-1"],
            "argument --seed: '-1' must be a whole number from 0 to 4294967295",
        ),
        (["serve", "x", "--port", "65536"], "argument --port: '65536' must be a whole number from 0 to 65535"),
        (
            ["export", "x", "--size", "0MB", "--out", "y"],
            "argument --size: '0MB' must be a size above 0 with its unit, such as 90MB",
        ),
        (["export", "x", "--size", "-9GB", "--out", "y"], "argument --size: expected one argument"),
        (["export", "x", "--size=-9GB", "--out", "y"], "argument --size: '-9GB' must be a size above 0"),
        (["export", "x", "--size", "1e999GB", "--out", "y"], "argument --size: '1e999GB' must be a size above 0"),
        (["export", "x", "--size", "nanMB", "--out", "y"], "argument --size: 'nanMB' must be a size above 0"),
        (["chat", "x", "--prefix-cache", "0GB"], "argument --prefix-cache: '0GB' must be a size above 0"),
        (
            ["export", "x", "--bits-per-weight", "nan", "--out", "y"],
            "--bits-per-weight: 'nan' must be a number above 0",
        ),
        (["export", "x", "--bits-per-weight", "0", "--out", "y"], "--bits-per-weight: '0' must be a number above 0"),
        (["distill", "--out", "x", "--epoch", "2"], "unrecognized option '--epoch' (did you mean --epochs?)"),
        (
            ["distill", "--out", "x", "--temperature", "99"],
            "argument --temperature: '99' must be a number from 0 to 10",
        ),
        (["eval", "{tmp}"], "{tmp} must be a model folder with a config.json; it has none"),
        (["export", "{tmp}", "--int4", "--out", "{tmp}/out"], "{tmp} must be a model folder with a config.json"),
        (
            ["export", "owner/none", "--calibration", "{tmp}/none.jsonl", "--out", "{tmp}/out"],
            "--calibration ({tmp}/none.jsonl) is no file; give a file of traces",
        ),
        (
            ["distill", "--student", "owner/none", "--traces", "{tmp}/none.jsonl", "--out", "{tmp}/out"],
            "--traces needs a file of traces; {tmp}/none.jsonl does not exist",
        ),
        (
            ["distill", "--student", "owner/none", "--traces", "{tmp}", "--out", "{tmp}/out"],
            "--traces needs a file of traces; {tmp} is a folder",
        ),
        (
            ["distill", "--student", "owner/none", "--problems", "{tmp}/none.jsonl", "--out", "{tmp}/out"],
            "{tmp}/none.jsonl does not exist; give a file, a folder, or a data set's id (owner/name)",
        ),
        (
            ["traces", "--teacher", "owner/none", "--problems", "{tmp}/none.jsonl", "--out", "{tmp}/out"],
            "{tmp}/none.jsonl does not exist; give a file, a folder, or a data set's id (owner/name)",
        ),
        (
            ["eval", "owner/none", "--problems", "{tmp}/none.jsonl"],
            "{tmp}/none.jsonl does not exist; give a file, a folder, or a data set's id (owner/name)",
        ),
        (["eval", "owner/none", "--split", "test"], "--split and --include-trained choose among your own problems"),
        (["teach", "--judge", "none", "--base", "owner/none", "--out", "{tmp}/o"], "unknown model 'none'"),
        (
            ["teach", "--start", "owner/none", "--out", "{tmp}/o"],
            "--start (owner/none) needs --stage",
        ),
        (["pull", "what"], "unknown model 'what': expected a folder, a known name or a hub id (owner/name)"),
        (
            ["traces", "--teacher", "http://127.0.0.1:9/v1", "--out", "{tmp}/out"],
            "http://127.0.0.1:9/v1 must be a server",
        ),
        (["export", "http://127.0.0.1:9/v1", "--int4", "--out", "{tmp}/out"], "http://127.0.0.1:9/v1 is an endpoint"),
        (
            ["teach", "--stage", "rl", "--out", "{tmp}/o"],
            "unknown --stage (rl): expected one of pretrain, midtrain, zero_rl",
        ),
        (
            ["teach", "--stage", "reason_rl", "--zero", "--out", "x"],
            "argument --zero: not allowed with argument --stage",
        ),
        (
            ["teach", "--seeds", "2", "--zero", "--out", "{tmp}/o"],
            "--seeds (2) works neither with --stage nor with --zero",
        ),
        (["teach", "--start", "builtin", "--out", "{tmp}/o"], "--start (builtin) needs --stage"),
        (["teach", "--stage", "reason_rl", "--out", "{tmp}/o"], "stage reason_rl needs stage cold_start, but {tmp}/o/"),
        (["chat"], "chat needs a model; give an exported folder (toolkit demo makes runs/demo/int4, toolkit export"),
        (
            ["chat", "x", "--endpoint", "http://x/v1"],
            "chat takes the folder (x) or --endpoint (http://x/v1), not both",
        ),
        (["chat", "{tmp}"], "{tmp}/"),
        (["serve", "{tmp}", "--port", "0"], "{tmp}/"),
        (
            ["serve", "{tmp}", "--host", "0.0.0.0"],
            "--host (0.0.0.0) needs a key, since only 127.0.0.1, localhost and ::1 do without",
        ),
        (["bench", "{tmp}"], "{tmp}/"),
        (["verify", "{tmp}"], "verifying {tmp} needs {tmp}/manifest.json, which is missing; export again"),
        (["report", "{tmp}"], "{tmp}/eval holds no evaluation"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(words: list[str], message: str, tmp_path: Path, capsys: Captured) -> None:
    words = [word.replace("{tmp}", str(tmp_path)) for word in words]
    assert main(words) == 2
    out, err = capsys.readouterr()
    last = err.splitlines()[-1]
    assert last.startswith("toolkit: ")
    assert message.replace("{tmp}", str(tmp_path)) in last
    assert "Traceback" not in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield a parser and those of all its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from parsers(inner)


def test_no_option_takes_an_empty_path_or_model_or_an_address_for_a_path() -> None:
    takes_text = {"--host", "--name", "--allow-origin", "--allow-host", "--api-key", "--stage", "--model"}
    takes_text |= {"--system", "--prompt-template", "--extra-body"}
    columns = {"--question-field", "--answer-field"}
    kinds = Counter[str]()
    for parser in parsers(build_parser()):
        for action in parser._actions:
            if action.nargs == 0 or action.choices is not None or {*action.option_strings} & (takes_text | columns):
                continue
            read = action.type
            assert callable(read), f"{parser.prog} {action.dest} takes any text"
            with pytest.raises(argparse.ArgumentTypeError):
                read("")
            if read in (path_of, data_of):
                kinds["paths"] += 1
                for address in ("https://example.org/a.jsonl", "s3://mine/a.jsonl", "https:/example.org"):
                    with pytest.raises(
                        argparse.ArgumentTypeError, match="is a URL, which is not read: expected a local file"
                    ):
                        read(address)
            elif read is name_of:
                kinds["models"] += 1
    assert kinds["paths"] > 20 and kinds["models"] > 10


@pytest.mark.parametrize(
    "words",
    [
        ["distill", "--problems", "none.jsonl", "--out", "x"],
        ["distill", "--traces", "none.jsonl", "--out", "x"],
        ["distill", "--student", "none", "--out", "x"],
        ["distill", "--teacher", "none", "--out", "x"],
        ["distill", "--question-field", "q", "--out", "x"],
        ["distill", "--temperature", "0", "--samples", "2", "--out", "x"],
        ["distill", "--out", "full"],
        ["traces", "--problems", "none.jsonl", "--out", "x"],
        ["eval", "none", "--problems", "none.jsonl"],
        ["teach", "--base", "none", "--out", "x"],
        ["teach", "--judge", "none", "--out", "x"],
        ["export", "none", "--out", "x"],
        ["export", "full", "--out", "x"],
        ["export", "builtin", "--calibration", "none.jsonl", "--out", "x"],
        ["export", "builtin", "--out", "full"],
        ["verify", "none"],
        ["bench", "none"],
        ["serve", "none"],
        ["chat"],
        ["chat", "none"],
        ["chat", "none", "--compare", "none"],
        ["report", "none"],
    ],
)
def test_what_the_options_alone_show_to_be_wrong_is_refused_before_anything_heavy_is_imported(
    words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    check = (
        f"import sys; from toolkit.cli.main import main; code = main({words!r})\n"
        "print(code, *{'torch', 'transformers', 'gradio', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", check],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "2\n", done.stderr


def test_the_version_is_told(capsys: Captured) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"toolkit {metadata.version('reasoning-edge')}\n"


def test_usage_shows_what_traces_needs_and_showing_them_needs_none_of_it(tmp_path: Path, capsys: Captured) -> None:
    assert main(["traces", "--help"]) == 0
    text = capsys.readouterr().out
    usage = text.partition("\n\n")[0]
    assert " --out OUT" in usage and "[--out OUT]" not in usage
    assert (
        "\n       toolkit traces show [--failed | --dropped [--reason REASON]] RUN\n" in usage and "show  " not in text
    )
    for line in (
        "curate [OPTION ...] --out OUT RUN|FILE ...",
        "merge --out OUT RUN ...",
        "export [OPTION ...] --out OUT RUN",
    ):
        assert f"\n       toolkit traces {line}\n" in usage
    assert usage.endswith("\n       toolkit traces import [OPTION ...] --out OUT DATA")
    assert main(["traces", "show", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["distill", "--student", "owner/none"],
        ["traces", "--teacher", "owner/none"],
        ["eval", "owner/none"],
        ["export", "owner/none", "--int4"],
    ],
)
def test_a_folder_that_is_no_run_is_refused_before_a_model_is_fetched(
    words: list[str], tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert main([*words, "--out", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert f"{tmp_path} must be empty or a finished run, but holds other files" in err and len(err.splitlines()) == 1


def test_a_jsonl_line_that_is_no_problem_is_named_by_its_number(
    tmp_path: Path, tiny_student: Path, capsys: Captured
) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"question": "1+1?", "answer": "2"}\n{"question": "2+2?"}\n')
    out = tmp_path / "out"
    assert main(["traces", "--teacher", str(tiny_student), "--problems", str(problems), "--out", str(out)]) == 2
    assert f"{problems} line 2" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["problems.jsonl"]


def test_json_prints_one_object_on_errors_too(tmp_path: Path, capsys: Captured) -> None:
    assert main(["eval", str(tmp_path), "--json"]) == 2
    out, err = capsys.readouterr()
    error = json.loads(out)
    assert (error["kind"], error["exit"]) == ("InputError", 2)
    assert error["error"] in err


def test_json_prints_one_object_on_success(capsys: Captured) -> None:
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {finding["subject"] for finding in facts["findings"]} >= {"python", "memory", "[chat]", "kernels"}


def test_debug_shows_the_traceback(tmp_path: Path, capsys: Captured) -> None:
    assert main(["eval", str(tmp_path), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_help_exits_0_and_names_every_command(capsys: Captured) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    verbs = "doctor pull teach traces distill eval export verify bench chat report demo"
    for verb in verbs.split():
        assert f"\n    {verb} " in text


def test_a_commands_parser_and_its_function_stand_in_one_file() -> None:
    verbs = next(action.choices for action in build_parser()._actions if isinstance(action.choices, dict))
    functions = {verb: verbs[verb].get_default("command") for verb in verbs}
    assert len(set(functions.values())) == len(verbs)
    for verb, run in functions.items():
        text = Path(inspect.getfile(run)).read_text()
        assert re.search(rf'add\(\s*"{verb}",\s*{run.__name__},', text), f"{verb} is added elsewhere than its function"


class Panic(BaseException):
    """Stands for a panic in a Rust extension, which is no Exception."""


@pytest.mark.parametrize(
    ("error", "kind", "exit_code", "message"),
    [
        (GateFailed("mean KL (0.3) must be at most 0.1"), GateFailed, 1, "mean KL (0.3) must be at most 0.1"),
        (FolderConflict("x holds another run"), FolderConflict, 2, "x holds another run"),
        (
            ModuleNotFoundError("No module named 'trl'", name="trl.trainer"),
            MissingExtra,
            2,
            "module 'trl' is not installed; it comes with: pip install 'reasoning-edge[distill]'",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/model.onnx"),
            InputError,
            2,
            "the disk is full while writing out/model.onnx; free space",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "/runs/.out.partial/model.onnx"),
            InputError,
            2,
            "the disk is full while writing /runs/out/model.onnx; free space",
        ),
        (
            RuntimeError("I/O error: No space left on device (os error 28)"),
            InputError,
            2,
            "the disk is full while writing the output folder",
        ),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 302592 vs 302484"),
            InputError,
            2,
            "the disk is full while writing the output folder",
        ),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 5 bytes."),
            InputError,
            2,
            "the machine's memory is too small for this step ([enforce fail] DefaultCPUAllocator",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            InputError,
            2,
            "/x cannot be used: Permission denied",
        ),
    ],
)
def test_whatever_is_raised_becomes_one_line_with_its_exit_code(
    error: BaseException, kind: type, exit_code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def raises(options: object) -> None:
        raise error

    monkeypatch.setattr(distill, "distill", raises)
    assert main(["distill", "--out", "x"]) == exit_code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert type(explain(error, "distill")) is kind


@pytest.mark.parametrize(
    "error", [Panic("index out of bounds\nmore"), ValueError(), KeyError("x"), AssertionError("no")]
)
def test_what_nobody_foresaw_is_a_bug_with_its_traceback_in_a_file(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: Captured, tmp_path: Path
) -> None:
    def raises(options: object) -> None:
        raise error

    monkeypatch.setattr(distill, "distill", raises)
    monkeypatch.setenv("TOOLKIT_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["toolkit", "serve", "--api-key", "my-secret", "--api-key=another-secret"])
    assert explain(error, "distill") is None
    assert main(["distill", "--out", "x"]) == Bug.exit_code == 70
    (line,) = capsys.readouterr().err.splitlines()
    (kept,) = (tmp_path / "bugs").iterdir()
    assert f"this is a bug in the toolkit, not in your input: {type(error).__name__}: " in line
    assert str(kept) in line
    text = kept.read_text()
    assert "Traceback" in text
    assert "in raises" in text
    assert "secret" not in text


def test_a_bug_whose_file_cannot_be_written_is_still_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured, tmp_path: Path
) -> None:
    def raises(options: object) -> None:
        raise KeyError("x")

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(distill, "distill", raises)
    monkeypatch.setenv("TOOLKIT_HOME", str(tmp_path / "file"))
    assert main(["distill", "--out", "x"]) == 70
    (line,) = capsys.readouterr().err.splitlines()
    assert "report it with what --debug shows" in line


@pytest.mark.parametrize(
    ("sent", "interrupts", "code"), [(signal.SIGINT, signal.SIG_DFL, 130), (signal.SIGTERM, signal.SIG_IGN, 143)]
)
def test_an_interrupt_and_a_termination_end_with_their_codes_and_say_how_to_go_on(
    sent: signal.Signals, interrupts: signal.Handlers, code: int, tmp_path: Path
) -> None:
    """A real signal, while the command reads its problems from a pipe that nobody writes; a background job ignores
    SIGINT."""
    pipe = tmp_path / "problems.jsonl"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "toolkit", "traces", "--teacher", "builtin", "--problems", str(pipe)]
    (tmp_path / "config.json").write_text("{}")
    command[5] = str(tmp_path)
    with subprocess.Popen(
        [*command, "--out", str(tmp_path / "out")],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, interrupts),  # noqa: PLW1509
    ) as process:
        writer = os.open(pipe, os.O_WRONLY)  # returns when the command has opened it
        process.send_signal(sent)
        _, err = process.communicate()
        os.close(writer)
    assert process.returncode == code, err
    assert err.splitlines()[-1] == "toolkit: interrupted; run the same command again to resume"
    assert not (tmp_path / "out").exists()


def test_a_reader_that_leaves_early_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m toolkit doctor | true", shell=True, stderr=subprocess.PIPE, text=True, check=False
    )
    assert done.stderr == ""


def test_a_students_sentence_tells_where_all_kept_traces_went() -> None:
    measured = {
        "trained_on": 36,
        "validation": 2,
        "train_updates": 24,
        "train_tokens": 5000,
        "train_first_loss": 3.5,
        "train_final_loss": 0.25,
        "train_validation_loss": 0.5,
        "train_tensors": 272,
        "train_changed_tensors": 271,
        "train_chosen_update": 24,
        "train_chosen_by": "the lowest validation loss",
    }
    assert distill._learned(measured) == (
        "it learned from 36 of the 38 traces kept in 24 updates (5,000 tokens): loss 3.500 → 0.250, and 0.500 on the 2 "
        "of the validation split; 271 of its 272 tensors changed; its weights are those after update 24 (the lowest "
        "validation loss)"
    )
    assert "it learned from 36 traces in 24 updates" in distill._learned(measured | {"validation": 0})
