"""What an interrupted export has done: the layers that are whole on disk, and what the next one starts from.

    .<name>.partial/
    ├── model.onnx.data        whole up to `end` of the journal's last line; what follows is written again
    └── resume/                gone when the folder gets its name
        ├── journal.jsonl      one line a finished part: the embedding, the head, each layer
        └── hidden.*           calibrated methods: the states behind the last layer, and the next one's own (`export.calibration.hidden_states`)

Invariant: a line is appended when everything that it names is synced to disk, so a kill at any moment costs at most the
layer at work.
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
    """`StoredWeight` by name."""
    end: int
    """Of the file, in bytes."""


class ResumeLog:
    """The finished parts of an export, in the order in which they were made."""

    def __init__(self, partial: Path) -> None:
        """Read what an earlier run left in a partial folder; a journal that the weights don't bear out is dropped."""
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
        """Bytes of the weights file that are whole."""
        return self._parts[-1].end if self._parts else 0

    @property
    def finished(self) -> list[str]:
        return [part.name for part in self._parts]

    @property
    def weights(self) -> dict[str, StoredWeight]:
        return {name: StoredWeight.from_dict(at) for part in self._parts for name, at in part.weights.items()}

    def add(self, name: str, weights: dict[str, StoredWeight], end: int) -> None:
        """Note a part whose bytes are synced."""
        part = WrittenPart(name=name, weights={key: at.to_dict() for key, at in weights.items()}, end=end)
        self._log.append(part)
        self._parts.append(part)

    def remove(self) -> None:
        """The folder needs no second run."""
        shutil.rmtree(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._log.close()
