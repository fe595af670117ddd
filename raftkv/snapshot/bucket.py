"""Where published snapshots lie: objects by name, and one small index that changes atomically.

    Bucket          what `remote.py` needs of a place; `rados.py` has the other one
    DirectoryBucket `file:///path`: a directory that every member can write, such as a mounted file system

    objects/<name>     one file each, written aside, synced, renamed
    index              JSON {"generation": n, "entries": {key: text}}, replaced whole under a lock
                       An entry "format" says its format; without one it is 1
    index.lock         flock: held for one change of the index, and gone with its process

The index says what is there; names are never listed to find that out, since a listing can leave things out
without an error (`list_objects` of the rados binding does).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from raftkv.errors import SnapshotDamaged, SnapshotMissing, StoreUnavailable

# A change of the index takes milliseconds; who waits longer waits for a process that hangs.
LOCK_WAIT_S = 15.0
_LOCK_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Index:
    """`generation` grows with every change; 0: there is no index yet."""

    generation: int = 0
    entries: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises SnapshotDamaged for a store that a newer release keeps."""
        written = self.entries.get("format", b"1")
        if written != b"1":
            raise SnapshotDamaged(
                f"the store's index is of format {written.decode(errors='replace')[:20]}, this release reads "
                "format 1: start the release that wrote it, or a newer one"
            )


class Bucket(Protocol):
    """Every method blocks, for seconds where the place is away, and raises StoreUnavailable for that. After
    its reason "timed_out", a write or a change may have happened, or may yet."""

    @property
    def url(self) -> str:
        """For messages and status; without secrets."""

    def write(self, objects: Iterable[tuple[str, bytes]]) -> None:
        """All durable when it returns; several on their way at once. Overwrites. Takes from the iterable as
        it goes, so memory is bounded by what is on its way."""

    def create(self, name: str, data: bytes) -> None:
        """Durable when it returns. Raises FileExistsError where the name is taken."""

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        """Raises SnapshotMissing."""

    def remove(self, names: Iterable[str]) -> None:
        """What is not there is no error."""

    def index(self) -> Index: ...

    def change(self, generation: int, put: Mapping[str, bytes], drop: Iterable[str]) -> bool:
        """Changes the index, atomically and durably, if it is still at `generation`; else False."""

    def close(self) -> None: ...


class DirectoryBucket:
    def __init__(self, directory: Path) -> None:
        self._root = directory
        self._objects = directory / "objects"
        self._index = directory / "index"

    @property
    def url(self) -> str:
        return self._root.as_uri()

    def close(self) -> None: ...

    # --- objects -----------------------------------------------------------------------------------

    def write(self, objects: Iterable[tuple[str, bytes]]) -> None:
        with self._told():
            self._make()
            for name, data in objects:
                _replace(self._objects / name, data)
            _sync_directory(self._objects)

    def create(self, name: str, data: bytes) -> None:
        path = self._objects / name
        with self._told():
            self._make()
            with self._locked():  # a deposed leader may try the same name, and write it aside
                aside = _write_aside(path, data)
                try:
                    os.link(aside, path)  # unlike a rename, refuses a name that is taken
                finally:
                    os.unlink(aside)
                _sync_directory(self._objects)

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        with self._told():
            try:
                with (self._objects / name).open("rb") as file:
                    file.seek(offset)
                    return file.read(-1 if size is None else size)
            except FileNotFoundError as error:
                raise SnapshotMissing(f"there is no {name!r} in {self.url}") from error

    def remove(self, names: Iterable[str]) -> None:
        with self._told():
            for name in names:
                for each in (name, f"{name}.tmp"):
                    (self._objects / each).unlink(missing_ok=True)
            if self._objects.is_dir():
                _sync_directory(self._objects)

    # --- the index ---------------------------------------------------------------------------------

    def index(self) -> Index:
        with self._told():
            try:
                data = self._index.read_bytes()
            except FileNotFoundError:
                return Index()
        try:
            document = json.loads(data)
            entries = {key: text.encode() for key, text in document["entries"].items()}
            return Index(int(document["generation"]), entries)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise SnapshotDamaged(
                f"{self._index}: not an index of snapshots ({error}): put back an intact copy"
            ) from error

    def change(self, generation: int, put: Mapping[str, bytes], drop: Iterable[str]) -> bool:
        with self._told():
            self._make()
            with self._locked():
                now = self.index()
                if now.generation != generation:
                    return False
                entries = {**now.entries, **put}
                for key in drop:
                    entries.pop(key, None)
                text = {key: entries[key].decode() for key in sorted(entries)}
                _replace(self._index, json.dumps({"generation": generation + 1, "entries": text}).encode())
                _sync_directory(self._root)
        return True

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self._root / "index.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            until = time.monotonic() + LOCK_WAIT_S
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > until:
                        raise StoreUnavailable(
                            f"another process has held {self._root / 'index.lock'} for {LOCK_WAIT_S:g} s: "
                            "find and stop it",
                            reason="locked",
                        ) from error
                    time.sleep(_LOCK_POLL_S)
            yield
        finally:
            os.close(descriptor)

    # --- inside ------------------------------------------------------------------------------------

    def _make(self) -> None:
        if not self._objects.is_dir():
            self._objects.mkdir(parents=True, exist_ok=True)
            _sync_directory(self._root)
            _sync_directory(self._root.parent)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What the file system refuses, in words; `FileExistsError` is an answer."""
        try:
            yield
        except FileExistsError:
            raise
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise StoreUnavailable(
                f"snapshot store {self.url}: {error.strerror or error}"
                + (": make room there, or keep fewer snapshots" if full else ": is it mounted and writable?"),
                reason="full" if full else "refused" if error.errno in (errno.EACCES, errno.EPERM) else "io",
            ) from error


def _write_aside(path: Path, data: bytes) -> Path:
    aside = path.with_name(f"{path.name}.tmp")
    with open(aside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return aside


def _replace(path: Path, data: bytes) -> None:
    os.replace(_write_aside(path, data), path)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
