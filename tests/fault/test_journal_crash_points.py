"""A crash at every disk operation of the journal, and what a restart must find.

One workload does all that a journal can be asked for: appends, votes, truncations, rotation, compaction, a
reset, restarts. It is run again and again, each time stopped in the middle of another operation; then the
machine loses its power, or only the process dies. Whatever is left must be the state at the last group commit
that `synced` reported, or at the one that was being written: what was acknowledged is there, what was never
staged is not, a term or vote never goes back, and half a batch does not exist. Recovery is swept the same
way, since it writes too.
"""

from __future__ import annotations

import copy
import errno
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from raftkv.errors import DiskFull, JournalDamaged, JournalFailed
from raftkv.journal.wal import Wal
from raftkv.journal.writer import Writer
from tests.fault.journal_workload import NOTHING_YET, SEGMENT_BYTES, State, open_wal, run, state_of
from tests.seeds import seeds
from tests.sim.disk import Crash, MemoryDisk


@dataclass
class Run:
    """One run of the workload. `allowed`: the states that a restart may find; the last one is the newest."""

    disk: MemoryDisk
    allowed: list[State] = field(default_factory=lambda: [NOTHING_YET])

    def workload(self, seed: int) -> None:
        run(lambda: self.disk, seed, self.allowed.append, self.synced)

    def synced(self, state: State) -> None:
        self.allowed[:] = [state]


def operations(seed: int, **disk: bool) -> list[str]:
    attempt = Run(MemoryDisk(random.Random(0), **disk))
    attempt.disk.trail = []
    attempt.workload(seed)
    return attempt.disk.trail


def crashed_runs(seed: int, *, preallocates: bool = True) -> Iterator[tuple[int, Run]]:
    """A run for every operation at which it can stop, the fault not yet inflicted."""
    for number in range(1, len(operations(seed, preallocates=preallocates)) + 1):
        attempt = Run(MemoryDisk(random.Random(f"{seed} {number}"), preallocates=preallocates))
        attempt.disk.crash_at = number
        with pytest.raises(Crash):
            attempt.workload(seed)
        yield number, attempt


def restarted(disk: MemoryDisk) -> State:
    wal = open_wal(disk)
    found = state_of(wal)
    wal.close()
    return found


def check(number: int, attempt: Run, disk: MemoryDisk) -> None:
    """A restart finds an allowed state, and has made it durable before it says so."""
    found = restarted(disk)
    assert found in attempt.allowed, f"operation {number}"
    assert len(disk.names()) == 1, "unfinished and superseded segments are gone"
    disk.power_cut()
    assert restarted(disk) == found, f"operation {number}: what a start reported was not durable"


def test_the_workload_reaches_every_kind_of_operation() -> None:
    kinds = {operation.split()[0] for seed in SEEDS for operation in operations(seed)}
    assert kinds == {"create", "preallocate", "write", "sync", "rename", "unlink", "sync_directory"}
    assert len(operations(SEEDS[0])) > 80


SEEDS = seeds(3)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("preallocates", [True, False])
def test_a_power_cut_at_every_operation_loses_nothing_acknowledged(seed: int, preallocates: bool) -> None:
    for number, attempt in crashed_runs(seed, preallocates=preallocates):
        for _ in range(4):
            disk = copy.deepcopy(attempt.disk)
            attempt.disk._rng.random()  # another outcome each time
            disk.power_cut()
            check(number, attempt, disk)


@pytest.mark.parametrize("seed", SEEDS)
def test_kill_at_every_operation_loses_nothing_acknowledged(seed: int) -> None:
    for number, attempt in crashed_runs(seed):
        attempt.disk.kill()
        check(number, attempt, attempt.disk)


@pytest.mark.parametrize("power_cut", [True, False])
def test_a_crash_at_every_operation_of_recovery_loses_nothing_acknowledged(power_cut: bool) -> None:
    for number, attempt in crashed_runs(4):
        if power_cut:
            attempt.disk.power_cut()
        else:
            attempt.disk.kill()
        for disk in crashed_recoveries(attempt.disk):
            (disk.power_cut if number % 3 else disk.kill)()
            check(number, attempt, disk)


def crashed_recoveries(disk: MemoryDisk) -> Iterator[MemoryDisk]:
    at = 0
    while True:
        at += 1
        attempt = copy.deepcopy(disk)
        attempt.crash_at = attempt.operations + at
        try:
            open_wal(attempt)
        except Crash:
            yield attempt
        else:
            assert at > 6, "a start makes a segment and removes those before"
            return


@pytest.mark.parametrize("seed", SEEDS[:2])
@pytest.mark.parametrize(("code", "error"), [(errno.EIO, JournalFailed), (errno.ENOSPC, DiskFull)])
def test_a_failure_of_every_operation_is_fatal_and_loses_nothing_acknowledged(
    seed: int, code: int, error: type[JournalFailed]
) -> None:
    for number, operation in enumerate(operations(seed), start=1):
        attempt = Run(MemoryDisk(random.Random(f"{seed} {number}")))
        attempt.disk.fail_at[number] = code
        with pytest.raises(JournalFailed if operation.startswith("sync ") else error):
            attempt.workload(seed)
        for end in ("kill", "power_cut"):
            disk = copy.deepcopy(attempt.disk)
            getattr(disk, end)()
            check(number, attempt, disk)


def test_a_journal_takes_nothing_after_a_failure() -> None:
    disk = MemoryDisk(random.Random(5))
    wal = open_wal(disk)
    wal.add(b"a", 1, 1)
    batch = wal.cut()
    assert batch is not None
    disk.fail_next_sync()
    with pytest.raises(JournalFailed, match="not retried"):
        wal.write(batch)
    wal.add(b"b", 2, 1)
    assert wal.cut() is None
    with pytest.raises(JournalFailed, match="failed before"):
        wal.write(batch)
    assert (wal.durable_position, wal.durable_index) == (0, 0)


FRAME = [(b"a" * 1500, 1, 1)]


def disk_after_a_failed_sync(seed: int) -> MemoryDisk:
    disk = MemoryDisk(random.Random(seed))
    wal = open_wal(disk)
    wal.add(*FRAME[0])
    batch = wal.cut()
    assert batch is not None
    disk.fail_next_sync()
    with pytest.raises(JournalFailed):
        wal.write(batch)
    disk.kill()
    return disk


def start_and_lose_power(disks: list[MemoryDisk]) -> None:
    for disk in disks:
        assert restarted(disk)[0] == FRAME, "the page cache shows it"
        disk.power_cut()
        assert restarted(disk)[0] == FRAME, "a start reported it"


def test_what_a_failed_sync_left_in_the_page_cache_is_written_anew_by_the_next_start() -> None:
    """The cache shows the frame, the disk may not have it, and no later sync of that file would write it."""
    start_and_lose_power([disk_after_a_failed_sync(seed) for seed in range(20)])


def test_a_full_disk_says_which_directory_and_how_much() -> None:
    disk = MemoryDisk(random.Random(6), capacity_bytes=3 * SEGMENT_BYTES)
    wal = open_wal(disk)
    with pytest.raises(DiskFull, match=rf"no room left in memory: making .* wanted {SEGMENT_BYTES} bytes"):
        fill(wal)
    disk.kill()
    disk.capacity_bytes = None
    assert restarted(disk)[0] == [(b"x" * 500, i, 1) for i in range(1, wal.durable_index + 1)]


def fill(wal: Wal) -> None:
    for index in range(1, 100):
        wal.add(b"x" * 500, index, 1)
        batch = wal.cut()
        assert batch is not None
        wal.write(batch)
        wal.synced(batch)


# --- the sweeps can fail: without one of the steps they find what it is for -------------------------------


class NoDirectorySync(MemoryDisk):
    def sync_directory(self) -> None:
        pass


def power_cuts_after_the_workload(disk_type: type[MemoryDisk] = MemoryDisk) -> None:
    for seed in range(20):
        attempt = Run(disk_type(random.Random(seed)))
        attempt.workload(1)
        attempt.disk.power_cut()
        check(0, attempt, attempt.disk)


def test_the_workload_survives_as_it_is() -> None:
    power_cuts_after_the_workload()


def test_a_directory_that_is_never_synced_is_noticed() -> None:
    with pytest.raises((AssertionError, JournalDamaged)):
        power_cuts_after_the_workload(NoDirectorySync)


def test_a_file_that_is_never_synced_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Writer, "_sync", lambda writer, file: None)
    with pytest.raises((AssertionError, JournalDamaged)):
        power_cuts_after_the_workload()


def test_a_start_that_does_not_write_anew_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    disks = [disk_after_a_failed_sync(seed) for seed in range(20)]
    monkeypatch.setattr(Writer, "begin", lambda writer, groups, last_index: None)
    monkeypatch.setattr(Writer, "remove", lambda writer, names: None)
    with pytest.raises((AssertionError, JournalDamaged)):
        start_and_lose_power(disks)
