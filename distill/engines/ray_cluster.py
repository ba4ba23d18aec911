"""Ray: whether it is there, the cluster that a command uses, and its silence.

Without an address a command starts a cluster on this machine and stops it at its end. With one it uses that cluster and
leaves it running. Ray sends no usage statistics and starts no dashboard, and what its threads print is left out: what a
person must know, we say.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from importlib.util import find_spec
from typing import Any, TextIO, cast

from toolkit.errors import InputError, MissingExtra
from toolkit.terminal import counted, say

EXTRA = "scale"
NEWEST_PYTHON = (3, 14)
"""The newest Python for which Ray has wheels; `pyproject.toml` names the next one."""
ADDRESS_VARIABLE = "RAY_ADDRESS"
OBJECT_STORE_BYTES = 100 * 2**20
"""Our workers keep traces on the disk, and pass only the numbers of chunks."""
CONNECT_S = 10.0
SOCKET_ROOM = 24
"""The longest name of a temporary folder below which Ray's sockets have names that the kernel takes."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a thread that still asks after the end must not start a cluster
}


def check_ray() -> None:
    """Raise `InputError` if Ray is not installed, and say so where it has no wheel for this Python."""
    if find_spec("ray") is not None and find_spec("pyarrow") is not None:
        return
    if sys.version_info[:2] > NEWEST_PYTHON:
        newest, this = (".".join(map(str, version)) for version in (NEWEST_PYTHON, sys.version_info[:2]))
        raise InputError(
            f"--engine ray needs Ray, which has no wheel for Python {this}: use Python {newest} or older, or divide "
            "the job with --shard, which needs no Ray"
        )
    raise MissingExtra("ray" if find_spec("ray") is None else "pyarrow", EXTRA)


def import_ray() -> Any:
    """Import Ray with its usage statistics and its warnings off."""
    check_ray()
    os.environ.update(QUIET)
    return importlib.import_module("ray")


@contextmanager
def ray_cluster(address: str, workers: int) -> Iterator[Any]:
    """Connect to a cluster, or start one on this machine that has room for so many workers; yield the module `ray`.

    `address`: a cluster's, `auto` for the one of this machine, or empty. Raises `InputError` if no cluster answers.
    """
    check_address(address)
    ray = import_ray()
    if ray.is_initialized():
        yield ray  # whoever started it stops it
        return
    where = f"connecting to Ray at {address}" if address else f"starting Ray with {counted(workers, 'worker')}"
    say(f"traces: {where}, which may take half a minute")
    with ExitStack() as stack:
        stack.enter_context(redirect_stderr(cast(TextIO, _OneVoice(sys.stderr))))
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        if address:
            _connect(ray, address, options)
        else:
            folder = tempfile.gettempdir()
            if len(folder) <= SOCKET_ROOM and sys.platform != "win32":
                options["_temp_dir"] = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-"))
            _init(
                ray,
                address="local",
                num_cpus=workers + 1,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                **options,
            )
        stack.callback(ray.shutdown)
        _quiet_data()
        yield ray


def check_address(address: str) -> None:
    """Raise `InputError` if nothing listens at an address, where Ray itself would try for minutes."""
    if not address or address == "auto":
        return
    if "://" in address:
        raise InputError(
            f"--ray-address ({address}) is for Ray's client, which runs no Ray Data; start the command on a machine of "
            "the cluster, with --ray-address auto or HOST:PORT"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InputError(f"--ray-address ({address!r:.80}) must be auto or HOST:PORT, such as 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise _no_cluster(address) from error


def _connect(ray: Any, address: str, options: dict[str, Any]) -> None:
    try:
        _init(ray, address=address, **options)
    except (ConnectionError, ValueError, TimeoutError) as error:
        raise _no_cluster(address) from error
    except RuntimeError as error:
        trouble = " ".join(str(error).split())
        raise InputError(
            f"the Ray cluster {address} cannot be used ({trouble:.300}); use the same versions on it and here"
        ) from error


def _init(ray: Any, **options: Any) -> None:
    """Start or join a cluster without the lines that Ray's libraries write past Python, and keep our way to end."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with handlers_kept():
            ray.init(**options)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Within the context Ray may set its own handlers of signals; at its end those before are back."""
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items() if is_main else ():
            signal.signal(number, handler)


def _no_cluster(address: str) -> InputError:
    where = "on this machine" if address == "auto" else f"at {address}"
    return InputError(
        f"no Ray cluster answers {where} (--ray-address {address}); start one with: ray start --head, or leave the "
        "option out to work on this machine alone"
    )


def _quiet_data() -> None:
    """Leave out what Ray Data says of its plans and its progress."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


class _OneVoice:
    """Standard error without what other threads than the caller's print: Ray's are the only ones."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._thread = stream, threading.current_thread()

    def write(self, text: str) -> int:
        return self._stream.write(text) if threading.current_thread() is self._thread else len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
