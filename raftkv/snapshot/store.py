"""Where snapshots are kept, and how one gets there.

A `Store` keeps whole snapshots: one that `list` names has every chunk, durable, at any moment and after any
crash. Every method blocks and belongs on a worker thread; calls may come from several, but those that
write (`begin`, `receive`, `delete`, `retain`) from one at a time.

    SnapshotWriter  pages of an image -> chunks -> Publication      the node that makes a snapshot
    Receiver        chunks of a known manifest                       the node that is sent one
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from raftkv.errors import SnapshotDamaged
from raftkv.kv.image import Image, Page, Section
from raftkv.model import Membership
from raftkv.snapshot.codec import (
    CHUNK_RAW_BYTES,
    FORMAT,
    FORMAT_WITH_TOKENS,
    Chunk,
    Manifest,
    chunk_name,
    compress,
    encode_page,
    snapshot_id,
)

_SAME_STATE_MAX = 1_000  # snapshots of one index within a second: a clock that stands still, or a bug


class Publication(Protocol):
    """A snapshot in the making. Nothing of it shows before `commit` has returned."""

    def write_chunk(self, number: int, data: bytes) -> None:
        """Durable when it returns. Each number once."""

    def commit(self, manifest: Manifest) -> None:
        """Shows the snapshot, atomically and durably. Where it raises, call `abort`."""

    def abort(self) -> None:
        """Takes away what was written. Idempotent."""


class Receiver(Protocol):
    """A snapshot whose manifest is known, and whose chunks come one by one, in any order."""

    def missing(self) -> Sequence[int]:
        """Numbers of the chunks that are not there yet, or not as the manifest has them; ascending."""

    def write_chunk(self, number: int, data: bytes) -> None:
        """Verifies, then writes. Raises SnapshotDamaged, with nothing changed, for what is not that chunk."""

    def commit(self) -> None:
        """Shows the snapshot, atomically and durably. Raises SnapshotDamaged while chunks are missing."""

    def abort(self) -> None:
        """Takes away what came. Without it, the next `receive` of the same manifest goes on from here."""


class Reader(Protocol):
    """Where whole snapshots can be read: a `Store`, or what was published."""

    @property
    def advice(self) -> str:
        """What to do about a snapshot that can't be read."""

    def manifest(self, snapshot: str) -> Manifest:
        """Raises SnapshotMissing, SnapshotDamaged."""

    def read_chunk(self, snapshot: str, number: int, offset: int = 0, size: int | None = None) -> bytes:
        """Stored bytes, not verified. Raises SnapshotMissing where the snapshot or the chunk is not there."""

    def location(self, name: str) -> str:
        """Where the file `name` is, for messages."""


class Store(Reader, Protocol):
    def time_ms(self) -> int:
        """Unix time for a new snapshot's name."""

    def begin(self, snapshot: str) -> Publication:
        """A new snapshot under that id. Raises FileExistsError where there is one."""

    def receive(self, manifest: Manifest) -> Receiver: ...

    def list(self) -> list[Manifest]:
        """Oldest first. Raises SnapshotDamaged where a manifest can't be read: never a shorter list."""

    def delete(self, snapshot: str) -> None:
        """Raises SnapshotMissing."""

    def retain(self, count: int) -> None:
        """Deletes all but the newest `count`, by their ids: what can't be read goes like the rest.
        Not those that are held."""

    def hold(self, snapshot: str) -> AbstractContextManager[None]:
        """While it lasts, `retain` leaves the snapshot alone: it is being copied elsewhere. Any thread."""


class SnapshotWriter:
    """Makes one snapshot out of an image's pages. On a worker thread but for the constructor, which only
    notes what the image is of. After any exception: `abort`."""

    def __init__(
        self, store: Store, *, cluster: str, index: int, term: int, membership: Membership, image: Image
    ) -> None:
        assert image.state.index == index, f"the image is of index {image.state.index}, not {index}"
        self._store = store
        self._cluster = cluster
        self._term = term
        self._membership = membership
        self._state = image.state
        self._time_ms = 0
        self._id = ""
        self._publication: Publication | None = None
        self._pages: list[bytes] = []
        self._pages_bytes = 0
        self._chunks: list[Chunk] = []
        self._counts = dict.fromkeys(Section, 0)
        self._data_bytes = 0
        self._whole = hashlib.sha256()

    def write(self, page: Page) -> None:
        """Pages in the image's order. Compresses and writes when a chunk is full."""
        encoded = encode_page(page)
        self._counts[page.section] += len(page)
        if page.section is Section.ITEMS:
            self._data_bytes += sum(map(len, page.keys)) + sum(map(len, page.records))
        self._pages.append(encoded)
        self._pages_bytes += len(encoded)
        if self._pages_bytes >= CHUNK_RAW_BYTES:
            self._close_chunk()

    def commit(self) -> Manifest:
        """Writes what is left, and the manifest: the snapshot is durable and shows."""
        if self._pages:
            self._close_chunk()
        publication = self._begun()
        manifest = self._manifest()
        publication.commit(manifest)
        return manifest

    def abort(self) -> None:
        """Idempotent."""
        self._pages.clear()
        if self._publication is not None:
            self._publication.abort()

    def _close_chunk(self) -> None:
        publication = self._begun()
        raw = b"".join(self._pages)
        self._pages, self._pages_bytes = [], 0
        self._whole.update(raw)
        data = compress(raw)
        number = len(self._chunks)
        digest = hashlib.sha256(data).hexdigest()
        publication.write_chunk(number, data)
        self._chunks.append(Chunk(chunk_name(self._id, number), len(data), len(raw), digest))

    def _begun(self) -> Publication:
        if self._publication is None:
            self._publication = self._begin()
        return self._publication

    def _begin(self) -> Publication:
        first_ms = self._store.time_ms()
        for self._time_ms in range(first_ms, first_ms + _SAME_STATE_MAX):
            self._id = snapshot_id(
                index=self._state.index,
                term=self._term,
                revision=self._state.revision,
                time_ms=self._time_ms,
                cluster=self._cluster,
            )
            with contextlib.suppress(FileExistsError):
                return self._store.begin(self._id)
        raise FileExistsError(
            f"there are {_SAME_STATE_MAX} snapshots of this very state and time: {self._id}"
        )

    def _manifest(self) -> Manifest:
        counts = self._counts
        return Manifest(
            id=self._id,
            cluster=self._cluster,
            index=self._state.index,
            term=self._term,
            revision=self._state.revision,
            time_ms=self._time_ms,
            log_time_ms=self._state.log_time_ms,
            sequence=self._state.sequence,
            membership=self._membership,
            keys=counts[Section.ITEMS],
            data_bytes=self._data_bytes,
            idempotency_records=counts[Section.PLAIN] + counts[Section.OUTCOMES],
            bytes=sum(chunk.bytes for chunk in self._chunks),
            raw_bytes=sum(chunk.raw_bytes for chunk in self._chunks),
            sha256=self._whole.hexdigest(),
            chunks=tuple(self._chunks),
            format=FORMAT_WITH_TOKENS if counts[Section.TOKENS] else FORMAT,
            state_hash=self._state.hash.hex(),
        )


def damaged(store: Reader, name: str, reason: object) -> SnapshotDamaged:
    """The same words wherever a snapshot turns out to be unusable: which file, why, what to do."""
    return SnapshotDamaged(f"snapshot file {store.location(name)}: {reason}. {store.advice}")
