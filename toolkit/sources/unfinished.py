"""Refuses a model whose run has not finished, and names the command that resumes it.

    runs/demo/student/                        does not exist yet
             /.student.partial/               the work of its run (`toolkit.runs`)
                              /checkpoints/…  may be models in the middle of training
    runs/teach/teacher/                       does not exist either, because
              /seed-1/.cold_start.partial/    an earlier run of the same command has not finished

Whatever opens a model asks here first.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from glob import escape
from pathlib import Path

from toolkit.errors import InputError
from toolkit.run_identity import COMMAND, DIRECTORY, MARKER, read_marker
from toolkit.runs import MANIFEST, WORK

BELOW = ("*/.*.partial*", "*/*/.*.partial*")


def refuse_unfinished(path: Path) -> None:
    """Raise `InputError` if `path` is in the work of a run, or holds no model because its run has not finished."""
    for folder in (path, *path.parents, *path.absolute().parents):
        if _is_work(folder):
            raise _not_finished(path, folder)
    if path.is_file() or (path / "config.json").is_file():
        return
    if not path.exists() and (made := _made_by(path)) and _is_finished(made):
        raise InputError(f"{path} does not exist: the run that made {made} has finished; name {made}")
    for folder in _work_for(path):
        raise _not_finished(path, folder)


def _work_for(path: Path) -> Iterator[Path]:
    """Yield the work of the run that makes `path`, of others in its folder, and of deeper ones whose command names
    it; not what was set aside for a run that has finished."""
    yield from (folder for folder in _work_near(path) if not (made := _made_by(folder)) or not _is_finished(made))


def _work_near(path: Path) -> Iterator[Path]:
    yield from filter(_is_work, sorted(path.parent.glob(f".{escape(path.name)}.partial*")))
    run = path if path.is_dir() else path.parent
    if run != Path():  # the working directory may hold anything
        yield from filter(_is_work, sorted(run.glob(".*.partial*")))
        below = (folder for pattern in BELOW for folder in sorted(run.glob(pattern)))
        yield from (folder for folder in below if _is_work(folder) and _names(_command(folder), run))


def _is_work(folder: Path) -> bool:
    return WORK.fullmatch(folder.name) is not None and (folder / MARKER).is_file()


def _made_by(work: Path) -> Path | None:
    """Return the folder that a run makes whose work is in this one; None if its name is not that of work."""
    name = WORK.fullmatch(work.name)
    return work.with_name(name[1]) if name else None


def _is_finished(made: Path) -> bool:
    return (made / MANIFEST).is_file()


def _command(folder: Path) -> str:
    """Return the command that began a run; empty if an earlier version did not record it."""
    found = read_marker(folder)
    if not isinstance(found, dict) or not found.get(COMMAND):
        return ""
    began_in = str(found.get(DIRECTORY, os.getcwd()))
    return f"{'' if began_in == os.getcwd() else f'cd {shlex.quote(began_in)} && '}{found[COMMAND]}"


def _names(command: str, run: Path) -> bool:
    return any(os.path.abspath(word.removeprefix("--out=")) == os.path.abspath(run) for word in shlex.split(command))


def _not_finished(path: Path, folder: Path) -> InputError:
    made = _made_by(folder)
    assert made
    if _is_finished(made):  # by another run, which set this one aside
        command = _command(folder) or "the command that began it"
        return InputError(
            f"{path} cannot be used: the run that it belongs to has not finished, unlike the one that made {made}; "
            f"name {made}, or resume this one with another --out in {made.parent}: {command}"
        )
    is_missing = made != path and not path.exists()
    what = "it" if made == path else f"{made} beside it" if is_missing else made
    return InputError(
        f"{path} {'does not exist, and' if is_missing else 'cannot be used yet:'} the run that makes {what} has not "
        "finished; "
        f"resume it with: {_command(folder) or 'the command that began it'}"
    )
