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

import msgspec

from raftkv.errors import JournalDamaged
from raftkv.journal.disk import Disk
from raftkv.journal.wal import Wal
from raftkv.kv.machine import Machine
from raftkv.model import Membership
from raftkv.raft.core import NO_OP
from raftkv.snapshot.codec import Manifest
from raftkv.snapshot.loader import load_machine
from raftkv.snapshot.store import Store

MEMBERSHIP = b"\x02"  # pysyncobj.syncobj._COMMAND_TYPE


@dataclass(frozen=True, slots=True)
class Opened:
    """`membership` is None where this disk belongs to no cluster yet; then the log is empty."""

    wal: Wal
    machine: Machine
    snapshot: Manifest | None
    membership: Membership | None


def open_state(disk: Disk, store: Store, open_wal: Callable[[Disk], Wal] = Wal.open) -> Opened:
    """Raises JournalDamaged, JournalLocked, JournalFailed, SnapshotDamaged, with what to do about each."""
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
        return Opened(wal, machine, snapshot, _membership(wal, snapshot, disk.directory))
    except BaseException:
        wal.close()
        raise


def found(wal: Wal, membership: Membership) -> None:
    """Writes the first entry of a new cluster's log, the same on every member, durably."""
    if len(wal) == 0:
        wal.add(MEMBERSHIP + msgspec.json.encode(membership), 1, 0)
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


def _membership(wal: Wal, snapshot: Manifest | None, directory: str) -> Membership | None:
    if snapshot is not None:
        return snapshot.membership
    if len(wal) == 0:
        return None
    payload, index, _ = wal[0]
    if index != 1 or payload[:1] != MEMBERSHIP:
        raise JournalDamaged(
            f"the journal in {directory} starts at index {index} and there is no snapshot of what came "
            "before: put back the snapshots directory, or re-admit the node with an empty disk"
        )
    return msgspec.json.decode(payload[1:], type=Membership)
