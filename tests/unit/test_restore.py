"""Restores without processes: from a bucket to directories that a node's start accepts."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raftkv.errors import BadRequest, Fatal, SnapshotDamaged, SnapshotMissing
from raftkv.journal.disk import OsDisk
from raftkv.kv.command import Command, Increment, Put, encode, encode_entry
from raftkv.kv.machine import Machine
from raftkv.model import Member
from raftkv.raft import opening, restore
from raftkv.raft.identity import UNFINISHED, end_restore, load_or_create, reconcile
from raftkv.raft.restore import LATEST, Recovered, Target, recover
from raftkv.snapshot import ranges
from raftkv.snapshot.bucket import DirectoryBucket
from raftkv.snapshot.codec import Manifest
from raftkv.snapshot.directory import DirectoryStore
from raftkv.snapshot.ranges import Entry, Ranges, Tail, encode_range, object_name
from raftkv.snapshot.remote import RemoteStore, Retention
from tests.unit.snapshot_samples import CLUSTER, dump, publish

MEMBERS = tuple(
    Member(f"n{n}", f"127.0.0.1:{8001 + 10 * n}", f"http://127.0.0.1:{8000 + 10 * n}") for n in (1, 2, 3)
)
TERM = 3
TIME_MS = 1_700_000_000_000


class Source:
    """A cluster's log, the states along it, and a store that it was sent to."""

    def __init__(self, directory: Path, count: int = 30) -> None:
        self.directory = directory
        self.bucket = DirectoryBucket(directory / "bucket")
        self.remote = RemoteStore(self.bucket)
        self.ranges = Ranges(self.bucket)
        self.log: dict[int, Entry] = {}
        rng = random.Random(1)
        for index in range(2, count + 2):
            commands: list[Command] = [
                Put(b"key/%d" % rng.randrange(40), rng.randbytes(9)),
                Increment(b"n", 1),
                Put(b"last", b"%d" % index),
            ]
            self.log[index] = (TERM, b"\0" + encode_entry(index * 10, map(encode, commands)))
        self.log[5] = (TERM, b"\x01")

    def machine(self, index: int) -> Machine:
        machine = Machine()
        for at in range(2, index + 1):
            restore._Replay(machine, TERM, Target())._apply(at, self.log[at][1])
        return machine

    def publish(self, index: int) -> Manifest:
        local = DirectoryStore.open(self.directory / "local")
        manifest = publish(local, self.machine(index), TERM)
        return self.remote.publish(local, manifest.id, term=TERM, publisher="n1")

    def archive(self, first: int, last: int, tail: Tail | None = None) -> Tail:
        tail = tail or self.ranges.begin(CLUSTER, first, TERM if first > 2 else 0)
        return self.ranges.append(tail, self.range(first, last, tail), last, TERM)

    def range(self, first: int, last: int, tail: Tail) -> bytes:
        return encode_range(
            cluster=CLUSTER,
            first=first,
            base_term=tail.term,
            previous=tail.sha256,
            times=[(index, TIME_MS + index * 1000) for index in range(first, last + 1)],
            entries=[self.log[index] for index in range(first, last + 1)],
        )


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path / "source")


def same(machine: Machine, other: Machine) -> bool:
    return dump(machine) == dump(other) and machine.state() == other.state()


# --- which state -----------------------------------------------------------------------------------------


def test_latest_is_the_newest_snapshot_and_the_log_behind_it(source: Source) -> None:
    tail = source.archive(2, 11)
    source.publish(8)
    tail = source.archive(12, 12, tail)
    source.publish(14)
    tail = source.archive(13, 20, tail)
    source.archive(21, 25, tail)
    recovered = recover(source.remote, Target())
    assert recovered.snapshot is not None
    assert recovered.snapshot.index == 14
    assert (recovered.entries, recovered.ranges, recovered.term) == (11, 2, TERM)
    assert same(recovered.machine, source.machine(25))


def test_a_snapshot_by_its_id_is_that_snapshot(source: Source) -> None:
    manifest = source.publish(8)
    source.publish(14)
    source.archive(9, 20)
    recovered = recover(source.remote, Target(manifest.id))
    assert same(recovered.machine, source.machine(8))
    assert recovered.entries == 0


def test_without_a_snapshot_the_log_from_its_beginning_will_do(source: Source) -> None:
    source.archive(3, 25, source.archive(2, 2))
    recovered = recover(source.remote, Target())
    assert recovered.snapshot is None
    assert same(recovered.machine, source.machine(25))


@pytest.mark.parametrize("snapshot_at", [None, 8])
def test_every_revision_can_be_restored_also_in_the_midst_of_an_entry(
    source: Source, snapshot_at: int | None
) -> None:
    if snapshot_at:
        source.publish(snapshot_at)
    source.archive(12, 25, source.archive(2, 11))
    for revision in range(1, source.machine(25).revision + 1):
        machine = recover(source.remote, Target(to_revision=revision)).machine
        assert machine.revision == revision
        written = [item.mod_revision for item in machine.scan(b"", None, 1000)]
        assert max(written) == revision
        whole = source.machine(machine.applied_index)
        if whole.revision == revision:
            assert same(machine, whole)


def test_a_time_ends_behind_the_last_entry_that_was_applied_by_then(source: Source) -> None:
    source.publish(8)
    source.archive(12, 25, source.archive(2, 11))
    recovered = recover(source.remote, Target(to_time_ms=TIME_MS + 17_500))
    assert same(recovered.machine, source.machine(17))
    assert recovered.time_ms == TIME_MS + 17_000


def test_a_snapshot_later_than_asked_for_is_not_taken(source: Source) -> None:
    manifest = source.publish(20)
    with pytest.raises(BadRequest, match="later"):
        recover(source.remote, Target(manifest.id, to_revision=3))
    with pytest.raises(BadRequest, match="reaches"):
        recover(source.remote, Target(to_revision=3))


def test_a_revision_beyond_the_archive_is_refused(source: Source) -> None:
    source.archive(2, 11)
    with pytest.raises(BadRequest, match="reaches"):
        recover(source.remote, Target(to_revision=1000))


def test_a_gap_ends_what_can_be_restored(source: Source) -> None:
    """The chain broke at 11; it began anew at 20, for which the snapshot came too late."""
    source.publish(8)
    source.archive(2, 11)
    source.archive(20, 25)
    assert same(recover(source.remote, Target()).machine, source.machine(11))
    source.publish(22)
    assert same(recover(source.remote, Target()).machine, source.machine(25))
    assert same(
        recover(source.remote, Target(to_revision=source.machine(10).revision)).machine, source.machine(10)
    )


def test_an_empty_store_and_an_unknown_cluster_are_said(source: Source) -> None:
    with pytest.raises(SnapshotMissing, match="no snapshot and no log"):
        recover(source.remote, Target())
    source.publish(8)
    with pytest.raises(SnapshotMissing, match=CLUSTER):
        recover(source.remote, Target(cluster="ffff"))


def test_of_several_clusters_one_must_be_named(source: Source) -> None:
    source.publish(8)
    source.ranges.begin("e" * 32, 2, 0)
    with pytest.raises(BadRequest, match="2 clusters"):
        recover(source.remote, Target())
    assert same(recover(source.remote, Target(cluster=CLUSTER[:4])).machine, source.machine(8))


@pytest.mark.parametrize("seed", range(30))
def test_any_damage_is_found_before_a_state_is_given_out(source: Source, seed: int) -> None:
    source.publish(8)
    source.archive(12, 25, source.archive(2, 11))
    rng = random.Random(seed)
    objects = sorted((source.directory / "bucket" / "objects").iterdir())
    path = rng.choice(objects)
    data = bytearray(path.read_bytes())
    if rng.random() < 0.3:
        del data[rng.randrange(len(data)) :]
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    with pytest.raises(SnapshotDamaged):
        recover(source.remote, Target())


def test_a_range_of_another_history_is_refused(source: Source) -> None:
    source.publish(8)
    tail = source.archive(2, 11)
    objects = source.directory / "bucket" / "objects"
    wrong = source.range(12, 20, tail)
    tail_of_another = Tail(CLUSTER, tail.chain, 11, TERM, "0" * 64, 0)
    (objects / object_name(CLUSTER, 12)).write_bytes(source.range(12, 20, tail_of_another))
    with pytest.raises(SnapshotDamaged, match="does not follow"):
        recover(source.remote, Target())
    (objects / object_name(CLUSTER, 12)).write_bytes(wrong)
    assert same(recover(source.remote, Target()).machine, source.machine(20))


# --- directories -----------------------------------------------------------------------------------------


def directories(base: Path) -> dict[str, Path]:
    return {member.name: base / member.name for member in MEMBERS}


def recovered_state(source: Source) -> Recovered:
    source.publish(8)
    source.archive(2, 11)
    return recover(source.remote, Target(LATEST))


def test_what_was_restored_starts_as_one_formed_cluster(source: Source, tmp_path: Path) -> None:
    recovered = recovered_state(source)
    restored = restore.restore(recovered, directories(tmp_path), MEMBERS)
    assert restored.membership.cluster != CLUSTER
    for name, directory in directories(tmp_path).items():
        stored = load_or_create(directory, name)
        opened = opening.open_state(
            OsDisk(directory / "journal"), DirectoryStore.open(directory / "snapshots")
        )
        assert opened.membership == restored.membership
        assert reconcile(directory, stored, opened.membership).founding == restored.membership
        assert dict(restored.membership.instances)[name] == stored.identity.instance
        assert same(opened.machine, source.machine(11))
        assert opened.wal[:] == [(b"\x01", 11, TERM)]
        assert opened.wal.getCurrentTerm() == TERM
        opened.wal.close()
    assert len({instance for _, instance in restored.membership.instances}) == 3


def test_two_restores_make_two_clusters(source: Source, tmp_path: Path) -> None:
    recovered = recovered_state(source)
    one = restore.restore(recovered, directories(tmp_path / "1"), MEMBERS).membership
    other = restore.restore(recovered, directories(tmp_path / "2"), MEMBERS).membership
    assert one.cluster != other.cluster
    assert not set(dict(one.instances).values()) & set(dict(other.instances).values())


def test_members_can_be_restored_one_by_one_under_one_cluster_id(source: Source, tmp_path: Path) -> None:
    recovered = recovered_state(source)
    made = [
        restore.restore(recovered, {member.name: tmp_path / member.name}, MEMBERS, cluster="ab" * 16)
        for member in MEMBERS
    ]
    assert len({restored.membership for restored in made}) == 1
    assert len({restored.manifest.sha256 for restored in made}) == 1


def test_a_directory_that_holds_anything_is_refused_and_nothing_is_written(
    source: Source, tmp_path: Path
) -> None:
    recovered = recovered_state(source)
    wanted = directories(tmp_path)
    wanted["n3"].mkdir()
    (wanted["n3"] / "letter").write_text("keep me")
    with pytest.raises(BadRequest, match="not empty"):
        restore.restore(recovered, wanted, MEMBERS)
    assert not wanted["n1"].exists()
    assert [path.name for path in wanted["n3"].iterdir()] == ["letter"]


def test_half_a_restore_is_refused_by_a_start_and_by_the_next_restore(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it was cut: no member starts before all are complete."""
    recovered = recovered_state(source)
    for cut, step in enumerate(("_write_snapshot", "_copy_snapshot", "_write_journal", "adopt")):
        wanted = directories(tmp_path / str(cut))
        with monkeypatch.context() as patch:

            def fail(*_: object) -> None:
                raise OSError("the disk is gone")

            patch.setattr(restore, step, fail)
            with pytest.raises(Fatal, match="the disk is gone"):
                restore.restore(recovered, wanted, MEMBERS)
        for name, directory in wanted.items():
            assert (directory / UNFINISHED).exists()
            with pytest.raises(Fatal, match="did not finish"):
                load_or_create(directory, name)
        with pytest.raises(BadRequest, match="did not finish"):
            restore.restore(recovered, wanted, MEMBERS)


def test_the_log_behind_the_oldest_kept_snapshot_goes_with_those_before_it(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "MARK_EVERY", 2)
    tail: Tail | None = None
    for first in range(2, 26, 2):
        tail = source.archive(first, first + 1, tail)
    for index in (8, 14, 20):
        source.publish(index)
    source.remote.prune(cluster=CLUSTER, retention=Retention(2))
    objects = {path.name for path in (source.directory / "bucket" / "objects").iterdir()}
    kept = {first for first in range(2, 26) if object_name(CLUSTER, first) in objects}
    assert 10 <= min(kept) <= 15
    for index in (14, 17, 25):
        revision = source.machine(index).revision
        assert same(recover(source.remote, Target(to_revision=revision)).machine, source.machine(index))
    with pytest.raises(BadRequest, match="reaches"):
        recover(source.remote, Target(to_revision=source.machine(9).revision))


@pytest.mark.parametrize("removed", [1, 2])
def test_a_restore_that_ended_between_two_of_its_last_steps_is_a_whole_one(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: int
) -> None:
    """Else two members of three would run, and the third would ask to have them all removed."""
    recovered = recovered_state(source)
    wanted = directories(tmp_path)
    left = removed

    def end_some(directory: Path) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError("cut")
        end_restore(directory)

    monkeypatch.setattr(restore, "end_restore", end_some)
    with pytest.raises(Fatal, match="cut"):
        restore.restore(recovered, wanted, MEMBERS)
    assert sum((directory / UNFINISHED).exists() for directory in wanted.values()) == 3 - removed
    clusters = {load_or_create(directory, name).identity.cluster for name, directory in wanted.items()}
    assert len(clusters) == 1
    assert not any((directory / UNFINISHED).exists() for directory in wanted.values())


class Killed(BaseException):
    pass


class Killer:
    """The process dies at its `at`th call to the disk, and makes none after it."""

    def __init__(self, at: int) -> None:
        self._left = at

    def wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self._left -= 1
            if self._left <= 0:
                raise Killed
            return real(*arguments, **named)

        return call


def test_a_kill_at_any_call_to_the_disk_leaves_all_members_or_none(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recovered = recovered_state(source)
    outcomes = []
    for at in range(1, 1000):
        wanted = directories(tmp_path / str(at))
        killer = Killer(at)
        with monkeypatch.context() as patch:
            for name in ("fsync", "fdatasync", "rename", "replace", "unlink", "mkdir"):
                patch.setattr(os, name, killer.wrap(getattr(os, name)))
            try:
                restore.restore(recovered, wanted, MEMBERS, cluster="ab" * 16)
            except Killed:
                pass
            else:
                break
        outcomes.append({starts(name, directory) for name, directory in wanted.items()})
    assert len(outcomes) > 40
    assert all(len(outcome) == 1 for outcome in outcomes)
    assert {False} in outcomes
    assert outcomes[-1] == {True}


def starts(name: str, directory: Path) -> bool:
    """As a member of the cluster; an untouched directory is one of nobody yet."""
    try:
        return load_or_create(directory, name).founding is not None
    except Fatal:
        return False
