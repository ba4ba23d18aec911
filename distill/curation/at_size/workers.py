"""Runs a function over many tasks in a pool of processes, whose results come in the order of the tasks.

Workers are started anew (`spawn`), so they inherit neither locks nor threads. A worker whose parent is killed ends too.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any, TypeVar

from toolkit.errors import InputError, ToolkitError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What a process opens once for all of its tasks."""

    prepare: Callable[..., None]
    given: tuple[Any, ...]
    """The arguments of `prepare`."""
    release: Callable[[], None]
    """Closes what was opened, so that it can be renamed."""


def run_all(
    work: Callable[[T], R],
    tasks: Sequence[T],
    *,
    processes: int,
    tools: Tools,
) -> Iterator[R]:
    """Yield the result of each task. Each process prepares itself by `tools` before its first task.

    A single process works here. Raises what `work` raises, and `InputError` if one of
    several processes dies.
    """
    processes = min(processes, len(tasks))
    if processes <= 1:
        try:
            tools.prepare(*tools.given)
            yield from map(work, tasks)
        finally:
            tools.release()
        return
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=_begin, initargs=(tools,)
    )
    try:
        for future in [pool.submit(_guarded, work, task) for task in tasks]:
            yield future.result()
    except BrokenProcessPool as error:
        raise InputError(
            "a process of the pool was ended from outside, perhaps for want of memory; run the same command again to "
            "resume, with fewer --processes"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
            child.join()


def _begin(tools: Tools) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tools.prepare(*tools.given)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _guarded(work: Callable[[T], R], task: T) -> R:
    """Do a task; an error of several arguments could not be sent to the parent."""
    try:
        return work(task)
    except ToolkitError as error:
        raise InputError(str(error)) from None
