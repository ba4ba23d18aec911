"""Finds traces that share words with a benchmark: any run of n words in a row that also occurs in it.

Open-r1 and s1 look for runs of 8 words of a benchmark's questions, GPT-3's authors for runs of 13. A benchmark's text
of fewer words is looked for only as a whole question.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.curation.word_numbers import numbers_of, runs_of, words_of
from distill.problems.conversations import LeftOut
from distill.problems.files import SUFFIXES, FileRow
from distill.problems.published import form_of
from distill.problems.sources import parts_of
from toolkit.errors import InputError


@dataclass(frozen=True, kw_only=True)
class BenchmarkWords:
    """The runs of words of texts that must not be trained on."""

    length: int
    """Words of a run."""
    runs: np.ndarray
    """Numbers of runs, sorted."""
    whole: np.ndarray
    """Numbers of texts that are shorter than a run, sorted."""

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.runs.tobytes() + b" " + self.whole.tobytes()).hexdigest()[:16]

    def found_in_question(self, words: list[bytes]) -> str:
        """Return the first words that a question has in common with the benchmark; empty if none."""
        if len(words) < self.length and _held(np.array([_whole(words)], dtype=np.uint64), self.whole)[0]:
            return _text(words)
        return self.found_in_thought(words, numbers_of(words))

    def found_in_thought(self, words: list[bytes], numbers: np.ndarray) -> str:
        """Return the first words that a thought has in common with the benchmark; `numbers`: of the words."""
        shared = np.flatnonzero(_held(runs_of(numbers, self.length), self.runs))
        return _text(words[shared[0] : shared[0] + self.length]) if len(shared) else ""


def read_benchmark(places: Iterable[Path], length: int) -> BenchmarkWords:
    """Read files, folders or hub ids whose questions must not be trained on; a file of another kind is plain text.

    Raises `InputError` if one cannot be read or holds no text.
    """
    runs: list[np.ndarray] = []
    whole: list[int] = []
    for place in places:
        count = 0
        for text in _texts(place):
            words = words_of(text)
            count += bool(words)
            if len(words) >= length:
                runs.append(runs_of(numbers_of(words), length))
            elif words:
                whole.append(_whole(words))
        if not count:
            raise InputError(f"--decontaminate {place} holds no text; name a file of questions")
    return BenchmarkWords(
        length=length,
        runs=np.unique(np.concatenate(runs)) if runs else np.empty(0, dtype=np.uint64),
        whole=np.unique(np.array(whole, dtype=np.uint64)),
    )


def _texts(place: Path) -> Iterator[str]:
    """Yield the questions of a data set, or the paragraphs of a plain text."""
    is_packed = place.suffix.lower() == ".gz"
    suffix = (Path(place.stem) if is_packed else place).suffix.lower()
    if place.is_file() and suffix not in SUFFIXES and not is_packed:
        try:
            text = place.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{place} is not UTF-8 at its byte {error.start + 1}; save it as UTF-8") from error
        except OSError as error:
            raise InputError(f"{place} cannot be read: {error.strerror}") from error
        yield from text.split("\n\n")
        return
    parts, _ = parts_of(place)
    for part in parts:
        for row in part.rows:
            yield from _questions(row)


def _questions(row: FileRow) -> list[str]:
    """Return a row's question if its form is known, else all its texts."""
    values = {column.lower(): value for column, value in row.values.items() if value is not None}
    form = form_of(values)
    if form is not None:
        with suppress(InputError, LeftOut):
            values = form.read(values)
    for column in ("question", "problem", "prompt", "instruction"):
        if isinstance(values.get(column), str):
            return [values[column]]
    return [value for value in values.values() if isinstance(value, str)]


def _whole(words: list[bytes]) -> int:
    return int(runs_of(numbers_of(words), len(words))[0]) if words else 0


def _held(numbers: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Return which numbers a sorted array holds."""
    if not len(held):
        return np.zeros(len(numbers), dtype=bool)
    places = np.searchsorted(held, numbers)
    places[places == len(held)] = 0
    found: np.ndarray = held[places] == numbers
    return found


def _text(words: list[bytes]) -> str:
    return b" ".join(words).decode()
