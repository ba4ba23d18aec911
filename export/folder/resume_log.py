"""Keeps what an interrupted export has finished: the layers that are whole on disk, and the states after them.

    .<name>.partial/
    ├── model.onnx.data        whole up to `end` of the journal's last line; the rest is written again
    └── resume/                removed when the folder gets its name
        ├── journal.jsonl      one line for each finished part: the embedding, each layer, the head
        └── hidden.* inputs.*  of calibrated methods: the states after the last layer, and those of the next one
                               (`export.calibration.hidden_states`)

Invariant: a line is appended when everything that it names is synced to disk, so a kill at any moment costs at most the
layer in progress.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from export.folder.weights_file import FILE_NAME, StoredWeight
from toolkit.records import AppendLog, Record, mend_torn_line, read_records

FOLDER, LINES = "resume", "journal.jsonl"


@dataclass(frozen=True, kw_only=True)
class WrittenPart(Record):
    """A part of the model that is whole on disk."""

    name: str
    weights: dict[str, dict[str, Any]]
    """A `StoredWeight` for each name."""
    end: int
    """Bytes of the weights file up to the end of this part."""


class ResumeLog:
    """The finished parts of an export, in the order in which they were written."""

    def __init__(self, partial: Path) -> None:
        """Read what an earlier run left in a partial folder; drop a journal that names more bytes than there are."""
        self.folder = partial / FOLDER
        self.folder.mkdir(exist_ok=True)
        path = self.folder / LINES
        mend_torn_line(path)
        self._parts = read_records(path, WrittenPart) if path.is_file() else []
        data = partial / FILE_NAME
        if self.end > (data.stat().st_size if data.is_file() else 0):
            path.unlink()
            self._parts = []
        self._log = AppendLog(path, sync_every_s=0.0)

    @property
    def end(self) -> int:
        """The number of bytes of the weights file that are whole."""
        return self._parts[-1].end if self._parts else 0

    @property
    def finished(self) -> list[str]:
        return [part.name for part in self._parts]

    @property
    def weights(self) -> dict[str, StoredWeight]:
        return {name: StoredWeight.from_dict(at) for part in self._parts for name, at in part.weights.items()}

    def add(self, name: str, weights: dict[str, StoredWeight], end: int) -> None:
        """Append a part whose bytes are synced."""
        part = WrittenPart(name=name, weights={key: at.to_dict() for key, at in weights.items()}, end=end)
        self._log.append(part)
        self._parts.append(part)

    def remove(self) -> None:
        """Remove the log, because the export is finished."""
        shutil.rmtree(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._log.close()
