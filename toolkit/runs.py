"""Writes run folders: each stage writes one, whole or not at all.

    out/                   appears by one rename when everything in it is on disk
    ├── …                  what the stage made
    └── manifest.json      stage, configuration, seed, digests of inputs and outputs, versions, measured numbers

A folder with a manifest is complete. If a stage runs again with the same inputs, there is nothing to do; with other
inputs, an error names the difference. Work in progress is kept in the sibling `.<name>.partial`, which one process at a
time may resume. If that folder holds the unfinished work of another run, it is renamed to `.<name>.partial.<key>`; the
run that it belongs to takes it up again, there or with another name in the same folder.
Of processes that torchrun started together the first one makes the folder; each of the others has a partial folder of
its own, which it drops once the first one's is there.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from toolkit.disk import BINARY, sync
from toolkit.errors import FolderConflict, InputError
from toolkit.field_types import check_type
from toolkit.json_files import read_json
from toolkit.run_identity import MARKER, NAMES, difference, digest_of, key_in, marker_text, read_marker
from toolkit.terminal import say

MANIFEST = "manifest.json"
LOCK = ".lock"
"""The file in a partial folder that the process which works on it has locked."""
WORK = re.compile(r"\.(.+?)\.partial(-\d+)?(\.[\da-f]{8}(-\d+)?)?")
"""The name of a partial folder or file, in which is the one that it will have."""
MANIFEST_TYPES = {
    "stage": str,
    "config": dict[str, Any],
    "inputs": dict[str, str],
    NAMES: dict[str, str],
    "outputs": dict[str, dict[str, Any]],
    "measured": dict[str, Any],
}

ASK_EVERY_S = 0.1
"""How often the other processes ask whether the first one has finished."""

_claimed: dict[Path, FileLock] = {}
"""This process's partial folders; the kernel frees the locks of a process that dies."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Identifies a run: an existing folder is this run's if all of these facts are equal."""

    name: str
    config: Mapping[str, Any]
    """Values that JSON can hold, the seed included."""
    inputs: Mapping[str, str]
    """Name of each input → its digest."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Name of an input → what a person calls it: its address or file. It is no part of what the run is."""

    def key(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(
            json.dumps({"stage": self.name, "config": dict(self.config), "inputs": dict(self.inputs)})
        )
        return value


def check_out(out: Path) -> None:
    """Raise `FolderConflict` if `out` holds files that no run made; call it before anything slow is fetched or read.

    A link must lead to a finished run: a new run gets its name by a rename, which would not follow the link.
    """
    if out.is_symlink() and read_manifest(out) is None:
        raise FolderConflict(f"{out} is a link, but not to a finished run; choose another --out")
    if out.exists() and read_manifest(out) is None and not (out.is_dir() and not any(out.iterdir())):
        raise FolderConflict(f"{out} must be empty or a finished run, but holds other files; choose another --out")


def is_complete(out: Path, stage: Stage) -> bool:
    """Whether `out` holds exactly this run; False if nothing is there yet.

    Raises `FolderConflict`, which names the first difference, if `out` holds anything else.
    """
    check_out(out)
    manifest = read_manifest(out)
    if manifest is None:
        return _was_finished(out, stage)
    if differing := difference(manifest, stage.key(), stage.names):
        kept = _set_aside_before(partial_of(out), stage.key())
        goes_on = f" in {kept.parent}, which goes on with this run's unfinished work in {kept.name}" if kept else ""
        raise FolderConflict(f"{out} holds another run: {differing}; choose another --out{goes_on}")
    return True


def partial_folder(out: Path, stage: Stage, *, cheap: Collection[str] = ()) -> Path:
    """Return the folder in which `out` is made: the one that an earlier attempt at the same run left, or a new one.

    Unfinished work of another run is set aside, which a line on stderr says, unless all of it has names in `cheap`,
    which is made again in no time. The folder belongs to this process until it is finished; raises `InputError` if
    another process is working in it.
    """
    folder, rank = partial_of(out), process_rank()
    key = stage.key()
    try:
        _make_and_claim(folder, out)
        marker = read_marker(folder)
        if key_in(marker) != key:
            if not rank and {path.name for path in folder.iterdir()} - {MARKER, LOCK, f".{MARKER}.partial", *cheap}:
                _set_aside(folder, marker, stage)
            else:
                _clear(folder)
            _take_up(folder, key)
            _make_and_claim(folder, out)
            replace_text(folder / MARKER, marker_text(key, stage.names))
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror}; choose another --out") from error
    return folder


def partial_of(out: Path) -> Path:
    """Return the folder in which this process makes `out`."""
    rank = process_rank()
    return out.absolute().parent / (f".{out.name}.partial-{rank}" if rank else f".{out.name}.partial")


def given_name(path: Path) -> Path:
    """Return the name by which a person knows a path: in the work of a run, the one that it will have."""
    named = Path(*(match[1] if (match := WORK.fullmatch(part)) else part for part in path.parts))
    return named.relative_to(Path.cwd()) if named != path and named.is_relative_to(Path.cwd()) else named


def say_done(out: Path) -> None:
    """Say that an earlier command has finished a run, and how to make it anew."""
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime((out / MANIFEST).stat().st_mtime))
    say(f"already done: {out} (made {made}); to make it anew, choose another --out")


def finish(
    folder: Path,
    out: Path,
    stage: Stage,
    measured: Mapping[str, Any],
    *,
    anew: bool = False,
    scratch: Collection[str] = (),
) -> dict[str, Any]:
    """Sync a partial folder, write its manifest last, give it its final name, and return the manifest.

    `anew`: `out` is a finished run of the stage, whose files are replaced one by one, the manifest last.
    `scratch`: names in the folder that only an unfinished run needs; they are removed when all else is on disk.
    """
    if process_rank():
        return _await_first(folder, out)
    passing = {MARKER, LOCK, MANIFEST, *scratch}
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).parts[0] not in passing)
    manifest = (
        stage.key()
        | ({NAMES: dict(stage.names)} if stage.names else {})
        | {
            "outputs": {path.relative_to(folder).as_posix(): file_facts(path) for path in files},
            "versions": versions(),
            "measured": dict(measured),
        }
    )
    for path in files:
        sync(path)
    _replace(folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    _let_go(folder)
    if anew:
        for path in (*files, folder / MANIFEST):
            os.replace(path, out / path.relative_to(folder))
        shutil.rmtree(folder)
        sync(out)
    else:
        _give_name(folder, out, manifest)
    sync(out.absolute().parent)
    return manifest


def discard(folder: Path) -> None:
    """Remove a partial folder that must not be resumed."""
    _let_go(folder)
    shutil.rmtree(folder, ignore_errors=True)


def process_rank() -> int:
    """Return this process's rank among those that torchrun started together; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def _give_name(folder: Path, out: Path, manifest: Mapping[str, Any]) -> None:
    """Give a folder with a manifest its final name, after removing everything that the manifest does not name."""
    named = {MANIFEST, *(Path(name).parts[0] for name in manifest["outputs"])}
    for path in sorted(folder.iterdir(), key=lambda path: path.name == MARKER):  # last what says whose the folder is
        if path.name not in named:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if out.exists():  # an empty folder that the user made
        out.rmdir()
    os.rename(folder, out)


def _was_finished(out: Path, stage: Stage) -> bool:
    """Whether a killed process had completed the run except for its final name, which the folder gets now."""
    folder = partial_of(out)
    if process_rank() or not (folder / MANIFEST).is_file():
        return False
    manifest = read_manifest(folder) or {}
    if difference(manifest, stage.key(), stage.names):
        return False
    _make_and_claim(folder, out)
    _let_go(folder)
    _give_name(folder, out, manifest)
    return True


def _await_first(folder: Path, out: Path) -> dict[str, Any]:
    """Drop this process's folder; return the manifest of the first process's folder once it is there."""
    _let_go(folder)
    shutil.rmtree(folder)
    while (manifest := read_manifest(out)) is None:
        time.sleep(ASK_EVERY_S)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Read the folder's manifest; None if it has none.

    Raises `InputError` if it is not a JSON object, or holds another type than its readers count on.
    """
    path = folder / MANIFEST
    if not os.path.lexists(path):
        return None
    value = read_json(path, constants=True)  # a measured number may be NaN
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
    """Write a file whole or not at all, so that a reader sees the old content or the new. `mode`: its permissions, from
    the first byte.

    Half a surrogate pair, which UTF-8 cannot encode, is written as an escape, which JSON reads back.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, text, mode)
    except OSError as error:
        raise InputError(f"{given_name(path)} cannot be written: {error.strerror}") from error


def folder_digest(folder: Path) -> str:
    """Return one digest for a model folder, of the output digests in its manifest if it has one, else of its files."""
    facts = (read_manifest(folder) or {}).get("outputs")
    if facts is None:
        facts = {p.name: file_facts(p) for p in sorted(folder.iterdir()) if p.is_file()}
    return digest_of(facts, 16)


def files_digest(folder: Path) -> str:
    """Return the same digest from the files as they are now, which differs if one was changed after the manifest."""
    outputs = (read_manifest(folder) or {}).get("outputs")
    if outputs is None:
        return folder_digest(folder)
    return digest_of({name: file_facts(folder / name) for name in outputs if (folder / name).is_file()}, 16)


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def file_facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of Python and of our main dependencies that are installed."""
    found = {"python": sys.version.split()[0]}
    for name in ("torch", "transformers", "trl", "onnx", "onnxruntime", "tokenizers", "numpy", "reasoning-gym"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _make_and_claim(folder: Path, out: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if folder in _claimed:
        return
    lock = FileLock(folder / LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"another process is writing {out}; wait for it, or choose another --out") from None
    _claimed[folder] = lock


def _let_go(folder: Path) -> None:
    """Give up the claim before the folder is moved: Windows does not remove or rename a folder with an open file."""
    if folder in _claimed:
        _claimed.pop(folder).release(force=True)


def _set_aside(folder: Path, marker: Any, stage: Stage) -> None:
    """Give a claimed partial folder the name under which its own run will find it."""
    key = key_in(marker)
    aside = _aside(folder, key)
    for number in itertools.count(2):
        if not aside.exists():
            break
        aside = aside.with_suffix(f".{digest_of(key)}-{number}")
    _let_go(folder)
    os.rename(folder, aside)
    if isinstance(key, dict):
        say(
            f"starting anew: the unfinished run in this place has other options "
            f"({difference(marker, stage.key(), stage.names) or 'of another version'}); it is kept in {aside} "
            f"({folder_bytes(aside) / 1e6:,.0f} MB), to be resumed by its own command with another --out in "
            f"{aside.parent}, or deleted"
        )
    else:
        say(f"{aside} keeps the files of a run whose {MARKER} cannot be read; no run will resume them")


def _take_up(folder: Path, key: Mapping[str, Any]) -> None:
    """Put this run's folder in its place if it had been set aside, there or under another name beside it.

    What is in that place holds nothing.
    """
    if before := _set_aside_before(folder, key):
        _let_go(folder)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(before, folder)
        if before.name != _aside(folder, key).name:
            say(f"going on with the unfinished run that was kept in {before}")


def _set_aside_before(folder: Path, key: Mapping[str, Any]) -> Path | None:
    """Return where this run's unfinished work was set aside, under the name of this partial folder or another's."""
    if (own := _aside(folder, key)).exists():
        return own
    others = [] if process_rank() else sorted(folder.parent.glob(f".*.partial.{digest_of(key)}*"))
    return next((path for path in others if WORK.fullmatch(path.name) and key_in(read_marker(path)) == key), None)


def _aside(folder: Path, key: Any) -> Path:
    return folder.with_name(f"{folder.name}.{digest_of(key)}")


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != LOCK:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _replace(path: Path, text: str, mode: int = 0o666) -> None:
    fresh = path.with_name(f".{path.name}.partial")
    try:
        fresh.unlink(missing_ok=True)  # a leftover would keep its own mode
        with open(fresh, "xb", opener=lambda name, flags: os.open(name, flags | BINARY, mode)) as file:
            file.write(text.encode(errors="backslashreplace"))
        sync(fresh)
        os.replace(fresh, path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
