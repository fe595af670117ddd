"""Keeps the log bounded: an image of the state goes to disk, then the entries behind it go. Sans-IO.

Order is safety here: the snapshot is durable (every file and directory synced, then renamed into place)
before the journal drops an entry that it covers. The image is taken at one index in no time; its pages are
read on the loop, a few hundred records at a time, and encoded, compressed and written on the snapshot
lane, one page on its way at a time: so the loop is never held, and memory stays bounded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raftkv.errors import Fatal
from raftkv.snapshot.codec import Manifest, encode_manifest
from raftkv.snapshot.store import SnapshotWriter, Store

if TYPE_CHECKING:
    from raftkv.kv.image import Image
    from raftkv.raft.engine import Engine, Ports

log = logging.getLogger("raftkv.snapshot")

# Records a page: about 0.1 ms of the loop's time.
PAGE_RECORDS = 250
# And at most this many between two ticks, so that clients' requests have the machine to themselves most of
# the time: a million keys take 10 s. Where the log outgrows its bound all the same, nothing is held back.
RECORDS_A_TICK = 2_000
# After a failure (a full disk, mostly) the log stays over its bound: try again, but not at every input.
RETRY_S = 10.0

Done = Callable[[Manifest | BaseException], None]


@dataclass(frozen=True, slots=True)
class CompactionLimits:
    """A snapshot is due when the log holds this much beyond the last one. A tenth as much of what the
    snapshot covers stays, so that a follower which was away for a moment needs no snapshot."""

    log_entries_max: int = 100_000
    log_bytes_max: int = 64 << 20
    snapshots_kept: int = 2

    @property
    def log_entries_kept(self) -> int:
        return self.log_entries_max // 10

    @property
    def log_bytes_kept(self) -> int:
        return self.log_bytes_max // 10


class Compaction:
    """At most one snapshot under way. `manifest` is the newest durable one, None before the first."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        ports: Ports,
        snapshot: Manifest | None,
        limits: CompactionLimits,
        clock: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._not_before = float("-inf")
        self._records_left = RECORDS_A_TICK
        self._parked = False  # a snapshot is being made, and waits for the next tick
        self._store = store
        self._ports = ports
        self._limits = limits
        self._image: Image | None = None
        self._writer: SnapshotWriter | None = None
        self._waiting: list[Done] = []
        self._began = 0.0
        self.made = 0  # snapshots of its own since the start, as what follows
        self.failures = 0
        self.failures_in_row = 0
        self.seconds_last = 0.0
        self.manifest: Manifest | None = None
        self.manifest_bytes: bytes | None = None
        self.kept: tuple[Manifest, ...] = (
            () if snapshot is None else (snapshot,)
        )  # in the store, oldest first
        if snapshot is not None:
            self._adopt(snapshot)

    @property
    def running(self) -> bool:
        return self._writer is not None

    def tick(self) -> None:
        """Time for some more of a snapshot that is being made."""
        self._records_left = RECORDS_A_TICK
        if self._parked:
            self._parked = False
            self._step(None)

    @property
    def _outgrown(self) -> bool:
        wal, limits = self._engine.wal, self._limits
        return len(wal) >= 2 * limits.log_entries_max or wal.log_bytes >= 2 * limits.log_bytes_max

    def pump(self) -> None:
        """Starts a snapshot where the log has grown to its bound."""
        wal = self._engine.wal
        limits = self._limits
        if self.running or (len(wal) < limits.log_entries_max and wal.log_bytes < limits.log_bytes_max):
            return
        if self._clock() < self._not_before:
            return
        covered = self.manifest.index if self.manifest is not None else 1
        if self._engine.core.last_applied > max(covered, self._engine.core.first_index):
            self.start()

    def request(self, done: Done) -> None:
        """Asks for a snapshot of at least this moment's state; `done` gets its manifest, or why not."""
        if self.manifest is not None and self.manifest.index == self._engine.core.last_applied:
            done(self.manifest)
            return
        self._waiting.append(done)
        if not self.running:
            self.start()

    def start(self) -> None:
        engine = self._engine
        index = engine.core.last_applied
        term = engine.core.term_at(index)
        assert term is not None, f"the entry at last_applied {index} is not in the log"
        self._asked, self._waiting = self._waiting, []
        self._began = self._clock()
        self._image = engine.machine.image()
        self._writer = SnapshotWriter(
            self._store,
            cluster=engine.membership.cluster,
            index=index,
            term=term,
            membership=engine.core.membership_at(index),
            image=self._image,
        )
        self._step(None)

    def _step(self, result: Any) -> None:
        image, writer = self._image, self._writer
        if isinstance(result, BaseException):
            self._finish(result)
            return
        assert image is not None
        assert writer is not None
        if self._records_left <= 0 and not self._outgrown:
            self._parked = True
            return
        page = image.next_page(PAGE_RECORDS)
        self._records_left -= len(page)
        if page:
            self._ports.run("snapshot", lambda: writer.write(page), self._step)
        else:
            self._ports.run("snapshot", writer.commit, self._finish)

    def _finish(self, result: Manifest | BaseException) -> None:
        image, writer, asked = self._image, self._writer, self._asked
        assert image is not None
        assert writer is not None
        image.close()
        self._image = self._writer = None
        if isinstance(result, BaseException):
            self.failures += 1
            self.failures_in_row += 1
            log.error("snapshot_failed node=%s error=%s", self._engine.name, result)
            self._not_before = self._clock() + RETRY_S
            self._ports.run("snapshot", writer.abort, lambda _: None)
            if isinstance(result, Fatal):
                self._engine.fail(result)
        else:
            self.made += 1
            self.failures_in_row = 0
            self.seconds_last = self._clock() - self._began
            self.published(result)
        for done in asked:
            done(result)
        if self._waiting:
            self.start()

    def published(self, manifest: Manifest) -> None:
        """`manifest` is durable here: entries behind it may go, and so may older snapshots."""
        if self.manifest is not None and manifest.index <= self.manifest.index:
            return
        self._adopt(manifest)
        self._drop_entries(manifest.index)
        self._ports.run("snapshot", self._retain, self._retained)

    def adopt_foreign(self, manifest: Manifest) -> None:
        """A snapshot that the leader sent is durable here. The log is aligned by whoever installs it."""
        if self.manifest is None or manifest.index > self.manifest.index:
            self._adopt(manifest)
            self._ports.run("snapshot", self._retain, self._retained)

    def _retain(self) -> list[Manifest]:
        self._store.retain(self._limits.snapshots_kept)
        return self._store.list()

    def _adopt(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.manifest_bytes = encode_manifest(manifest)

    def _drop_entries(self, snapshot_index: int) -> None:
        """Behind the snapshot, but not the newest entries: they serve followers that were away shortly."""
        wal = self._engine.wal
        first = self._engine.core.first_index
        index, kept_bytes = snapshot_index, 0
        while index > first and snapshot_index - index < self._limits.log_entries_kept:
            kept_bytes += len(wal[index - first][0])
            if kept_bytes > self._limits.log_bytes_kept:
                break
            index -= 1
        if index > first:
            wal.compact(index, wal[index - first][2])

    def _retained(self, result: Any) -> None:
        if isinstance(result, BaseException):
            log.warning("snapshot_retention_failed node=%s error=%s", self._engine.name, result)
        else:
            self.kept = tuple(result)
