"""Trains on the workers of a Ray cluster, by Ray Train.

Ray starts the workers, tells each its place, and starts all of them again if one dies; they go on from the last
checkpoint. Every machine must see the run folder under the same name, since the first worker writes into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from distill.engines.ray_cluster import handlers_kept, ray_cluster
from distill.launching.shared_job import RESULT, last_update, launched, note_failure, noted_failure, work
from distill.training.journal import LOSS
from distill.training.train import Train
from toolkit.errors import InputError, ToolkitError
from toolkit.runs import given_name
from toolkit.terminal import counted, say

FAILURES = 3
"""How often workers are started again."""


def by_ray(*, workers: int, sharded: bool, address: str) -> Train:
    """Return a way to train on so many workers of a cluster; an empty address is a cluster on this machine."""
    return launched(partial(_run, workers, address), processes=workers, sharded=sharded, here=False)


def _run(workers: int, address: str, place: Path) -> None:
    with ray_cluster(address, workers) as ray:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        has_gpus = _check_cluster(ray.cluster_resources(), workers)
        say(f"train: on {counted(workers, 'worker')} of Ray; {given_name(place.parents[1])}/{LOSS} has the losses")
        trainer = TorchTrainer(
            _work,
            train_loop_config={"place": str(place)},
            torch_config=TorchConfig(backend="nccl" if has_gpus else "gloo"),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=has_gpus),
            run_config=RunConfig(
                name="ray", storage_path=str(place), failure_config=FailureConfig(max_failures=FAILURES)
            ),
        )
        try:
            with handlers_kept():  # its own answers to Ctrl+C would stay
                trainer.fit()
        except Exception as error:
            text = " ".join(str(error).split())
            raise InputError(f"training on Ray failed ({text:.300}); the same command {last_update(place)}") from error
    if not (place / RESULT).is_file():
        raise noted_failure(place) or InputError(
            f"no worker of Ray trained to the end; the same command {last_update(place)}"
        )


def _work(config: Mapping[str, str]) -> None:
    place = Path(config["place"])
    try:
        work(place)
    except ToolkitError as error:  # a new attempt would fail too
        note_failure(place, error)


def _check_cluster(resources: Mapping[str, float], workers: int) -> bool:
    """Return whether a cluster has GPUs. Raises `InputError` if it has no room for the workers, as Ray would wait."""
    has_gpus = resources.get("GPU", 0) >= 1
    kind, count = ("GPUs", resources["GPU"]) if has_gpus else ("processor cores", resources.get("CPU", 0))
    if workers > count:
        raise InputError(
            f"{workers} workers need as many {kind}, and the Ray cluster has {count:.0f}; use at most that many "
            "(--workers), or add machines"
        )
    return has_gpus
