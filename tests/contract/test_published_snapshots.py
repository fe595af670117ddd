"""What a store that a cluster publishes to promises, whatever it stands on: a directory, or a real Ceph."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from raftkv.errors import SnapshotDamaged, SnapshotMissing, StoreFenced, StoreUnavailable
from raftkv.kv.machine import Machine
from raftkv.snapshot import remote as remote_module
from raftkv.snapshot import store as store_module
from raftkv.snapshot.bucket import Bucket, DirectoryBucket, Index
from raftkv.snapshot.codec import Manifest, encode_manifest
from raftkv.snapshot.directory import DirectoryStore
from raftkv.snapshot.loader import check, load_machine, verify
from raftkv.snapshot.rados import Location, RadosBucket
from raftkv.snapshot.remote import ABANDONED_MS, GRACE_MS, Attempt, RemoteStore, Retention
from tests.ceph import Ceph
from tests.unit.snapshot_samples import CLUSTER, a_machine, dump, publish


class Place:
    """Somewhere that buckets can be opened on, and looked into behind their backs."""

    def bucket(self) -> Bucket:
        raise NotImplementedError

    def names(self) -> set[str]:
        """Of all objects, known to the index or not."""
        raise NotImplementedError

    def overwrite(self, name: str, data: bytes) -> None:
        self.bucket().write([(name, data)])


class Directory(Place):
    def __init__(self, path: Path) -> None:
        self.path = path

    def bucket(self) -> Bucket:
        return DirectoryBucket(self.path)

    def names(self) -> set[str]:
        objects = self.path / "objects"
        return {each.name for each in objects.iterdir()} if objects.is_dir() else set()


class Rados(Place):
    def __init__(self, ceph: Ceph, location: Location) -> None:
        self.ceph = ceph
        self.location = location
        self.opened = RadosBucket(location)

    def bucket(self) -> Bucket:
        return self.opened

    def names(self) -> set[str]:
        return self.ceph.object_names(self.location) - {"raftkv.index"}


@pytest.fixture(params=["directory", "rados"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "directory":
        yield Directory(tmp_path / "shared")
        return
    ceph = request.getfixturevalue("ceph")
    made = Rados(ceph, ceph.new_location())
    yield made
    made.opened.close()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "CHUNK_RAW_BYTES", 1_000)


@dataclass
class Clock:
    now_s: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def local(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore.open(tmp_path / "local")


@pytest.fixture
def remote(place: Place, clock: Clock) -> RemoteStore:
    return RemoteStore(place.bucket(), clock)


def objects_of(place: Place) -> set[str]:
    """The names that the index's snapshots have."""
    index = place.bucket().index()
    return {name for each in remote_module.attempts(index, "s", None) for name in each.objects()}


# --- publishing and reading ------------------------------------------------------------------------------


def test_a_published_snapshot_loads_as_the_machine_that_it_was_made_of(
    remote: RemoteStore, local: DirectoryStore, place: Place
) -> None:
    machine = a_machine(1)
    made = publish(local, machine)
    assert len(made.chunks) > 3
    assert remote.publish(local, made.id, term=3, publisher="n1") == made
    for each in (remote, RemoteStore(place.bucket())):
        assert each.list() == [made]
        assert encode_manifest(each.manifest(made.id)) == encode_manifest(made)
        assert dump(load_machine(each, made.id)) == dump(machine)
        assert verify(each, made.id) == made
        check(each, made)
    assert place.names() == objects_of(place)


def test_an_empty_machine_is_published_too(remote: RemoteStore, local: DirectoryStore) -> None:
    made = publish(local, Machine())
    remote.publish(local, made.id, term=1, publisher="n1")
    assert dump(load_machine(remote, made.id)) == b""


def test_publishing_again_changes_nothing(remote: RemoteStore, local: DirectoryStore, place: Place) -> None:
    made = publish(local, a_machine(1, 5))
    remote.publish(local, made.id, term=3, publisher="n1")
    before = place.bucket().index()
    remote.publish(local, made.id, term=4, publisher="n2")
    assert place.bucket().index() == before


def test_list_is_oldest_first_and_of_one_cluster_or_all(remote: RemoteStore, local: DirectoryStore) -> None:
    assert remote.list() == []
    assert remote.newest(CLUSTER) is None
    made = [publish(local, a_machine(1, keys)) for keys in (7, 30, 3)]
    for each in made:
        remote.publish(local, each.id, term=3, publisher="n1")
    assert remote.list() == remote.list(CLUSTER) == sorted(made, key=lambda each: each.index)
    assert remote.list("another") == []
    newest = remote.newest(CLUSTER)
    assert newest is not None
    assert (newest.snapshot, newest.index, newest.revision) == (
        made[1].id,
        made[1].index,
        made[1].revision,
    )


def test_a_chunk_is_read_in_parts_however_it_is_stored(
    remote: RemoteStore, local: DirectoryStore, monkeypatch: pytest.MonkeyPatch, place: Place
) -> None:
    monkeypatch.setattr(remote_module, "OBJECT_BYTES_MAX", 300)
    machine = a_machine(1)
    made = publish(local, machine)
    assert max(chunk.bytes for chunk in made.chunks) > 600
    remote.publish(local, made.id, term=3, publisher="n1")
    assert len(place.names()) > len(made.chunks) + 4
    for number in range(len(made.chunks)):
        whole = local.read_chunk(made.id, number)
        parts = [remote.read_chunk(made.id, number, at, 70) for at in range(0, len(whole), 70)]
        assert b"".join(parts) == whole
        assert remote.read_chunk(made.id, number, len(whole), 70) == b""
    assert dump(load_machine(remote, made.id)) == dump(machine)
    with pytest.raises(SnapshotMissing):
        remote.read_chunk(made.id, len(made.chunks))


@pytest.mark.parametrize("name", ["", "..", "../secret", "x", "s/x", "0000000000000001-00000001-r1"])
def test_an_id_from_outside_names_nothing_else(remote: RemoteStore, name: str) -> None:
    for ask in (remote.manifest, remote.delete, lambda name: remote.read_chunk(name, 0)):
        with pytest.raises(SnapshotMissing):
            ask(name)


def test_rot_on_the_local_disk_is_never_published(
    remote: RemoteStore, local: DirectoryStore, place: Place, tmp_path: Path
) -> None:
    made = publish(local, a_machine(1))
    path = tmp_path / "local" / made.chunks[2].name
    good = path.read_bytes()
    for bad in (good[:-1], good[:40] + bytes((good[40] ^ 4,)) + good[41:], good + b"x"):
        path.write_bytes(bad)
        with pytest.raises(SnapshotDamaged, match=str(path)):
            remote.publish(local, made.id, term=3, publisher="n1")
    assert remote.list() == []
    assert place.names() == set()
    path.write_bytes(good)
    remote.publish(local, made.id, term=3, publisher="n1")


def test_a_disk_that_cannot_be_read_here_is_not_blamed_on_the_store(
    remote: RemoteStore, local: DirectoryStore, place: Place, tmp_path: Path
) -> None:
    made = publish(local, a_machine(1))
    path = tmp_path / "local" / made.chunks[1].name
    path.unlink()
    path.mkdir()  # reading it is an error of the file system, even for root
    with pytest.raises(SnapshotDamaged, match=f"{path}: it can't be read"):
        remote.publish(local, made.id, term=3, publisher="n1")
    assert place.names() == set()


# --- deleting and retention ------------------------------------------------------------------------------


def test_a_deleted_snapshot_is_gone_whole(remote: RemoteStore, local: DirectoryStore, place: Place) -> None:
    kept, gone = publish(local, a_machine(1, 5)), publish(local, a_machine(1, 9))
    for each in (kept, gone):
        remote.publish(local, each.id, term=3, publisher="n1")
    remote.delete(gone.id)
    for ask in (remote.manifest, remote.delete, lambda name: remote.read_chunk(name, 0)):
        with pytest.raises(SnapshotMissing, match=gone.id):
            ask(gone.id)
    assert remote.list() == [kept]
    assert place.names() == objects_of(place)
    assert not any(key.startswith("d/") for key in place.bucket().index().entries)
    # And may come again, under the same id.
    remote.publish(local, gone.id, term=3, publisher="n1")
    verify(remote, gone.id)


def test_retention_by_count_and_by_age_keeps_the_newest(
    remote: RemoteStore, local: DirectoryStore, clock: Clock, place: Place
) -> None:
    made = [publish(local, a_machine(1, keys)) for keys in range(3, 10)]
    for each in made:
        remote.publish(local, each.id, term=3, publisher="n1")
        clock.now_s += 100
    gone = remote.prune(cluster=CLUSTER, retention=Retention(5), term=3)
    assert gone.snapshots == tuple(each.id for each in made[:2])
    assert remote.list() == made[2:]
    remote.prune(cluster=CLUSTER, retention=Retention(5, age_s=350))
    assert remote.list() == made[4:]
    clock.now_s += 10_000
    remote.prune(retention=Retention(5, age_s=350))
    assert remote.list() == made[-1:]
    assert place.names() == objects_of(place)


def test_retention_leaves_other_clusters_alone(
    remote: RemoteStore, local: DirectoryStore, place: Place, clock: Clock
) -> None:
    made = publish(local, a_machine(1, 5))
    remote.publish(local, made.id, term=3, publisher="n1")
    clock.now_s += 1e6
    remote.prune(cluster="another", retention=Retention(1, age_s=1), term=99)
    assert remote.list() == [made]


# --- one publisher ---------------------------------------------------------------------------------------


@dataclass
class Source:
    """A local store, at one of whose reads something happens."""

    local: DirectoryStore
    at: int
    happens: Callable[[], object]
    reads: int = 0
    advice: str = ""

    def manifest(self, snapshot: str) -> Manifest:
        return self.local.manifest(snapshot)

    def location(self, name: str) -> str:
        return self.local.location(name)

    def read_chunk(self, snapshot: str, number: int, offset: int = 0, size: int | None = None) -> bytes:
        self.reads += 1
        if self.reads == self.at:
            self.happens()
        return self.local.read_chunk(snapshot, number, offset, size)


def test_a_deposed_leader_can_neither_finish_nor_begin_nor_prune(
    remote: RemoteStore, local: DirectoryStore, place: Place
) -> None:
    old, new = publish(local, a_machine(1, 30)), publish(local, a_machine(1, 40), term=4)
    successor = RemoteStore(place.bucket())
    source = Source(local, 3, lambda: successor.publish(local, new.id, term=4, publisher="n2"))
    with pytest.raises(StoreFenced):
        remote.publish(source, old.id, term=3, publisher="n1")
    assert remote.list() == [new]
    with pytest.raises(StoreFenced, match="n2 publishes in term 4"):
        remote.publish(local, old.id, term=3, publisher="n1")
    with pytest.raises(StoreFenced, match="n2 publishes in term 4"):
        remote.prune(cluster=CLUSTER, retention=Retention(1), term=3)
    assert remote.list() == [new]
    successor.prune(cluster=CLUSTER, term=4)
    assert place.names() == objects_of(place)


def test_a_commit_that_is_in_force_but_was_said_to_be_too_late_is_a_success(
    remote: RemoteStore, local: DirectoryStore, place: Place
) -> None:
    """As where the change took effect, and was sent once more because its answer was lost."""
    made = publish(local, a_machine(1, 5))
    bucket = place.bucket()
    change = bucket.change

    def sent_twice(generation: int, put: Mapping[str, bytes], drop: Iterable[str]) -> bool:
        drop = list(drop)
        done = change(generation, put, drop)
        commits = any(key.startswith("s/") for key in put)
        return change(generation, put, drop) if commits else done

    bucket.change = sent_twice  # type: ignore[method-assign]
    RemoteStore(bucket).publish(local, made.id, term=3, publisher="n1")
    bucket.change = change  # type: ignore[method-assign]
    assert remote.list() == [made]
    remote.prune(cluster=CLUSTER, term=3)
    assert place.names() == objects_of(place)


def test_a_publication_that_is_broken_off_leaves_nothing(
    remote: RemoteStore, local: DirectoryStore, place: Place
) -> None:
    made = publish(local, a_machine(1))
    going = [True, True, True, False]
    with pytest.raises(StoreFenced, match="broken off"):
        remote.publish(local, made.id, term=3, publisher="n1", going_on=lambda: going.pop(0))
    assert remote.list() == []
    assert place.names() == set()


def test_the_index_changes_only_from_what_was_read(place: Place) -> None:
    bucket = place.bucket()
    assert bucket.index() == Index()
    assert bucket.change(0, {"a": b"1", "b": b"2"}, [])
    assert not bucket.change(0, {"a": b"9"}, [])
    assert bucket.change(1, {"a": b"3"}, ["b", "never there"])
    assert not bucket.change(1, {}, ["a"])
    assert not bucket.change(7, {}, ["a"])
    assert bucket.index() == Index(2, {"a": b"3"})


def test_changes_at_once_are_all_in_force(place: Place) -> None:
    """Threads that each add an entry by `change`, again where another was first: none is lost."""

    def work(number: int) -> None:
        bucket = place.bucket()
        while True:
            index = bucket.index()
            if bucket.change(index.generation, {f"k{number}": b"v"}, []):
                return

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    index = place.bucket().index()
    assert (index.generation, len(index.entries)) == (8, 8)


def test_a_name_is_created_once(place: Place) -> None:
    bucket = place.bucket()
    bucket.create("a", b"first")
    with pytest.raises(FileExistsError):
        bucket.create("a", b"second")
    assert bucket.read("a") == b"first"
    bucket.remove(["a", "never there"])
    with pytest.raises(SnapshotMissing):
        bucket.read("a")


# --- a failure, or the end of the process, at every operation --------------------------------------------


class Killed(BaseException):
    """The process is gone: nothing more of it runs."""


@dataclass
class Faulty:
    """A bucket of which operation number `at` fails, before or after it took effect. Each object of a `write`
    counts as one. From a kill on, nothing more is done."""

    inner: Bucket
    at: int
    after: bool
    error: Callable[[], BaseException]
    operations: int = 0
    dead: bool = field(default=False)

    @property
    def url(self) -> str:
        return self.inner.url

    def close(self) -> None: ...

    def _step(self, do: Callable[[], object]) -> object:
        self.operations += 1
        if self.operations != self.at:
            return do()
        if self.after:
            do()
        raise self.error()

    def write(self, objects: Iterable[tuple[str, bytes]]) -> None:
        for each in objects:
            self._step(lambda each=each: self.inner.write([each]))  # type: ignore[misc]

    def create(self, name: str, data: bytes) -> None:
        self._step(lambda: self.inner.create(name, data))

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        return self.inner.read(name, offset, size)

    def remove(self, names: Iterable[str]) -> None:
        for each in names:
            self._step(lambda each=each: self.inner.remove([each]))  # type: ignore[misc]

    def index(self) -> Index:
        return self.inner.index()

    def change(self, generation: int, put: Mapping[str, bytes], drop: Iterable[str]) -> bool:
        drop = list(drop)
        return bool(self._step(lambda: self.inner.change(generation, put, drop)))


def away() -> StoreUnavailable:
    return StoreUnavailable("no answer", reason="timed_out")


def workload(bucket: Bucket, local: DirectoryStore, made: list[Manifest], clock: Clock) -> None:
    """A leader's life: publishes, prunes what is beyond two, deletes."""
    store = RemoteStore(bucket, clock)
    for each in made:
        store.publish(local, each.id, term=3, publisher="n1")
        store.prune(cluster=CLUSTER, retention=Retention(2), term=3)
    store.delete(made[-1].id)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("error", [Killed, away], ids=["killed", "away"])
def test_at_every_operation_nothing_half_is_listed_and_no_orphan_survives_the_next_prune(
    tmp_path: Path,
    clock: Clock,
    error: Callable[[], BaseException],
    after: bool,
) -> None:
    local = DirectoryStore.open(tmp_path / "local")
    made = [publish(local, a_machine(1, keys)) for keys in (8, 16, 24)]
    counting = Faulty(DirectoryBucket(tmp_path / "count"), 0, False, error)
    workload(counting, local, made, clock)
    assert counting.operations >= 30
    for at in range(1, counting.operations + 1):
        _fails_at(Directory(tmp_path / f"at{at}"), local, made, clock, at, after, error)


@pytest.mark.parametrize("error", [Killed, away], ids=["killed", "away"])
def test_at_every_operation_on_a_real_ceph(
    ceph: Ceph, tmp_path: Path, clock: Clock, error: Callable[[], BaseException]
) -> None:
    local = DirectoryStore.open(tmp_path / "local")
    made = [publish(local, a_machine(1, keys)) for keys in (8, 16, 24)]
    counting = Faulty(DirectoryBucket(tmp_path / "count"), 0, False, error)
    workload(counting, local, made, clock)
    for at in range(1, counting.operations + 1, 2):
        place = Rados(ceph, ceph.new_location())
        _fails_at(place, local, made, clock, at, bool(at & 2), error)
        place.opened.close()


def _fails_at(
    place: Place,
    local: DirectoryStore,
    made: list[Manifest],
    clock: Clock,
    at: int,
    after: bool,
    error: Callable[[], BaseException],
) -> None:
    faulty = Faulty(place.bucket(), at, after, error)
    with contextlib.suppress(Killed, StoreUnavailable):
        workload(faulty, local, made, clock)
    assert faulty.operations >= at
    # The next leader, in the next term: it looks, prunes, publishes.
    successor = RemoteStore(place.bucket(), clock)
    listed = successor.list()
    for each in listed:
        assert verify(successor, each.id) == each
        assert each in made
    successor.prune(cluster=CLUSTER, retention=Retention(2), term=4)
    assert place.names() == objects_of(place), f"operation {at}"
    successor.publish(local, made[-1].id, term=4, publisher="n2")
    assert successor.list()[-1] == made[-1]
    # What timed out may still come true within the hour; after that it is forgotten as well.
    clock.now_s += GRACE_MS / 1000 + 1
    successor.prune(cluster=CLUSTER, retention=Retention(2), term=4)
    kinds = {key[0] for key in place.bucket().index().entries}
    assert kinds == {"h", "s"}, f"operation {at}"
    assert place.names() == objects_of(place)


def test_a_write_that_arrives_after_it_was_given_up_is_swept_again(
    remote: RemoteStore, local: DirectoryStore, place: Place, clock: Clock
) -> None:
    made = publish(local, a_machine(1))
    late = Faulty(place.bucket(), 4, False, away)
    with pytest.raises(StoreUnavailable):
        RemoteStore(late, clock).publish(local, made.id, term=3, publisher="n1")
    remote.prune(cluster=CLUSTER, term=3)
    assert place.names() == set()
    (attempt,) = remote_module.attempts(place.bucket().index(), "d", None)
    place.overwrite(attempt.chunk_objects(2)[0], b"what a paused OSD still had")
    remote.prune(cluster=CLUSTER, term=3)
    clock.now_s += GRACE_MS / 1000 + 1
    remote.prune(cluster=CLUSTER, term=3)
    assert place.names() == set()


def test_a_prune_by_hand_spares_an_attempt_that_may_be_alive(
    remote: RemoteStore, local: DirectoryStore, place: Place, clock: Clock
) -> None:
    made = publish(local, a_machine(1))
    bystander = RemoteStore(place.bucket(), clock)
    source = Source(local, 3, lambda: bystander.prune(retention=Retention(1)))
    remote.publish(source, made.id, term=3, publisher="n1")
    assert remote.list() == [made]
    killed = Faulty(place.bucket(), 4, False, Killed)
    other = publish(local, a_machine(1, 50))
    with pytest.raises(Killed):
        RemoteStore(killed, clock).publish(local, other.id, term=3, publisher="n1")
    assert bystander.prune().unfinished == ()
    clock.now_s += ABANDONED_MS / 1000 + 1
    assert len(bystander.prune().unfinished) == 1
    assert place.names() == objects_of(place)


# --- damage ----------------------------------------------------------------------------------------------


def damages(rng: random.Random, good: bytes) -> bytes:
    """One flipped bit, a cut, or something more at the end."""
    kind = rng.randrange(4)
    if kind < 2 and good:
        at = rng.randrange(len(good))
        return good[:at] + bytes((good[at] ^ (1 << rng.randrange(8)),)) + good[at + 1 :]
    if kind == 2 and good:
        return good[: rng.randrange(len(good))]
    return good + rng.randbytes(rng.randrange(1, 9))


def test_every_flip_and_truncation_is_found_before_data_is_served(
    remote: RemoteStore, local: DirectoryStore, place: Place
) -> None:
    made = publish(local, a_machine(1))
    remote.publish(local, made.id, term=3, publisher="n1")
    rounds = 1_000 if isinstance(place, Directory) else 150
    rng = random.Random(11)
    (attempt,) = remote_module.attempts(place.bucket().index(), "s", None)
    names = list(attempt.objects())
    for number in range(rounds):
        name = names[0] if number % 4 == 0 else rng.choice(names)
        good = place.bucket().read(name)
        place.overwrite(name, damages(rng, good))
        fresh = RemoteStore(place.bucket())
        with pytest.raises(SnapshotDamaged):
            load_machine(fresh, made.id)
        with pytest.raises(SnapshotDamaged):
            verify(fresh, made.id)
        if name == names[0]:
            with pytest.raises(SnapshotDamaged):
                fresh.list()
        place.overwrite(name, good)
    verify(RemoteStore(place.bucket()), made.id)


def test_another_manifest_in_its_place_is_damage(
    remote: RemoteStore, local: DirectoryStore, place: Place
) -> None:
    """One that agrees with itself, and has the same id and as many chunks."""
    made = publish(local, a_machine(1))
    remote.publish(local, made.id, term=3, publisher="n1")
    (attempt,) = remote_module.attempts(place.bucket().index(), "s", None)
    place.overwrite(attempt.manifest_object, encode_manifest(msgspec.structs.replace(made, log_time_ms=1)))
    for ask in (remote.manifest, lambda name: load_machine(remote, name), lambda _: remote.list()):
        with pytest.raises(SnapshotDamaged, match="not the manifest that the index knows"):
            ask(made.id)


def test_a_lost_object_is_damage_and_never_a_shorter_list(
    remote: RemoteStore, local: DirectoryStore, place: Place
) -> None:
    made = publish(local, a_machine(1))
    remote.publish(local, made.id, term=3, publisher="n1")
    (attempt,) = remote_module.attempts(place.bucket().index(), "s", None)
    place.bucket().remove(attempt.chunk_objects(1))
    with pytest.raises(SnapshotDamaged, match="chunk 1 is gone"):
        load_machine(remote, made.id)
    place.bucket().remove([attempt.manifest_object])
    with pytest.raises(SnapshotDamaged, match="it is gone"):
        remote.list()
    with pytest.raises(SnapshotDamaged, match="it is gone"):
        remote.manifest(made.id)
    remote.delete(made.id)
    assert remote.list() == []


def test_a_damaged_index_is_refused(remote: RemoteStore, local: DirectoryStore, place: Place) -> None:
    made = publish(local, a_machine(1, 5))
    remote.publish(local, made.id, term=3, publisher="n1")
    index = place.bucket().index()
    rng = random.Random(5)
    for key in (f"s/{made.id}", f"h/{CLUSTER}"):
        good = index.entries[key]
        for _ in range(20):
            at = rng.randrange(len(good))
            bad = good[:at] + bytes((good[at] ^ 1,)) + good[at + 1 :]
            assert place.bucket().change(place.bucket().index().generation, {key: bad}, [])
            with pytest.raises(SnapshotDamaged):
                remote.list() if key[0] == "s" else remote.prune(cluster=CLUSTER, term=3)
        assert place.bucket().change(place.bucket().index().generation, {key: good}, [])
    moved = index.entries[f"s/{made.id}"]
    other = made.id.replace("0006-", "0009-", 1)
    place.bucket().change(place.bucket().index().generation, {f"s/{other}": moved}, [])
    with pytest.raises(SnapshotDamaged):
        remote.list()


def test_an_attempt_names_its_objects_manifest_first() -> None:
    attempt = Attempt("a.b", "a", CLUSTER, 1, "n1", 0, 2, "", {"1": 2})
    assert list(attempt.objects()) == ["a.b.manifest", "a.b.00000.0", "a.b.00001.0", "a.b.00001.1"]
