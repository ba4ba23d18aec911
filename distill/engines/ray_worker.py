"""A worker of Ray: answers chunks of a job's requests through the teacher, into the store on the shared disk.

The store's claims hold for workers as for any process, and divide a chunk's requests among them. If a worker dies, the
kernel frees its claims and the others ask what it left; Ray starts another process in its place.

Workers divide the limits of each server by their place. A place is a lock that a process holds while it lives, so the
process that replaces a dead one takes its share.
"""

from __future__ import annotations

import io
import json
import os
import platform
import time
from contextlib import ExitStack, redirect_stderr
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from distill.collecting.job import Job
from distill.endpoints.remote_teacher import Endpoint
from distill.engines.shared_budget import SharedBudget
from distill.engines.work_list import PLACES, STARTED, WorkList
from distill.store.byte_locks import ByteLocks
from distill.teachers.respondent import Respondent
from toolkit.errors import InputError, ToolkitError

PLACE_S = 60.0
"""How long a place may stay locked after its process has died on another machine."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What all workers of a job are told."""

    teacher: Respondent
    job: Job
    """Without problems, which are in the list."""
    work: WorkList
    workers: int
    purse: Any
    """The handle of the actor that counts what is spent; None: nothing is limited."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a worker says of a chunk."""

    error: str = ""
    """Why the job must end."""
    stopped_by: str = ""
    left_out: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    """What it had to say of the servers."""

    def text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Self:
        values = json.loads(text)
        return cls(**values | {name: tuple(values[name]) for name in ("left_out", "lines")})


class Worker:
    """The class of Ray's actors: called with a chunk, returns its report."""

    def __init__(self, assignment: Assignment) -> None:
        self._assigned = assignment
        self._open = ExitStack()
        self._teacher: Respondent | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        chunks = zip(batch["start"].tolist(), batch["end"].tolist(), strict=True)
        return {"report": [self._answer(chunk).text() for chunk in chunks]}

    def _answer(self, chunk: tuple[int, int]) -> Report:
        assigned, said = self._assigned, io.StringIO()
        label = assigned.job.label
        error = ""
        with redirect_stderr(said):
            try:
                self._teacher = self._teacher or self._begin()
                problems, hashes = assigned.work.read(chunk)
                self._teacher.answer(
                    replace(assigned.job, problems=problems, chosen=partial(np.isin, test_elements=hashes))
                )
            except ToolkitError as failure:
                error = str(failure)
            except OSError as failure:
                error = (
                    f"{failure.filename or assigned.job.path} cannot be used on {platform.node()}: {failure.strerror}"
                )
        return Report(
            error=error,
            stopped_by=self._teacher.stopped_by if self._teacher else "",
            left_out=tuple(self._teacher.left_out) if self._teacher else (),
            lines=tuple(line for line in said.getvalue().splitlines() if line and not line.startswith(label)),
        )

    def _begin(self) -> Respondent:
        """Take a place, and open the teacher with this place's share."""
        assigned = self._assigned
        assigned.work.sign(f"{STARTED}{platform.node()}-{os.getpid()}")
        place = self._take_place(self._open.enter_context(ByteLocks(assigned.work.folder / PLACES)))
        teacher = assigned.teacher
        if isinstance(teacher, Endpoint):
            shares = [server.share_of(place, assigned.workers) for server in teacher.all_servers]
            budget = SharedBudget(assigned.purse, place, teacher.all_servers) if assigned.purse else None
            serving = replace(teacher.serving, servers=tuple(filter(None, shares)))
            teacher = replace(teacher, serving=serving, budget=budget)
        return self._open.enter_context(teacher)

    def _take_place(self, locks: ByteLocks) -> int:
        until = time.monotonic() + PLACE_S
        while time.monotonic() < until:
            for place in range(self._assigned.workers):
                if locks.take(place):
                    return place
            time.sleep(0.1)
        raise InputError(
            f"all places of the {self._assigned.workers} workers are taken on {platform.node()}, though one has ended; "
            "run the same command again"
        )


def trouble_here(work: WorkList, folders: list[Path], variables: list[str]) -> str:
    """Return what a machine lacks to work on a list; empty if nothing.

    `folders`: models that it must have; `variables`: of the environment, with keys.
    """
    if not work.is_seen():
        return (
            f"does not see {work.folder.parent}, where the traces are kept; choose an --out on a disk that all "
            "machines of the cluster share"
        )
    for folder in folders:
        if not folder.is_dir():
            return f"has no folder {folder}, which is the teacher; put it on a disk that all machines share"
    for variable in variables:
        if not os.environ.get(variable):
            return f"has no {variable} in its environment, which is set here; set it where Ray is started"
    try:
        work.sign(f"seen-{platform.node()}")
    except InputError as error:
        return f"cannot write the traces: {error}"
    return ""
