"""Opens the socket that a server listens on, and runs the server until it is interrupted."""

from __future__ import annotations

import logging
import socket
from contextlib import suppress

import uvicorn

from apps.access.guard import Application, Tell, as_text
from apps.access.patience import that_tells
from toolkit.errors import InputError

LOOPBACK = ("127.0.0.1", "localhost")


def in_url(host: str) -> str:
    """Write a host as a URL does: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def listen(host: str, port: int) -> socket.socket:
    """Open a socket; port 0 picks a free one, `::` also listens on IPv4. Raises `InputError` if it cannot be opened."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server((host, port), family=family, dualstack_ipv6=both)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"port {port} on {host} cannot be opened: {error}; choose another --port, or 0 for a free one"
        ) from error


def run_until_interrupted(application: Application, listener: socket.socket, tell: Tell = as_text) -> None:
    """Serve on an open socket until Ctrl+C, which is no error. `tell`: see `apps.access.guard`."""
    config = uvicorn.Config(
        application,
        http=that_tells(tell),
        ws="none",
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
    )
    server, log = uvicorn.Server(config), logging.getLogger("uvicorn.error")

    def is_running(_: logging.LogRecord) -> bool:
        return not server.should_exit  # a stream that is cut by the end, as every open page has one, is no error

    log.addFilter(is_running)
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    log.removeFilter(is_running)
