"""Trains on the processes that torchrun started: `torchrun --nproc-per-node 2 -m toolkit distill …`.

The first process runs the command as if it were alone, until it trains. The others have waited for it in torchrun's
store, for as long as the teacher takes, and join it then. torchrun itself ends the others if one dies.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

from distill.launching.job import check_processes, result_of, work, write_job
from distill.training.train import Train
from distill.training.train_config import TrainConfig
from toolkit.records import Example
from toolkit.runs import process_rank

ASK_EVERY_S = 0.5
NOTHING = "nothing to train"


def processes_started() -> int:
    """Return how many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def by_torchrun(*, sharded: bool) -> Train:
    """Return a way to train in the first process, with the others."""
    return partial(_train, sharded=sharded)


@contextmanager
def others_waiting() -> Iterator[None]:
    """Within the context, the first process may train; at its end the others go home if it did not."""
    try:
        yield
    finally:
        if not _store().check([_key()]):
            _store().set(_key(), NOTHING)


def follow() -> None:
    """Wait until the first process trains, and train with it."""
    store = _store()
    while not store.check([_key()]):
        time.sleep(ASK_EVERY_S)
    place = store.get(_key()).decode()
    if place != NOTHING:
        work(Path(place))


def _train(
    student: Path,
    examples: Sequence[Example],
    config: TrainConfig,
    folder: Path,
    validation: Sequence[Example] = (),
    *,
    sharded: bool,
) -> dict[str, Any]:
    check_processes(config, processes_started(), sharded=sharded, here=False)
    place = write_job(student, examples, config, folder, validation, sharded=sharded)
    _store().set(_key(), str(place))
    work(place)
    return result_of(place)


def _store() -> TCPStore:
    """Return the store in which the processes meet: torchrun's, or with another launcher the first process's."""
    is_ours = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and not process_rank()
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(host, port, is_master=is_ours, wait_for_workers=False, multi_tenant=True)


def _key() -> str:
    return f"toolkit/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/job"
