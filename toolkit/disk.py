"""What was written is on the disk, on systems that differ in what they allow for that.

Windows syncs a file only through a handle that may write, and opens no folder; some file systems sync no folder either.
Names in a folder are then safe as far as the file system's own journal makes them so.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

BINARY = getattr(os, "O_BINARY", 0)
"""For `os.open`: without it Windows changes the ends of lines."""


def sync(path: Path) -> None:
    """Return when a file's bytes, or where that is possible the names in a folder, outlive a loss of power."""
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
