"""Opens a user's problems: a file, a folder of files, a folder that `save_to_disk` wrote, or a data set of the hub.

A folder of files is read as the hub reads a repository: a file belongs to the split that its name, or else the name of
its folder, means. Data sets of the hub are loaded by `datasets`, which runs none of their code.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.problems.files import SUFFIXES, FilePart, FileRow, file_parts
from distill.problems.splits import split_named
from toolkit.errors import InputError, MissingExtra
from toolkit.figures.ledger import PROBLEMS
from toolkit.runs import MANIFEST

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?")
HUB_TIMEOUT_S = 10
ABOUT_DATA = ("dataset_info.json", "dataset_infos.json", "state.json", MANIFEST)
"""Files beside data files that describe them."""


def parts_of(place: Path) -> tuple[list[FilePart], list[str]]:
    """Return the parts of a user's problems, and remarks about how they were chosen.

    `place` is a file, a folder, or a hub id (`owner/name` or `owner/name:config`). Raises `InputError` if it is none of
    these or cannot be read.
    """
    check_place(place)
    if place.is_dir():
        return _folder_parts(place)
    if place.exists():
        return file_parts(place)
    hub_id = HUB_ID.fullmatch(place.as_posix())
    assert hub_id
    return _dataset_parts(_from_hub(hub_id["name"], hub_id["config"]), place.as_posix()), []


def check_place(place: Path) -> None:
    """Raise `InputError` if a path of problems does not exist and cannot be a data set of the hub."""
    is_file = place.suffix.lower() in (*SUFFIXES, ".gz")
    if not place.exists() and (is_file or not HUB_ID.fullmatch(place.as_posix())):
        raise InputError(f"{place} does not exist; give a file, a folder, or a data set's id (owner/name)")


def check_traces(traces: Path, problems: Path | None) -> None:
    """Raise `InputError` if there is no file of traces, or no file of the problems that they answer."""
    if not traces.is_file():
        there = "is no regular file; copy it into one" if traces.exists() else "does not exist"
        kind = "is a folder; name a file in it" if traces.is_dir() else there
        raise InputError(f"--traces needs a file of traces; {traces} {kind}")
    if not traces.stat().st_size:
        raise InputError(f"{traces} is empty; give the traces.jsonl of a run of toolkit traces or toolkit distill")
    if problems is None and not traces.with_name(PROBLEMS).is_file():
        raise InputError(f"{traces} has no {PROBLEMS} beside it; name its problems with --problems")


def _folder_parts(folder: Path) -> tuple[list[FilePart], list[str]]:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _dataset_parts(_from_disk(folder), str(folder)), []
    saved = sorted(path.parent for path in folder.glob("*/state.json"))
    if saved:
        return [FilePart(name=path.name, rows=_rows(_from_disk(path), str(path))) for path in saved], []
    if (folder / PROBLEMS).is_file() and (folder / MANIFEST).is_file():
        parts, notes = file_parts(folder / PROBLEMS)
        return parts, [*notes, f"{folder} is a run folder; its {PROBLEMS} is read"]
    every = sorted(path for path in folder.rglob("*") if path.is_file() and not _describes(path, folder))
    files = [path for path in every if _holds_rows(path)]
    if not files:
        raise InputError(
            f"{folder} holds neither data files ({', '.join(SUFFIXES)}) nor a data set that `save_to_disk` wrote; name "
            "a folder that does, or a file"
        )
    found: list[FilePart] = []
    said = []
    if others := [path.relative_to(folder).as_posix() for path in every if path not in files]:
        said.append(f"files of other kinds in {folder} that are not read: {len(others)}, for example {others[0]}")
    for path in files:
        parts, notes = file_parts(path)
        said += notes
        found += [FilePart(name=part.name or _split_in(path, folder), rows=part.rows) for part in parts]
    if any(split_named(part.name) for part in found):
        return found, said
    return [FilePart(name="", rows=part.rows) for part in found], said


def _describes(path: Path, folder: Path) -> bool:
    """Return whether a file is hidden, or describes the data instead of holding it."""
    hidden = any(name.startswith((".", "_")) for name in path.relative_to(folder).parts)
    return hidden or path.name in ABOUT_DATA or path.suffix.lower() in ("", ".md")


def _holds_rows(path: Path) -> bool:
    suffix = Path(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix
    return suffix.lower() in SUFFIXES


def _split_in(path: Path, folder: Path) -> str:
    """Return the name that tells a file's split: its own, or that of the nearest folder named after a split."""
    relative = path.relative_to(folder)
    names = [relative.name.split(".")[0], *(parent.name for parent in relative.parents)]
    return next((name for name in names if split_named(name)), relative.as_posix())


def _from_disk(folder: Path) -> Dataset | DatasetDict:
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise MissingExtra("datasets", "distill") from error
    try:
        return load_from_disk(str(folder))
    except Exception as error:  # pyarrow, json and datasets each raise their own
        raise InputError(
            f"{folder} is not a data set that `save_to_disk` wrote: {_line(error)}; save it again"
        ) from error


def _from_hub(name: str, config: str | None) -> Dataset | DatasetDict:
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", str(HUB_TIMEOUT_S))
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        from datasets import load_dataset
        from huggingface_hub import HfApi
        from huggingface_hub.errors import OfflineModeIsEnabled
    except ImportError as error:
        raise MissingExtra("datasets", "distill") from error
    try:
        with suppress(OfflineModeIsEnabled):  # an earlier download is read then
            HfApi().dataset_info(name, timeout=HUB_TIMEOUT_S)  # one try; load_dataset would make many
        return load_dataset(name, config)
    except Exception as error:  # datasets, huggingface_hub and the HTTP client each raise their own
        raise InputError(
            f"{name} is not a file or folder here and cannot be loaded from the Hugging Face hub: {_line(error)}; give "
            "a file, a folder or the id of a data set (owner/name or owner/name:config); with HF_HUB_OFFLINE=1 an "
            "earlier download is read"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _dataset_parts(dataset: Dataset | DatasetDict, name: str) -> list[FilePart]:
    from datasets import DatasetDict

    if isinstance(dataset, DatasetDict):
        return [FilePart(name=split, rows=_rows(part, f"{name} {split}")) for split, part in dataset.items()]
    return [FilePart(name="", rows=_rows(dataset, name))]


def _rows(dataset: Any, where: str) -> Iterator[FileRow]:
    for number in range(len(dataset)):
        try:
            values = dict(dataset[number])
        except Exception as error:  # a damaged file, or a picture whose decoder is not installed
            raise InputError(
                f"{where} row {number + 1} cannot be read: {_line(error)}; get the data again, or leave that row out"
            ) from error
        yield FileRow(where=f"{where} row {number + 1}", values=values)
