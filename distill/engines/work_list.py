"""The requests of a job on the disk that its workers share, and their division into chunks.

    .traces/<key>/.work-<token>/
    ├── problems.jsonl     the problems with missing requests, one a line
    ├── requests.npy       per missing request, in the order of the hashes: its hash, where its problem's line is
    ├── token              what a machine must read here to be sure that it sees this disk
    ├── places             locks: which worker has which share of the limits, and whether the job still runs
    └── started-<name>     one empty file for each process that has worked

A chunk is a range of hashes, so no two chunks share a bucket of the store (`distill.store.claims`). All workers get
each chunk, and its claims divide the requests among them as they are sent: a quick worker asks more of them, all end
together, and what a worker leaves when it dies the others ask. The folder is removed when the job ends, or by the next
job if it was killed.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.collecting.job import Plan
from distill.store.byte_locks import ByteLocks
from distill.store.claims import BUCKET_BITS
from distill.store.shard_index import Hashes
from toolkit.errors import InputError
from toolkit.json_files import parse_json
from toolkit.records import Problem, record_line

REQUEST = np.dtype([("hash", "<u8"), ("offset", "<u8"), ("length", "<u4")])
PREFIX = ".work-"
PROBLEMS, REQUESTS, TOKEN, PLACES, STARTED = "problems.jsonl", "requests.npy", "token", "places", "started-"
OWNER = 2**20
"""The lock of the process that has written the list; those below are the workers'."""
CHUNK = 2**16
"""Requests of a chunk: so few that their problems fit into a worker's memory, so many that waiting for the last answers
of each costs little."""
Chunk = tuple[int, int]
"""The first of its requests, and the one behind its last."""


@dataclass(frozen=True, kw_only=True)
class WorkList:
    """A job's missing requests, as any process that sees the disk reads them."""

    folder: Path
    token: str

    @classmethod
    def write(cls, store: Path, plan: Plan[Any], positions: NDArray[np.int64], problems: Sequence[Problem]) -> WorkList:
        """Write the requests at some positions of a plan; `problems`: those of its job."""
        _remove_left_ones(store)
        work = cls(folder=store / f"{PREFIX}{secrets.token_hex(8)}", token=secrets.token_hex(16))
        work.folder.mkdir(parents=True)
        found = np.empty(len(positions), dtype=REQUEST)
        by_id = {problem.id: problem for problem in problems}
        with (work.folder / PROBLEMS).open("wb") as file:
            last, place = "", (0, 0)
            for row, position in enumerate(positions.tolist()):
                problem_id = plan.problem_id(position)
                if problem_id != last:
                    last, start = problem_id, file.tell()
                    place = start, file.write(record_line(by_id[problem_id]))
                found[row] = (plan.hashes[position], *place)
            file.flush()
            os.fsync(file.fileno())
        found.sort(order="hash")
        np.save(work.folder / REQUESTS, found)
        (work.folder / TOKEN).write_text(work.token)
        return work

    def chunks(self) -> list[Chunk]:
        """Divide the requests."""
        buckets = self._requests()["hash"] >> np.uint64(64 - BUCKET_BITS)
        chunks: list[Chunk] = []
        start = 0
        while start < len(buckets):
            last = min(start + CHUNK, len(buckets)) - 1
            end = int(np.searchsorted(buckets, buckets[last], side="right"))
            chunks.append((start, end))
            start = end
        return chunks

    def read(self, chunk: Chunk) -> tuple[list[Problem], Hashes]:
        """Return the problems of a chunk, and the hashes of its requests."""
        rows = np.array(self._requests()[slice(*chunk)])
        problems = []
        with (self.folder / PROBLEMS).open("rb") as file:
            for offset, length in sorted(set(zip(rows["offset"].tolist(), rows["length"].tolist(), strict=True))):
                file.seek(offset)
                where = f"{self.folder / PROBLEMS} byte {offset}"
                problems.append(Problem.from_dict(parse_json(file.read(length), where, constants=True)))
        return problems, rows["hash"]

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Keep the list as long as a job runs."""
        try:
            with ByteLocks(self.folder / PLACES) as locks:
                locks.take(OWNER)
                yield
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def is_seen(self) -> bool:
        """Whether this machine sees the disk."""
        try:
            return (self.folder / TOKEN).read_text() == self.token
        except OSError:
            return False

    def sign(self, name: str) -> None:
        """Leave an empty file in the list; raises `InputError` if this process cannot write to the disk."""
        try:
            (self.folder / name).touch()
        except OSError as error:
            raise InputError(f"{self.folder.parent} cannot be written: {error.strerror}") from error

    def started(self) -> int:
        """Return how many processes have worked so far."""
        return sum(path.name.startswith(STARTED) for path in self.folder.iterdir())

    def _requests(self) -> NDArray[Any]:
        requests: NDArray[Any] = np.load(self.folder / REQUESTS, mmap_mode="r")
        return requests


def _remove_left_ones(store: Path) -> None:
    """Remove the lists of jobs that were killed."""
    for folder in store.glob(f"{PREFIX}*"):
        with ByteLocks(folder / PLACES) as locks:
            is_left = locks.take(OWNER)
        if is_left:
            shutil.rmtree(folder, ignore_errors=True)
