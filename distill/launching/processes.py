"""Trains on several processes of this machine, which are started here and die with this one.

    this process ── job/ ──> worker 0 … worker N−1 (`distill.launching.worker`)     ──> job/result.json

Workers meet in a store that this process keeps, as torchrun's do. Only the first one speaks. Ctrl+C goes to it, and it
stops all of them after an update. If one dies, the others, which would wait for it, are ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore

from distill.launching.job import check_processes, last_update, noted_failure, quiet_environment, result_of, write_job
from distill.training.train import Train
from distill.training.train_config import TrainConfig
from toolkit.errors import InputError
from toolkit.records import Example

HERE = "127.0.0.1"
LOOK_EVERY_S = 0.1
INTERRUPTED = 130
GRACE_S = 10.0
"""How long others may take to notice by themselves that a process failed, before they are ended."""


def by_processes(processes: int, *, sharded: bool) -> Train:
    """Return a way to train on so many processes of this machine."""
    return partial(_train, processes=processes, sharded=sharded)


def _train(
    student: Path,
    examples: Sequence[Example],
    config: TrainConfig,
    folder: Path,
    validation: Sequence[Example] = (),
    *,
    processes: int,
    sharded: bool,
) -> dict[str, Any]:
    """Train as `distill.training.train.train` does. Raises `InputError` if a process dies."""
    check_processes(config, processes, sharded=sharded, here=True)
    place = write_job(student, examples, config, folder, validation, sharded=sharded)
    store = TCPStore(HERE, 0, is_master=True, wait_for_workers=False)
    workers = [_start(place, rank, processes, store.port) for rank in range(processes)]
    try:
        _wait(workers, place)
    except KeyboardInterrupt:
        workers[0].send_signal(signal.SIGINT)
        _let_end(workers, seconds=None)
        raise
    finally:
        _end(workers)
    return result_of(place)


def _start(place: Path, rank: int, processes: int, port: int) -> subprocess.Popen[bytes]:
    threads = max(1, torch.get_num_threads() // processes)
    environment = {"OMP_NUM_THREADS": str(threads)} | quiet_environment()
    environment |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": HERE,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is ours: the first worker must not make one
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "distill.launching.worker", str(place)],
        env=environment | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdin=subprocess.PIPE,  # its end tells a worker that this process is gone
        stdout=subprocess.DEVNULL,
        stderr=None if rank == 0 else subprocess.DEVNULL,
        start_new_session=True,  # Ctrl+C at the terminal reaches this process alone
    )


def _wait(workers: Sequence[subprocess.Popen[bytes]], place: Path) -> None:
    """Wait until all workers have trained. Raises the error of the first one that failed."""
    while True:
        codes = [worker.poll() for worker in workers]
        failed = [rank for rank, code in enumerate(codes) if code]
        if failed:
            break
        if all(code == 0 for code in codes):
            return
        time.sleep(LOOK_EVERY_S)
    if all(code is None or code >= 0 for code in codes):
        _let_end(workers, seconds=GRACE_S)
    for rank, worker in enumerate(workers):
        if worker.returncode is not None and worker.returncode < 0:
            raise InputError(
                f"process {rank} of {len(workers)} was killed by {signal.Signals(-worker.returncode).name}, as the "
                f"system does when memory runs out; the same command {last_update(place)}"
            )
    if workers[failed[0]].returncode == INTERRUPTED:
        raise KeyboardInterrupt
    raise noted_failure(place) or InputError(
        f"process {failed[0]} of {len(workers)} ended with exit code {codes[failed[0]]}; the same command "
        f"{last_update(place)}"
    )


def _let_end(workers: Sequence[subprocess.Popen[bytes]], *, seconds: float | None) -> None:
    until = time.monotonic() + (seconds or 0)
    while any(worker.poll() is None for worker in workers):
        if any(worker.returncode for worker in workers) and seconds is None:
            seconds, until = GRACE_S, time.monotonic() + GRACE_S
        if seconds is not None and time.monotonic() > until:
            return
        time.sleep(LOOK_EVERY_S)


def _end(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.kill()
        worker.wait()
        if worker.stdin:
            worker.stdin.close()
