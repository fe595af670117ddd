"""A crash, or a failing disk, at every operation of the snapshot store, and what a restart must find.

One workload publishes, receives, deletes. Stopped anywhere, the next start lists each snapshot whose commit
had returned and whose deletion had not begun, lists nothing else but what was under way, can load all it
lists, and leaves no file of anything else. What it lists is durable: a power cut later takes none of it.
"""

from __future__ import annotations

import contextlib
import errno
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from raftkv.kv.machine import Machine
from raftkv.snapshot import store as store_module
from raftkv.snapshot.codec import Manifest, manifest_name
from raftkv.snapshot.directory import DirectoryStore
from raftkv.snapshot.loader import load_machine
from tests.sim.disk import Crash, MemoryDisk
from tests.unit.snapshot_samples import a_machine, dump, publish

MACHINES = {machine.applied_index: machine for machine in (a_machine(1, n) for n in (6, 12, 14, 16))}
A, B, C, D = MACHINES


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "CHUNK_RAW_BYTES", 800)


@pytest.fixture(scope="module")
def sent() -> tuple[Manifest, list[bytes]]:
    """A snapshot of another node, at index C."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "CHUNK_RAW_BYTES", 800)
        leader = DirectoryStore(MemoryDisk(random.Random(0)), clock=lambda: 5.0)
        manifest = publish(leader, MACHINES[C])
        return manifest, [leader.read_chunk(manifest.id, n) for n in range(len(manifest.chunks))]


@dataclass
class Run:
    """`there`: indexes of snapshots that a restart must list; `maybe`: of the one under way."""

    disk: MemoryDisk
    sent: tuple[Manifest, list[bytes]]
    there: set[int] = field(default_factory=set)
    maybe: set[int] = field(default_factory=set)

    def workload(self) -> int:
        """How many steps ended in an OSError; the next goes on with the same store, as a node would."""
        store = DirectoryStore(self.disk, clock=lambda: 5.0)
        failed = 0
        steps: tuple[Callable[[], None], ...] = (
            lambda: self.publish(store, A),
            lambda: self.publish(store, B),
            lambda: self.receive(store),
            lambda: self.receive(store),
            lambda: self.delete(store, 1),
            lambda: self.publish(store, D),
            lambda: self.delete(store, 0),
        )
        for step in steps:
            try:
                step()
            except OSError:
                failed += 1
        return failed

    def publish(self, store: DirectoryStore, index: int) -> None:
        self.maybe.add(index)
        publish(store, MACHINES[index])
        self.there.add(index)

    def receive(self, store: DirectoryStore) -> None:
        manifest, chunks = self.sent
        store.receive(manifest).write_chunk(1, chunks[1])
        receiver = store.receive(manifest)
        self.maybe.add(C)
        for number in receiver.missing():
            receiver.write_chunk(number, chunks[number])
        receiver.commit()
        self.there.add(C)

    def delete(self, store: DirectoryStore, kept: int) -> None:
        listed = store.list()
        going = {manifest.index for manifest in listed[: len(listed) - kept]}
        self.maybe |= going
        self.there -= going
        store.retain(kept)
        self.maybe -= going

    def check_restart(self) -> set[int]:
        store = DirectoryStore(self.disk, clock=lambda: 6.0)
        listed = store.list()
        found = {manifest.index for manifest in listed}
        assert self.there <= found <= self.there | self.maybe
        for manifest in listed:
            assert dump(load_machine(store, manifest.id)) == dump(MACHINES[manifest.index])
        expected = {manifest_name(m.id) for m in listed} | {c.name for m in listed for c in m.chunks}
        assert set(self.disk.names()) == expected
        return found


def operations(sent: tuple[Manifest, list[bytes]]) -> int:
    run = Run(MemoryDisk(random.Random(0)), sent)
    assert run.workload() == 0
    total = run.disk.operations
    assert run.check_restart() == set()
    return total


@pytest.mark.parametrize("power", [False, True])
def test_a_crash_at_any_operation_leaves_whole_snapshots(
    sent: tuple[Manifest, list[bytes]], power: bool
) -> None:
    total = operations(sent)
    assert total > 60
    for at in range(1, total + 1):
        for seed in range(4):
            run = Run(MemoryDisk(random.Random(seed * 1000 + at)), sent)
            run.disk.crash_at = at
            with pytest.raises(Crash):
                run.workload()
            run.disk.power_cut() if power else run.disk.kill()
            found = run.check_restart()
            run.disk.power_cut()
            assert run.check_restart() == found, f"operation {at}, seed {seed}"


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_failure_of_any_operation_leaves_whole_snapshots(
    sent: tuple[Manifest, list[bytes]], code: int
) -> None:
    failed = 0
    for at in range(2, operations(sent) + 1):
        run = Run(MemoryDisk(random.Random(at)), sent)
        run.disk.fail_at[at] = code
        failed += run.workload()
        run.disk.power_cut()
        found = run.check_restart()
        # The next life publishes as if nothing had been.
        store = DirectoryStore(run.disk, clock=lambda: 7.0)
        later = a_machine(1, 20)
        publish(store, later)
        assert {manifest.index for manifest in store.list()} == {*found, later.applied_index}
    assert failed > 40


def test_a_start_in_the_middle_of_cleaning_up_goes_on(sent: tuple[Manifest, list[bytes]]) -> None:
    for at in range(1, 12):
        run = Run(MemoryDisk(random.Random(at)), sent)
        run.disk.crash_at = 30
        with pytest.raises(Crash):
            run.workload()
        run.disk.kill()
        run.disk.crash_at = run.disk.operations + at
        with contextlib.suppress(Crash):
            DirectoryStore(run.disk)
        run.disk.power_cut()
        run.check_restart()


def test_machines_differ() -> None:
    assert len({dump(machine) for machine in MACHINES.values()}) == len(MACHINES)
    assert all(isinstance(machine, Machine) for machine in MACHINES.values())
