"""Opens a run's problems, traces and verdicts to read them one by one, whether the run is finished or not."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np

from distill.store.sharded_store import TRACE_SHARDS, TraceStore
from distill.store.shards import is_shard
from distill.teachers.trace_store import store_of
from toolkit.errors import InputError
from toolkit.figures.ledger import PROBLEMS, VERDICTS
from toolkit.records import Problem, Trace, Verdict, number_of, stream_records
from toolkit.runs import partial_of

REMEMBERED = 4_096
PIECE_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """The files of a run folder of `toolkit traces`, `toolkit distill`, `toolkit eval` or an import."""

    run: Path
    folder: Path
    """The run's folder, or the one in which it is being made."""
    shards: tuple[Path, ...]

    @classmethod
    def of(cls, run: Path) -> Self:
        """Raises `InputError` if a folder is no run with problems and traces."""
        folder = next((folder for folder in (run, partial_of(run)) if (folder / PROBLEMS).is_file()), None)
        if folder is None:
            raise InputError(
                f"{run} has no {PROBLEMS}; name the run folder of toolkit traces or toolkit distill, finished or not"
            )
        shards = _shards_in(folder) or _shards_in(store_of(folder, run))
        if not shards:
            raise InputError(
                f"{run} has no {TRACE_SHARDS}*.jsonl; name a run folder with traces, or collect some first"
            )
        return cls(run=run, folder=folder, shards=tuple(shards))

    def digest(self) -> tuple[str, int]:
        """Return a digest of all that an export depends on, and how many lines the shards have."""
        verdicts = self.folder / VERDICTS
        digest, lines = hashlib.sha256(), 0
        for path in (self.folder / PROBLEMS, *([verdicts] if verdicts.is_file() else []), *self.shards):
            digest.update(f"{path.name}\n".encode())
            with path.open("rb") as file:
                while part := file.read(PIECE_BYTES):
                    digest.update(part)
                    lines += part.count(b"\n") if path in self.shards else 0
        return digest.hexdigest()[:16], lines

    def traces(self) -> Iterator[Trace]:
        """Yield the traces in the order of the disk; of an unfinished run, the last one of each request in its store.

        Raises `InputError` naming a line that is none.
        """
        if self.shards[0].parent != self.folder:
            yield from TraceStore(self.shards[0].parent).traces.records()
            return
        for path in self.shards:
            yield from stream_records(path, Trace, torn_end=True)


class LinesOnDisk:
    """The lines of a jsonl file, found by a key without holding them: 16 bytes each are in memory."""

    def __init__(self, path: Path, key: Callable[[dict[str, Any]], str]) -> None:
        """Raises `InputError` naming a line that is no object with the fields of the key."""
        numbers, places = array("Q"), array("Q")
        place = 0
        with path.open("rb") as file:
            for row, line in enumerate(file, start=1):
                if line.endswith(b"\n"):
                    try:
                        numbers.append(number_of(key(json.loads(line))))
                    except (ValueError, LookupError, TypeError) as error:
                        raise InputError(f"{path} line {row} is no line of such a file: {error!r}") from error
                    places.append(place)
                place += len(line)
        order = np.argsort(np.array(numbers, dtype=np.uint64), kind="stable")
        self._numbers = np.array(numbers, dtype=np.uint64)[order]
        self._places = np.array(places, dtype=np.uint64)[order]
        self._file = path.open("rb")

    def __len__(self) -> int:
        return len(self._numbers)

    def find(self, key: str) -> dict[str, Any] | None:
        """Return the line of a key; None if no line has it."""
        number = np.uint64(number_of(key))
        at = int(np.searchsorted(self._numbers, number))
        if at == len(self._numbers) or self._numbers[at] != number:
            return None
        self._file.seek(int(self._places[at]))
        values: dict[str, Any] = json.loads(self._file.readline())
        return values

    def close(self) -> None:
        self._file.close()


class ProblemsOnDisk(LinesOnDisk):
    """The problems of a file, by their ids."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, lambda values: str(values["id"]))
        self.problem = lru_cache(maxsize=REMEMBERED)(self._problem)

    def _problem(self, problem_id: str) -> Problem | None:
        values = self.find(problem_id)
        return None if values is None else Problem.from_dict(values)


class VerdictsOnDisk(LinesOnDisk):
    """The verdicts of a run, by their traces."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, lambda values: f"{values['problem_id']} {values['sample']}")

    def verdict(self, trace: Trace) -> Verdict | None:
        values = self.find(f"{trace.problem_id} {trace.sample}")
        return None if values is None else Verdict.from_dict(values)


def _shards_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.jsonl") if is_shard(path.name, TRACE_SHARDS))
