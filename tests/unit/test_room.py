"""Room for more: what grows by how much, what is refused and what passes, and how it clears."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkv import resources
from raftkv.errors import DiskSpaceLow, MemoryLow, QuotaExceeded
from raftkv.kv.command import (
    Append,
    Command,
    Delete,
    DeletePrefix,
    Get,
    Idempotency,
    Increment,
    Put,
    RevokeToken,
    Transaction,
)
from raftkv.kv.machine import Machine
from raftkv.room import DIGITS_MAX, Reading, Room, growth
from tests.unit.test_machine_model import Commands

MIB = 1 << 20


def holding(**values: int) -> Machine:
    machine = Machine()
    for index, (key, size) in enumerate(values.items(), 1):
        machine.apply(index, 0, Put(key.encode(), b"v" * size))
    return machine


def numbers_of(command: Command) -> int:
    operations = (*command.success, *command.failure) if isinstance(command, Transaction) else (command,)
    return sum(isinstance(each, Increment) for each in operations)


@settings(max_examples=400)
@given(st.lists(Commands, max_size=20), Commands)
def test_nothing_grows_by_more_than_is_said(before: list[Command], command: Command) -> None:
    """But for the digits of a number that is there already, one a command at most."""
    machine = Machine()
    for index, each in enumerate(before, 1):
        machine.apply(index, index, each)
    said, had = growth(command, machine), machine.bytes
    machine.apply(len(before) + 1, len(before) + 1, command)
    assert machine.bytes - had <= max(said, 0) + DIGITS_MAX * numbers_of(command)


@pytest.mark.parametrize(
    ("command", "by"),
    [
        (Put(b"new", b"12345"), 8),
        (Put(b"new", b"12345", "text/plain"), 18),
        (Put(b"a", b"v" * 10), 0),
        (Put(b"a", b"v" * 7), -3),
        (Put(b"a", b"v" * 12), 2),
        (Append(b"a", b"12", 99), 2),
        (Append(b"new", b"12", 99), 5),
        (Increment(b"a", 1), 0),
        (Increment(b"new", 1), 23),
        (Delete(b"a"), -11),
        (Delete(b"new"), 0),
        (DeletePrefix(b"", 10), 0),
        (RevokeToken("x"), 0),
        (Transaction((), (Delete(b"a"), Put(b"c", b"v" * 10)), ()), 0),
        (Transaction((), (Put(b"c", b"v" * 10), Delete(b"a")), (Put(b"d", b"12"),)), 3),
        (Transaction((), (Get(b"a"), Put(b"a", b"v" * 20), Put(b"a", b"v")), ()), 0),
        (Transaction((), (Put(b"a", b"v" * 20), Put(b"a", b"v")), (Delete(b"a"),)), -9),
        (Transaction((), (Append(b"c", b"12", 9), Append(b"c", b"34", 9)), ()), 5),
    ],
)
def test_growth(command: Command, by: int) -> None:
    assert growth(command, holding(a=10, b=10)) == by


def fits(room: Room, machine: Machine, *commands: Command, in_flight: int = 0) -> int:
    size = sum(len(getattr(each, "value", b"")) for each in commands)
    return room.fits(commands, machine, in_flight, size)


def test_a_quota_is_kept_to_the_byte() -> None:
    machine = holding(a=10)
    room = Room(quota_bytes=20)
    assert fits(room, machine, Put(b"b", b"v" * 8)) == 1
    assert fits(room, machine, Put(b"b", b"v" * 9)) == 0
    assert fits(room, machine, Put(b"b", b"v" * 8), in_flight=1) == 0
    assert fits(room, machine, Put(b"b", b"v" * 3), Put(b"c", b"v" * 3), Put(b"d", b"v")) == 2
    error = room.refusal(machine)
    assert isinstance(error, QuotaExceeded)
    assert (error.limit, error.size, error.flag) == (20, 11, "--quota-bytes")


@settings(max_examples=200)
@given(st.lists(Commands, max_size=60), st.integers(1, 60))
def test_what_is_let_in_stays_within_the_quota(commands: list[Command], quota: int) -> None:
    """One at a time, so with nothing in flight. Numbers that get longer are the one exception."""
    machine, room = Machine(), Room(quota_bytes=quota)
    longer = 0
    for index, command in enumerate(commands, 1):
        before = machine.bytes
        if fits(room, machine, command):
            machine.apply(index, index, command)
            longer += DIGITS_MAX * numbers_of(command)
            assert machine.bytes <= max(quota, before) + longer
        else:
            assert growth(command, machine) > 0


def test_whoever_is_over_the_quota_gets_below_it_again() -> None:
    machine = holding(a=30, b=30)
    room = Room(quota_bytes=40)
    assert room.refusing(machine.bytes).keys() == {"quota"}
    assert fits(room, machine, Put(b"c", b"")) == 0
    for index, command in enumerate((Put(b"a", b"v" * 29), Delete(b"b"), DeletePrefix(b"zz", 1)), 9):
        assert fits(room, machine, command) == 1
        machine.apply(index, 0, command)
    assert not room.refusing(machine.bytes)
    assert fits(room, machine, Put(b"c", b"v")) == 1


def test_a_repeated_write_gets_its_outcome_also_when_it_used_up_the_quota() -> None:
    machine = Machine()
    for n, key in enumerate((b"client/1", b"plain"), 1):
        machine.apply(n, 0, Put(b"k%d" % n, b"v" * 10, idempotency=Idempotency(key, b"f" * 16)))
    room = Room(quota_bytes=5)
    for n, key in enumerate((b"client/1", b"plain"), 1):
        again = Put(b"k%d" % n, b"v" * 99, idempotency=Idempotency(key, b"f" * 16))
        assert fits(room, machine, again) == 1
    for key in (b"client/2", b"other/1", b"other"):
        assert fits(room, machine, Put(b"new", b"v" * 99, idempotency=Idempotency(key, b"f" * 16))) == 0


@pytest.mark.parametrize(
    ("low", "kind", "flag"),
    [
        (Reading(disk_free=99, memory_available=MIB), DiskSpaceLow, "--disk-free-bytes-min"),
        (Reading(disk_free=MIB, memory_available=49), MemoryLow, "--memory-available-bytes-min"),
    ],
)
def test_a_floor_refuses_what_grows_and_clears_itself(
    low: Reading, kind: type[Exception], flag: str, caplog: pytest.LogCaptureFixture
) -> None:
    machine = holding(a=10)
    room = Room(disk_free_bytes_min=100, memory_available_bytes_min=50)
    assert not room.bounded
    room.read(low)
    room.read(low)
    assert room.bounded
    assert fits(room, machine, Put(b"b", b"v")) == 0
    assert fits(room, machine, Delete(b"a"), Put(b"a", b"v" * 10), Put(b"b", b"")) == 2
    error = room.refusal(machine)
    assert isinstance(error, kind)
    assert flag in str(error)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    room.read(Reading(disk_free=101, memory_available=51))
    assert room.bounded, "a floor that is just passed is not clear yet"
    room.read(Reading(disk_free=113, memory_available=57))
    assert not room.bounded
    assert len(caplog.records) == 1  # the other is of level info


def test_what_can_not_be_read_refuses_nothing() -> None:
    room = Room(disk_free_bytes_min=100, memory_available_bytes_min=50)
    room.read(Reading())
    assert not room.bounded


# --- readings --------------------------------------------------------------------------------------------


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


MEMINFO = "MemTotal: 8000 kB\nMemFree: 100 kB\nMemAvailable:    4000 kB\n"


def test_memory_of_the_system(tmp_path: Path) -> None:
    write(tmp_path, "proc/meminfo", MEMINFO)
    assert resources.memory_available(tmp_path) == 4000 * 1024
    assert resources.memory_available(tmp_path / "nothing") is None


def test_memory_below_the_tightest_group_of_version_2(tmp_path: Path) -> None:
    write(tmp_path, "proc/meminfo", MEMINFO)
    write(tmp_path, "proc/self/cgroup", "0::/a/b\n")
    write(tmp_path, "sys/fs/cgroup/a/memory.max", "1000000\n")
    write(tmp_path, "sys/fs/cgroup/a/memory.current", "900000\n")
    write(tmp_path, "sys/fs/cgroup/a/memory.stat", "anon 5\ninactive_file 50000\n")
    write(tmp_path, "sys/fs/cgroup/a/b/memory.max", "max\n")
    write(tmp_path, "sys/fs/cgroup/a/b/memory.current", "1\n")
    assert resources.memory_available(tmp_path) == 150_000


def test_memory_in_a_container_that_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/\n")
    write(tmp_path, "sys/fs/cgroup/memory.max", "1000000\n")
    write(tmp_path, "sys/fs/cgroup/memory.current", "1000\n")
    assert resources.memory_available(tmp_path) == 999_000


def test_memory_of_a_group_of_version_1(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "9:cpu,cpuacct:/x\n4:memory:/x\n0::/\n")
    write(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    write(tmp_path, "sys/fs/cgroup/memory/memory.usage_in_bytes", "5\n")
    write(tmp_path, "sys/fs/cgroup/memory/x/memory.limit_in_bytes", "2000\n")
    write(tmp_path, "sys/fs/cgroup/memory/x/memory.usage_in_bytes", "1500\n")
    write(tmp_path, "sys/fs/cgroup/memory/x/memory.stat", "total_inactive_file 100\n")
    assert resources.memory_available(tmp_path) == 600


def test_this_machine(tmp_path: Path) -> None:
    found = resources.read(tmp_path)
    assert found.disk_free
    assert found.memory_available
    assert found.memory_resident
    assert resources.disk_free(tmp_path / "nothing") is None
