"""A start: journal and snapshot back from the disk, and in line with each other. Blocks.

The journal and the newest snapshot may disagree after a crash, since the snapshot is renamed into place
before the journal drops what it covers, and a snapshot from the leader is durable before the journal is
reset to it. What to do is a table, by where the snapshot's index S lies against the log [3]:

    the log                                     what happens
    ends below S                                yields: reset to (S, term of S)
    holds S, with the snapshot's term           stays; entries after S are replayed
    holds S, with another term                  yields: its suffix comes from a history that lost
    starts above S, or: no log where one was    refused: entries between are missing

An older suffix above S would lower the last term of the log, and grant wrong votes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from raftkv.errors import JournalDamaged
from raftkv.journal.disk import Disk
from raftkv.journal.wal import Wal
from raftkv.kv.machine import Machine
from raftkv.model import Membership
from raftkv.raft import protocol
from raftkv.raft.core import NO_OP
from raftkv.raft.membership import MEMBERSHIP, decode_membership, encode_membership
from raftkv.snapshot.codec import Manifest
from raftkv.snapshot.loader import load_machine
from raftkv.snapshot.store import Store


@dataclass(frozen=True, slots=True)
class Opened:
    """`configurations`: the memberships that snapshot and log hold, with the indexes of their entries, oldest
    first. () where this disk belongs to no cluster yet; then the log is empty."""

    wal: Wal
    machine: Machine
    snapshot: Manifest | None
    configurations: tuple[tuple[int, Membership], ...]

    @property
    def membership(self) -> Membership | None:
        """The newest that is known to be committed."""
        return self.configurations[0][1] if self.configurations else None


def open_state(disk: Disk, store: Store, open_wal: Callable[[Disk], Wal] = Wal.open) -> Opened:
    """Raises JournalDamaged, JournalLocked, JournalFailed, SnapshotDamaged, ReleaseTooOld, with what to do
    about each."""
    wal = open_wal(disk)
    try:
        snapshots = store.list()
        snapshot = snapshots[-1] if snapshots else None
        machine = Machine() if snapshot is None else load_machine(store, snapshot.id)
        if snapshot is not None:
            if wal.recovery.created:
                raise JournalDamaged(
                    f"{disk.directory} holds no journal, but snapshot {snapshot.id} lies beside it: the "
                    "votes and entries of this node are lost. Restore the journal, or re-admit the node with "
                    "an empty disk"
                )
            align(wal, snapshot, disk.directory)
        configurations = configurations_of(wal, snapshot, disk.directory)
        for _, membership in configurations:
            protocol.check_level(membership, disk.directory)
        return Opened(wal, machine, snapshot, configurations)
    except BaseException:
        wal.close()
        raise


def found(wal: Wal, membership: Membership) -> None:
    """Writes the first entry of a new cluster's log, the same on every member, durably."""
    if len(wal) == 0:
        wal.add(encode_membership(membership), 1, 0)
        sync(wal)


def align(wal: Wal, snapshot: Manifest, directory: str) -> None:
    """Brings the log in line with the snapshot; see the table above."""
    verdict = judge([(index, term) for _, index, term in wal[:]], snapshot.index, snapshot.term)
    if verdict == "refuse":
        raise JournalDamaged(
            f"the journal in {directory} starts at index {wal[0][1] if len(wal) else 'none'}, the newest "
            f"snapshot ends at {snapshot.index}: entries between are missing. Put back the newer snapshot "
            "that was there, or re-admit the node with an empty disk"
        )
    if verdict == "reset":
        wal.reset(snapshot.index, snapshot.term, NO_OP)
        sync(wal)


def judge(log: Sequence[tuple[int, int]], index: int, term: int) -> Literal["keep", "reset", "refuse"]:
    """`log`: (index, term) of each entry. PURE."""
    if not log or log[0][0] > index:
        return "refuse"
    if log[-1][0] < index:
        return "reset"
    return "keep" if log[index - log[0][0]][1] == term else "reset"


def sync(wal: Wal) -> None:
    """Makes durable what is staged; before there is a loop to do it."""
    batch = wal.cut()
    if batch is not None:
        wal.write(batch)
        wal.synced(batch)


def configurations_of(
    wal: Wal, snapshot: Manifest | None, directory: str
) -> tuple[tuple[int, Membership], ...]:
    """As `Opened` has them. The membership at the snapshot's index is the snapshot's: the log's own first
    entry may stand for an index and a term only."""
    if snapshot is None and len(wal) == 0:
        return ()
    if snapshot is None:
        payload, index, _ = wal[0]
        if index != 1 or payload[:1] != MEMBERSHIP:
            raise JournalDamaged(
                f"the journal in {directory} starts at index {index} and there is no snapshot of what came "
                "before: put back the snapshots directory, or re-admit the node with an empty disk"
            )
        covered = (1, _read(payload, 1, directory))
    else:
        covered = (snapshot.index, snapshot.membership)
    later = [
        (index, _read(payload, index, directory))
        for payload, index, _ in wal[:]
        if index > covered[0] and payload[:1] == MEMBERSHIP
    ]
    return (covered, *later)


def _read(payload: bytes, index: int, directory: str) -> Membership:
    try:
        return decode_membership(payload)
    except ValueError as error:
        raise JournalDamaged(
            f"entry {index} of the journal in {directory} can't be read: {error}. If a newer release wrote "
            "it, run that release"
        ) from error
