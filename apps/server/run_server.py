"""Runs `toolkit serve`: one exported model for other programs, on this machine or with a key.

    client ── guard (host, origin) ── service (key, routes) ── scheduler (one thread, one model)

No torch is imported, and no request leaves the machine.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Collection, Mapping
from pathlib import Path

import psutil
from starlette.middleware.cors import CORSMiddleware

from apps.access.address import LOOPBACK, in_url, listen, run_until_interrupted
from apps.access.guard import Application, guard
from apps.server.requests.protocol import ApiError
from apps.server.service import Service
from export.runtime.exported_model import OpenModel, open_exported
from toolkit.errors import InputError
from toolkit.generation.endpoint import KEY_VARIABLE
from toolkit.terminal import show

LOOPBACK_6 = "::1"
ANY_ADDRESS = {"0.0.0.0": (socket.AF_INET,), "::": (socket.AF_INET, socket.AF_INET6)}
"""The families of addresses that each listens on."""
ADVICE = "; allow others with --allow-host and --allow-origin"
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
_ORIGIN = re.compile(rf"[a-z][a-z0-9+.-]*://{_HOST.pattern}|null|\*")


def allowed_hosts(host: str, port: int) -> frozenset[str]:
    """Return the Host headers that a server on this address accepts: its own names and addresses."""
    names = {host, *LOOPBACK} if host in (*LOOPBACK, LOOPBACK_6) else {host}
    if host in ANY_ADDRESS:
        names |= {*LOOPBACK, LOOPBACK_6, socket.gethostname().lower()}
        names |= {
            found.address.partition("%")[0]  # without its network device
            for addresses in psutil.net_if_addrs().values()
            for found in addresses
            if found.family in ANY_ADDRESS[host]
        }
    shown = {in_url(name) for name in names}
    return frozenset({f"{name}:{port}" for name in shown} | (shown if port == 80 else set()))


def build_application(
    service: Service,
    host: str,
    port: int,
    *,
    origins: frozenset[str] = frozenset(),
    hosts: frozenset[str] = frozenset(),
) -> Application:
    """Put the service behind the guard, which also accepts these origins and hosts."""
    application: Application = service.application()
    if origins:
        application = CORSMiddleware(
            application,
            allow_origins=sorted(origins),
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            allow_private_network=True,
            expose_headers=("retry-after",),
        )
    return guard(application, allowed_hosts(host, port) | hosts, origins, ADVICE, _as_json)


def _as_json(message: str, status: int) -> tuple[bytes, bytes]:
    """Write a refusal in OpenAI's format."""
    return json.dumps(ApiError(message, status=status).body).encode(), b"application/json"


def _checked(values: Collection[str], option: str, form: re.Pattern[str], wanted: str) -> frozenset[str]:
    """Return the values of an option as headers have them; raises `InputError` for what no client sends."""
    lowered = [value.lower().removesuffix("/") for value in values]
    for value, plain in zip(values, lowered, strict=True):
        if not form.fullmatch(plain):
            raise InputError(f"{option} ({value!r}) must be {wanted}; correct it")
    return frozenset(lowered)


def run_server(
    folder: Path,
    *,
    open_model: OpenModel = open_exported,
    host: str,
    port: int,
    api_key: str | None,
    parallel: int,
    queue: int,
    name: str = "",
    adapters: Mapping[str, Path] | None = None,
    repeatable: bool = False,
    origins: Collection[str] = (),
    hosts: Collection[str] = (),
) -> None:
    """Load an exported folder and serve it until interrupted, after printing the address. Port 0 picks a free port.

    `name`: the model's name instead of its folder's. `adapters`: PEFT's folders of low-rank adapters by the names under
    which the model answers with each. `origins`: of web pages that may ask. `hosts`: further names of
    this machine, with or without a port. `repeatable`: see `apps.server.scheduler.Scheduler`.

    Raises `InputError` if the folder is not an export, or the address cannot be opened or needs a key.
    """
    if not name.isprintable():
        raise InputError(f"--name ({name!r}) must be printable text; choose another one")
    named_origins = _checked(origins, "--allow-origin", _ORIGIN, "an origin like https://example.org, null or *")
    named_hosts = _checked(hosts, "--allow-host", _HOST, "a name like example.org or example.org:8000")
    key = (os.environ.get(KEY_VARIABLE, "") if api_key is None else api_key).strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"the key ({len(key)} characters) must be printable ASCII, as headers are; choose another one")
    if host not in (*LOOPBACK, LOOPBACK_6) and not key:
        raise InputError(
            f"--host ({host}) needs a key, since only {', '.join(LOOPBACK)} and {LOOPBACK_6} do without; "
            f"give --api-key or set {KEY_VARIABLE}"
        )
    with listen(host, port) as listener:
        port = listener.getsockname()[1]
        service = Service(
            folder,
            open_model=open_model,
            parallel=parallel,
            queue=queue,
            api_key=key,
            name=name,
            adapters=adapters or {},
            repeatable=repeatable,
        )
        application = build_application(service, host, port, origins=named_origins, hosts=named_hosts)
        memory = f"{parallel} answers at once, whose cache takes up to {service.most_cache_bytes / 1e6:,.0f} MB"
        show(f"serving {', '.join(service.names)} at http://{in_url(host)}:{port}/v1: {memory} (Ctrl+C to stop)")
        try:
            run_until_interrupted(application, listener, _as_json)
        finally:
            service.scheduler.close()
