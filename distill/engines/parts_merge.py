"""Makes one run of the parts of a job (`distill.collecting.part`), or of its stores.

A part is a run folder, finished or not, or a store; parts may share one store or have one each. What is merged is what
any of them holds for the job's requests: each request once, the first answer if two parts have one. The merged run has
a store beside it that holds all of it, so that the same command without --shard finds every trace and asks only what is
missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distill.collecting.part import SHARD, Part
from distill.problems.problem_set import problems_digest
from distill.store.copying import copy_missing
from distill.store.failure import Failure
from distill.store.shard_index import Hashes, hash_of
from distill.store.sharded_store import ASKED, HeldTraces, TraceStore, has_traces
from distill.teachers.trace_store import counts_of, open_store, store_of, write_outcomes
from toolkit.errors import InputError
from toolkit.figures.ledger import FAILED, PROBLEMS, TRACES
from toolkit.json_files import read_json
from toolkit.progress import Progress
from toolkit.records import Problem, Trace, read_object, read_records, write_records
from toolkit.run_identity import MARKER
from toolkit.runs import Stage, finish, is_complete, partial_folder, partial_of, read_manifest
from toolkit.terminal import counted, listed, say

MISSING = "missing parts"
"""What stopped a merged run that lacks requests."""


@dataclass(kw_only=True)
class _Source:
    """One of the things to merge."""

    given: Path
    stores: list[TraceStore]
    asked: dict[str, Any]
    """What `asked.json` says: the teacher, its digest, the sampling."""
    config: dict[str, Any] = field(default_factory=dict)
    """The run's, without its part; empty for a store."""
    shard: str = ""
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What came of a merge."""

    counts: dict[str, Any]
    """What the run's manifest says of its traces."""
    missing: int
    """Requests without a trace and without a failure."""
    doubled: int
    """Requests that two parts answered; the first answer counts."""
    absent: tuple[str, ...]
    """Parts that were not among those given."""


def merge(runs: Sequence[Path], out: Path) -> Merged:
    """Merge parts into the run `out`; raises `InputError` if they are not parts of one job."""
    sources = [_open(run) for run in runs]
    config = _common_config(sources)
    problems = list({problem.id: problem for source in sources for problem in source.problems}.values())
    asked = next(source.asked for source in sources if source.config)
    stage = Stage(
        name="traces",
        config=config,
        inputs={"teacher": asked["digest"], "problems": problems_digest(problems)},
    )
    complete = is_complete(out, stage)
    folder = partial_folder(out, stage, cheap=(PROBLEMS, ASKED, FAILED, TRACES))
    write_records(folder / PROBLEMS, problems)
    target = TraceStore(open_store(out, folder, {name: asked[name] for name in ("teacher", "digest", "sampling")}))
    merging = _Merging(problems, config["samples"])
    for store, is_copy in _distinct(sources):
        merging.take(store, target, is_copy=is_copy)
    target.refresh()
    traces = HeldTraces(target, merging.hashes)
    whole, failures = write_outcomes(traces, problems, folder)
    missing = merging.requests - len(traces) - len(failures)
    stopped_by = MISSING if missing else ""
    counts = counts_of(traces=len(traces), whole=whole, failed=len(failures), left_out=[], stopped_by=stopped_by)
    finish(folder, out, stage, counts, anew=complete)
    return Merged(counts=counts, missing=missing, doubled=merging.doubled, absent=_absent(sources))


class _Merging:
    """Which requests of a job have been found, by their positions: problem by problem, sample by sample."""

    def __init__(self, problems: Sequence[Problem], samples: int) -> None:
        self._numbers = {problem.id: number for number, problem in enumerate(problems)}
        self._samples = samples
        self.requests = len(problems) * samples
        self._traces: Hashes = np.zeros(self.requests, dtype=np.uint64)
        self._failures: Hashes = np.zeros(self.requests, dtype=np.uint64)
        self.doubled = 0

    @property
    def hashes(self) -> Hashes:
        """The requests with a trace or else a failure, in their order."""
        found = np.where(self._traces > 0, self._traces, self._failures)
        return found[found > 0]

    def take(self, store: TraceStore, target: TraceStore, *, is_copy: bool) -> None:
        """Copy what a store holds of the job and the target lacks; `is_copy`: of a store that is taken as well."""
        hashes = store.traces.hashes()
        known = np.isin(hashes, self._traces)
        self.doubled += 0 if is_copy else int(known.sum())
        new = hashes[~known]
        with Progress(f"merge: reading {store.folder.name}", len(new)) if len(new) else nullcontext() as progress:
            traces = self._found(store.traces.read(new), self._traces, progress)
            failures = self._found(store.failures.records(), self._failures, None)
        copy_missing(store, target, traces, failures)

    def _found(self, records: Iterable[Trace | Failure], known: Hashes, progress: Progress | None) -> Hashes:
        """Note the job's requests that have a record, and return their hashes; the first record of each counts."""
        found = []
        for record in records:
            if progress:
                progress.advance()
            number = self._numbers.get(record.problem_id)
            if number is None or not 0 <= record.sample < self._samples:
                continue
            position, hash = number * self._samples + record.sample, hash_of(record.request_hash)
            if not known[position]:
                known[position] = hash
                found.append(hash)
        return np.array(found, dtype=np.uint64)


def _open(run: Path) -> _Source:
    """Open a part; raises `InputError` if it is neither a run of `toolkit traces` nor a store."""
    folder = next((folder for folder in (run, partial_of(run)) if (folder / PROBLEMS).is_file()), None)
    if folder is None:
        if not has_traces(run) or not (run / ASKED).is_file():
            raise InputError(
                f"{run} is neither a run folder of toolkit traces nor a store of traces; name the --out of a part, or "
                "a folder below .traces"
            )
        return _Source(given=run, stores=[TraceStore(run)], asked=_asked_of(run))
    stage = read_manifest(folder) or (read_json(folder / MARKER) if (folder / MARKER).is_file() else None)
    if not isinstance(stage, dict) or stage.get("stage") != "traces" or not (folder / ASKED).is_file():
        raise InputError(f"{run} is no run of toolkit traces; merge its parts, each with the --out of its command")
    config = dict(stage["config"])
    shard = str(config.pop(SHARD, ""))
    stores = [path for path in (store_of(folder, run), folder) if has_traces(path) or list(path.glob(f"{FAILED}*"))]
    return _Source(
        given=run,
        stores=[TraceStore(path) for path in stores],
        asked=_asked_of(folder),
        config=config,
        shard=shard,
        problems=read_records(folder / PROBLEMS, Problem),
    )


def _asked_of(folder: Path) -> dict[str, Any]:
    asked = read_object(folder / ASKED)
    for name, kind in (("teacher", str), ("digest", str), ("sampling", dict)):
        if not isinstance(asked.get(name), kind):
            raise InputError(f"{folder / ASKED} has no {name}; copy the folder again")
    return asked


def _common_config(sources: Sequence[_Source]) -> dict[str, Any]:
    """Return the configuration that all runs have; raises `InputError`, which names the first difference."""
    first = next((source for source in sources if source.config), None)
    if first is None:
        raise InputError(
            f"{sources[0].given} is a store, which does not keep the problems; name the run folder of one part as well"
        )
    for source in sources:
        if source.asked["digest"] != first.asked["digest"]:
            raise InputError(
                f"{source.given} is by the teacher {source.asked['teacher']!r} and {first.given} by "
                f"{first.asked['teacher']!r}; merge the parts of one job only"
            )
        config, other = (
            (source.config, first.config) if source.config else (source.asked["sampling"], first.asked["sampling"])
        )
        for name in sorted(config.keys() | other.keys()):
            if config.get(name) != other.get(name):
                raise InputError(
                    f"{source.given} has the {name} {config.get(name)!r} and {first.given} {other.get(name)!r}; merge "
                    "the parts of one job only"
                )
    digests = {problems_digest(source.problems) for source in sources if source.config}
    if len(digests) > 1:
        say(f"traces: the parts ask {len(digests)} different sets of problems; the merged run has all of them")
    return first.config


def _distinct(sources: Sequence[_Source]) -> list[tuple[TraceStore, bool]]:
    """Return each store once, since parts may share one, and whether it is a run's copy of the store before it."""
    found: dict[Path, tuple[TraceStore, bool]] = {}
    for source in sources:
        for number, store in enumerate(source.stores):
            found.setdefault(store.folder.resolve(), (store, number > 0))
    return list(found.values())


def _absent(sources: Sequence[_Source]) -> tuple[str, ...]:
    given = [Part.of(source.shard) for source in sources if source.shard]
    if not given or len({part.parts for part in given}) > 1:
        return ()
    parts = given[0].parts
    numbers = {part.number for part in given}
    return tuple(str(Part(number=number, parts=parts)) for number in range(1, parts + 1) if number not in numbers)


def said(merged: Merged) -> str:
    """Say what is missing, and what was answered twice."""
    text = ""
    if merged.missing:
        text += f"; {counted(merged.missing, 'request')} missing"
        if merged.absent:
            text += f", whose parts may be {listed(merged.absent)}"
        text += ": the same toolkit traces command without --shard asks them"
    if merged.doubled:
        text += f"; {counted(merged.doubled, 'answer')} to requests that another part had answered left out"
    return text
