"""A run resumes from what it recorded: a stage that is killed ends with the weights of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from distill.teach.teach import stage_folder
from distill.teach.teacher_recipe import quick
from distill.training.journal import CHECKPOINTS, LOSS, _last_checkpoint, repeatable

ROOT = Path(__file__).parents[2]
RUN = """
import sys
from dataclasses import replace
from pathlib import Path
from distill.teach.teach import run_stage
from distill.teach.teacher_recipe import quick

config = replace(quick(), checkpoint_every_s=0.0)
run_stage(sys.argv[1], config, Path(sys.argv[3]), start=Path(sys.argv[2]))
"""
KILLED_AFTER = 3
"""Least steps before the kill; a checkpoint may be half written at that moment."""


@pytest.mark.parametrize(("stage", "start"), [("cold_start", "midtrain"), ("reason_rl", "seed-1/cold_start")])
def test_a_stage_that_was_killed_ends_with_the_same_weights(
    stage: str, start: str, taught: Path, tmp_path: Path
) -> None:
    run = [sys.executable, "-c", RUN, stage, str(taught / start)]
    out = stage_folder(stage, quick(), tmp_path / "killed")
    checkpoints = out.parent / f".{stage}.partial" / CHECKPOINTS
    with subprocess.Popen([*run, str(tmp_path / "killed")], cwd=ROOT, process_group=0) as process:
        while not any(_step(path) >= KILLED_AFTER for path in checkpoints.glob("checkpoint-*/trainer_state.json")):
            assert process.poll() is None, "the run must be alive until it is killed"
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    begun = (checkpoints.parent / LOSS).read_text().splitlines()[0]

    subprocess.run([*run, str(tmp_path / "killed")], cwd=ROOT, check=True)
    whole = stage_folder(stage, quick(), taught)
    lines = (out / LOSS).read_text().splitlines()
    assert lines[0] == begun, "it must go on, not begin again, which would measure another speed"
    assert [json.loads(line)["step"] for line in lines] == [
        json.loads(line)["step"] for line in (whole / LOSS).read_text().splitlines()
    ]
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.parametrize("torn", ["", '{"epoch": 1.0, "global_st'])
def test_a_checkpoint_whose_state_is_torn_is_passed_over(torn: str, tmp_path: Path) -> None:
    for step, state in ((2, "{}"), (10, torn)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-11").mkdir()
    assert _last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


def _step(state: Path) -> int:
    return int(state.parent.name.rpartition("-")[2])


def test_the_gradient_of_routed_rows_repeats_to_the_bit() -> None:
    threads = torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(2000, 64, generator=generator, requires_grad=True)
    token_P = torch.randint(0, 2000, (16_000,), generator=generator)
    weight_PD = torch.randn(16_000, 64, generator=generator)

    def gradient() -> torch.Tensor:
        return torch.autograd.grad((x_ND[token_P] * weight_PD).sum(), x_ND)[0]

    try:
        torch.set_num_threads(2)
        with repeatable():
            first = gradient()
            assert all(torch.equal(gradient(), first) for _ in range(20))
    finally:
        torch.set_num_threads(threads)
    assert not torch.are_deterministic_algorithms_enabled(), "nothing is left behind"
