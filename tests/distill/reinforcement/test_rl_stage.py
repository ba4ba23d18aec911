"""`toolkit distill` with a section `rl`, and with `--stage rl`: from problems to a student, also after `kill -9`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill.pipeline import distill
from distill.recipes.distill_recipe import LORA_FACTOR, resolve_recipe
from distill.reinforcement.rl_config import RlConfig
from distill.trained_on import question_digest, trained_questions
from tests.distill.reinforcement.undecided import problems, write_problems
from tests.distill.test_pipeline import PROBLEMS, TRAINED, Reciter, no_decoder, recipe
from tests.distill.test_pipeline import write_problems as write_sums
from tests.house.modules import ROOT
from tests.processes import wait_until
from toolkit.cli.main import main
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.records import read_jsonl
from toolkit.runs import read_manifest

VALUES = ("problems=4", "samples=4", "turns_at_once=8", "learning_rate=1e-3", "max_new_tokens=20", "updates=4")


def line(student: Path, folder: Path, out: str, *more: str) -> list[str]:
    path = folder / "problems.jsonl"
    words = ["distill", "--stage", "rl", "--student", str(student), "--problems", str(write_problems(path))]
    settings = [word for value in VALUES for word in ("--set", f"rl.{value}")]
    return [*words, *settings, "--out", str(folder / out), *more]


def test_a_student_that_diverges_is_given_up_and_the_last_checkpoint_is_named(
    undecided: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hot = ["--set", "rl.learning_rate=1e9", "--set", "train.checkpoint_every_updates=1"]
    assert main(line(undecided, tmp_path, "out", *hot)) == 2
    said = r"training diverged: the student's logit of update 2 is nan; .*; the last good checkpoint is .*checkpoint-1"
    assert re.search(said, capsys.readouterr().err)


def measured_of(out: Path) -> dict[str, Any]:
    measured: dict[str, Any] = (read_manifest(out) or {})["measured"]
    return measured


def test_a_finished_student_is_reinforced_without_a_teacher(
    undecided: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line(undecided, tmp_path, "out")) == 0
    said = capsys.readouterr()
    assert "of its own turns in 4 updates by verified answers: " in said.out
    out = tmp_path / "out"
    names = {path.name for path in out.iterdir()}
    assert names >= {"rl.jsonl", "rl", "recipe.yaml", "problems.jsonl", "trained_on.json", "model.safetensors"}
    assert not names & {"reinforcement", "checkpoints", "traces.jsonl", "loss.jsonl"}
    manifest = read_manifest(out) or {}
    assert (manifest["stage"], manifest["measured"]["rl_updates"]) == ("distill.rl", 4)
    assert manifest["outputs"].keys() >= {"rl.jsonl", "rl/events.out.tfevents.student", "model.safetensors"}
    questions = {question_digest(problem) for problem in problems()}
    assert (trained_questions(out) or set()) >= questions
    assert ChatFormat.from_folder(out).opens_reasoning
    assert main(line(undecided, tmp_path, "out")) == 0
    assert "already done" in capsys.readouterr().err
    assert main(line(undecided, tmp_path, "out", "--set", "rl.updates=5")) == 2
    assert "config.rl.updates (4) must equal this run's (5)" in capsys.readouterr().err
    again = ["distill", "--stage", "rl", "--recipe", str(out / "recipe.yaml"), "--out", str(tmp_path / "again")]
    assert main(again) == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_a_run_that_was_killed_resumes_and_ends_with_the_same_student(undecided: Path, tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    assert main(line(undecided, tmp_path / "whole", "out")) == 0
    command = line(undecided, tmp_path / "killed", "out", "--set", "train.checkpoint_every_updates=1")
    checkpoints = tmp_path / "killed" / ".out.partial" / "reinforcement" / "checkpoints"
    process = subprocess.Popen(
        [sys.executable, "-m", "toolkit", *command],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: any(checkpoints.glob("checkpoint-2/trainer_state.json")) or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said
    assert not (tmp_path / "killed" / "out").exists()
    assert main(command) == 0
    whole, killed = (tmp_path / name / "out" for name in ("whole", "killed"))
    assert (whole / "model.safetensors").read_bytes() == (killed / "model.safetensors").read_bytes()
    curves = [[(row["step"], row["loss"]) for _, row in read_jsonl(out / "rl.jsonl")] for out in (whole, killed)]
    assert curves[0] == curves[1]


def test_a_section_reinforces_the_student_after_it_has_learned_from_traces(tiny_student: Path, tmp_path: Path) -> None:
    """A student of a minute is never right: what is rewarded is a form that it finds now and then."""
    path = write_sums(tmp_path / "problems.jsonl")
    config = recipe(tiny_student, path)
    config = replace(config, train=replace(config.train, epochs=40, learning_rate=1e-2))
    rl = RlConfig(updates=2, problems=8, samples=8, max_new_tokens=40, learning_rate=1e-3)
    out = distill(replace(config, rl=rl), tmp_path / "out", lambda folder: Reciter(folder, PROBLEMS))
    measured = measured_of(out)
    assert measured["train_updates"] > 0 and measured["rl_updates"] == 2
    assert (out / "loss.jsonl").is_file() and len(list(read_jsonl(out / "rl.jsonl"))) == 2
    assert not (out / "reinforcement").exists() and not (out / "checkpoints").exists()
    plain = distill(config, tmp_path / "plain", lambda folder: Reciter(folder, PROBLEMS))
    assert "rl" not in (read_manifest(plain) or {})["config"]
    assert (out / "model.safetensors").read_bytes() != (plain / "model.safetensors").read_bytes()
    assert (out / "train.jsonl").read_text() == (plain / "train.jsonl").read_text()
    assert (trained_questions(out) or set()) >= {question_digest(problem) for problem in TRAINED}
    distill(replace(config, rl=rl), out, no_decoder)  # complete: nothing to do
    apart = replace(config, rl=rl, train=replace(config.train, lora_rank=4, lora_kept_apart=True))
    with pytest.raises(InputError, match="reinforcement goes on from a whole student; leave it out"):
        distill(apart, tmp_path / "apart", no_decoder)


REFUSED: dict[str, tuple[list[str], str]] = {
    "a teacher": (["--teacher", "builtin"], "--teacher is for learning from a teacher, and --stage rl asks none"),
    "traces": (["--traces", "traces.jsonl"], "--traces is for learning from a teacher, and --stage rl asks none"),
    "epochs": (["--epochs", "2"], "--epochs is for learning from a teacher, and --stage rl asks none; leave it out"),
    "a rate of supervised training": (
        ["--set", "train.learning_rate=1e-6"],
        "--set train.learning_rate has no effect with --stage rl; set rl.learning_rate",
    ),
    "a teacher's samples": (["--set", "samples=4"], "--set samples has no effect with --stage rl; set rl.samples"),
    "noise": (["--set", "train.neftune_noise=5"], "train.neftune_noise has no effect with --stage rl; leave it out"),
    "logits": (["--logits", "teacher"], "--logits is for learning from a teacher"),
    "an unknown value": (["--set", "rl.updtes=2"], "--set: rl.updtes is unknown; did you mean rl.updates?"),
    "one turn": (["--set", "rl.samples=1"], "rl.samples (1) must be a whole number at least 2"),
    "a wrong type": (["--set", "rl.updates=many"], "rl.updates ('many') must be a whole number"),
    "another name": (["--set", "rl.kl_coef=0"], "rl.kl_coef is unknown; here it is rl.kl_coefficient"),
    "a long warm-up": (["--set", "rl.warmup_updates=9"], "rl.warmup_updates (9) must be at most rl.updates (4)"),
    "a scale": (["--set", "rl.scale_rewards=groups"], "did you mean group?"),
    "processes": (
        ["--processes", "2"],
        "reinforcement (rl) trains in one process, and --processes 2 asks for several",
    ),
    "long turns": (["--max-new-tokens", "600"], "leaves no room for a turn of rl.max_new_tokens (600) in what"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_is_refused_before_any_work(
    kind: str, undecided: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more, message = REFUSED[kind]
    command = line(undecided, tmp_path, "out", *more)
    if kind == "long turns":  # the option counts more than the setting
        command = [word for word in command if not word.startswith("rl.max_new_tokens")]
        command.pop(command.index("--set", command.index("rl.learning_rate=1e-3")))
    assert main(command) == 2
    said = capsys.readouterr().err
    assert message in said
    assert not (tmp_path / "out").exists()


def test_options_of_a_teacher_mean_the_student_that_is_reinforced() -> None:
    found = resolve_recipe("demo", options={"rl.temperature": 0.9}, reinforced=True).recipe
    assert found.rl == replace(RlConfig(), temperature=0.9)
    assert resolve_recipe("demo").recipe.rl is None
    assert resolve_recipe("demo", ["rl.updates=7"]).recipe.rl == replace(RlConfig(), updates=7)


def test_adapters_want_a_higher_rate_in_reinforcement_too() -> None:
    rate = resolve_recipe("demo", ["rl.updates=7"], lora=True).recipe.rl
    assert rate is not None and rate.learning_rate == pytest.approx(LORA_FACTOR * RlConfig().learning_rate)
    given = resolve_recipe("demo", ["rl.learning_rate=2e-5"], lora=True).recipe.rl
    assert given is not None and given.learning_rate == 2e-5


def test_the_options_reach_the_section(undecided: Path, tmp_path: Path) -> None:
    command = ["distill", "--stage", "rl", "--student", str(undecided), "--problems"]
    command += [str(write_problems(tmp_path / "problems.jsonl")), "--set", "rl.updates=1", "--set", "rl.problems=4"]
    options = ["--samples", "4", "--temperature", "0.9", "--max-new-tokens", "20", "--learning-rate", "1e-3"]
    assert main([*command, *options, "--out", str(tmp_path / "out")]) == 0
    rl = json.loads((tmp_path / "out" / "manifest.json").read_text())["config"]["rl"]
    assert [rl[name] for name in ("samples", "temperature", "max_new_tokens", "learning_rate")] == [4, 0.9, 20, 1e-3]


def test_a_run_that_ends_just_before_it_is_complete_is_completed(
    undecided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("distill.reinforced.finish", lambda *args, **kwargs: 1 / 0)
        assert main(line(undecided, tmp_path, "out")) == 70
    first = (tmp_path / ".out.partial" / "model.safetensors").read_bytes()
    assert main(line(undecided, tmp_path, "out")) == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == first
    assert len(list(read_jsonl(tmp_path / "out" / "rl.jsonl"))) == 4
