"""An interrupted training says so at once, keeps its updates, and resumes as if nothing had happened."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from distill.training.interrupts import heard_in_backward, postponed_interrupt
from distill.training.journal import CHECKPOINTS, LOSS
from tests.house.modules import ROOT
from toolkit.records import Problem, Trace, write_records

PROBLEMS = [Problem.create(family="user", question=f"{i}+{i}", answer=str(2 * i)) for i in range(10, 40)]


def write_traces(folder: Path) -> Path:
    """Write the traces of a teacher that answers all of `PROBLEMS` right."""
    traces = [
        Trace(
            problem_id=problem.id,
            sample=0,
            reasoning=f"{problem.question} is {problem.answer}",
            answer=problem.answer,
            finish_reason="stop",
            closed=True,
            prompt_tokens=None,
            reasoning_tokens=None,
            completion_tokens=None,
            teacher="program",
            request_hash=problem.id,
        )
        for problem in PROBLEMS
    ]
    write_records(folder / "problems.jsonl", PROBLEMS)
    write_records(folder / "traces.jsonl", traces)
    return folder / "traces.jsonl"


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_training_says_what_is_kept_and_the_same_command_goes_on_without_a_warning(
    sent: signal.Signals, code: int, tiny_student: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "toolkit", "distill", "--traces", str(write_traces(tmp_path))]
    command += ["--student", str(tiny_student), "--epochs", "60", "--out", str(tmp_path / "student")]
    partial = tmp_path / ".student.partial"
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while not (partial / LOSS).is_file() or not (partial / LOSS).read_text():
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.01)
        process.send_signal(sent)
        _, err = process.communicate()
    assert process.returncode == code, err
    heard, last = [line for line in err.splitlines() if line.startswith(("interrupted", "toolkit: "))]
    assert err.index("train: preparing ") < err.index("train  0/"), "it is silent neither before nor at the beginning"
    assert heard.startswith("interrupted: training ends once update ") and "a second interrupt ends it at once" in heard
    assert last == "toolkit: interrupted; run the same command again to resume"
    (checkpoint,) = (partial / CHECKPOINTS).glob("checkpoint-*")
    assert f"update {checkpoint.name.removeprefix('checkpoint-')} of " in heard
    begun = (partial / LOSS).read_text().splitlines()

    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=True)
    assert "missing" not in done.stderr and "WARN" not in done.stderr.upper(), done.stderr
    lines = (tmp_path / "student" / LOSS).read_text().splitlines()
    assert lines[: len(begun)] == begun, "it must go on, not begin again, which would measure another speed"
    assert [json.loads(line)["step"] for line in lines] == sorted({json.loads(line)["step"] for line in lines})
    kept, updates = checkpoint.name.removeprefix("checkpoint-"), json.loads(lines[-1])["step"]
    assert f"resuming {tmp_path / 'student'} at update {kept} of {updates}\n" in done.stderr

    again = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=True)
    made = rf"already done: {tmp_path / 'student'} \(made 20\d\d-.*\); to make it anew, choose another --out"
    assert re.fullmatch(made, again.stderr.splitlines()[-1])


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Restore SIGINT's handler, which a process started in the background ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_the_first_interrupt_is_promised_an_end_and_the_second_one_ends(capsys: pytest.CaptureFixture[str]) -> None:
    interrupted = threading.Event()
    with pytest.raises(KeyboardInterrupt), postponed_interrupt(interrupted, lambda: "soon"):
        signal.raise_signal(signal.SIGINT)
        assert interrupted.is_set() and capsys.readouterr().err == "soon\n"
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("interruptible")
def test_a_signal_is_heard_in_the_midst_of_a_backward_pass() -> None:
    """One call of C++, during which another thread sends the signal."""
    layers = nn.Sequential(*(nn.Linear(512, 512) for _ in range(40)))
    begun = threading.Event()

    def send() -> None:
        begun.wait()
        os.kill(os.getpid(), signal.SIGINT)

    sender = threading.Thread(target=send)
    sender.start()
    out_BD = layers(torch.randn(512, 512))
    out_BD.register_hook(lambda gradient: begun.set())
    with pytest.raises(KeyboardInterrupt), heard_in_backward(layers):
        out_BD.sum().backward()
    sender.join()
    first = layers[0]
    assert isinstance(first, nn.Linear) and first.weight.grad is None, "the pass must not have come to its end"
