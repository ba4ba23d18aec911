"""Ray Train starts two workers on a cluster of this machine, and starts them again if one dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from distill.engines.ray_cluster import ray_cluster
from distill.launching.ray_train import _check_cluster, by_ray
from distill.training.train import train
from tests.distill.launching.test_processes import DEAR, HELD_OUT, MADE, recipe, when
from tests.distill.test_train import losses
from toolkit.errors import InputError

pytest.importorskip("ray", reason="Ray has no wheel for this Python")
WORKERS = 2


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with ray_cluster("", WORKERS):
        yield


def workers() -> list[psutil.Process]:
    """Return the processes in which Ray trains."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        name = " ".join(process.info["cmdline"] or ())
        if name.startswith("ray::") and "RayTrainWorker" in name:
            found.append(process)
    return found


def ray_trained(student: Path, folder: Path, settings: Any, *, sharded: bool = False) -> dict[str, Any]:
    trainer: Any = by_ray(workers=WORKERS, sharded=sharded, address="")
    measured: dict[str, Any] = trainer(student, MADE, settings, folder, HELD_OUT)
    return measured


@pytest.mark.parametrize("sharded", [False, pytest.param(True, marks=DEAR)])
def test_workers_train_the_student_of_one_process(
    sharded: bool, cluster: None, tiny_student: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    expected = train(tiny_student, MADE, recipe(), alone, HELD_OUT)
    capfd.readouterr()
    before = signal.getsignal(signal.SIGINT)
    measured = ray_trained(tiny_student, together, recipe(), sharded=sharded)
    said = capfd.readouterr()
    assert signal.getsignal(signal.SIGINT) is before, "Ctrl+C does what it did"
    assert said.out == "" and said.err == f"train: on 2 workers of Ray; {together}/loss.jsonl has the losses\n"
    assert losses(together) == pytest.approx(losses(alone), rel=0.01)
    assert measured["changed_tensors"] == expected["changed_tensors"]
    assert (together / "model.safetensors").is_file()


def test_a_killed_worker_is_started_again_and_goes_on(cluster: None, tiny_student: Path, tmp_path: Path) -> None:
    settings = recipe(epochs=3, checkpoint_every_s=0.0)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    ray_trained(tiny_student, whole, settings)
    killed: list[int] = []

    def kill() -> None:
        killed.append(workers()[0].pid)
        os.kill(killed[0], signal.SIGKILL)

    watcher = when(4, broken, kill)
    ray_trained(tiny_student, broken, settings)
    watcher.join()
    assert killed
    assert losses(broken) == losses(whole)
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_what_is_wrong_with_the_training_is_not_tried_again(cluster: None, tiny_student: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"training diverged: .* update \d is "):
        ray_trained(tiny_student, tmp_path, recipe(learning_rate=1e38))


def test_more_workers_than_the_cluster_has_room_for_are_refused() -> None:
    assert _check_cluster({"CPU": 2.0}, 2) is False
    assert _check_cluster({"CPU": 2.0, "GPU": 4.0}, 4) is True
    with pytest.raises(InputError, match=r"3 workers need as many processor cores, and the Ray cluster has 2"):
        _check_cluster({"CPU": 2.0}, 3)
    with pytest.raises(InputError, match=r"5 workers need as many GPUs, and the Ray cluster has 4"):
        _check_cluster({"CPU": 64.0, "GPU": 4.0}, 5)
