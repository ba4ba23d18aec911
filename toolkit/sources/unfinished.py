"""Says of a model that is asked for that the run which makes it has not finished, and which command goes on with it.

    runs/demo/student/                        is not there yet
             /.student.partial/               the work of its run (`toolkit.runs`)
                              /checkpoints/…  may be models in the midst of training
    runs/teach/teacher/                       is not there either, because
              /seed-1/.cold_start.partial/    a run before it, of the same command, has not finished

Whoever opens a model asks here first.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from glob import escape
from pathlib import Path

from toolkit.errors import InputError
from toolkit.json_files import read_json
from toolkit.runs import COMMAND, MARKER

WORK = re.compile(r"\.(.+?)\.partial(-\d+)?(\.[\da-f]{8}(-\d+)?)?")
"""The name of a folder in which a run is made, whose own name is in it."""
BELOW = ("*/.*.partial*", "*/*/.*.partial*")


def refuse_unfinished(path: Path) -> None:
    """Raise `InputError` where `path` lies in the work of a run, or holds no model since a run has not finished."""
    for folder in (path, *path.parents, *path.absolute().parents):
        if _is_work(folder):
            raise _not_finished(path, folder)
    if path.is_file() or (path / "config.json").is_file():
        return
    for folder in _work_for(path):
        raise _not_finished(path, folder)


def _work_for(path: Path) -> Iterator[Path]:
    """The work of the run that makes `path`; of another one in its folder; of one deeper there, by a command that names
    it."""
    yield from filter(_is_work, sorted(path.parent.glob(f".{escape(path.name)}.partial*")))
    run = path if path.is_dir() else path.parent
    if run != Path():  # where anything may lie
        yield from filter(_is_work, sorted(run.glob(".*.partial*")))
        below = (folder for pattern in BELOW for folder in sorted(run.glob(pattern)))
        yield from (folder for folder in below if _is_work(folder) and _names(_command(folder), run))


def _is_work(folder: Path) -> bool:
    return WORK.fullmatch(folder.name) is not None and (folder / MARKER).is_file()


def _command(folder: Path) -> str:
    """The command that began a run; empty where an earlier version did not note it."""
    try:
        found = read_json(folder / MARKER)
    except InputError:
        return ""
    return str(found.get(COMMAND, "")) if isinstance(found, dict) else ""


def _names(command: str, run: Path) -> bool:
    return any(os.path.abspath(word.removeprefix("--out=")) == os.path.abspath(run) for word in shlex.split(command))


def _not_finished(path: Path, folder: Path) -> InputError:
    name = WORK.fullmatch(folder.name)
    assert name
    made = folder.with_name(name[1])
    what = "it" if made == path else made
    return InputError(
        f"{path} must be of a run that has finished, and {what} has not; "
        f"go on with: {_command(folder) or 'the command that began it'}"
    )
