"""What the disk of one member still has, when a majority of its cluster is lost for good. Blocks.

A committed entry is on a majority of disks, so the disks that are left may lack the newest of them, and may
hold entries that were never committed. Which is which can't be told without the majority. So what is taken
is all that the best of the remaining disks holds: the newest (term, index), as an election would choose it
(Raft §5.4.1). That is why this is called unsafe, and why it makes a new cluster (`restore.restore`): a member
of the old one that turns up after all is refused by it.

The data directory is only read, but for the lock on its journal and for what a start would tidy up among
unfinished snapshots.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raftkv.errors import BadRequest, JournalDamaged, SnapshotDamaged
from raftkv.journal.disk import OsDisk
from raftkv.journal.wal import read_all
from raftkv.kv.machine import Machine
from raftkv.raft.membership import decode_membership
from raftkv.raft.opening import judge
from raftkv.raft.restore import FOUNDED_INDEX, Recovered, apply_entry
from raftkv.snapshot.directory import DirectoryStore
from raftkv.snapshot.loader import load_machine


@dataclass(frozen=True, slots=True)
class Survivor:
    """`last`: (term, index) of the newest entry that the disk holds, by which disks are compared.
    `committed`: up to which index the node had heard that entries are committed, at least."""

    directory: Path
    last: tuple[int, int]
    committed: int
    recovered: Recovered


def read_survivor(directory: Path) -> Survivor:
    """The state at the end of this disk's log, uncommitted entries with it.

    Raises JournalLocked where the node still runs, JournalDamaged, SnapshotDamaged, BadRequest.
    """
    if not (directory / "journal").is_dir():
        raise BadRequest(f"{directory} holds no journal: name a node's data directory, the one of --data-dir")
    disk = OsDisk(directory / "journal")
    try:
        disk.lock()
        journal = read_all(disk)
        return _at_the_end(directory, journal.entries, journal.term, journal.commit_index)
    finally:
        disk.close()


def _at_the_end(
    directory: Path, entries: list[tuple[bytes, int, int]], journal_term: int, committed: int
) -> Survivor:
    store = DirectoryStore.open(directory / "snapshots")
    try:
        snapshots = store.list()
        manifest = snapshots[-1] if snapshots else None
        if manifest is None:
            machine, term = Machine(), 0
            machine.advance(FOUNDED_INDEX)
        else:
            machine, term = load_machine(store, manifest.id), manifest.term
    finally:
        store.close()
    start = machine.applied_index
    verdict = "keep" if manifest is None else judge([(i, t) for _, i, t in entries], start, term)
    if verdict == "refuse" or (entries and entries[0][1] > start):
        raise JournalDamaged(
            f"the journal in {directory} starts at index {entries[0][1] if entries else 'none'}, its newest "
            f"snapshot ends at {start}: entries between are missing, so this disk can't give the state back"
        )
    replayed = 0
    for payload, index, entry_term in entries if verdict == "keep" else ():
        if index <= start:
            continue
        try:
            apply_entry(machine, index, payload)
        except ValueError as error:
            raise SnapshotDamaged(f"entry {index} of {directory} can't be read: {error}") from error
        term = entry_term
        replayed += 1
    if manifest is not None:
        cluster = manifest.cluster
    elif entries:
        cluster = decode_membership(entries[0][0]).cluster
    else:
        raise BadRequest(f"{directory} is of a node that was never part of a cluster")
    last = (term, machine.applied_index)
    recovered = Recovered(
        machine, max(term, journal_term), cluster, manifest, replayed, 0, 0, "the log ends there"
    )
    return Survivor(directory, last, max(committed, start), recovered)
