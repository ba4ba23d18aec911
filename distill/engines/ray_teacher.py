"""Answers a job by workers of Ray: a Ray Data pipeline from chunks of requests to reports.

    work list ── chunks, each for all workers ── Ray Data: map_batches over workers ── reports
                                       │
                              the store on the shared disk

Each worker asks the same teacher as one process would, and writes to the same store, so the same traces come out. This
process watches the store, shows the progress and says what the workers report.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Any, Self

from distill.collecting.job import Job, Plan
from distill.collecting.trace_log import Collected
from distill.endpoints.remote_teacher import Endpoint
from distill.engines.ray_cluster import check_ray, ray_cluster
from distill.engines.ray_worker import Assignment, Report, Worker, trouble_here
from distill.engines.shared_budget import Purse
from distill.engines.work_list import Chunk, WorkList
from distill.store.sharded_store import HeldTraces, TraceStore
from distill.teachers.respondent import ModelFolder, Respondent
from toolkit.errors import InputError
from toolkit.records import Problem, Trace
from toolkit.terminal import counted, say

LOOK_EVERY_S = 0.5
"""How often the store is looked at for the progress; a store of a million traces less often."""
LOOKED_AT_PER_S = 200_000
LAST_REPORTS_S = 10.0
"""How long reports are awaited once all is answered: one of a worker that died for good will not come."""


class RayTeacher:
    """A teacher whose shared jobs Ray's workers answer; everything else it does itself."""

    def __init__(self, teacher: Respondent, *, workers: int | None = None, address: str = "") -> None:
        """`workers`: None: one for each GPU of the cluster if the teacher is a model folder, else one for each machine.

        `address`: the cluster's, `auto`, or empty for a cluster of this machine that lives as long as the job.
        """
        check_ray()
        self.teacher, self._workers, self._address = teacher, workers, address
        self._stopped_by = ""
        self._left_out: set[str] = set()
        self._said: set[str] = set()
        """What was said of the servers: several workers notice the same."""

    @property
    def name(self) -> str:
        return self.teacher.name

    @property
    def digest(self) -> str:
        return self.teacher.digest

    @property
    def weight_bytes(self) -> int:
        return self.teacher.weight_bytes

    @property
    def left_out(self) -> list[str]:
        return sorted(self._left_out)

    @property
    def stopped_by(self) -> str:
        return self._stopped_by

    def __enter__(self) -> Self:
        self._open = ExitStack()
        self._open.enter_context(self.teacher)
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def load(self) -> None:
        """Load nothing here: the workers do."""

    def plan(self, job: Job) -> Plan[Any]:
        return self.teacher.plan(job)

    def tokens_per_s(self, problems: Sequence[Problem]) -> float | None:
        return self.teacher.tokens_per_s(problems)

    def answer(self, job: Job) -> Sequence[Trace]:
        """Let the workers ask what the store lacks, and return all traces in order; raises `InputError` as they do."""
        assert job.shared, "workers need a store"
        plan, store = self.plan(job), TraceStore(job.path)
        with Collected(job, plan, store) as collected:
            if len(collected.missing):
                work = WorkList.write(job.path, plan, collected.missing, job.problems)
                with work.owned():
                    self._answer(job, plan, work, collected)
        store.refresh()
        return HeldTraces(store, plan.chosen)

    def _answer(self, job: Job, plan: Plan[Any], work: WorkList, collected: Collected[Any]) -> None:
        with ray_cluster(self._address, self._workers or 1) as ray:
            workers, gpus = self._size(ray)
            check_machines(ray, work, self.teacher)
            assignment = Assignment(
                teacher=self.teacher,
                job=replace(job, problems=(), chosen=None, limit=None, before=None),
                work=work,
                workers=workers,
                purse=self._purse(ray, job, plan),
            )
            lost, ends_at = 0, math.inf
            for reports in _run(ray, assignment, work.chunks(), gpus):
                collected.watch()
                for report in reports:
                    self._take(report)
                if work.started() > workers + lost:
                    lost = work.started() - workers
                    say(f"{job.label}: {counted(lost, 'worker')} died so far; others ask what they had not answered")
                if not collected.left:
                    ends_at = min(ends_at, time.monotonic() + LAST_REPORTS_S)
                if time.monotonic() > ends_at:
                    break

    def _take(self, report: Report) -> None:
        """Say what a worker reports; raises `InputError` if the job must end."""
        for line in report.lines:
            if line not in self._said:
                self._said.add(line)
                say(line)
        self._left_out.update(report.left_out)
        self._stopped_by = self._stopped_by or report.stopped_by
        if report.error:
            raise InputError(report.error)

    def _size(self, ray: Any) -> tuple[int, int]:
        """Return how many workers there are, and how many GPUs each gets; raises `InputError` if there is no room."""
        found = ray.cluster_resources()
        gpus = int(found.get("GPU", 0)) if isinstance(self.teacher, ModelFolder) else 0
        machines = sum(node["Alive"] for node in ray.nodes())
        workers = self._workers or gpus or machines
        room = gpus or int(found.get("CPU", 0))
        if workers > room:
            kind = "GPU" if gpus else "CPU"
            raise InputError(
                f"--workers ({workers}) is more than the cluster has room for: {counted(room, kind)}, of which each "
                "worker takes one; lower it, or add machines"
            )
        if isinstance(self.teacher, Endpoint):
            workers = min(workers, max(server.most for server in self.teacher.all_servers))
        return workers, int(gpus > 0)

    def _purse(self, ray: Any, job: Job, plan: Plan[Any]) -> Any:
        """Start the actor that counts what is spent, if anything limits it."""
        if not isinstance(self.teacher, Endpoint):
            return None
        budget = self.teacher.budget_of(job, plan)
        if not budget.is_limited:
            return None
        spent = budget.tokens, budget.cost
        return ray.remote(num_cpus=0)(Purse).remote(self.teacher.serving.limits, self.teacher.all_servers, spent)


def check_machines(ray: Any, work: WorkList, teacher: Respondent) -> None:
    """Let each machine of the cluster look for what it needs, before anything is paid; raises `InputError` if one lacks
    something."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    folders = [teacher.folder.resolve()] if isinstance(teacher, ModelFolder) else []
    servers = teacher.all_servers if isinstance(teacher, Endpoint) else ()
    variables = sorted({server.key for server in servers if os.environ.get(server.key)})
    look = ray.remote(num_cpus=0, max_retries=0)(trouble_here)
    looks = {
        node["NodeManagerHostname"]: look.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(work, folders, variables)
        for node in ray.nodes()
        if node["Alive"]
    }
    for machine, found in looks.items():
        if trouble := ray.get(found):
            raise InputError(f"the machine {machine} of the Ray cluster {trouble}")


def _run(ray: Any, assignment: Assignment, chunks: Sequence[Chunk], gpus: int) -> Iterator[list[Report]]:
    """Run the pipeline, and yield every now and then the reports that have come."""
    came: SimpleQueue[Report] = SimpleQueue()
    trouble: list[Exception] = []
    ended = threading.Event()

    def consume() -> None:
        try:
            for row in _pipeline(ray, assignment, chunks, gpus).iter_rows():
                came.put(Report.read(row["report"]))
                if ended.is_set():
                    return
        except Exception as error:  # noqa: BLE001 – it is raised in the thread that waits
            trouble.append(error)

    thread = threading.Thread(target=consume, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(max(LOOK_EVERY_S, chunks[-1][1] / LOOKED_AT_PER_S))
            yield _all_of(came)
    finally:
        ended.set()
    yield _all_of(came)
    if trouble:
        first = str(trouble[0]).strip().splitlines()[-1:] or [""]
        raise InputError(
            f"Ray ended the job ({type(trouble[0]).__name__}: {first[0]:.300}); what was answered is kept, run the "
            "same command again to resume"
        ) from trouble[0]


def _pipeline(ray: Any, assignment: Assignment, chunks: Sequence[Chunk], gpus: int) -> Any:
    rows = [{"start": start, "end": end} for start, end in chunks for _ in range(assignment.workers)]
    return ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Worker,
        fn_constructor_args=(assignment,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=assignment.workers, max_tasks_in_flight_per_actor=1),
        num_cpus=0 if gpus else 1,
        num_gpus=gpus,
    )


def _all_of(queue: SimpleQueue[Report]) -> list[Report]:
    found = []
    while True:
        try:
            found.append(queue.get_nowait())
        except Empty:
            return found
