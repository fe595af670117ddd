"""The hash that replicas compare: equal histories have equal ones, and any difference shows."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from raftkv.kv.command import (
    Append,
    Command,
    Condition,
    Delete,
    DeletePrefix,
    Idempotency,
    Increment,
    Put,
    Transaction,
)
from raftkv.kv.history import GENESIS, HASH_BYTES
from raftkv.kv.machine import Machine
from raftkv.snapshot.directory import DirectoryStore
from raftkv.snapshot.loader import load_machine
from tests.unit.snapshot_samples import publish

Entry = tuple[int, int, list[Command]]


def some_entries(seed: int, count: int = 300) -> list[Entry]:
    rng = random.Random(seed)
    log_time_ms = 0
    entries: list[Entry] = []
    for index in range(2, count + 2):
        log_time_ms += rng.choice((0, 1, 20_000))  # so that outcomes expire as well
        entries.append((index, log_time_ms, [a_command(rng) for _ in range(rng.randrange(4))]))
    return entries


def a_command(rng: random.Random) -> Command:
    key = b"k%d" % rng.randrange(1_000)
    name = rng.choice((None, b"client/%d" % rng.randrange(1, 50), rng.randbytes(4)))
    keyed = None if name is None else Idempotency(name, b"f" * 16)
    match rng.randrange(7):
        case 0 | 1:
            return Put(key, rng.randbytes(20), idempotency=keyed)
        case 2:
            return Delete(key, idempotency=keyed)
        case 3:
            return Append(key, b"+", 1 << 20, idempotency=keyed)
        case 4:
            return Increment(key, 1, idempotency=keyed)
        case 5:
            return DeletePrefix(b"k%d" % rng.randrange(100), 5, idempotency=keyed)
        case _:
            put = Put(key, b"t", condition=Condition(exists=rng.random() < 0.5))
            return Transaction((), (put, Increment(b"n", 1), Increment(key, 1)), (), keyed)


def run(machine: Machine, entries: list[Entry]) -> Machine:
    for index, log_time_ms, commands in entries:
        if not commands:
            machine.advance(index)
        for command in commands:
            machine.apply(index, log_time_ms, command)
    return machine


def test_a_machine_begins_with_the_hash_of_nothing() -> None:
    assert Machine().state_hash == GENESIS
    assert len(GENESIS) == HASH_BYTES


@pytest.mark.parametrize("seed", range(5))
def test_equal_histories_have_equal_hashes_however_often_one_is_asked(seed: int) -> None:
    entries = some_entries(seed)
    asked, unasked = Machine(), Machine()
    for entry in entries:
        run(asked, [entry])
        assert len(asked.state_hash) == HASH_BYTES
    assert asked.state_hash == run(unasked, entries).state_hash != GENESIS


@pytest.mark.parametrize("at", [1, 40, 150, 299])
def test_who_loads_a_snapshot_goes_on_with_the_same_hash(tmp_path: Path, at: int) -> None:
    """Also where keys lie in other blocks after loading than they did before."""
    entries = some_entries(9)
    maker = run(Machine(), entries[:at])
    store = DirectoryStore.open(tmp_path / "snapshots")
    manifest = publish(store, maker)
    loaded = load_machine(store, manifest.id)
    assert manifest.state_hash == maker.state_hash.hex()
    assert loaded.state() == maker.state()
    assert run(loaded, entries[at:]).state_hash == run(maker, entries[at:]).state_hash


@pytest.mark.parametrize("seed", range(20))
def test_one_different_byte_in_one_command_shows_for_ever(seed: int) -> None:
    entries = some_entries(3)
    rng = random.Random(seed)
    at = rng.randrange(len(entries))
    index, log_time_ms, commands = entries[at]
    changed: list[Entry] = [*entries[:at], (index, log_time_ms, [*commands, Put(b"k1", b"x")])]
    changed += entries[at + 1 :]
    assert run(Machine(), changed).state_hash != run(Machine(), entries).state_hash


def test_a_record_that_one_replica_lost_shows_when_it_is_written_next() -> None:
    one, other = Machine(), Machine()
    for machine in (one, other):
        machine.apply(2, 0, Put(b"a", b"1"))
    assert one.state_hash == other.state_hash
    del other._items.locate(b"a")[b"a"]
    for machine in (one, other):
        machine.apply(3, 0, Put(b"a", b"2"))
    assert one.state_hash != other.state_hash


def test_what_changes_nothing_leaves_the_hash_alone() -> None:
    machine = Machine()
    machine.apply(2, 0, Put(b"a", b"1"))
    before = machine.state_hash
    machine.apply(3, 5, Delete(b"nothing"))
    machine.apply(4, 5, Put(b"a", b"2", condition=Condition(exists=False)))
    machine.advance(5)
    assert machine.state_hash == before


def test_an_unknown_past_stays_unknown(tmp_path: Path) -> None:
    machine = Machine(b"")
    machine.apply(2, 0, Put(b"a", b"1"))
    store = DirectoryStore.open(tmp_path / "snapshots")
    manifest = publish(store, machine)
    assert manifest.state_hash == ""
    assert load_machine(store, manifest.id).state_hash == b""
