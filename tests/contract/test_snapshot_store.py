"""What every snapshot store promises, whatever it stands on."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from raftkv.errors import SnapshotDamaged, SnapshotMissing
from raftkv.kv.machine import Machine
from raftkv.snapshot import store as store_module
from raftkv.snapshot.codec import Manifest, chunk_name, manifest_name
from raftkv.snapshot.directory import DirectoryStore
from raftkv.snapshot.loader import load_machine, verify
from raftkv.snapshot.store import Store
from tests.unit.snapshot_samples import a_machine, dump, publish

Reopen = Callable[[], Store]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "CHUNK_RAW_BYTES", 1_000)


@pytest.fixture
def reopen(tmp_path: Path) -> Reopen:
    return lambda: DirectoryStore.open(tmp_path / "snapshots")


@pytest.fixture
def store(reopen: Reopen) -> Store:
    return reopen()


def chunks_of(store: Store, manifest: Manifest) -> list[bytes]:
    return [store.read_chunk(manifest.id, number) for number in range(len(manifest.chunks))]


def test_a_snapshot_loads_as_the_machine_that_it_was_made_of(store: Store, reopen: Reopen) -> None:
    machine = a_machine(1)
    manifest = publish(store, machine)
    assert len(manifest.chunks) > 3
    assert (manifest.keys, manifest.index, manifest.revision) == (41, 41, machine.revision)
    assert manifest.idempotency_records == machine.idempotency_records > 20
    for each in (store, reopen()):
        assert each.list() == [manifest]
        assert each.manifest(manifest.id) == manifest
        loaded = load_machine(each, manifest.id)
        assert dump(loaded) == dump(machine)
        assert loaded.state() == machine.state()
        assert verify(each, manifest.id) == manifest


def test_an_empty_machine_has_a_snapshot_too(store: Store) -> None:
    manifest = publish(store, Machine())
    assert manifest.chunks == ()
    assert dump(load_machine(store, manifest.id)) == b""


def test_equal_machines_make_equal_chunks(store: Store) -> None:
    first = publish(store, a_machine(1))
    second = publish(store, load_machine(store, first.id))
    assert first.id != second.id
    assert (first.sha256, [c.sha256 for c in first.chunks]) == (
        second.sha256,
        [c.sha256 for c in second.chunks],
    )


def test_list_is_oldest_first_and_retain_keeps_the_newest(store: Store) -> None:
    manifests = [publish(store, a_machine(1, keys)) for keys in (7, 30, 3, 12)]
    by_index = sorted(manifests, key=lambda manifest: manifest.index)
    assert store.list() == by_index
    store.retain(9)
    assert store.list() == by_index
    store.retain(2)
    assert store.list() == by_index[2:]
    store.retain(0)
    assert store.list() == []


def test_a_deleted_snapshot_is_gone_whole(store: Store, tmp_path: Path) -> None:
    kept, gone = publish(store, a_machine(1, 5)), publish(store, a_machine(1, 9))
    store.delete(gone.id)
    for ask in (store.manifest, store.delete, lambda name: store.read_chunk(name, 0)):
        with pytest.raises(SnapshotMissing, match=gone.id):
            ask(gone.id)
    assert store.list() == [kept]
    assert not [each for each in (tmp_path / "snapshots").iterdir() if each.name.startswith(gone.id)]


@pytest.mark.parametrize("name", ["", "..", "../secret", "x", "0000000000000001-00000001-r1"])
def test_an_id_from_outside_never_becomes_a_path(store: Store, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.manifest").write_bytes(b"mine")
    for ask in (store.manifest, store.delete, lambda name: store.read_chunk(name, 0)):
        with pytest.raises(SnapshotMissing):
            ask(name)
    assert (tmp_path / "secret.manifest").read_bytes() == b"mine"


def test_a_chunk_is_read_in_parts(store: Store) -> None:
    manifest = publish(store, a_machine(1))
    whole = store.read_chunk(manifest.id, 1)
    assert len(whole) == manifest.chunks[1].bytes
    parts = [store.read_chunk(manifest.id, 1, offset, 100) for offset in range(0, len(whole), 100)]
    assert b"".join(parts) == whole
    assert store.read_chunk(manifest.id, 1, len(whole), 100) == b""
    with pytest.raises(SnapshotMissing):
        store.read_chunk(manifest.id, len(manifest.chunks))


def test_what_is_unfinished_is_not_listed_and_goes_when_opened(
    store: Store, reopen: Reopen, tmp_path: Path
) -> None:
    done = publish(store, a_machine(1, 5))
    unfinished = store.begin(done.id.replace("0006-", "0009-", 1))
    unfinished.write_chunk(0, b"half")
    foreign = {
        tmp_path / "snapshots" / name: name.encode() for name in ("notes.txt", "x.chunk", "a.manifest")
    }
    for path, content in foreign.items():
        path.write_bytes(content)
    assert store.list() == [done]
    again = reopen()
    assert again.list() == [done]
    names = {each.name for each in (tmp_path / "snapshots").iterdir()}
    assert names - {path.name for path in foreign} == {manifest_name(done.id)} | {c.name for c in done.chunks}
    assert all(path.read_bytes() == content for path, content in foreign.items())


def test_an_aborted_publication_leaves_nothing(store: Store, tmp_path: Path) -> None:
    publication = store.begin(publish(store, a_machine(1, 5)).id.replace("0006-", "0009-", 1))
    publication.write_chunk(0, b"half")
    publication.abort()
    publication.abort()
    assert len(list((tmp_path / "snapshots").iterdir())) == 1 + len(store.list()[0].chunks)


def test_a_snapshot_is_never_written_over(store: Store) -> None:
    manifest = publish(store, a_machine(1, 5))
    with pytest.raises(FileExistsError):
        store.begin(manifest.id)
    assert verify(store, manifest.id) == manifest


# --- damage --------------------------------------------------------------------------------------------


def test_damage_anywhere_is_found_and_named(store: Store, tmp_path: Path) -> None:
    manifest = publish(store, a_machine(1))
    rng = random.Random(7)
    for path in sorted((tmp_path / "snapshots").iterdir()):
        good = path.read_bytes()
        at = rng.randrange(len(good))
        for bad in (good[:at], good[:at] + bytes((good[at] ^ 0x10,)) + good[at + 1 :], b"", good + b"\0"):
            path.write_bytes(bad)
            with pytest.raises(SnapshotDamaged, match="move the snapshot's files away") as caught:
                verify(store, manifest.id)
            assert str(path) in str(caught.value)
        path.write_bytes(good)
    verify(store, manifest.id)


def test_a_missing_chunk_is_damage(store: Store, tmp_path: Path) -> None:
    manifest = publish(store, a_machine(1))
    (tmp_path / "snapshots" / chunk_name(manifest.id, 2)).unlink()
    with pytest.raises(SnapshotDamaged, match="chunk 2 is gone"):
        load_machine(store, manifest.id)


def test_an_unreadable_manifest_is_never_a_shorter_list(store: Store, tmp_path: Path) -> None:
    publish(store, a_machine(1, 5))
    newest = publish(store, a_machine(1, 9))
    (tmp_path / "snapshots" / manifest_name(newest.id)).write_bytes(b"{}")
    with pytest.raises(SnapshotDamaged, match=newest.id):
        store.list()


def test_an_unreadable_snapshot_stops_neither_new_ones_nor_retention(store: Store, tmp_path: Path) -> None:
    old = publish(store, a_machine(1, 5))
    (tmp_path / "snapshots" / manifest_name(old.id)).write_bytes(b"{}")
    newer = [publish(store, a_machine(1, keys)) for keys in (7, 7, 9)]
    store.retain(2)
    assert store.list() == newer[1:]


def test_a_manifest_under_another_name_is_refused(store: Store, tmp_path: Path) -> None:
    manifest = publish(store, a_machine(1, 5))
    other = manifest.id.replace("0006-", "0009-", 1)
    files = tmp_path / "snapshots"
    (files / manifest_name(other)).write_bytes((files / manifest_name(manifest.id)).read_bytes())
    with pytest.raises(SnapshotDamaged, match=f"it is the manifest of {manifest.id}"):
        store.manifest(other)


# --- receiving -----------------------------------------------------------------------------------------


@pytest.fixture
def sent(tmp_path: Path) -> tuple[Manifest, list[bytes]]:
    leader = DirectoryStore.open(tmp_path / "leader")
    manifest = publish(leader, a_machine(5))
    return manifest, chunks_of(leader, manifest)


def test_a_snapshot_is_received_chunk_by_chunk(store: Store, sent: tuple[Manifest, list[bytes]]) -> None:
    manifest, chunks = sent
    receiver = store.receive(manifest)
    for number in reversed(range(len(chunks))):
        assert list(receiver.missing()) == list(range(number + 1))
        with pytest.raises(SnapshotDamaged, match="misses"):
            receiver.commit()
        assert store.list() == []
        receiver.write_chunk(number, chunks[number])
    receiver.commit()
    receiver.commit()
    assert store.list() == [manifest]
    assert dump(load_machine(store, manifest.id)) == dump(a_machine(5))


def test_a_bad_chunk_is_refused_and_may_come_again(store: Store, sent: tuple[Manifest, list[bytes]]) -> None:
    manifest, chunks = sent
    receiver = store.receive(manifest)
    for number in range(len(chunks)):
        bad = chunks[number][:-1] + bytes((chunks[number][-1] ^ 1,))
        for data in (bad, b"", chunks[number - 1]):
            with pytest.raises(SnapshotDamaged):
                receiver.write_chunk(number, data)
        assert number in receiver.missing()
        receiver.write_chunk(number, chunks[number])
    for number in (-1, len(chunks)):
        with pytest.raises(SnapshotDamaged, match="no chunk"):
            receiver.write_chunk(number, chunks[0])
    receiver.commit()
    verify(store, manifest.id)


def test_receiving_goes_on_where_it_was(
    store: Store, sent: tuple[Manifest, list[bytes]], tmp_path: Path
) -> None:
    manifest, chunks = sent
    first = store.receive(manifest)
    first.write_chunk(0, chunks[0])
    first.write_chunk(2, chunks[2])
    # A write that failed half way leaves a file that nobody synced.
    (tmp_path / "snapshots" / chunk_name(manifest.id, 1)).write_bytes(chunks[1])
    second = store.receive(manifest)
    assert list(second.missing()) == [1, *range(3, len(chunks))]
    for number in second.missing():
        second.write_chunk(number, chunks[number])
    second.commit()
    assert list(store.receive(manifest).missing()) == []
    verify(store, manifest.id)


def test_an_aborted_receiver_starts_anew(store: Store, sent: tuple[Manifest, list[bytes]]) -> None:
    manifest, chunks = sent
    receiver = store.receive(manifest)
    receiver.write_chunk(0, chunks[0])
    receiver.abort()
    assert list(store.receive(manifest).missing()) == list(range(len(chunks)))


def test_a_damaged_copy_is_received_again(
    store: Store, sent: tuple[Manifest, list[bytes]], tmp_path: Path
) -> None:
    manifest, chunks = sent
    receiver = store.receive(manifest)
    for number, data in enumerate(chunks):
        receiver.write_chunk(number, data)
    receiver.commit()
    (tmp_path / "snapshots" / chunk_name(manifest.id, 1)).write_bytes(b"rotten")
    again = store.receive(manifest)
    assert list(again.missing()) == list(range(len(chunks)))
    for number, data in enumerate(chunks):
        again.write_chunk(number, data)
    again.commit()
    assert verify(store, manifest.id) == manifest
