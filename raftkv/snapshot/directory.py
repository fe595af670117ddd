"""Snapshots as files of one directory: `file:///path`, and what every node keeps for itself.

    <id>.00000.chunk  <id>.00001.chunk  …     written and synced one by one
    <id>.manifest.tmp -> <id>.manifest        the rename is what makes the snapshot one

Order is all there is to it. Publishing: each chunk synced; the manifest synced under its temporary name;
the directory synced, so that every name is durable; then the rename, and the directory synced again.
Deleting goes the other way: the manifest, the directory synced, then the chunks. So a manifest is never there
without every chunk, and a chunk without a manifest is something unfinished, which opening the store removes.
Only names that this store makes are ever touched.

The directory is one node's own: opening it removes what is unfinished.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path

from raftkv.errors import SnapshotDamaged, SnapshotMissing
from raftkv.journal.disk import Disk, OsDisk
from raftkv.snapshot import codec
from raftkv.snapshot.codec import Manifest, chunk_name, manifest_name
from raftkv.snapshot.store import damaged


class DirectoryStore:
    """A `Store`. `clock` gives Unix time in seconds, for names."""

    advice = (
        "Put back an intact copy of the file, or move the "
        "snapshot's files away: the node then starts from an older snapshot if its journal reaches back to "
        "it, and otherwise has to be re-admitted with an empty data directory."
    )

    def __init__(self, disk: Disk, clock: Callable[[], float] = time.time) -> None:
        self._disk = disk
        self._clock = clock
        self._received: dict[str, set[int]] = {}
        self._held: tuple[str, ...] = ()  # replaced whole: read by one thread, changed by another
        self._remove_unfinished()

    @classmethod
    def open(cls, directory: Path) -> DirectoryStore:
        return cls(OsDisk(directory))

    def close(self) -> None:
        self._disk.close()

    def time_ms(self) -> int:
        return int(self._clock() * 1000)

    def location(self, name: str) -> str:
        return f"{self._disk.directory}/{name}"

    # --- writing -----------------------------------------------------------------------------------

    def begin(self, snapshot: str) -> DirectoryPublication:
        if manifest_name(snapshot) in self._disk.names():
            raise FileExistsError(f"there is a snapshot {snapshot} in {self._disk.directory}")
        return DirectoryPublication(self._disk, snapshot)

    def receive(self, manifest: Manifest) -> DirectoryReceiver:
        """Goes on with the chunks that this process has synced. What else is there of the snapshot may be
        cut, or may not be on the disk although it reads well (after a failed sync): it is written anew."""
        durable = self._received.get(manifest.id, set())
        self._received = {manifest.id: durable}  # one at a time: another offer means that this one is over
        committed = manifest_name(manifest.id) in self._disk.names()
        if committed and self._is_intact(manifest):
            durable.update(range(len(manifest.chunks)))
        elif committed:
            self.delete(manifest.id)
            durable.clear()
            committed = False
        else:
            _remove_chunks(self._disk, manifest.id, keep=durable)
        return DirectoryReceiver(self._disk, manifest, durable, committed)

    def delete(self, snapshot: str) -> None:
        self._require(snapshot)
        self._disk.unlink(manifest_name(snapshot))
        self._disk.sync_directory()
        _remove_chunks(self._disk, snapshot)

    def retain(self, count: int) -> None:
        snapshots = self._ids()
        for snapshot in snapshots[: max(len(snapshots) - count, 0)]:
            if snapshot not in self._held:
                self.delete(snapshot)

    @contextlib.contextmanager
    def hold(self, snapshot: str) -> Iterator[None]:
        self._held = (*self._held, snapshot)
        try:
            yield
        finally:
            held = list(self._held)
            held.remove(snapshot)
            self._held = tuple(held)

    def _remove_unfinished(self) -> None:
        names = set(self._disk.names())
        for name in sorted(names):
            snapshot = codec.snapshot_of_file(name)
            if snapshot is not None and (name.endswith(".tmp") or manifest_name(snapshot) not in names):
                self._disk.unlink(name)
        # Also where nothing went: a manifest whose process was killed before its last sync can be read back,
        # and is not durable yet. The journal behind it must not go before it is.
        self._disk.sync_directory()

    # --- reading -----------------------------------------------------------------------------------

    def list(self) -> list[Manifest]:
        return [self.manifest(snapshot) for snapshot in self._ids()]

    def _ids(self) -> Sequence[str]:
        return sorted(
            snapshot
            for name in self._disk.names()
            if (snapshot := codec.snapshot_of_file(name)) is not None and name == manifest_name(snapshot)
        )

    def manifest(self, snapshot: str) -> Manifest:
        name = manifest_name(snapshot)
        try:
            manifest = codec.decode_manifest(self._read(snapshot, name))
        except SnapshotDamaged as error:
            raise damaged(self, name, error) from error
        if manifest.id != snapshot:
            raise damaged(self, name, f"it is the manifest of {manifest.id}")
        return manifest

    def read_chunk(self, snapshot: str, number: int, offset: int = 0, size: int | None = None) -> bytes:
        data = self._read(snapshot, chunk_name(snapshot, number), -1 if size is None else offset + size)
        return data[offset:] if offset else data

    def _read(self, snapshot: str, name: str, size: int = -1) -> bytes:
        if codec.is_snapshot_id(snapshot):
            with contextlib.suppress(FileNotFoundError):
                return self._disk.read(name, size)
        raise SnapshotMissing(f"there is no {name!r} in {self._disk.directory}")

    def _is_intact(self, manifest: Manifest) -> bool:
        try:
            for number, chunk in enumerate(manifest.chunks):
                codec.check_chunk(chunk, self.read_chunk(manifest.id, number))
            return self.manifest(manifest.id) == manifest
        except (SnapshotDamaged, SnapshotMissing):
            return False

    def _require(self, snapshot: str) -> None:
        if not codec.is_snapshot_id(snapshot) or manifest_name(snapshot) not in self._disk.names():
            raise SnapshotMissing(f"there is no snapshot {snapshot!r} in {self._disk.directory}")


class DirectoryPublication:
    """Shared by both ways in: a snapshot made here, and one received."""

    def __init__(self, disk: Disk, snapshot: str) -> None:
        self._disk = disk
        self._snapshot = snapshot
        self._done = False

    def write_chunk(self, number: int, data: bytes) -> None:
        self._write(chunk_name(self._snapshot, number), data)

    def commit(self, manifest: Manifest) -> None:
        name = manifest_name(self._snapshot)
        self._write(f"{name}.tmp", codec.encode_manifest(manifest))
        self._disk.sync_directory()
        self._disk.rename(f"{name}.tmp", name)
        self._disk.sync_directory()
        self._done = True

    def abort(self) -> None:
        if self._done:
            return
        # A rename whose sync failed may show a manifest: it goes first, as in any deletion.
        name = manifest_name(self._snapshot)
        for each in (name, f"{name}.tmp"):
            if each in self._disk.names():
                self._disk.unlink(each)
        self._disk.sync_directory()
        _remove_chunks(self._disk, self._snapshot)

    def _write(self, name: str, data: bytes) -> None:
        file = self._disk.create(name)
        try:
            file.write(0, data)
            file.sync()
        finally:
            file.close()


class DirectoryReceiver:
    """A `Receiver`. `durable` has the numbers of the chunks that this process synced, and outlives it."""

    def __init__(self, disk: Disk, manifest: Manifest, durable: set[int], committed: bool) -> None:
        self._disk = disk
        self._manifest = manifest
        self._durable = durable
        self._committed = committed
        self._publication = DirectoryPublication(disk, manifest.id)

    def missing(self) -> Sequence[int]:
        return [number for number in range(len(self._manifest.chunks)) if number not in self._durable]

    def write_chunk(self, number: int, data: bytes) -> None:
        if not 0 <= number < len(self._manifest.chunks):
            raise SnapshotDamaged(f"snapshot {self._manifest.id} has no chunk {number}")
        if number in self._durable:
            return
        codec.check_chunk(self._manifest.chunks[number], data)
        self._publication.write_chunk(number, data)
        self._durable.add(number)

    def commit(self) -> None:
        if missing := self.missing():
            raise SnapshotDamaged(f"snapshot {self._manifest.id} still misses its chunks {missing}")
        if not self._committed:
            self._publication.commit(self._manifest)
            self._committed = True

    def abort(self) -> None:
        if not self._committed:
            self._durable.clear()
            self._publication.abort()


def _remove_chunks(disk: Disk, snapshot: str, keep: Container[int] = ()) -> None:
    for name in disk.names():
        number = codec.number_of_chunk(name) if codec.snapshot_of_file(name) == snapshot else None
        if number is not None and number not in keep:
            disk.unlink(name)
    disk.sync_directory()
