"""A real server in a thread of the test's own process, so that the test can look at what it serves."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from apps.access.guard import Application


@contextmanager
def serving(application: Application, listener: socket.socket) -> Iterator[None]:
    """Serve on an open socket until the context ends."""
    server = uvicorn.Server(uvicorn.Config(application, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()
