"""Makes sure that written files are on the disk, on systems that differ in how they allow it.

Windows syncs a file only through a handle that may write, and opens no folder; some file systems sync no folder either.
Names in a folder are then as safe as the file system's own journal makes them.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

BINARY = getattr(os, "O_BINARY", 0)
"""A flag for `os.open`, without which Windows changes line ends."""


def sync(path: Path) -> None:
    """Return when a file's bytes, or where possible the names in a folder, would survive a loss of power."""
    if path.is_dir():
        with suppress(OSError):
            _sync(path, os.O_RDONLY)
        return
    mode = path.stat().st_mode
    if not mode & stat.S_IWUSR:  # a copy of a file that is read-only elsewhere
        path.chmod(mode | stat.S_IWUSR)
    _sync(path, os.O_RDWR | BINARY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
