"""Journals in the field must stay readable: format version 1, byte for byte, as tests/golden/journal has it.

If this fails, the format changed. Either that was not meant, or it needs a new version number, with the old
one still read; these files then stay, and get a neighbour.
"""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

from raftkv.journal.inspect import inspect
from raftkv.journal.wal import Wal
from tests.sim.disk import MemoryDisk

GOLDEN = Path(__file__).parents[1] / "golden" / "journal"


def commit(wal: Wal) -> None:
    batch = wal.cut()
    assert batch is not None
    wal.write(batch)
    wal.synced(batch)


def version_1() -> dict[str, bytes]:
    """A journal with every kind of record, over two segments."""
    disk = MemoryDisk(random.Random(0))

    def opened() -> Wal:
        return Wal.open(disk, 1024, clock=lambda: 0.0, draw_id=lambda size: b"0123456789abcdef"[:size])

    wal = opened()
    wal.setCurrentTerm(3, "n2")
    wal.reset(100, 2, b"\x01")
    wal.add(b"\x00first", 101, 3)
    commit(wal)
    wal.close()
    wal = opened()
    wal.add(b"\x00" * 600, 102, 3)
    wal.add(b"\x01", 103, 3)
    commit(wal)
    wal.deleteEntriesFrom(3)
    wal.setCurrentTerm(4, None)
    wal.setCurrentTerm(5, "größe")
    wal.add(b"\x00third" * 50, 103, 5)
    wal.setRaftCommitIndex(102)
    commit(wal)
    wal.compact(101, 3)
    wal.add(b"\x00fourth" * 40, 104, 5)
    commit(wal)
    wal.close()
    return {name: disk.read(name) for name in disk.names()}


def test_this_release_writes_version_1() -> None:
    assert version_1() == {path.name: path.read_bytes() for path in GOLDEN.glob("*.journal")}


def test_this_release_reads_version_1() -> None:
    inspection = dataclasses.asdict(inspect(GOLDEN))
    del inspection["directory"]
    assert json.loads(json.dumps(inspection)) == json.loads((GOLDEN / "inspection.json").read_text())
