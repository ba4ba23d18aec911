"""Run folders: whole or not at all, repeatable, and honest about what they hold."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.modules import ROOT, module_files
from tests.toolkit.full_disk import full_disk
from toolkit import runs
from toolkit.errors import FolderConflict, InputError
from toolkit.runs import (
    Stage,
    finish,
    folder_bytes,
    folder_digest,
    given_name,
    is_complete,
    partial_folder,
    read_manifest,
    replace_text,
)

STAGE = Stage(name="train", config={"epochs": 2, "seed": 1}, inputs={"student": "aa"})


def make(out: Path, stage: Stage = STAGE) -> None:
    folder = partial_folder(out, stage)
    (folder / "weights.bin").write_bytes(b"12345")
    finish(folder, out, stage, {"loss": 0.5})


def test_a_finished_folder_is_complete_and_says_what_it_holds(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert not is_complete(out, STAGE)
    make(out)
    assert is_complete(out, STAGE)
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "weights.bin"]
    manifest = read_manifest(out)
    assert manifest is not None
    assert manifest["outputs"] == {"weights.bin": {"bytes": 5, "sha256": hashlib.sha256(b"12345").hexdigest()}}
    assert manifest["measured"] == {"loss": 0.5}
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "nothing may be left beside it"


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (Stage(name="train", config={"epochs": 3, "seed": 1}, inputs={"student": "aa"}), r"config.epochs \(2\).*\(3\)"),
        (Stage(name="train", config={"epochs": 2, "seed": 1}, inputs={"student": "bb"}), r"student \('aa'\).*\('bb'\)"),
        (
            Stage(name="pull", config={"epochs": 2, "seed": 1}, inputs={"student": "aa"}),
            r"stage \('train'\).*\('pull'\)",
        ),
        (Stage(name="train", config={"epochs": 2}, inputs={"student": "aa"}), r"config.seed \(1\).*\(left out\)"),
        (
            Stage(name="train", config={"epochs": 2, "seed": 1, "rl": {"a": "b" * 99}}, inputs={"student": "aa"}),
            r"config.rl \(left out\) must equal this run's \(\{'a': 'b{73}…\)",
        ),
    ],
)
def test_another_run_in_the_folder_is_named_with_both_values(tmp_path: Path, other: Stage, difference: str) -> None:
    make(tmp_path / "run")
    with pytest.raises(FolderConflict, match=difference):
        is_complete(tmp_path / "run", other)


def test_a_folder_with_other_files_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FolderConflict, match="must be empty or a finished run"):
        is_complete(tmp_path, STAGE)


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert not is_complete(tmp_path / "run", STAGE)
    make(tmp_path / "run")
    assert is_complete(tmp_path / "run", STAGE)


def test_the_same_run_resumes_its_partial_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    (partial_folder(out, STAGE) / "half.jsonl").write_text("1\n")
    assert (partial_folder(out, STAGE) / "half.jsonl").read_text() == "1\n"
    assert not out.exists()


def test_unfinished_work_of_other_options_is_kept_said_and_taken_up_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    other = Stage(name="train", config={"epochs": 9, "seed": 1}, inputs={"student": "aa"})
    for stage, text in ((STAGE, "1\n"), (other, "9\n")):
        folder = partial_folder(out, stage)
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "half").write_text(text)
    said = capsys.readouterr().err
    assert "its config.epochs (2) must equal this run's (9)" in said and len(said.splitlines()) == 1
    for stage, text in ((STAGE, "1\n"), (other, "9\n"), (STAGE, "1\n")):
        assert (partial_folder(out, stage) / "checkpoints" / "half").read_text() == text
    make(out)
    assert (out / "checkpoints" / "half").read_text() == "1\n"
    (kept,) = (path for path in tmp_path.iterdir() if path != out)
    assert (kept / "checkpoints" / "half").read_text() == "9\n" and str(kept) in capsys.readouterr().err
    out.rename(tmp_path / "elsewhere")
    assert (partial_folder(out, other) / "checkpoints" / "half").read_text() == "9\n"


def test_what_another_run_displaced_and_outlived_goes_on_under_another_name_in_the_same_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = tmp_path / "run", Stage(name="train", config={"epochs": 9}, inputs={})
    (partial_folder(out, STAGE) / "half").write_text("1\n")
    make(out, other)
    (kept,) = tmp_path.glob(".run.partial.*")
    said = capsys.readouterr().err
    assert f"it is kept in {kept}" in said and f"resumed by its own command with another --out in {tmp_path}," in said
    with pytest.raises(
        FolderConflict, match=rf"choose another --out in {tmp_path}, .* unfinished work in {kept.name}$"
    ):
        is_complete(out, STAGE)
    again = tmp_path / "again"
    assert not is_complete(again, STAGE)
    assert (partial_folder(again, STAGE) / "half").read_text() == "1\n"
    assert (
        capsys.readouterr().err == f"going on with the unfinished run that was kept in {kept}\n" and not kept.exists()
    )
    make(again)
    assert is_complete(again, STAGE) and is_complete(out, other)


def test_inputs_are_told_apart_by_their_names_where_the_runs_know_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (
        Stage(name="traces", config={}, inputs={"teacher": digest}, names={"teacher": name})
        for digest, name in (("aa", "http://a/v1#m"), ("bb", "http://b/v1#m"))
    )
    told = "its inputs.teacher (http://a/v1#m, digest 'aa') must equal this run's (http://b/v1#m, digest 'bb')"
    (partial_folder(tmp_path / "half", first) / "traces.jsonl").write_text("1\n")
    partial_folder(tmp_path / "half", second)
    assert told in capsys.readouterr().err
    make(tmp_path / "run", first)
    with pytest.raises(FolderConflict, match=re.escape(told)):
        is_complete(tmp_path / "run", second)
    assert is_complete(tmp_path / "run", Stage(name="traces", config={}, inputs={"teacher": "aa"})), "only a name"
    make(tmp_path / "old", Stage(name="traces", config={}, inputs={"teacher": "aa"}))
    with pytest.raises(FolderConflict, match=r"inputs\.teacher \('aa'\) must equal this run's \(http://b/v1#m, digest"):
        is_complete(tmp_path / "old", second)


@pytest.mark.parametrize("marker", ["", "[]", '{"stage"', '"train"'])
def test_a_partial_folder_that_names_no_run_is_kept(tmp_path: Path, marker: str) -> None:
    folder = tmp_path / ".run.partial"
    folder.mkdir()
    (folder / "stage.json").write_text(marker)
    (folder / "traces.jsonl").write_text("1\n")
    assert {path.name for path in partial_folder(tmp_path / "run", STAGE).iterdir()} == {".lock", "stage.json"}
    assert [path.read_text() for path in tmp_path.glob(".run.partial.*/traces.jsonl")] == ["1\n"]


def test_what_is_cheap_gives_way_to_other_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    other = Stage(name="train", config={"epochs": 9}, inputs={})
    (partial_folder(out, STAGE) / "problems.jsonl").write_text("1\n")
    assert not (partial_folder(out, other, cheap=("problems.jsonl",)) / "problems.jsonl").exists()
    assert [path.name for path in tmp_path.iterdir()] == [".run.partial"]
    assert capsys.readouterr().err == ""


def test_one_process_at_a_time_makes_a_folder_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    out = tmp_path / "run"
    claim = (
        "from pathlib import Path; from toolkit.runs import Stage, partial_folder; import sys\n"
        f"stage = Stage(name={STAGE.name!r}, config={STAGE.config!r}, inputs={STAGE.inputs!r})\n"
        "print(partial_folder(Path(sys.argv[1]), stage), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", claim, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        held = Path(other.stdout.readline().strip())
        (held / "half.jsonl").write_text("1\n")
        for stage in (STAGE, Stage(name="train", config={}, inputs={})):
            with pytest.raises(InputError, match=r"another process is writing .*run; wait for it"):
                partial_folder(out, stage)
        other.kill()
        other.wait()
    assert (partial_folder(out, STAGE) / "half.jsonl").read_text() == "1\n"
    make(out)
    assert sorted(path.name for path in out.iterdir()) == ["half.jsonl", "manifest.json", "weights.bin"]


def test_of_processes_started_together_the_first_makes_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    first = partial_folder(out, STAGE)
    monkeypatch.setenv("RANK", "1")  # as torchrun sets it
    second = partial_folder(out, STAGE)
    assert second != first
    (second / "weights.bin").write_bytes(b"other")
    monkeypatch.setenv("RANK", "0")
    make(out)
    monkeypatch.setenv("RANK", "1")
    assert finish(second, out, STAGE, {"loss": 0.7})["measured"] == {"loss": 0.5}
    assert (out / "weights.bin").read_bytes() == b"12345"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "run"
    with pytest.raises(InputError, match=rf"^{out} cannot be written: .*; choose another --out$"):
        partial_folder(out, STAGE)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/runs/.run.partial/traces.jsonl", "/runs/run/traces.jsonl"),
        ("/runs/.run.partial-1/.stage.json.partial", "/runs/run/stage.json"),
        ("/runs/.run.partial.01234567/loss.jsonl", "/runs/run/loss.jsonl"),
        ("/runs/partial/.hidden", "/runs/partial/.hidden"),
        ("runs/run", "runs/run"),
    ],
)
def test_a_path_in_the_work_of_a_run_is_named_as_it_was_given(path: str, name: str) -> None:
    assert given_name(Path(path)) == Path(name)
    assert given_name(Path.cwd() / ".run.partial" / "x") == Path("run/x")


def test_a_full_disk_names_the_file_as_it_was_given(tmp_path: Path) -> None:
    with full_disk(), pytest.raises(InputError, match=rf"^{tmp_path}/run/loss\.jsonl cannot be written"):
        replace_text(tmp_path / ".run.partial" / "loss.jsonl", "{}")


def test_a_digest_changes_with_the_bytes_and_not_with_the_place(tmp_path: Path) -> None:
    for name, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    digests = [folder_digest(tmp_path / name) for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_that_leads_to_no_run_is_refused_before_the_work(there: bool, tmp_path: Path) -> None:
    """The finished folder could not get the link's name."""
    if there:
        (tmp_path / "there").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "there")
    with pytest.raises(FolderConflict, match="is a link, but not to a finished run"):
        is_complete(tmp_path / "run", STAGE)


def test_a_link_to_a_finished_run_is_that_run(tmp_path: Path) -> None:
    make(tmp_path / "there")
    (tmp_path / "run").symlink_to(tmp_path / "there")
    assert is_complete(tmp_path / "run", STAGE)


def test_bytes_count_all_files(tmp_path: Path) -> None:
    make(tmp_path / "run")
    assert folder_bytes(tmp_path / "run") == 5 + (tmp_path / "run" / "manifest.json").stat().st_size


def test_a_manifest_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps([1]))
    with pytest.raises(InputError, match=r"manifest\.json must be a JSON object"):
        read_manifest(tmp_path)


def test_whatever_line_a_run_is_killed_at_it_ends_whole_and_nothing_is_bought_twice(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.toolkit.stages_killed", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) > 100
    for number, end in enumerate(found):
        assert end["ended"] == 0, (number, done.stderr)
        assert end["names"] == ["bill", "run", "run/bought.jsonl", "run/manifest.json"], number
        assert end["bill"] == 1 or not end["bought"], number


def test_a_full_disk_at_the_start_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "run"
    (partial_folder(out, STAGE) / "half.jsonl").write_text("1\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other = Stage(name="train", config={"epochs": 9}, inputs={})
    with full_disk():
        assert (partial_folder(out, STAGE) / "half.jsonl").read_text() == "1\n"
        with pytest.raises(InputError, match="cannot be written"):
            partial_folder(out, other)
        with pytest.raises(InputError, match="cannot be written"):
            replace_text(tmp_path / "recipe.json", "{}")
    assert not list(tmp_path.glob("*recipe*")), "nothing half-written is left"
    assert (partial_folder(out, STAGE) / "half.jsonl").read_text() == "1\n"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path in before} == before


def test_a_marker_is_written_when_the_run_changes_and_not_at_each_start(tmp_path: Path) -> None:
    marker = partial_folder(tmp_path / "run", STAGE) / "stage.json"
    facts = marker.stat()
    partial_folder(tmp_path / "run", STAGE)
    assert (marker.stat().st_ino, marker.stat().st_mtime_ns) == (facts.st_ino, facts.st_mtime_ns)


def test_no_remedy_tells_to_delete_what_holds_work() -> None:
    for module, path in module_files().items():
        told = re.findall(r"[^.;\"]*\b(?:remove|delete) (?:the (?:folder|file)|it)\b[^\"]*\"", path.read_text())
        assert not told, f"{module} tells: {told}"


def test_names_that_no_encoding_has_are_kept_in_manifests(tmp_path: Path) -> None:
    stage = Stage(name="eval", config={"model": "half \ud83d, byte \udcff"}, inputs={})
    make(tmp_path / "run", stage)
    assert is_complete(tmp_path / "run", stage)


@pytest.mark.skipif(os.name == "nt", reason="there are no modes")
def test_a_private_text_is_nobody_else_s_from_its_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "settings.json", []
    monkeypatch.setattr(runs, "sync", lambda fresh: seen.append(stat.S_IMODE(fresh.stat().st_mode)))
    path.write_text("readable by all")
    path.with_name(".settings.json.partial").write_text("left by a process that died")
    replace_text(path, "secret", mode=0o600)
    assert path.read_text() == "secret" and [stat.S_IMODE(path.stat().st_mode), *seen] == [0o600, 0o600]
