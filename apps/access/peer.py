"""Finds the user whose socket is at the other end of a local connection, if the kernel tells, as Linux does.

/proc/net/tcp   sl  local_address  rem_address  st  tx_queue:rx_queue  tr:tm->when  retrnsmt  uid  …
                an address is the IP address in hexadecimal, in the processor's byte order, a colon and the port
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
ROOT = 0
"""The user who can read everything on this machine anyway, and who runs programs that forward connections."""

Address = tuple[str, int]


def is_another_user(client: Address | None, server: Address | None) -> bool:
    """Whether the client's end of a connection is known to belong to another user than this process."""
    if client is None or server is None or not hasattr(os, "getuid"):
        return False
    owner = next((found for table in TABLES if (found := _owner(table, client, server)) is not None), None)
    return owner is not None and owner not in (ROOT, os.getuid())


def _owner(table: Path, client: Address, server: Address) -> int | None:
    """Return the user whose socket connects the two addresses; None if the table has no such line."""
    ends = [_written(client), _written(server)]
    try:
        with table.open(encoding="ascii") as file:
            lines = (line.split() for line in file)
            return next((int(fields[7]) for fields in lines if fields[1:3] == ends), None)
    except (OSError, ValueError, IndexError):
        return None


def _written(address: Address) -> str:
    """Write an address as the tables do."""
    host, port = address
    packed = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    words = (packed[i : i + 4] for i in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words) + f":{port:04X}"
