"""Students trained by two processes, copies or shards, are those that one process trains."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from distill.launching.processes import by_processes
from distill.training.train import train
from distill.training.train_config import TrainConfig
from tests.distill.test_train import examples, float_model, losses, tiny_recipe
from toolkit.errors import InputError

DEAR = pytest.mark.skipif(os.environ.get("TOOLKIT_NIGHTLY") != "1", reason="takes a minute: TOOLKIT_NIGHTLY=1")
MADE, HELD_OUT = examples(26), examples(50)[26:]
"""The last batch of four has two examples: one for each process."""


def recipe(**changes: Any) -> TrainConfig:
    return replace(tiny_recipe(), **changes)


@pytest.fixture(scope="module")
def run(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """Train on so many processes, once for each kind of run."""
    known: dict[Any, tuple[Path, dict[str, Any]]] = {}

    def trained(processes: int, *, sharded: bool = False, **changes: Any) -> tuple[Path, dict[str, Any]]:
        key = (processes, sharded, *changes.items())
        if key not in known:
            folder = tmp_path_factory.mktemp("run")
            trainer: Any = by_processes(processes, sharded=sharded) if processes > 1 else train
            known[key] = folder, trainer(tiny_student, MADE, recipe(**changes), folder, HELD_OUT)
        return known[key]

    return trained


KINDS: dict[str, dict[str, Any]] = {
    "copies": {},
    "shards": {"sharded": True},
    "shards of adapters": {"sharded": True, "lora_rank": 8, "learning_rate": 1e-2, "max_grad_norm": 0.3},
    "shards, computed again": {"sharded": True, "gradient_checkpointing": True, "accumulation_steps": 2},
    "copies of nf4": {"lora_rank": 8, "quantization": "nf4", "learning_rate": 1e-2, "max_grad_norm": 0.3},
}
LESS_OFTEN = ("copies of nf4", "shards, computed again")


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[DEAR] if kind in LESS_OFTEN else []) for kind in KINDS])
def test_two_processes_train_as_one(kind: str, run: Callable[..., tuple[Path, dict[str, Any]]]) -> None:
    settings = KINDS[kind]
    folder, measured = run(2, **settings)
    alone, expected = run(1, **settings_of_recipe(settings))
    assert len(losses(folder)) == len(losses(alone)) == expected["updates"]
    assert losses(folder) == pytest.approx(losses(alone), rel=0.01), "bf16: gradients are added in another order"
    norms = [[line["grad_norm"] for line in lines(each)] for each in (folder, alone)]
    assert norms[0] == pytest.approx(norms[1], rel=0.05)
    assert max(norms[1]) > recipe(**settings_of_recipe(settings)).max_grad_norm, "clipped"
    assert measured["validation_loss"] == pytest.approx(expected["validation_loss"], rel=0.01)
    assert measured["tokens"] == expected["tokens"] and measured["changed_tensors"] == expected["changed_tensors"]
    ours, others = float_model(folder).state_dict(), float_model(alone).state_dict()
    assert ours.keys() == others.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], others[name], rtol=0.05, atol=0.02)


def settings_of_recipe(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "sharded"}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "loss.jsonl").read_text().splitlines()]


def workers() -> list[psutil.Process]:
    """Return the processes that train for this one, by rank."""
    found = [child for child in psutil.Process().children() if "distill.launching.worker" in child.cmdline()]
    return sorted(found, key=lambda child: int(child.environ()["RANK"]))


def when(update: int, folder: Path, act: Callable[[], None]) -> threading.Thread:
    """Act once so many updates are logged."""

    def watch() -> None:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            if (folder / "loss.jsonl").exists() and len((folder / "loss.jsonl").read_text().splitlines()) >= update:
                act()
                return
            time.sleep(0.02)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.parametrize("sharded", [False, True])
def test_a_killed_process_ends_the_run_and_the_same_command_resumes(
    sharded: bool, tiny_student: Path, tmp_path: Path, run: Callable[..., tuple[Path, dict[str, Any]]]
) -> None:
    settings = recipe(epochs=3, checkpoint_every_s=0.0)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    trainer = by_processes(2, sharded=sharded)
    expected = trainer(tiny_student, MADE, settings, whole, HELD_OUT)
    watcher = when(4, broken, lambda: os.kill(workers()[1].pid, signal.SIGKILL))
    with pytest.raises(
        InputError, match=r"process 1 of 2 was killed by SIGKILL.*the same command resumes at update \d"
    ):
        trainer(tiny_student, MADE, settings, broken, HELD_OUT)
    watcher.join()
    assert not workers()
    assert not (broken / "model.safetensors").exists()
    found = trainer(tiny_student, MADE, settings, broken, HELD_OUT)
    assert found | {"seconds": 0} == expected | {"seconds": 0}
    assert losses(broken) == losses(whole)
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@DEAR
@pytest.mark.parametrize("sharded", [False, True])
def test_a_checkpoint_of_shards_is_resumed_by_shards_and_one_of_a_whole_student_by_a_whole_one(
    sharded: bool, tiny_student: Path, tmp_path: Path
) -> None:
    watcher = when(2, tmp_path, lambda: os.kill(os.getpid(), signal.SIGINT))
    trainers = [by_processes(2, sharded=True), train]
    with pytest.raises(KeyboardInterrupt):
        trainers[not sharded](tiny_student, MADE, recipe(epochs=4), tmp_path, [])
    watcher.join()
    named = (
        r"checkpoint-\d holds shards .*; add --fsdp to" if sharded else r"checkpoint-\d holds a .*; leave --fsdp out"
    )
    with pytest.raises(InputError, match=named):
        trainers[sharded](tiny_student, MADE, recipe(epochs=4), tmp_path, [])


def test_ctrl_c_stops_all_processes_after_an_update(tiny_student: Path, tmp_path: Path) -> None:
    settings = recipe(epochs=4)
    watcher = when(2, tmp_path, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        by_processes(2, sharded=False)(tiny_student, MADE, settings, tmp_path, [])
    watcher.join()
    assert not workers()
    stopped = len(losses(tmp_path))
    assert (tmp_path / "checkpoints" / f"checkpoint-{stopped}" / "trainer_state.json").is_file()


def test_what_is_wrong_in_all_processes_is_said_once(
    tiny_student: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=r"training diverged: .* update \d is "):
        by_processes(2, sharded=False)(tiny_student, MADE, recipe(learning_rate=1e38), tmp_path, [])
    assert "Traceback" not in capfd.readouterr().err
    assert not (tmp_path / "model.safetensors").exists()
