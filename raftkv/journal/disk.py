"""The only seam between the journal and a file system.

A `Disk` is one directory. What it promises is what POSIX does, no more: bytes written are durable once
`File.sync` has returned, names once `sync_directory` has; until then a power cut may keep any part of
them. Every method may raise OSError and blocks; none is retried by anybody.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Protocol

from raftkv.errors import JournalLocked


class File(Protocol):
    """One new file, open for writing."""

    def preallocate(self, size: int) -> bool:
        """Reserves `size` bytes that read as zeros; False where the file system can't."""

    def write(self, offset: int, data: bytes) -> None:
        """All of `data`, or OSError with any part of it written."""

    def sync(self) -> None:
        """fdatasync: the data, and what is needed to read it back."""

    def close(self) -> None: ...


class Disk(Protocol):
    @property
    def directory(self) -> str:
        """Its path, for messages."""

    def lock(self) -> None:
        """Holds the directory until `close`. Raises JournalLocked where another process does."""

    def names(self) -> list[str]: ...

    def read(self, name: str, size: int = -1) -> bytes:
        """The file from its start: `size` bytes, or all."""

    def create(self, name: str) -> File:
        """A new, empty file; OSError where the name is taken."""

    def rename(self, name: str, to: str) -> None: ...

    def unlink(self, name: str) -> None: ...

    def sync_directory(self) -> None: ...

    def close(self) -> None: ...


_NO_PREALLOCATION = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class OsFile:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def preallocate(self, size: int) -> bool:
        try:
            os.posix_fallocate(self._descriptor, 0, size)
        except OSError as error:
            if error.errno in _NO_PREALLOCATION:
                return False
            raise
        return True

    def write(self, offset: int, data: bytes) -> None:
        written = os.pwrite(self._descriptor, data, offset)
        while written < len(data):  # each turn moves forward: a write of nothing raises
            count = os.pwrite(self._descriptor, memoryview(data)[written:], offset + written)
            if count == 0:
                raise OSError(errno.EIO, "the file system wrote nothing and gave no reason")
            written += count

    def sync(self) -> None:
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class OsDisk:
    """A real directory, made if it is missing."""

    def __init__(self, directory: Path) -> None:
        self._path = directory
        _make_durably(directory)
        self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)

    @property
    def directory(self) -> str:
        return str(self._path)

    def lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JournalLocked(
                f"another process uses the journal in {self.directory}: two nodes can't share a data "
                "directory. Stop the other one, or give this one a directory of its own."
            ) from error

    def names(self) -> list[str]:
        return sorted(os.listdir(self._path))

    def read(self, name: str, size: int = -1) -> bytes:
        with (self._path / name).open("rb") as file:
            return file.read(size)

    def create(self, name: str) -> OsFile:
        return OsFile(os.open(self._path / name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))

    def rename(self, name: str, to: str) -> None:
        os.rename(self._path / name, self._path / to)

    def unlink(self, name: str) -> None:
        os.unlink(self._path / name)

    def sync_directory(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Releases the lock too."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _make_durably(directory: Path) -> None:
    if directory.is_dir():
        return
    _make_durably(directory.parent)
    directory.mkdir(exist_ok=True)
    descriptor = os.open(directory.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
