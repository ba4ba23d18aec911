"""`toolkit distill` on several processes, as people type it: --processes, torchrun, and what is refused before work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.distill.launching.test_processes import DEAR
from tests.house.modules import ROOT
from toolkit.cli.main import main
from toolkit.records import Problem, Trace, write_records

COUNT = 60


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write right traces of some sums, with their problems beside them."""
    folder = tmp_path_factory.mktemp("traces")
    problems = [Problem.create(family="user", question=f"{i}+{i}=", answer=str(2 * i)) for i in range(10, 10 + COUNT)]
    write_records(folder / "problems.jsonl", problems)
    made = [
        Trace(
            problem_id=problem.id,
            sample=0,
            reasoning=f"{problem.question}{problem.answer}",
            answer=problem.answer,
            teacher="program@0",
            request_hash=problem.id,
            closed=True,
            finish_reason="stop",
            **dict.fromkeys(("prompt_tokens", "reasoning_tokens", "completion_tokens")),
        )
        for problem in problems
    ]
    write_records(folder / "traces.jsonl", made)
    return folder / "traces.jsonl"


def line(traces: Path, student: Path, out: Path, *more: str) -> list[str]:
    return ["distill", "--traces", str(traces), "--student", str(student), "--out", str(out), *more]


def trained(out: Path) -> list[float]:
    assert (out / "manifest.json").is_file() and (out / "model.safetensors").is_file()
    assert not (out / "checkpoints").exists()
    assert not list(out.parent.glob(f".{out.name}.partial*"))
    return [json.loads(row)["loss"] for row in (out / "loss.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(traces: Path, tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "student"
    assert main(line(traces, tiny_student, out)) == 0
    return out


def test_processes_of_the_command_train_the_student_of_one(
    traces: Path, tiny_student: Path, alone: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "student"
    assert main(line(traces, tiny_student, out, "--processes", "2", "--fsdp", "--json")) == 0
    said = capfd.readouterr()
    assert len(said.out.splitlines()) == 1 and json.loads(said.out)["train_updates"] > 2
    assert trained(out) == pytest.approx(trained(alone), rel=0.01)


@pytest.mark.parametrize("more", [["--fsdp", "--gradient-checkpointing"], pytest.param([], marks=DEAR)])
def test_torchrun_trains_the_student_of_one(
    more: list[str], traces: Path, tiny_student: Path, alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "student"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "toolkit", *line(traces, tiny_student, out, *more, "--json")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [json.loads(row)["folder"] for row in done.stdout.splitlines()] == [str(out)], "the first process speaks"
    assert trained(out) == pytest.approx(trained(alone), rel=0.01)
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and again.stderr.count("already done") == 1


def test_a_run_of_other_processes_is_the_same_run(
    traces: Path, tiny_student: Path, alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line(traces, tiny_student, alone, "--processes", "2")) == 0
    assert "already done" in capsys.readouterr().err


REFUSED: dict[str, tuple[list[str], str]] = {
    "nf4 without adapters": (
        ["--quantization", "nf4"],
        "(nf4) keeps weights that cannot be trained themselves",
    ),
    "shards of one": (["--fsdp"], "--fsdp divides a student among processes, and there is one; add --processes 2"),
    "shards of nf4": (
        ["--quantization", "nf4", "--lora", "--fsdp", "--processes", "2"],
        "weights in nf4 cannot be sharded; leave --fsdp out",
    ),
    "shards of 8 bits": (
        ["--optimizer", "adamw_8bit", "--fsdp", "--processes", "2"],
        "the state of adamw_8bit cannot be sharded; use adamw",
    ),
    "more processes than examples": (
        ["--processes", "17"],
        "a batch of 16 examples cannot be divided among 17 processes; use at most 16",
    ),
    "workers without Ray": (["--workers", "2"], "--workers is for --engine ray; add that, or leave it out"),
    "logits of several": (
        ["--logits", "on-policy", "--processes", "2"],
        "distillation by logits (on_policy) trains in one process, and --processes 2 asks for several; leave",
    ),
    "logits of Ray": (
        ["--logits", "teacher", "--engine", "ray"],
        "distillation by logits (teacher) trains in one process, and --engine ray asks for several; leave --engine out",
    ),
    "both": (["--engine", "ray", "--processes", "2"], "--engine ray has --workers; leave one of them out"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_train_is_refused_before_any_work(
    kind: str, traces: Path, tiny_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more, message = REFUSED[kind]
    assert main(line(traces, tiny_student, tmp_path / "out", *more)) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU pages")
def test_a_paged_optimizer_is_refused_on_a_cpu(
    traces: Path, tiny_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line(traces, tiny_student, tmp_path / "out", "--optimizer", "paged_adamw_8bit")) == 2
    assert "this machine has no GPU; use adamw_8bit" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
