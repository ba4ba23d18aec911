"""Runs the command line many times but imports it once: a fork runs each line of words, as JSON, from stdin.

The fork's process id is printed when it starts, its exit code when it has ended. Its output goes to the file that is
the only argument. Pauses between tries are short.
"""

from __future__ import annotations

import json
import os
import sys

import distill.pipeline  # noqa: F401 – all that takes long to import
from distill.endpoints import chat_requests
from toolkit.cli.main import main


def run() -> None:
    chat_requests.FIRST_PAUSE_S = 0.0005
    output = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            os.dup2(output, 1)
            os.dup2(output, 2)
            os._exit(main(json.loads(line)))
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    run()
