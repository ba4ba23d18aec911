"""Run folders: each stage writes one, whole or not at all.

    out/                   appears by one rename, when everything in it is on disk
    ├── …                  what the stage made
    └── manifest.json      stage, configuration, seed, digests of inputs and outputs, versions, measured numbers

A folder with a manifest is complete. The same inputs again: nothing to do. Other inputs: an error that names the
difference. Work in progress lives in the sibling `.<name>.partial`, which a stage may resume, one process at a time.
Where that folder holds the unfinished work of another run, it is renamed to `.<name>.partial.<key>` and not removed;
the run that it belongs to takes it up again.
Of processes that torchrun started together the first one makes the folder; each other one has a partial folder of its
own, which it leaves behind for what the first one made.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from toolkit.disk import BINARY, sync
from toolkit.errors import FolderConflict, InputError
from toolkit.field_types import check_type
from toolkit.invocation import command
from toolkit.json_files import read_json
from toolkit.terminal import say

MANIFEST = "manifest.json"
MARKER, COMMAND, LOCK = "stage.json", "command", ".lock"
"""In a partial folder: the run that it is for, with the command that began it, and the claim of the process that works
on it."""
MANIFEST_TYPES = {
    "stage": str,
    "config": dict[str, Any],
    "inputs": dict[str, str],
    "outputs": dict[str, dict[str, Any]],
    "measured": dict[str, Any],
}

ASK_EVERY_S = 0.1
"""Whether the first process has finished."""

_claimed: dict[Path, FileLock] = {}
"""This process' partial folders; the kernel frees the locks of a process that dies."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a run folder is for: the facts that must be equal for an existing folder to be this run's."""

    name: str
    config: Mapping[str, Any]
    """JSON-able; includes the seed."""
    inputs: Mapping[str, str]
    """Name of each input → its digest."""

    def key(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(
            json.dumps({"stage": self.name, "config": dict(self.config), "inputs": dict(self.inputs)})
        )
        return value


def check_out(out: Path) -> None:
    """Raise `FolderConflict` where `out` holds what no run made: before anything is fetched, or read for long.

    A link leads to a finished run or nowhere: what is made gets its name by a rename, which would not follow it.
    """
    if out.is_symlink() and read_manifest(out) is None:
        raise FolderConflict(f"{out} must be a folder, and is a link to no finished run; choose another --out")
    if out.exists() and not _is_empty(out) and read_manifest(out) is None:
        raise FolderConflict(f"{out} must be empty or a finished run, but holds other files; choose another --out")


def is_complete(out: Path, stage: Stage) -> bool:
    """True where `out` holds exactly this run, False where nothing is there yet.

    Raises `FolderConflict` where `out` holds anything else, naming the first difference.
    """
    check_out(out)
    manifest = read_manifest(out)
    if manifest is None:
        return _was_finished(out, stage)
    if difference := _difference(manifest, stage.key()):
        raise FolderConflict(f"{out} holds another run: {difference}; choose another --out")
    return True


def partial_folder(out: Path, stage: Stage, *, cheap: Collection[str] = ()) -> Path:
    """The sibling folder where `out` is being made: kept if an earlier attempt at the same run left it, else new.

    Unfinished work of another run is set aside, which a line on stderr says, unless it consists of files and folders
    whose names are `cheap`: those are made again in no time. The folder belongs to this process until it is finished;
    raises `InputError` where another process is at it.
    """
    folder, rank = partial_of(out), process_rank()
    key = stage.key()
    try:
        _make_and_claim(folder, out)
        found = _read_marker(folder)
        if found != key:
            if not rank and {path.name for path in folder.iterdir()} - {MARKER, LOCK, f".{MARKER}.partial", *cheap}:
                _set_aside(folder, found, key)
            else:
                _clear(folder)
            _take_up(folder, key)
            _make_and_claim(folder, out)
            replace_text(folder / MARKER, json.dumps({**key, COMMAND: command()}))
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}") from error
    return folder


def partial_of(out: Path) -> Path:
    """Where this process makes `out`."""
    rank = process_rank()
    return out.absolute().parent / (f".{out.name}.partial-{rank}" if rank else f".{out.name}.partial")


def finish(
    folder: Path,
    out: Path,
    stage: Stage,
    measured: Mapping[str, Any],
    *,
    anew: bool = False,
    scratch: Collection[str] = (),
) -> dict[str, Any]:
    """Sync a partial folder, write its manifest last and give it its final name. Returns the manifest.

    `anew`: `out` is a finished run of the stage, whose files are replaced one by one, the manifest last.
    `scratch`: names in the folder that an unfinished run needs alone; they go when everything else is on disk.
    """
    if process_rank():
        return _await_first(folder, out)
    passing = {MARKER, LOCK, MANIFEST, *scratch}
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).parts[0] not in passing)
    manifest = stage.key() | {
        "outputs": {path.relative_to(folder).as_posix(): file_facts(path) for path in files},
        "versions": versions(),
        "measured": dict(measured),
    }
    for path in files:
        sync(path)
    target = folder / MANIFEST
    _replace(target, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    _let_go(folder)
    if anew:
        for path in (*files, target):
            os.replace(path, out / path.relative_to(folder))
        shutil.rmtree(folder)
        sync(out)
    else:
        _give_name(folder, out, manifest)
    sync(out.absolute().parent)
    return manifest


def discard(folder: Path) -> None:
    """Remove a partial folder that must not be gone on with."""
    _let_go(folder)
    shutil.rmtree(folder, ignore_errors=True)


def process_rank() -> int:
    """This process' place among those that torchrun started together; 0 without it."""
    return int(os.environ.get("RANK", "0"))


def _give_name(folder: Path, out: Path, manifest: Mapping[str, Any]) -> None:
    """Give a folder that its manifest makes whole its final name, without what the manifest does not name."""
    named = {MANIFEST, *(Path(name).parts[0] for name in manifest["outputs"])}
    for path in sorted(folder.iterdir(), key=lambda path: path.name == MARKER):  # says last whose the folder is
        if path.name not in named:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if out.exists():  # an empty folder that the user made
        out.rmdir()
    os.rename(folder, out)


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _was_finished(out: Path, stage: Stage) -> bool:
    """Whether a process that was killed had made the run whole, all but for its name, which it gets now."""
    folder = partial_of(out)
    if process_rank() or not (folder / MANIFEST).is_file():
        return False
    manifest = read_manifest(folder) or {}
    if _difference(manifest, stage.key()):
        return False
    _make_and_claim(folder, out)
    _let_go(folder)
    _give_name(folder, out, manifest)
    return True


def _await_first(folder: Path, out: Path) -> dict[str, Any]:
    """Drop this process' folder; returns the manifest of the first one's, once it is there."""
    _let_go(folder)
    shutil.rmtree(folder)
    while (manifest := read_manifest(out)) is None:
        time.sleep(ASK_EVERY_S)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The folder's manifest, or None where it has none.

    Raises `InputError` where it is no JSON object, or holds another type than its readers count on.
    """
    path = folder / MANIFEST
    if not os.path.lexists(path):
        return None
    value = read_json(path, constants=True)  # a measured number may be none
    if not isinstance(value, dict):
        raise InputError(f"{path} must be a JSON object; copy its folder again, or choose another one")
    for name, kind in MANIFEST_TYPES.items():
        if name in value:
            check_type(value[name], kind, f"{name} in {path}")
    for name, facts in value.get("outputs", {}).items():
        check_type(facts.get("bytes"), int, f"bytes of {name} in {path}")
        check_type(facts.get("sha256"), str, f"sha256 of {name} in {path}")
    return value


def replace_text(path: Path, text: str, *, mode: int = 0o666) -> None:
    """Write a file whole or not at all: a reader sees the old content or the new. `mode`: who may read it, from the
    first byte.

    Half a surrogate pair, which UTF-8 has no bytes for, stands there as its escape, which JSON reads back.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, text, mode)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def folder_digest(folder: Path) -> str:
    """One digest for a model folder: of its manifest's output digests where it has one, else of all its files."""
    manifest = read_manifest(folder)
    facts = (manifest or {}).get("outputs")
    if facts is None:
        facts = {p.name: file_facts(p) for p in sorted(folder.iterdir()) if p.is_file()}
    return _digest(facts, 16)


def files_digest(folder: Path) -> str:
    """The same digest, where each file is still what the manifest says; another one where somebody changed it since."""
    outputs = (read_manifest(folder) or {}).get("outputs")
    if outputs is None:
        return folder_digest(folder)
    return _digest({name: file_facts(folder / name) for name in outputs if (folder / name).is_file()}, 16)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def file_facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of those of our dependencies that are installed."""
    found = {"python": sys.version.split()[0]}
    for name in ("torch", "transformers", "trl", "onnx", "onnxruntime", "tokenizers", "numpy", "reasoning-gym"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _claim(folder: Path, out: Path) -> None:
    if folder in _claimed:
        return
    lock = FileLock(folder / LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"{out} must be made by one process at a time, and another is at it; wait for that or choose another --out"
        ) from None
    _claimed[folder] = lock


def _let_go(folder: Path) -> None:
    """Give up the claim, which comes first: Windows neither removes nor renames a folder with an open file in it."""
    if folder in _claimed:
        _claimed.pop(folder).release(force=True)


def _make_and_claim(folder: Path, out: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, out)


def _read_marker(folder: Path) -> Any:
    """The key of the run that a partial folder is for; None where it names none that can be read."""
    try:
        found = read_json(folder / MARKER)
    except InputError:
        return None
    return {name: found[name] for name in found if name != COMMAND} if isinstance(found, dict) else found


def _set_aside(folder: Path, found: Any, key: Mapping[str, Any]) -> None:
    """Give a claimed partial folder the name that its own run finds it by."""
    aside = _aside(folder, found)
    for number in itertools.count(2):
        if not aside.exists():
            break
        aside = aside.with_suffix(f".{_digest(found)}-{number}")
    _let_go(folder)
    os.rename(folder, aside)
    if isinstance(found, dict):
        say(
            f"{aside} keeps an unfinished run: {_difference(found, key) or 'of another version'}; "
            "with its own options it goes on"
        )
    else:
        say(f"{aside} keeps what a run left whose {MARKER} cannot be read; nothing goes on from there by itself")


def _take_up(folder: Path, key: Mapping[str, Any]) -> None:
    """Put what this run left before it was set aside back into its place, which holds nothing."""
    before = _aside(folder, key)
    if before.exists():
        _let_go(folder)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(before, folder)


def _aside(folder: Path, key: Any) -> Path:
    return folder.with_name(f"{folder.name}.{_digest(key)}")


def _digest(value: Any, digits: int = 8) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:digits]


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _difference(found: Any, key: Mapping[str, Any]) -> str | None:
    """The first fact in which a manifest or a marker differs from a run's key, with both values."""
    facts = found if isinstance(found, dict) else {}
    differences = (_first_difference(field, facts.get(field), expected) for field, expected in key.items())
    return next(filter(None, differences), None)


def _first_difference(where: str, found: Any, expected: Any) -> str | None:
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in sorted(found.keys() | expected.keys()):
            difference = _first_difference(f"{where}.{key}", found.get(key), expected.get(key))
            if difference:
                return difference
        return None
    return None if found == expected else f"its {where} ({found!r}) must equal this run's ({expected!r})"


def _replace(path: Path, text: str, mode: int = 0o666) -> None:
    fresh = path.with_name(f".{path.name}.partial")
    try:
        fresh.unlink(missing_ok=True)  # one that was left has its own mode
        with open(fresh, "xb", opener=lambda name, flags: os.open(name, flags | BINARY, mode)) as file:
            file.write(text.encode(errors="backslashreplace"))
        sync(fresh)
        os.replace(fresh, path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
