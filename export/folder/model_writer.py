"""Writes a model's matrices as they are made, and logs each part that is whole on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from export.folder.resume_log import ResumeLog
from export.folder.weights_file import StoredWeight, WeightsFile
from export.quantization.codes import Weight


class ModelWriter:
    """Takes the matrices of one part after another: of the embedding, each layer and the head."""

    def __init__(self, file: WeightsFile, journal: ResumeLog, advance: Callable[[str], object]) -> None:
        """Write into an open file; `advance` is called with the name of each finished part."""
        self._file, self.journal, self._advance = file, journal, advance
        self._stored: dict[str, StoredWeight] = {}

    def write(self, name: str, rows: int, slices: Iterable[Weight]) -> None:
        """Append a matrix, which arrives in slices of its rows."""
        self._stored[name] = self._file.append(slices, rows)

    def finish(self, part: str) -> None:
        """Sync everything that was written since the last part, and log this part."""
        self._file.sync()
        self.journal.add(part, self._stored, self._file.end)
        self._stored = {}
        self._advance(part)
