"""A start: the journal and the newest snapshot in line, or refused. Rows 3 and 5 of docs/pysyncobj.md."""

from __future__ import annotations

import random
from itertools import pairwise, product
from pathlib import Path

import pytest

from raftkv.errors import JournalDamaged, SnapshotDamaged
from raftkv.journal.wal import Wal
from raftkv.kv.command import Put
from raftkv.kv.machine import Machine
from raftkv.model import Member, Membership
from raftkv.raft.opening import Opened, found, judge, open_state, sync
from raftkv.snapshot.directory import DirectoryStore
from raftkv.snapshot.store import SnapshotWriter
from tests.sim.disk import MemoryDisk
from tests.unit.core_bench import StockNode

MEMBERSHIP = Membership("c" * 32, (Member("n1", "h:1", "http://h:2"),), (("n1", "1" * 32),))


class Disks:
    """One node's two directories, and a way to put into them what a crash may leave."""

    def __init__(self) -> None:
        self.journal = MemoryDisk(random.Random(1))
        self.snapshots = MemoryDisk(random.Random(2))

    def store(self) -> DirectoryStore:
        return DirectoryStore(self.snapshots)

    def write_log(self, *terms: int) -> None:
        """Entry 1, then entries 2, 3, … of these terms."""
        wal = Wal.open(self.journal)
        found(wal, MEMBERSHIP)
        for index, term in enumerate(terms, 2):
            wal.setCurrentTerm(term, "n1")
            wal.add(b"\x01", index, term)
        sync(wal)
        wal.close()

    def compact(self, index: int, term: int) -> None:
        wal = Wal.open(self.journal)
        wal.compact(index, term)
        sync(wal)
        wal.close()

    def write_snapshot(self, index: int, term: int) -> None:
        machine = Machine()
        machine.apply(index, 0, Put(b"key", b"%d" % index))
        image = machine.image()
        store = self.store()
        writer = SnapshotWriter(
            store, cluster=MEMBERSHIP.cluster, index=index, term=term, membership=MEMBERSHIP, image=image
        )
        while page := image.next_page():
            writer.write(page)
        writer.commit()

    def open(self) -> Opened:
        return open_state(self.journal, self.store())


@pytest.fixture
def disks() -> Disks:
    return Disks()


def log_of(opened: Opened) -> list[tuple[int, int]]:
    return [(index, term) for _, index, term in opened.wal[:]]


def test_log_that_holds_the_snapshots_entry_stays_whole(
    disks: Disks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Row 3: a crash between the snapshot's rename and the log's trim. Stock clears its whole journal, since
    its first two entries are not the snapshot's: what was acknowledged behind the snapshot is gone."""
    dump = tmp_path / "dump"
    dump.touch()
    stock = StockNode(
        monkeypatch,
        fullDumpFile=str(dump),
        serializer=lambda *_: None,
        deserializer=lambda _: ((b"\x01", 50, 1), (b"\x01", 49, 1), set()),
    )
    for index in range(2, 101):
        stock.get("raftLog").add(b"\x01", index, 1)
    stock.tick()
    assert [index for _, index, _ in stock.log] == [49, 50], "stock has thrown away 51 to 100"

    disks.write_log(*[1] * 99)
    disks.write_snapshot(50, 1)
    opened = disks.open()
    assert log_of(opened)[-1] == (100, 1)
    assert opened.snapshot is not None
    assert opened.machine.get(b"key") is not None


def test_log_that_ends_below_the_snapshot_yields(disks: Disks) -> None:
    """After an install that was cut before the journal was reset."""
    disks.write_log(1, 1)
    disks.write_snapshot(9, 4)
    opened = disks.open()
    assert log_of(opened) == [(9, 4)]
    assert opened.wal.getCurrentTerm() == 1
    assert opened.membership == MEMBERSHIP


def test_log_that_differs_at_the_snapshots_entry_yields(disks: Disks) -> None:
    """Its suffix is of a history that lost: kept, it would lower the last term and grant wrong votes."""
    disks.write_log(1, 1, 1, 1, 1)
    disks.write_snapshot(4, 3)
    assert log_of(disks.open()) == [(4, 3)]


def test_gap_between_snapshot_and_log_is_refused(disks: Disks) -> None:
    disks.write_log(*[1] * 20)
    disks.compact(10, 1)
    disks.write_snapshot(5, 1)
    with pytest.raises(JournalDamaged, match=r"starts at index 10.*ends at 5.*re-admit"):
        disks.open()


def test_compacted_log_without_its_snapshot_is_refused(disks: Disks) -> None:
    disks.write_log(*[1] * 20)
    disks.compact(10, 1)
    with pytest.raises(JournalDamaged, match="no snapshot of what came before"):
        disks.open()


def test_snapshot_without_any_journal_is_refused(disks: Disks) -> None:
    """The votes went with the journal: a node that forgot them may vote twice in one term."""
    disks.write_snapshot(5, 1)
    with pytest.raises(JournalDamaged, match=r"no journal.*re-admit"):
        disks.open()


def test_unreadable_snapshot_stops_the_start(
    disks: Disks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Row 5: stock logs it, goes on with nothing, and may be elected with an empty state."""
    dump = tmp_path / "dump"
    dump.write_bytes(b"damaged")
    stock = StockNode(monkeypatch, fullDumpFile=str(dump))
    stock.get("raftLog").add(b"\x01", 2, 1)
    stock.lead()
    assert stock.node._isLeader()

    disks.write_log(1, 1, 1)
    disks.write_snapshot(3, 1)
    [chunk] = [name for name in disks.snapshots.names() if name.endswith(".chunk")]
    damaged = bytearray(disks.snapshots.read(chunk))
    damaged[len(damaged) // 2] ^= 1
    disks.snapshots.unlink(chunk)
    file = disks.snapshots.create(chunk)
    file.write(0, bytes(damaged))
    file.sync()
    disks.snapshots.sync_directory()
    with pytest.raises(SnapshotDamaged, match=chunk):
        disks.open()


def test_verdict_on_every_small_log() -> None:
    """Whatever is kept holds the snapshot's own (index, term); whatever starts above it is refused."""
    for first, length in product(range(1, 5), range(1, 5)):
        for terms in product(range(1, 4), repeat=length):
            if any(later < earlier for earlier, later in pairwise(terms)):
                continue
            log = [(first + number, term) for number, term in enumerate(terms)]
            for index, term in product(range(1, 10), range(1, 4)):
                verdict = judge(log, index, term)
                assert (verdict == "keep") == ((index, term) in log)
                assert (verdict == "refuse") == (first > index)
    assert judge([], 3, 1) == "refuse"


def test_founding_is_written_once(disks: Disks) -> None:
    disks.write_log()
    disks.write_log()
    opened = disks.open()
    assert log_of(opened) == [(1, 0)]
    assert opened.membership == MEMBERSHIP
