"""Stores traces by what was asked, never by what a run does with them afterwards.

    runs/
    ├── .traces/<key>/       traces of one teacher under one sampling: `distill.store.sharded_store`
    │   └── asked.json       the teacher and the sampling, with the model name that the server gave
    ├── first/               run folders, each with a copy of the traces it asked for
    └── mine/second/

All runs below a folder named `runs`, however deep, share its `.traces`; other run folders have one beside them. So a
run with another learning rate, another student or more problems pays only for answers that no run has asked for yet. A
run with another sampling or teacher gets a new store, which a line on stderr says. Earlier versions kept a `.traces`
beside every run folder: its contents are copied, and stay there too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from distill.collecting.asking import AS_IT_IS, Asking
from distill.collecting.job import Job
from distill.collecting.outcomes import reasons
from distill.collecting.part import Part
from distill.endpoints.remote_teacher import AS_USUAL, Endpoint, Serving
from distill.endpoints.server_list import teacher_of
from distill.endpoints.servers.server import ServerSettings
from distill.store.copying import copy_missing
from distill.store.failure import Failure
from distill.store.sharded_store import ASKED, LAYOUT, HeldTraces, TraceStore, has_traces
from distill.teachers.respondent import Respondent, find_respondent
from distill.verification.wholeness import incomplete, unfit
from toolkit.errors import InputError, Unreachable
from toolkit.figures.ledger import FAILED, TRACES
from toolkit.generation.endpoint import locate, parse_address
from toolkit.generation.generate import Decoder, Sampling
from toolkit.records import Problem, Trace, read_object, write_records
from toolkit.runs import partial_of, read_manifest, replace_text
from toolkit.sources.model_names import is_endpoint
from toolkit.terminal import counted, say

RUNS, STORES = "runs", ".traces"
LOCK = ".lock"
MOST_LOOKED_AT = 100_000
"""The most traces of a run that are looked at to say how many are whole; some of them take milliseconds."""


@dataclass(frozen=True, kw_only=True)
class CollectedTraces:
    """The outcome of all requests of a run."""

    traces: Sequence[Trace]
    """Read from the store whenever they are looked at."""
    failures: list[Failure]
    whole: int | None
    """Traces with a whole thought and a whole answer; None if they are so many that counting them would take long."""
    left_out: list[str]
    """Sampling fields that the server refused."""
    requests: int
    """All requests of the run, or of its part."""
    asked_now: int
    """Traces that the teacher gave in this run."""
    stopped_by: str
    """The limit that ended the run before all was asked; empty if none did."""

    def counts(self) -> dict[str, Any]:
        counts = counts_of(
            traces=len(self.traces),
            whole=self.whole,
            failed=len(self.failures),
            left_out=self.left_out,
            stopped_by=self.stopped_by,
        )
        return counts | ({"requests": self.requests} if self.stopped_by else {})


def find_teacher(
    argument: str,
    out: Path,
    open_decoder: Callable[[Path], Decoder],
    opened: str = "",
    *,
    answers: bool = True,
    serving: Serving = AS_USUAL,
) -> Respondent:
    """Return the respondent that a model argument names; an endpoint's model is the one that the run `out` recorded.

    `serving`: what the user says of the endpoint's servers, of which `argument` is the first. The server is not
    contacted if the argument or the run names the model, or if the teacher never `answers` in this run. If the server
    is unreachable, the model that neighbouring runs recorded is used.
    """
    if not is_endpoint(argument) or opened:
        return find_respondent(argument, open_decoder, opened)
    address, named = parse_address(argument)
    first = serving.servers[0] if serving.servers else ServerSettings(url=address, model=named)
    model = named or first.model or _model_of(address, out, first.key, answers=answers)
    return teacher_of(serving, replace(first, model=model)) if answers else Endpoint(url=address, model=model)


def _model_of(address: str, out: Path, key: str, *, answers: bool) -> str:
    """Return the model of a server that the run recorded, the server names, or neighbouring runs recorded."""
    known = _models(address, [out, partial_of(out)])
    if known or not answers:
        return known[0] if known else ""
    try:
        return locate(address, key).model
    except Unreachable:
        known = _models(address, (store for place in _places(out) for store in _stores(place)))
        if len(set(known)) != 1:
            raise
        say(f"{address} does not answer; earlier traces here are by its model {known[0]!r}")
        return known[0]


def gather(
    teacher: Respondent,
    problems: Sequence[Problem],
    sampling: Sampling,
    *,
    samples: int,
    batch_size: int,
    out: Path,
    folder: Path,
    retry_failed: bool = False,
    asking: Asking = AS_IT_IS,
    limit: int | None = None,
    part: Part | None = None,
) -> CollectedTraces:
    """Collect the traces of the run `out`, from the store first, and copy them into `folder`, where it is being made.

    Requests with a recorded failure are sent again only with `retry_failed`. `limit`: the most requests of the job to
    have an outcome. `part`: the one to ask, instead of all. Raises `InputError` as `Respondent.answer` does.
    """
    asked: dict[str, Any] = {"teacher": teacher.name, "digest": teacher.digest, "sampling": asdict(sampling)}
    asked["sampling"] |= asking.given()
    store = open_store(out, folder, asked)
    finished, before = out / TRACES, folder / TRACES
    job = Job(
        problems=problems,
        sampling=sampling,
        samples=samples,
        batch_size=batch_size,
        path=store,
        shared=True,
        retry_failed=retry_failed,
        asking=asking,
        limit=limit,
        chosen=part.includes if part else None,
        before=finished if finished.exists() else before,
    )
    held_before = len(TraceStore(store).traces.hashes())
    with teacher:
        traces = teacher.answer(job)
    assert isinstance(traces, HeldTraces)
    asked_now = len(traces.store.traces.hashes()) - held_before
    wanted = traces.requests
    stopped = teacher.stopped_by or (f"--limit {limit}" if limit is not None and limit < wanted else "")
    whole, failures = write_outcomes(traces, problems, folder)
    if failures:
        say(f"{failed_line(len(traces), failures)}; to ask those again, use --retry-failed")
    return CollectedTraces(
        traces=traces,
        failures=failures,
        whole=whole,
        left_out=teacher.left_out,
        asked_now=asked_now,
        requests=wanted,
        stopped_by=stopped,
    )


def open_store(out: Path, folder: Path, asked: Mapping[str, Any]) -> Path:
    """Return the store of a run `out`, which is being made in `folder`, with what earlier versions kept elsewhere.

    `asked`: the teacher's name and digest, and the sampling.
    """
    kept = ("digest", "sampling")
    key = hashlib.sha256(json.dumps({name: asked[name] for name in kept}, sort_keys=True).encode()).hexdigest()[:12]
    place, *earlier = _places(out)
    store = place / key
    store.mkdir(parents=True, exist_ok=True)
    replace_text(folder / ASKED, json.dumps({"store": key, **asked}) + "\n")
    with _claim(store):
        is_new = not (store / ASKED).exists()
        if is_new:
            _say_what_is_new(store, asked)
        if is_new or not _asked(store)["sampling"]:
            replace_text(store / ASKED, json.dumps({**asked, "layout": LAYOUT}) + "\n")
        for other in earlier:
            _take_over(other / key, store)
    return store


def write_outcomes(traces: HeldTraces, problems: Sequence[Problem], folder: Path) -> tuple[int | None, list[Failure]]:
    """Write a run's traces and failures into its folder; return how many traces are whole, and the failures."""
    with (folder / TRACES).open("wb") as file:
        file.writelines(traces.lines())
    failures = list(traces.failures())
    write_records(folder / FAILED, failures)
    return _count_whole(traces, problems) if len(traces) <= MOST_LOOKED_AT else None, failures


def counts_of(
    *, traces: int, whole: int | None, failed: int, left_out: Sequence[str], stopped_by: str
) -> dict[str, Any]:
    """Return what the manifest of a run says of its outcomes."""
    counts = {"traces": traces, **({} if whole is None else {"whole": whole}), "failed": failed}
    said = {"left_out": list(left_out), "stopped_by": stopped_by}
    return counts | {name: value for name, value in said.items() if value}


def store_of(folder: Path, out: Path) -> Path:
    """Return the store of an unfinished run `out`, which is being made in `folder`."""
    key = Path(_asked(folder)["store"]).name
    stores = [place / key for place in _places(out)]
    return next((store for store in stores if has_traces(store)), stores[0])


def _count_whole(traces: Sequence[Trace], problems: Sequence[Problem]) -> int:
    by_id = {problem.id: problem for problem in problems}
    return sum(not (incomplete(trace) or unfit(trace, by_id[trace.problem_id])) for trace in traces)


def failed_line(answered: int, failures: Sequence[Failure]) -> str:
    """Say how many requests failed, and why."""
    return f"{len(failures)} of {counted(answered + len(failures), 'request')} failed ({reasons(failures)})"


def _places(out: Path) -> list[Path]:
    """Return the folders of stores: this run's first, then nearby ones of earlier versions."""
    beside = out.absolute().parent
    top = next((folder for folder in (beside, *beside.parents) if folder.name == RUNS), None)
    if top is None:
        return [beside / STORES]
    return list(dict.fromkeys([top / STORES, beside / STORES, *sorted(top.glob(f"*/{STORES}"))]))


def _take_over(other: Path, store: Path) -> None:
    """Copy into a claimed store what another folder's store of the same key holds and this one lacks."""
    if not other.is_dir():
        return
    source = TraceStore(other)
    if copied := copy_missing(source, TraceStore(store), source.traces.hashes(), source.failures.hashes()):
        say(f"traces: copied {counted(copied, 'line')} of {other} into {store}")


@contextmanager
def _claim(store: Path) -> Iterator[None]:
    """Hold a store exclusively; another process that does so is short, unless it is one of an earlier version."""
    lock = FileLock(store / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        say(f"traces: waiting for another process that writes to {store}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _say_what_is_new(store: Path, asked: Mapping[str, Any]) -> None:
    """Say why a store is new: name the one that differs least, and how."""
    asked_before = [(_asked(path), path) for path in _stores(store.parent) if path != store]
    others = [(found, path) for found, path in asked_before if found["sampling"]]
    if not others:
        return
    nearest, path = min(others, key=lambda other: len(_differences(other[0], asked)))
    differences = _differences(nearest, asked)
    if differences[:1] and differences[0][0] == "teacher":
        differences = [one for one in differences if one[0] != "digest"]
    if differences:  # none if that store's name does not match its contents
        was = " and ".join(_setting(name, value, "of") for name, value, _ in differences)
        now = " and ".join(_setting(name, value, "for") for name, _, value in differences)
        say(f"traces: a new store {now}: {store}; the traces {was} stay in {path}")


def _setting(name: str, value: Any, preposition: str) -> str:
    return f"without {name}" if value is None else f"{preposition} {name} {value!r}"


def _differences(found: Mapping[str, Any], asked: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return each difference: name, value in a store, value now; None where one of them names no value."""
    was, now = ({"teacher": a["teacher"], "digest": a["digest"], **a["sampling"]} for a in (found, asked))
    return [(name, was.get(name), now.get(name)) for name in {**now, **was} if was.get(name) != now.get(name)]


def _stores(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"*/{ASKED}"))


def _asked(folder: Path) -> dict[str, Any]:
    """Read what a run folder or a store recorded about its teacher and sampling; empty if nothing, or if it is damaged.

    The record helps to find a store and to explain it; traces can be found without it."""
    asked: dict[str, Any] = {"teacher": "", "digest": "", "sampling": {}, "store": ""}
    if (folder / ASKED).is_file():
        try:
            found = read_object(folder / ASKED)
        except InputError as error:
            say(f"traces: {error}; the file is ignored")
            return asked
        return asked | {name: value for name, value in found.items() if isinstance(value, type(asked.get(name)))}
    measured = (read_manifest(folder) or {}).get("measured") or {}
    return asked | {"teacher": str(measured.get("model", ""))}  # a run of toolkit eval


def _models(address: str, folders: Iterable[Path]) -> list[str]:
    """Return the models of a server that folders recorded."""
    names = (_asked(folder)["teacher"] for folder in folders)
    return [name.removeprefix(f"{address}#") for name in names if name.startswith(f"{address}#")]
