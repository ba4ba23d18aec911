"""One of the processes that `distill.launching.processes` starts: `python -m distill.launching.worker JOB`.

exit    0 trained, 130 stopped after an update, 1 failed: the job's folder says why
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from distill.launching.job import note_failure, work

INTERRUPTED = 130


def main() -> None:
    place = Path(sys.argv[1])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work(place)
        code = 0
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BaseException as error:  # noqa: BLE001 – whatever it is, the parent tells it
        note_failure(place, error)
        code = 1
    sys.stderr.flush()
    os._exit(code)  # threads of a process group whose other side has died may not end


def _end_with_parent() -> None:
    """End this process at once when the one that started it is gone, whose end of the pipe closes then."""
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
