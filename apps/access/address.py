"""Where a server listens, and its run until somebody ends it."""

from __future__ import annotations

import socket
from contextlib import suppress

import uvicorn

from apps.access.guard import Application, Tell, as_text
from apps.access.patience import that_tells
from toolkit.errors import InputError

LOOPBACK = ("127.0.0.1", "localhost")


def in_url(host: str) -> str:
    """A host as it stands in an address: one of IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def listen(host: str, port: int) -> socket.socket:
    """Port 0 is any free port; `::` listens to IPv4 as well. Raises `InputError` where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server((host, port), family=family, dualstack_ipv6=both)
    except (OSError, OverflowError) as error:
        raise InputError(f"port ({port}) must be free on {host}: {error}; choose another --port, or 0") from error


def run_until_interrupted(application: Application, listener: socket.socket, tell: Tell = as_text) -> None:
    """Serve on an open socket; Ctrl+C is how a server ends, and no error. `tell`: as of `apps.access.guard`."""
    config = uvicorn.Config(
        application,
        http=that_tells(tell),
        ws="none",
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
    )
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])
