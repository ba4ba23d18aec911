"""Where a server listens."""

from __future__ import annotations

import socket

from toolkit.errors import InputError

LOOPBACK = ("127.0.0.1", "localhost")


def listen(host: str, port: int) -> socket.socket:
    """Port 0 is any free port; raises `InputError` where the address cannot be had."""
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise InputError(f"port ({port}) must be free on {host}: {error}; choose another --port, or 0") from error
