"""Every command refuses a model whose run has not finished, and names the command that resumes it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from toolkit.cli.main import main
from toolkit.errors import InputError
from toolkit.run_identity import MARKER
from toolkit.runs import Stage, finish, partial_folder, partial_of
from toolkit.sources.unfinished import refuse_unfinished

STAGE = Stage(name="distill", config={"seed": 1}, inputs={})


@pytest.fixture
def began(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The command that begins every run of these tests, in a temporary working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["/usr/bin/toolkit", "distill", "--problems", "my own.jsonl", "--out", "runs/mine"]
    )
    return "toolkit distill --problems 'my own.jsonl' --out runs/mine"


def leave(out: Path) -> Path:
    """Leave a run that was interrupted in its training; returns its last checkpoint, which is a model."""
    checkpoint = partial_folder(out, STAGE) / "checkpoints" / "checkpoint-30"
    checkpoint.mkdir(parents=True)
    for folder in (checkpoint, checkpoint.parents[1]):
        (folder / "config.json").write_text("{}")
    return checkpoint


@pytest.mark.parametrize(
    "verb", [["export", "--int4", "--out", "x"], ["eval"], ["chat"], ["verify"], ["bench"], ["serve"]]
)
def test_each_command_says_in_one_line_what_goes_on_with_an_unfinished_run(
    verb: list[str], began: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = leave(Path("runs/mine/student"))
    for model in (Path("runs/mine/student"), partial_of(Path("runs/mine/student")), checkpoint, Path("runs/mine")):
        assert main([verb[0], str(model), *verb[1:], "--json"]) == 2
        said = capsys.readouterr()
        assert said.err.count("\n") == 1 and said.err.endswith(f" has not finished; resume it with: {began}\n"), (
            said.err
        )
        assert str(model) in said.err and json.loads(said.out)["exit"] == 2


def test_the_run_that_is_missing_is_named(began: str) -> None:
    leave(Path("runs/mine/student"))
    with pytest.raises(
        InputError, match=r"^runs/mine/student cannot be used yet: the run that makes it has not finished; resume"
    ):
        refuse_unfinished(Path("runs/mine/student"))
    with pytest.raises(
        InputError, match=r"^runs/mine/int4 does not exist, and .* makes runs/mine/student beside it has not finished; "
    ):
        refuse_unfinished(Path("runs/mine/int4"))


def test_the_command_goes_on_in_the_folder_where_it_began(
    began: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(Path("runs/mine/student"))
    monkeypatch.chdir(tmp_path / "runs")
    with pytest.raises(InputError) as refused:
        refuse_unfinished(Path("mine/student"))
    assert str(refused.value).endswith(f"resume it with: cd {tmp_path} && {began}")


def test_a_run_of_several_stages_is_known_by_the_command_that_names_its_folder(began: str) -> None:
    leave(Path("runs/mine/seed-1/cold_start"))
    with pytest.raises(
        InputError, match=r"runs/mine/teacher does not exist, .* makes runs/mine/seed-1/cold_start beside it has"
    ):
        refuse_unfinished(Path("runs/mine/teacher"))
    refuse_unfinished(Path("runs/other"))


def test_what_is_finished_or_somebody_else_s_is_let_through(began: str, tmp_path: Path) -> None:
    out = Path("runs/mine/student")
    leave(out)
    finish(partial_of(out), out, STAGE, {}, scratch=("checkpoints",))
    leave(Path("runs/mine/int4"))
    checkpoint = tmp_path / "trainer" / ".hidden" / "checkpoint-30"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")
    (checkpoint.parents[1] / MARKER).write_text("{}")
    for path in (out, checkpoint, Path("model.gguf"), Path("smollm2-135m"), Path("owner/name")):
        refuse_unfinished(path)


def test_the_work_of_a_finished_run_is_named_with_what_it_made(began: str) -> None:
    out = Path("runs/mine/student")
    leave(out)
    other = Stage(name="distill", config={"seed": 2}, inputs={})
    finish(partial_folder(out, other), out, other, {})
    (aside,) = out.parent.glob(".student.partial.*")
    with pytest.raises(
        InputError, match=r"student\.partial does not exist: the run that made runs/mine/student has fin"
    ):
        refuse_unfinished(partial_of(out).relative_to(Path.cwd()))
    with pytest.raises(InputError, match=r"unlike the one that made runs/mine/student; .* with another --out in") as no:
        refuse_unfinished(aside / "checkpoints" / "checkpoint-30")
    assert str(no.value).endswith(began)
    for path in (out, Path("runs/mine/other")):
        refuse_unfinished(path)


def test_a_run_that_an_earlier_version_began_is_told_without_its_command(began: str) -> None:
    marker = leave(Path("runs/mine/student")).parents[1] / MARKER
    for text in (json.dumps(STAGE.key()), "[]", "{"):
        marker.write_text(text)
        with pytest.raises(InputError, match=r"it has not finished; resume it with: the command that began it$"):
            refuse_unfinished(Path("runs/mine/student"))


def test_the_command_is_no_part_of_what_a_run_is(began: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Path("runs/mine/student")
    checkpoint = leave(out)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/toolkit", "demo"])
    assert partial_folder(out, STAGE) == checkpoint.parents[1] and checkpoint.is_dir()
    assert json.loads((checkpoint.parents[1] / MARKER).read_text())["command"] == began
