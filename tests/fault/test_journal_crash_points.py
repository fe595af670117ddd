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
from tests.sim.disk import Crash, MemoryDisk

SEGMENT_BYTES = 2048
STEPS = 30
State = tuple[list[tuple[bytes, int, int]], int, str | None, int]


def state_of(wal: Wal) -> State:
    return wal[:], wal.getCurrentTerm(), wal.getVotedForNodeId(), wal.getRaftCommitIndex()


def open_wal(disk: MemoryDisk) -> Wal:
    return Wal.open(disk, SEGMENT_BYTES, clock=lambda: 0.0, draw_id=lambda size: b"j" * size)


@dataclass
class Run:
    """One run of the workload. `allowed`: the states that a restart may find; the last one is the newest."""

    disk: MemoryDisk
    allowed: list[State] = field(default_factory=lambda: [([], 0, None, 1)])

    def workload(self, seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(3):
            wal = open_wal(self.disk)
            assert state_of(wal) == self.allowed[-1]
            for _ in range(STEPS // 3):
                for _ in range(rng.randint(1, 4)):
                    stage_something(wal, rng)
                self.commit(wal)
            wal.close()

    def commit(self, wal: Wal) -> None:
        while (batch := wal.cut()) is not None:
            self.allowed.append(state_of(wal))
            wal.write(batch)
            wal.synced(batch)
            assert not wal[:] or wal.durable_index == wal[-1][1]
            del self.allowed[:-1]


def stage_something(wal: Wal, rng: random.Random) -> None:
    term = wal.getCurrentTerm()
    match rng.choices(("add", "vote", "truncate", "compact", "reset", "clear"), (24, 4, 3, 3, 1, 0.3))[0]:
        case "add":
            for _ in range(rng.randint(1, 3)):
                wal.add(a_payload(rng), wal[-1][1] + 1 if len(wal) else rng.randint(1, 9), term)
        case "vote":
            wal.setCurrentTerm(term + 1, rng.choice((None, "n1", "n2")))
        case "truncate" if len(wal) > 1:
            wal.deleteEntriesFrom(rng.randint(max(1, len(wal) - 5), len(wal) - 1))
        case "compact" if len(wal):
            index = rng.choice(wal[:])[1]
            wal.compact(index, wal[index - wal[0][1]][2])
        case "reset":
            wal.setCurrentTerm(term + 1, None)
            wal.reset((wal[-1][1] if len(wal) else 0) + rng.randint(1, 50), term + 1, a_payload(rng))
        case "clear":
            wal.clear()
    # As PySyncObj, which tells its commit index again with every message.
    wal.setRaftCommitIndex(rng.choice(wal[:])[1] if len(wal) else 1)


def a_payload(rng: random.Random) -> bytes:
    size = rng.choice((0, 1, 30, 200, 700, 1500, 5000))
    return rng.choice((bytes(size), rng.randbytes(size), b"RKVF" * (size // 4)))


def operations(seed: int, **disk: bool) -> list[str]:
    run = Run(MemoryDisk(random.Random(0), **disk))
    run.disk.trail = []
    run.workload(seed)
    return run.disk.trail


def crashed_runs(seed: int, *, preallocates: bool = True) -> Iterator[tuple[int, Run]]:
    """A run for every operation at which it can stop, the fault not yet inflicted."""
    for number in range(1, len(operations(seed, preallocates=preallocates)) + 1):
        run = Run(MemoryDisk(random.Random(f"{seed} {number}"), preallocates=preallocates))
        run.disk.crash_at = number
        with pytest.raises(Crash):
            run.workload(seed)
        yield number, run


def restarted(disk: MemoryDisk) -> State:
    wal = open_wal(disk)
    found = state_of(wal)
    wal.close()
    return found


def check(number: int, run: Run, disk: MemoryDisk) -> None:
    """A restart finds an allowed state, and has made it durable before it says so."""
    found = restarted(disk)
    assert found in run.allowed, f"operation {number}"
    disk.power_cut()
    assert restarted(disk) == found, f"operation {number}: what a start reported was not durable"


def test_the_workload_reaches_every_kind_of_operation() -> None:
    kinds = {operation.split()[0] for seed in SEEDS for operation in operations(seed)}
    assert kinds == {"create", "preallocate", "write", "sync", "rename", "unlink", "sync_directory"}
    assert len(operations(SEEDS[0])) > 80


SEEDS = (1, 2, 3)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("preallocates", [True, False])
def test_a_power_cut_at_every_operation_loses_nothing_acknowledged(seed: int, preallocates: bool) -> None:
    for number, run in crashed_runs(seed, preallocates=preallocates):
        for _ in range(4):
            disk = copy.deepcopy(run.disk)
            run.disk._rng.random()  # another outcome each time
            disk.power_cut()
            check(number, run, disk)


@pytest.mark.parametrize("seed", SEEDS)
def test_kill_at_every_operation_loses_nothing_acknowledged(seed: int) -> None:
    for number, run in crashed_runs(seed):
        run.disk.kill()
        check(number, run, run.disk)


@pytest.mark.parametrize("power_cut", [True, False])
def test_a_crash_at_every_operation_of_recovery_loses_nothing_acknowledged(power_cut: bool) -> None:
    for number, run in crashed_runs(4):
        if power_cut:
            run.disk.power_cut()
        else:
            run.disk.kill()
        for disk in crashed_recoveries(run.disk):
            (disk.power_cut if number % 3 else disk.kill)()
            check(number, run, disk)


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


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("code", "error"), [(errno.EIO, JournalFailed), (errno.ENOSPC, DiskFull)])
def test_a_failure_of_every_operation_is_fatal_and_loses_nothing_acknowledged(
    seed: int, code: int, error: type[JournalFailed]
) -> None:
    for number, operation in enumerate(operations(seed), start=1):
        run = Run(MemoryDisk(random.Random(f"{seed} {number}")))
        run.disk.fail_at[number] = code
        with pytest.raises(JournalFailed if operation.startswith("sync ") else error):
            run.workload(seed)
        for end in ("kill", "power_cut"):
            disk = copy.deepcopy(run.disk)
            getattr(disk, end)()
            check(number, run, disk)


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
        run = Run(disk_type(random.Random(seed)))
        run.workload(1)
        run.disk.power_cut()
        check(0, run, run.disk)


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
