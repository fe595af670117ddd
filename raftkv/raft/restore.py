"""From the store that outlived a cluster to the data directories of a new one. Blocks.

    store                         memory                     disk, one directory a member
      snapshot, every hash  ──►   the state at its index
      ranges behind it      ──►   the state at the end, ──►  snapshots/  that state, with the new membership
                                  a revision or a time       journal/    reset to the snapshot's (index, term)
                                                             identity.json

It is a *new* cluster: a new cluster id and a new instance for each member, so that no member of the old one
that wakes up somewhere is taken for one of these. The members are formed already: their identities, their
membership and the one entry in their journals are those that a cluster has which compacted its log at the
snapshot's index. Instances follow from the cluster's id and the member's name, so that directories for
several machines can be made on each of them, from the same source with the same `cluster`.

- Nothing is written before everything was read and verified.
- A directory that holds anything is refused.
- While a restore is under way each directory has a file `restore-unfinished`, and a node refuses to start on
  it; the files go when all directories are complete and durable. The first one to go is what commits: a node
  that finds one beside it gone knows that its own directory is complete as well.
- Entries of the log archive are applied by the state machine that applied them first, one command at a time,
  so `to_revision` can end in the midst of an entry.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from raftkv.errors import BadRequest, Fatal, SnapshotDamaged, SnapshotMissing
from raftkv.journal.disk import OsDisk
from raftkv.journal.wal import Wal
from raftkv.kv.command import decode_entry
from raftkv.kv.machine import Machine
from raftkv.model import Member, Membership
from raftkv.raft import opening
from raftkv.raft.compaction import PAGE_RECORDS
from raftkv.raft.core import NO_OP
from raftkv.raft.identity import UNFINISHED, adopt, begin_restore, draw_id, end_restore
from raftkv.raft.proposals import REGULAR
from raftkv.snapshot.codec import Manifest
from raftkv.snapshot.directory import DirectoryStore
from raftkv.snapshot.loader import load_machine
from raftkv.snapshot.ranges import Range, Ranges
from raftkv.snapshot.remote import RemoteStore
from raftkv.snapshot.store import SnapshotWriter

LATEST = "latest"
FOUNDED_INDEX = 1  # where a log begins: the membership entry


@dataclass(frozen=True, slots=True)
class Target:
    """Which state. `snapshot` LATEST: the newest snapshot that helps, and the archive behind it up to the
    given end, or to its own. A snapshot's id: that one, and nothing behind it unless an end is given."""

    snapshot: str = LATEST
    cluster: str = ""  # the old one's id or its beginning; needed where the store has several
    to_revision: int | None = None
    to_time_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Recovered:
    """A state in memory. `entries` were replayed from `ranges` behind `snapshot`; `time_ms` is when the last
    of them had been applied, 0 where none was. `beyond`: why nothing later was taken."""

    machine: Machine
    term: int
    cluster: str
    snapshot: Manifest | None
    entries: int
    ranges: int
    time_ms: int
    beyond: str


@dataclass(frozen=True, slots=True)
class Restored:
    membership: Membership
    manifest: Manifest
    directories: tuple[Path, ...]


Say = Callable[[str], None]


# --- reading ---------------------------------------------------------------------------------------------


def recover(remote: RemoteStore, target: Target, say: Say = lambda _: None) -> Recovered:
    """Raises SnapshotMissing, SnapshotDamaged, StoreUnavailable, and BadRequest where the store can't give
    what was asked for."""
    ranges = Ranges(remote.bucket)
    if target.snapshot != LATEST:
        manifest: Manifest | None = remote.manifest(target.snapshot)
        assert manifest is not None
        cluster = manifest.cluster
        if not _fits(manifest, target):
            raise BadRequest(f"snapshot {manifest.id} is later than what is to be restored")
    else:
        snapshots = remote.list()
        archived = [chain.cluster for chain in ranges.chains()]
        cluster = _choose_cluster([*(each.cluster for each in snapshots), *archived], target)
        fitting = [each for each in snapshots if each.cluster == cluster and _fits(each, target)]
        manifest = fitting[-1] if fitting else None
    if manifest is None:
        say(f"no snapshot of cluster {cluster}: replaying its log from the first entry")
        machine, term = Machine(), 0
        machine.advance(FOUNDED_INDEX)
    else:
        say(f"snapshot {manifest.id}: {manifest.keys} keys, {manifest.bytes} bytes")
        machine, term = load_machine(remote, manifest.id), manifest.term
    replay = _Replay(machine, term, target)
    if target.snapshot == LATEST or target.to_revision is not None or target.to_time_ms is not None:
        replay.run(ranges.walk(cluster, machine.applied_index, term))
    _check_reached(replay, target)
    return Recovered(
        machine,
        replay.term,
        cluster,
        manifest,
        replay.entries,
        replay.ranges,
        replay.time_ms,
        replay.beyond or "the archive ends there",
    )


def _choose_cluster(clusters: Iterable[str], target: Target) -> str:
    there = sorted(set(clusters))
    matching = [cluster for cluster in there if cluster.startswith(target.cluster)]
    if not matching:
        raise SnapshotMissing(
            f"the store holds nothing of a cluster {target.cluster}; it has {', '.join(there)}"
            if there
            else "the store holds no snapshot and no log"
        )
    if len(matching) > 1:
        raise BadRequest(
            f"the store holds {len(matching)} clusters: {', '.join(matching)}. Say which one to restore "
            "(--cluster); `raftkv snapshot list --from` shows how new their snapshots are"
        )
    return matching[0]


def _fits(manifest: Manifest, target: Target) -> bool:
    """At or before what was asked for."""
    return (target.to_revision is None or manifest.revision <= target.to_revision) and (
        target.to_time_ms is None or manifest.time_ms <= target.to_time_ms
    )


class _Replay:
    """Applies archived entries until the end that was asked for."""

    def __init__(self, machine: Machine, term: int, target: Target) -> None:
        self.machine = machine
        self.term = term
        self.entries = 0
        self.ranges = 0
        self.time_ms = 0
        self.beyond = ""
        self._target = target

    def run(self, walk: Iterable[Range]) -> None:
        if self._is_there():
            return
        for each in walk:
            self.ranges += 1
            for index, (term, payload) in enumerate(each.entries, each.head.first):
                if index <= self.machine.applied_index:
                    continue
                time_ms = each.time_ms(index)
                if self._target.to_time_ms is not None and time_ms > self._target.to_time_ms:
                    self.beyond = "what follows was applied later"
                    return
                self._apply(index, payload)
                self.term, self.time_ms = term, time_ms
                self.entries += 1
                if self._is_there():
                    return

    def _is_there(self) -> bool:
        if self._target.to_revision is not None and self.machine.revision >= self._target.to_revision:
            self.beyond = "it was asked for this revision"
        return bool(self.beyond)

    def _apply(self, index: int, payload: bytes) -> None:
        try:
            apply_entry(self.machine, index, payload, self._is_there)
        except ValueError as error:
            raise SnapshotDamaged(f"the archived log entry {index} can't be read: {error}") from error


def apply_entry(
    machine: Machine, index: int, payload: bytes, enough: Callable[[], bool] = lambda: False
) -> None:
    """One command at a time, until there is `enough`. Raises ValueError for an entry of no known form."""
    if payload[:1] != REGULAR:
        machine.advance(index)
        return
    log_time_ms, commands = decode_entry(payload[1:])
    machine.advance(index)
    for command in commands:
        if enough():
            return
        machine.apply(index, log_time_ms, command)


def _check_reached(replay: _Replay, target: Target) -> None:
    revision = replay.machine.revision
    if target.to_revision is not None and revision < target.to_revision:
        raise BadRequest(
            f"revision {target.to_revision} can't be restored: what is in the store reaches from snapshot "
            f"or beginning to revision {revision} without a gap"
        )
    if replay.entries == 0 and target.snapshot == LATEST and replay.machine.applied_index <= FOUNDED_INDEX:
        raise SnapshotMissing(
            "the store holds no snapshot at or before what was asked for, and no log from the beginning on"
        )


# --- writing ---------------------------------------------------------------------------------------------


def restore(
    recovered: Recovered,
    directories: dict[str, Path],
    members: Sequence[Member],
    *,
    cluster: str = "",
    draw: Callable[[], str] = draw_id,
) -> Restored:
    """Makes `directories`, by name of member; all of the members' or some. `cluster`: the new one's id, 32
    hex digits; drawn where it is empty.

    Raises BadRequest for a directory that is not empty, Fatal where the disk refuses.
    """
    membership = membership_of(cluster or draw(), members)
    for name, directory in directories.items():
        assert name in dict(membership.instances), name
        refuse_unless_empty(directory)
    try:
        for directory in directories.values():
            begin_restore(directory, tuple(directories.values()))
        manifest: Manifest | None = None
        first: DirectoryStore | None = None
        for name, directory in directories.items():
            store = DirectoryStore.open(directory / "snapshots")
            if first is None or manifest is None:
                first, manifest = store, _write_snapshot(store, recovered, membership)
            else:
                _copy_snapshot(first, store, manifest)
            _write_journal(directory / "journal", manifest)
            adopt(directory, name, membership)
        assert manifest is not None
        for directory in directories.values():
            end_restore(directory)
    except OSError as error:
        raise Fatal(f"the restore can't write its data directories: {error}") from error
    return Restored(membership, manifest, tuple(directories.values()))


def membership_of(cluster: str, members: Sequence[Member]) -> Membership:
    """Instances follow from the cluster's id and the name."""
    ordered = tuple(sorted(members, key=lambda member: member.name))
    instances = tuple(
        (member.name, hashlib.sha256(f"{cluster}/{member.name}".encode()).hexdigest()[:32])
        for member in ordered
    )
    return Membership(cluster, ordered, instances)


def refuse_unless_empty(directory: Path) -> None:
    if not directory.exists():
        return
    if (directory / UNFINISHED).exists():
        raise BadRequest(
            f"{directory} holds a restore that did not finish: remove the directory, and those of the other "
            "members, and restore again"
        )
    if not directory.is_dir() or any(directory.iterdir()):
        raise BadRequest(
            f"{directory} is not empty: a restore makes a new cluster and overwrites nothing. Give another "
            "directory, or move this one away"
        )


def _write_snapshot(store: DirectoryStore, recovered: Recovered, membership: Membership) -> Manifest:
    machine = recovered.machine
    image = machine.image()
    writer = SnapshotWriter(
        store,
        cluster=membership.cluster,
        index=machine.applied_index,
        term=recovered.term,
        membership=membership,
        image=image,
    )
    try:
        while page := image.next_page(PAGE_RECORDS):
            writer.write(page)
        return writer.commit()
    finally:
        image.close()


def _copy_snapshot(source: DirectoryStore, store: DirectoryStore, manifest: Manifest) -> None:
    receiver = store.receive(manifest)
    for number in receiver.missing():
        receiver.write_chunk(number, source.read_chunk(manifest.id, number))
    receiver.commit()


def _write_journal(directory: Path, manifest: Manifest) -> None:
    """One entry, at the snapshot's index; the term of the old cluster goes on, so that it never repeats."""
    wal = Wal.open(OsDisk(directory))
    try:
        wal.setCurrentTerm(manifest.term, None)
        wal.reset(manifest.index, manifest.term, NO_OP)
        opening.sync(wal)
    finally:
        wal.close()
