"""How a follower that is too far behind for the log gets its leader's snapshot, and gives its own. Sans-IO.

The leader offers a manifest; the follower fetches chunk by chunk, part by part, at its own pace, so a slow
follower costs the leader nothing and a cut costs one part. Each chunk is verified against the manifest
before it is kept, and fetched again if it is bad; what is fetched stays, so the same offer after a cut
resumes where it was. A snapshot at or below the commit index is never installed: the follower answers
with what it has. The state machine is built on a worker thread, and takes over in one step.

Where the cluster shares a store, the follower reads the chunks there, and spares its leader the work; at the
first one that the store does not give, or gives wrong, it turns to the leader for the rest.

    leader                      follower
      SnapshotOffer(manifest) ->
                              <- SnapshotFetch(id, chunk, offset)
      SnapshotPart(bytes)     ->   … until every chunk is there, verified and durable
                              <- SnapshotInstalled(index), once the journal was aligned and synced
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from raftkv.errors import Fatal, RaftkvError, SnapshotDamaged
from raftkv.kv.machine import Machine
from raftkv.raft.messages import SnapshotFetch, SnapshotInstalled, SnapshotOffer, SnapshotPart
from raftkv.snapshot.codec import Manifest, decode_manifest
from raftkv.snapshot.loader import load_machine
from raftkv.snapshot.store import Receiver, Store

if TYPE_CHECKING:
    from raftkv.raft.engine import Engine, Ports

log = logging.getLogger("raftkv.snapshot")

# One part on its way at a time: 256 KiB fill a 1 ms round trip at 250 MB/s, and hold no heartbeat back.
PART_BYTES_MAX = 256 << 10
# No part for this long: it went down with a connection, so ask again.
PART_WAIT_S = 1.0
# The lane of jobs that ask the shared store: they may hang as long as the store's own timeouts allow.
STORE_LANE = "snapshot-store"


class ChunkSource(Protocol):
    """A store that may hold the very snapshot that the leader offers, under the same id."""

    def read_chunk(self, snapshot: str, number: int) -> bytes:
        """The whole chunk, not verified. Blocks; raises whatever keeps it from answering."""


class Catchup:
    """`elsewhere` is the store that the cluster shares, None without one."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        ports: Ports,
        clock: Callable[[], float],
        elsewhere: ChunkSource | None = None,
    ) -> None:
        self._engine = engine
        self._elsewhere = elsewhere
        self._store = store
        self._ports = ports
        self._clock = clock
        self._fetch: _Fetch | None = None
        self.installed = 0  # snapshots that came from a leader, since the start

    @property
    def running(self) -> bool:
        return self._fetch is not None

    # --- the follower's side ------------------------------------------------------------------------------

    def on_offer(self, peer: str, message: SnapshotOffer) -> None:
        """From the accepted leader of this term."""
        core = self._engine.core
        try:
            manifest = decode_manifest(message.manifest)
        except SnapshotDamaged as error:
            log.warning("snapshot_offer_unreadable node=%s peer=%s error=%s", self._engine.name, peer, error)
            return
        if manifest.index <= core.commit_index:
            core.send(peer, SnapshotInstalled(core.term, core.commit_index), self._engine.wal.position)
            return
        if self._fetch is not None and (self._fetch.peer == peer or not self._fetch.abandon()):
            return  # what is under way goes on: a leader that makes snapshots quickly must not restart it
        log.info("snapshot_fetch node=%s peer=%s snapshot=%s", self._engine.name, peer, manifest.id)
        self._fetch = _Fetch(self, peer, manifest)
        self._fetch.begin()

    def on_part(self, peer: str, message: SnapshotPart) -> None:
        if self._fetch is not None and peer == self._fetch.peer:
            self._fetch.on_part(message)

    def tick(self) -> None:
        if self._fetch is not None:
            self._fetch.tick()

    def _ended(self, fetch: _Fetch) -> None:
        if self._fetch is fetch:
            self._fetch = None

    def _loaded(self, fetch: _Fetch, machine: Machine) -> None:
        """The snapshot is durable here and the machine stands at its index."""
        core = self._engine.core
        self._ended(fetch)
        self._engine.compaction.adopt_foreign(fetch.manifest)
        if fetch.manifest.index > core.commit_index:
            self._engine.replace_state(machine, fetch.manifest)
            self.installed += 1
            log.info("snapshot_installed node=%s snapshot=%s", self._engine.name, fetch.manifest.id)
        if core.leader is not None and not core.is_leader:
            core.send(core.leader, SnapshotInstalled(core.term, core.commit_index), self._engine.wal.position)

    # --- the leader's side --------------------------------------------------------------------------------

    def on_fetch(self, peer: str, message: SnapshotFetch) -> None:
        def read() -> bytes:
            return self._store.read_chunk(message.snapshot, message.chunk, message.offset, PART_BYTES_MAX)

        def answer(result: Any) -> None:
            # Empty data: the snapshot is gone or unreadable here; a new offer will name another.
            data = b"" if isinstance(result, BaseException) else result
            if isinstance(result, BaseException) and not isinstance(result, RaftkvError):
                log.error(
                    "snapshot_read_failed node=%s snapshot=%s error=%s",
                    self._engine.name,
                    message.snapshot,
                    result,
                )
            self._engine.core.send(
                peer, SnapshotPart(message.snapshot, message.chunk, message.offset, data), 0
            )

        self._ports.run("snapshot-read", read, answer)


class _Fetch:
    """One snapshot on its way here. `_busy`: a job on a worker thread holds what was fetched."""

    def __init__(self, catchup: Catchup, peer: str, manifest: Manifest) -> None:
        self._catchup = catchup
        self._ports = catchup._ports
        self.peer = peer
        self.manifest = manifest
        self._receiver: Receiver | None = None
        self._missing: list[int] = []
        self._parts: list[bytes] = []
        self._offset = 0
        self._asked_at = 0.0
        self._busy = False
        self._elsewhere = catchup._elsewhere  # until it fails once

    def begin(self) -> None:
        self._run(lambda: self._catchup._store.receive(self.manifest), self._begun)

    def abandon(self) -> bool:
        """Gives way to another snapshot; False while a job is under way."""
        if self._busy:
            return False
        self._catchup._ended(self)
        if self._receiver is not None:
            self._ports.run("snapshot", self._receiver.abort, lambda _: None)
        return True

    def tick(self) -> None:
        if not self._busy and self._catchup._clock() - self._asked_at > PART_WAIT_S:
            self._ask()

    def on_part(self, part: SnapshotPart) -> None:
        expected = (self.manifest.id, self._missing[0] if self._missing else -1, self._offset)
        if self._busy or (part.snapshot, part.chunk, part.offset) != expected:
            return  # an answer to a question that was repeated
        size = self.manifest.chunks[part.chunk].bytes
        if not part.data or self._offset + len(part.data) > size:
            log.warning("snapshot_gone peer=%s snapshot=%s", self.peer, self.manifest.id)
            self._catchup._ended(self)
            return
        self._parts.append(part.data)
        self._offset += len(part.data)
        if self._offset < size:
            self._ask()
        else:
            self._keep_chunk(part.chunk)

    # --- steps --------------------------------------------------------------------------------------------

    def _begun(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._missing = list(receiver.missing())
        self._next()

    def _next(self) -> None:
        self._parts, self._offset = [], 0
        if self._missing:
            self._ask()
        else:
            self._run(self._finish, self._finished)

    def _ask(self) -> None:
        self._asked_at = self._catchup._clock()
        if self._elsewhere is not None:
            self._read_elsewhere(self._elsewhere, self._missing[0])
            return
        fetch = SnapshotFetch(self.manifest.id, self._missing[0], self._offset)
        self._catchup._engine.core.send(self.peer, fetch, 0)

    def _read_elsewhere(self, source: ChunkSource, number: int) -> None:
        self._busy = True

        def done(result: Any) -> None:
            self._busy = False
            if isinstance(result, BaseException):
                log.info("snapshot_from_leader snapshot=%s store_said=%s", self.manifest.id, result)
                self._elsewhere = None
                self._catchup._engine._input(self._ask)
            else:
                self._parts = [result]
                self._catchup._engine._input(lambda: self._keep_chunk(number))

        self._ports.run(STORE_LANE, lambda: source.read_chunk(self.manifest.id, number), done)

    def _keep_chunk(self, number: int) -> None:
        receiver, data = self._receiver, b"".join(self._parts)
        assert receiver is not None
        self._run(lambda: receiver.write_chunk(number, data), self._chunk_kept)

    def _chunk_kept(self, _: object) -> None:
        del self._missing[0]
        self._next()

    def _finish(self) -> Machine:
        receiver = self._receiver
        assert receiver is not None
        receiver.commit()
        return load_machine(self._catchup._store, self.manifest.id)

    def _finished(self, machine: Machine) -> None:
        self._catchup._loaded(self, machine)

    def _run(self, job: Callable[[], Any], then: Callable[[Any], None]) -> None:
        self._busy = True

        def done(result: Any) -> None:
            self._busy = False
            if isinstance(result, Fatal):
                self._catchup._engine.fail(result)
            elif isinstance(result, SnapshotDamaged) and self._missing:
                # The bytes that came are not what the manifest says: fetch this chunk again [5].
                log.warning("snapshot_chunk_refused peer=%s error=%s", self.peer, result)
                self._parts, self._offset = [], 0
                self._elsewhere = None
                self._asked_at = self._catchup._clock()
            elif isinstance(result, BaseException):
                log.error("snapshot_fetch_failed snapshot=%s error=%s", self.manifest.id, result)
                self._catchup._ended(self)
            else:
                self._catchup._engine._input(lambda: then(result))

        self._ports.run("snapshot", job, done)
