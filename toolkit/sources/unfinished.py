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
from toolkit.json_files import read_json
from toolkit.runs import COMMAND, DIRECTORY, MARKER, WORK

BELOW = ("*/.*.partial*", "*/*/.*.partial*")


def refuse_unfinished(path: Path) -> None:
    """Raise `InputError` if `path` is in the work of a run, or holds no model because its run has not finished."""
    for folder in (path, *path.parents, *path.absolute().parents):
        if _is_work(folder):
            raise _not_finished(path, folder)
    if path.is_file() or (path / "config.json").is_file():
        return
    for folder in _work_for(path):
        raise _not_finished(path, folder)


def _work_for(path: Path) -> Iterator[Path]:
    """Yield the work of the run that makes `path`, of others in its folder, and of deeper ones whose command names
    it."""
    yield from filter(_is_work, sorted(path.parent.glob(f".{escape(path.name)}.partial*")))
    run = path if path.is_dir() else path.parent
    if run != Path():  # the working directory may hold anything
        yield from filter(_is_work, sorted(run.glob(".*.partial*")))
        below = (folder for pattern in BELOW for folder in sorted(run.glob(pattern)))
        yield from (folder for folder in below if _is_work(folder) and _names(_command(folder), run))


def _is_work(folder: Path) -> bool:
    return WORK.fullmatch(folder.name) is not None and (folder / MARKER).is_file()


def _command(folder: Path) -> str:
    """Return the command that began a run; empty if an earlier version did not record it."""
    try:
        found = read_json(folder / MARKER)
    except InputError:
        return ""
    if not isinstance(found, dict) or not found.get(COMMAND):
        return ""
    began_in = str(found.get(DIRECTORY, os.getcwd()))
    return f"{'' if began_in == os.getcwd() else f'cd {shlex.quote(began_in)} && '}{found[COMMAND]}"


def _names(command: str, run: Path) -> bool:
    return any(os.path.abspath(word.removeprefix("--out=")) == os.path.abspath(run) for word in shlex.split(command))


def _not_finished(path: Path, folder: Path) -> InputError:
    name = WORK.fullmatch(folder.name)
    assert name
    made = folder.with_name(name[1])
    is_missing = made != path and not path.exists()
    what = "it" if made == path else f"{made} beside it" if is_missing else made
    return InputError(
        f"{path} {'does not exist, and' if is_missing else 'cannot be used yet:'} the run that makes {what} has not "
        "finished; "
        f"resume it with: {_command(folder) or 'the command that began it'}"
    )
