"""Refuses to the project's own code what Windows, or macOS, refuses of Python's calls. REFUSING names the system.

    windows    modules of Unix; folders opened; files synced that were opened to read; files and folders renamed, replaced
               or removed while something in them is open or mapped; pipes waited for by `select`; process groups; text
               in another encoding than UTF-8 where none is named; `\\n` written as it is without O_BINARY
    macos      a limit of address space
    both       advice about mapped pages

What a library asks of the system is its own affair, since it asks otherwise there: a call counts as the project's where
the first frame outside Python's own library is in its folders.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import mmap
import os
import re
import select
import shutil
import stat
import sys
import sysconfig
import warnings
from collections.abc import Callable
from types import FrameType, SimpleNamespace
from typing import Any

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
OURS = tuple(os.path.join(ROOT, name, "") for name in ("toolkit", "distill", "export", "apps"))
LIBRARY = os.path.join(sysconfig.get_path("stdlib"), "")
PACKAGES = os.path.join(LIBRARY, "site-packages", "")
OF_UNIX = ("fcntl", "grp", "pwd", "resource", "termios")
BINARY = 0x8000

text_mode: set[int] = set()
"""Descriptors that were opened without O_BINARY."""


def is_ours() -> bool:
    """Whether the project's own code makes the call that led here."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        is_python = path.startswith("<frozen") or (path.startswith(LIBRARY) and not path.startswith(PACKAGES))
        if path != __file__ and not is_python:
            return path.startswith(OURS)
        frame = frame.f_back
    return False


def refuse(code: int, path: Any = None) -> None:
    raise OSError(code, f"{os.strerror(code)} (as on {SYSTEM})", path)


def refusing(module: Any, name: str, check: Callable[..., None]) -> None:
    """Put a check before a function, for our calls of it."""
    allowed = getattr(module, name)

    def checked(*given: Any, **named: Any) -> Any:
        if is_ours():
            check(*given, **named)
        return allowed(*given, **named)

    setattr(module, name, checked)


def is_in_use(path: Any) -> bool:
    """Whether a file, or one in a folder, is open or mapped in this process."""
    path = os.path.realpath(path)
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        used = [line.split(maxsplit=5)[5].rstrip("\n") for line in file if line.count("/")]
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            used.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError:  # that of the listing
            continue
    return any(other == path or other.startswith(os.path.join(path, "")) for other in used)


def check_unused(*paths: Any, **named: Any) -> None:
    for path in paths:
        if isinstance(path, (str, os.PathLike)) and is_in_use(path):
            refuse(errno.EACCES, path)


def check_synced(descriptor: int) -> None:
    mode = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    if mode & os.O_ACCMODE == os.O_RDONLY:
        refuse(errno.EBADF)


def check_waited(*given: Any) -> None:
    waited = [each if isinstance(each, int) else each.fileno() for list_ in given[:3] for each in list_]
    if not all(stat.S_ISSOCK(os.fstat(descriptor).st_mode) for descriptor in waited):
        refuse(errno.ENOTSOCK)


def check_limit(kind: int, limits: tuple[int, int]) -> None:
    import resource

    if kind == resource.RLIMIT_AS:
        raise ValueError("current limit exceeds maximum limit")


class Map(mmap.mmap):
    def madvise(self, *given: int) -> None:
        if is_ours():
            refuse(errno.EINVAL)
        super().madvise(*given)


def refuse_as_windows() -> None:
    vars(os)["O_BINARY"] = BINARY
    opened, written, closed, imported = os.open, os.write, os.close, builtins.__import__

    def open_(path: Any, flags: int, *given: Any, **named: Any) -> int:
        ours = is_ours()
        if ours and os.path.isdir(path):
            refuse(errno.EACCES, path)
        descriptor = opened(path, flags & ~BINARY, *given, **named)
        if ours and not flags & BINARY:
            text_mode.add(descriptor)
        return descriptor

    def write(descriptor: int, content: Any) -> int:
        if descriptor in text_mode:
            written(descriptor, bytes(content).replace(b"\n", b"\r\n"))
            return len(content)
        return written(descriptor, content)

    def close(descriptor: int) -> None:
        text_mode.discard(descriptor)
        closed(descriptor)

    def import_(name: str, *given: Any, **named: Any) -> Any:
        if name in OF_UNIX and is_ours():
            raise ModuleNotFoundError(f"No module named {name!r} (as on {SYSTEM})", name=name)
        importer = (given[0] if given else None) or {}
        if name == "msvcrt" and str(importer.get("__file__")).startswith(OURS):  # Python's library looks for it too
            return SimpleNamespace(LK_UNLCK=0, LK_NBLCK=2, locking=locking)
        return imported(name, *given, **named)

    def locking(descriptor: int, mode: int, count: int) -> None:
        """Lock bytes of a file from its position on, as Windows' C library does."""
        place = os.lseek(descriptor, 0, os.SEEK_CUR)
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB if mode else fcntl.LOCK_UN, count, place)

    vars(os).update(open=open_, write=write, close=close)
    vars(builtins)["__import__"] = import_
    vars(shutil)["_use_fd_functions"] = False
    for name in ("rename", "replace", "unlink", "remove", "rmdir"):
        refusing(os, name, check_unused)
    refusing(os, "fsync", check_synced)
    refusing(select, "select", check_waited)
    del os.killpg, os.sched_getaffinity
    warnings.filterwarnings("ignore", category=EncodingWarning)
    ours = "|".join(re.escape(os.path.basename(os.path.dirname(path))) for path in OURS)
    warnings.filterwarnings("error", category=EncodingWarning, module=rf"({ours})\b")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.isatty():
            stream.reconfigure(encoding="cp1252")


def refuse_as_macos() -> None:
    import resource

    refusing(resource, "setrlimit", check_limit)


SYSTEM = os.environ.get("REFUSING", "")
if SYSTEM:
    vars(mmap)["mmap"] = Map
    {"windows": refuse_as_windows, "macos": refuse_as_macos}[SYSTEM]()
