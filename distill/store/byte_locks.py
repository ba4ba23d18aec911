"""Locks on single bytes of a file, held by a process and freed by the kernel when it dies, however it dies.

Processes on one machine, or on several that share a disk, agree by them who asks and who writes what. POSIX frees all
locks of a process on a file as soon as the process closes that file anywhere, and never lets a process wait for itself.
So a process opens each lock file once, whoever uses it, and remembers which of its parts holds which byte.

The file also holds notes for all who lock it. A shared disk may show a new file in a folder some time later, but what a
lock file holds is asked of the disk again whenever a lock in it is granted.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path
from typing import Self

from toolkit.disk import BINARY
from toolkit.errors import InputError

FIRST_BYTE = 2**20
"""The locked bytes lie behind all notes, since Windows lets nobody read a byte that is locked."""
NOTING = -1
"""Stands for the byte that is locked while a note is written."""
NOTE_PAUSE_S = 0.002
_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
"""What systems say when another process holds a lock."""


class ByteLocks:
    """The locks that one part of this process holds on the bytes of one file."""

    def __init__(self, path: Path) -> None:
        self._file = _LockFile.open(path)
        self._held: set[int] = set()

    def take(self, byte: int) -> bool:
        """Lock one byte, and return at once whether that worked: false if anyone else holds it."""
        if byte in self._held:
            return True
        if not self._file.take(byte):
            return False
        self._held.add(byte)
        return True

    def free(self, byte: int) -> None:
        """Free a byte that this object holds."""
        self._held.remove(byte)
        self._file.free(byte)

    def note(self, text: str) -> None:
        """Write a line for all who use the file."""
        while not self.take(NOTING):
            time.sleep(NOTE_PAUSE_S)
        self._file.append(f"\n{text}\n".encode())  # the line before may be half a note
        self.free(NOTING)

    def notes(self) -> list[str]:
        """Return what was noted so far, as it was when a lock was last granted or later."""
        content = self._file.read().decode(errors="replace")
        return [line for line in content[: content.rfind("\n") + 1].split("\n") if line]

    def close(self) -> None:
        """Free all that is held."""
        for byte in sorted(self._held):
            self.free(byte)
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _LockFile:
    """A lock file as this process has it open, and which of its bytes some part of the process holds."""

    _open: dict[Path, _LockFile] = {}  # noqa: RUF012
    _guard = threading.Lock()

    def __init__(self, path: Path) -> None:
        self.path, self.users, self.process = path, 0, os.getpid()
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | BINARY, 0o644)
        self.taken: set[int] = set()

    @classmethod
    def open(cls, path: Path) -> _LockFile:
        path = path.resolve()
        with cls._guard:
            file = cls._open.get(path)
            if file is None or file.process != os.getpid():  # a child inherits no locks
                file = cls._open[path] = cls(path)
            file.users += 1
            return file

    def close(self) -> None:
        with self._guard:
            self.users -= 1
            if self.users == 0 and self.process == os.getpid():
                self._open.pop(self.path)
                os.close(self.descriptor)

    def take(self, byte: int) -> bool:
        with self._guard:
            if byte in self.taken:
                return False
            try:
                _change(self.descriptor, byte, locked=True)
            except OSError as error:
                if error.errno in _TAKEN:
                    return False
                raise InputError(
                    f"{self.path} cannot be locked ({error.strerror}), and without locks two processes could pay for "
                    "the same answer; choose an --out on a disk whose file system has locks"
                ) from error
            self.taken.add(byte)
            return True

    def append(self, content: bytes) -> None:
        """Write at the end; a full disk takes it whole or not at all."""
        with self._guard:
            size = os.lseek(self.descriptor, 0, os.SEEK_END)
            try:
                if os.write(self.descriptor, content) != len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                os.ftruncate(self.descriptor, size)
                error.filename = str(self.path)
                raise

    def read(self) -> bytes:
        with self._guard:
            os.lseek(self.descriptor, 0, os.SEEK_SET)
            return os.read(self.descriptor, FIRST_BYTE)

    def free(self, byte: int) -> None:
        with self._guard:
            self.taken.discard(byte)
            if self.process == os.getpid():
                _change(self.descriptor, byte, locked=False)


def _change(descriptor: int, byte: int, *, locked: bool) -> None:
    """Lock or unlock a byte; raises `OSError` if another process holds it."""
    place = FIRST_BYTE + byte
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        import msvcrt

        os.lseek(descriptor, place, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK if locked else msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined]
    else:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB if locked else fcntl.LOCK_UN, 1, place)
