"""Kills a run at each line of what makes run folders, in forks, and starts it again: what `test_runs` judges.

    python -m tests.toolkit.stages_killed FOLDER      prints a JSON object for each line: kept, whole, bought

A run buys one record, which the folder outside counts, and finishes. Lines are those of `toolkit.runs`,
`toolkit.records` and of pathlib's writing of whole files.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from functools import cache
from importlib import metadata
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

from toolkit import records, runs
from toolkit.records import AppendLog, Verdict

STAGE = runs.Stage(name="train", config={"seed": 1}, inputs={})
TRACED = (records.__file__, runs.__file__)
VERDICT = Verdict(problem_id="p", sample=0, correct=True, reason="correct", score=1.0, verifier="", version="")


def run(out: Path) -> None:
    if runs.is_complete(out, STAGE):
        return
    folder = runs.partial_folder(out, STAGE)
    if not (folder / "bought.jsonl").exists():
        with (out.parent / "bill").open("a") as bill:
            bill.write("1")
        with AppendLog(folder / "bought.jsonl") as log:
            log.append(VERDICT)
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / "last").write_text("")
    runs.finish(folder, out, STAGE, {"loss": 0.5}, scratch=("checkpoints",))


def run_in_fork(out: Path, last_line: int) -> int:
    """Run it in a fork that dies before the given line (-1: never); returns how the process ended."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    lines = count()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in TRACED and frame.f_code.co_name not in ("write_text", "write_bytes"):
            return None
        if event == "line" and next(lines) == last_line:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    if last_line >= 0:
        sys.settrace(trace)
    run(out)
    os._exit(0)


def main(folder: Path) -> None:
    metadata.version = cache(metadata.version)  # it reads files, thousands of lines, and writes nothing
    runs.versions()
    for line in count():
        place = folder / str(line)
        place.mkdir()
        died = run_in_fork(place / "run", line) < 0
        bought = (place / "bill").exists() and any(path.stat().st_size for path in place.rglob("bought.jsonl"))
        again = run_in_fork(place / "run", -1)
        names = sorted(path.relative_to(place).as_posix() for path in place.rglob("*"))
        bill = len((place / "bill").read_text())
        print(json.dumps({"bought": bought, "bill": bill, "ended": again, "names": names}))
        if not died:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]))
