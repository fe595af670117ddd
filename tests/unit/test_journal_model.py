"""The log in memory against a plain model: any sequence of what the core, compaction and the disk may do."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from raftkv.journal.wal import Batch, Wal
from tests.fault.journal_workload import open_wal, state_of
from tests.sim.disk import MemoryDisk


@dataclass
class Model:
    """Every entry remembers the position that staged it; durable is what lies at or below one."""

    entries: list[tuple[bytes, int, int]] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    position: int = 0
    durable: int = 0

    def add(self, entry: tuple[bytes, int, int]) -> None:
        self.position += 1
        self.entries.append(entry)
        self.positions.append(self.position)

    def durable_index(self) -> int:
        if not self.entries:
            return 0
        index = self.entries[0][1] - 1
        for entry, position in zip(self.entries, self.positions, strict=True):
            if position > self.durable:
                break
            index = entry[1]
        return index


steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["add", "add", "add", "truncate", "compact", "reset", "vote", "cut", "write", "reopen"]
        ),
        st.integers(0, 100),
    ),
    max_size=60,
)


@settings(max_examples=200)
@given(steps)
def test_the_log_is_the_model(operations: list[tuple[str, int]]) -> None:
    disk = MemoryDisk(random.Random(0))
    wal = open_wal(disk)
    model = Model()
    on_its_way: Batch | None = None
    for operation, number in operations:
        match operation:
            case "add":
                entry = (
                    bytes(number),
                    model.entries[-1][1] + 1 if model.entries else 1 + number,
                    wal.getCurrentTerm(),
                )
                wal.add(*entry)
                model.add(entry)
            case "truncate" if model.entries:
                at = number % len(model.entries)
                wal.deleteEntriesFrom(at)
                model.position += 1
                del model.entries[at:], model.positions[at:]
            case "compact" if model.entries:
                at = number % len(model.entries)
                wal.compact(*model.entries[at][1:])
                model.position += at > 0
                del model.entries[:at], model.positions[:at]
            case "reset":
                entry = (b"snapshot", 1 + number, wal.getCurrentTerm())
                wal.reset(entry[1], entry[2], entry[0])
                model.entries, model.positions = [], []
                model.add(entry)
            case "vote":
                wal.setCurrentTerm(wal.getCurrentTerm() + 1, "n1")
                model.position += 1
            case "cut" if on_its_way is None:
                on_its_way = wal.cut()
            case "write" if on_its_way is not None:
                wal.write(on_its_way)
                wal.synced(on_its_way)
                model.durable = on_its_way.position
                on_its_way = None
            case "reopen" if on_its_way is None and not wal.dirty:
                before = state_of(wal)
                wal.close()
                disk.power_cut()
                wal = open_wal(disk)
                assert state_of(wal)[:3] == before[:3]
                model.position = model.durable = 0
                model.positions = [0] * len(model.positions)
        agree(wal, model)


def agree(wal: Wal, model: Model) -> None:
    assert wal[:] == model.entries
    assert len(wal) == len(model.entries)
    assert wal.position == model.position
    assert wal.durable_position == model.durable
    assert wal.durable_index == model.durable_index()
    assert wal.log_bytes == sum(len(payload) for payload, _, _ in model.entries)
    assert wal.position_of_last_entry == (model.positions[-1] if model.positions else 0)
    for (_, index, _), position in zip(model.entries, model.positions, strict=True):
        assert wal.position_of(index) == position
