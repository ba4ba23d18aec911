"""Reads the folder that a curation at size wrote, line by line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from distill.curation.reasons import DROPPED, Dropped
from toolkit.figures.ledger import PROBLEMS, TRACES
from toolkit.records import TRAIN, Example, Problem, read_jsonl

KEPT = "kept"


def is_curated(folder: Path) -> bool:
    """Return whether a folder holds chosen traces and the reasons of the others, and no traces of its own."""
    return (folder / TRAIN).is_file() and (folder / DROPPED).is_file() and not (folder / TRACES).exists()


def chosen_of(folder: Path) -> Iterator[Example]:
    """Yield the examples."""
    for _, values in read_jsonl(folder / TRAIN):
        yield Example.from_dict(values)


def dropped_of(folder: Path) -> Iterator[Dropped]:
    """Yield the dropped traces."""
    for _, values in read_jsonl(folder / DROPPED):
        yield Dropped.from_dict(values)


def problems_of(folder: Path) -> Iterator[Problem]:
    """Yield the problems of all traces."""
    for _, values in read_jsonl(folder / PROBLEMS):
        yield Problem.from_dict(values)
