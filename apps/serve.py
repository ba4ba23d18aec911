"""`toolkit serve`: one exported model for other programs, on this machine or with a key.

    client ── guard (host) ── service (key, routes) ── scheduler (one thread, one decoder)

No torch is imported, and no request leaves the machine.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import psutil

from apps.address import LOOPBACK, listen, run_until_interrupted
from apps.guard import Application, guard
from apps.service import Service
from export.session import OnnxDecoder, OpenDecoder
from toolkit.errors import InputError
from toolkit.terminal import show

KEY_VARIABLE = "TOOLKIT_API_KEY"
"""Environment variable with the key, for those who don't want it in a command line."""
ANY_ADDRESS = "0.0.0.0"


def allowed_hosts(host: str, port: int) -> frozenset[str]:
    """Host headers under which a server on this address is asked: its own names and addresses."""
    names = {host, *LOOPBACK} if host in LOOPBACK else {host}
    if host == ANY_ADDRESS:
        names |= {*LOOPBACK, socket.gethostname().lower()}
        names |= {
            address.address
            for addresses in psutil.net_if_addrs().values()
            for address in addresses
            if address.family == socket.AF_INET
        }
    return frozenset({f"{name}:{port}" for name in names} | (names if port == 80 else set()))


def build_application(service: Service, host: str, port: int) -> Application:
    return guard(service.application(), allowed_hosts(host, port))


def run_server(
    folder: Path,
    *,
    open_decoder: OpenDecoder = OnnxDecoder,
    host: str,
    port: int,
    api_key: str | None,
    parallel: int,
    queue: int,
) -> None:
    """Load an exported folder and serve it until interrupted; prints the address first. Port 0 is any free port.

    Raises `InputError` where the folder is no export, the address cannot be had, or lacks the key that it needs.
    """
    key = os.environ.get(KEY_VARIABLE, "") if api_key is None else api_key
    if not (key.isascii() and key.isprintable()):
        raise InputError("the key must be of printable ASCII characters, which a header can carry; choose another")
    if host not in LOOPBACK and not key:
        raise InputError(
            f"host ({host}) must be one of {', '.join(LOOPBACK)} without a key; give --api-key or set {KEY_VARIABLE}"
        )
    with listen(host, port) as listener:
        port = listener.getsockname()[1]
        service = Service(folder, open_decoder=open_decoder, parallel=parallel, queue=queue, api_key=key)
        memory = f"{parallel} answers at once, whose cache takes up to {service.most_cache_bytes / 1e9:.1f} GB"
        show(f"{service.name} is served at http://{host}:{port}/v1: {memory} (Ctrl+C ends it)")
        try:
            run_until_interrupted(build_application(service, host, port), listener)
        finally:
            service.scheduler.close()
