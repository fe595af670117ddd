"""Snapshots published for the whole cluster: verified backups in a `Bucket`, whatever that stands on.

A snapshot is copied chunk by chunk from where it was made, with its manifest byte for byte. What is where
stands in the bucket's index, and only there:

    h/<cluster>    {"term", "publisher"}             the latest leader that published, or tried to
    p/<attempt>    Attempt                            on its way: objects may be there, nothing is listed
    s/<id>         Attempt                            a snapshot: every object of it is durable
    d/<attempt>    Attempt, since_ms, swept           given up or deleted: its objects have to go

    attempt = <snapshot id>.<8 random hex digits>     objects = <attempt>.manifest, <attempt>.<n>.<part>

Every change of the index is one guarded operation: it applies to the generation that it was decided on, or
not at all, and is decided anew then. So `publish` is

    1  claim   refused where `h` has a higher term; `h` becomes ours; `p` of this attempt; every other `p` of
               this cluster becomes `d`: whoever wrote it has been deposed, or is dead
    2  chunks  several on their way, each verified against the manifest as it is read
    3  manifest, created exclusively
    4  commit  refused unless our `p` is still there; `p` becomes `s`

and a leader that was deposed in between can neither commit nor overwrite anything: names are of one attempt.
`p` is there before any object, `d` until they are gone: so no object is ever unknown to the index, and a
sweep finds them all without listing names. Deleting turns `s` into `d` first, then sweeps: manifest, chunks.
What was on its way when it was given up can still arrive, since a write that timed out may yet be applied:
such a `d` is swept once more after an hour before it is forgotten.

Ids order snapshots; times are for retention by age and for people, and no safety hangs on them.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import unquote, urlsplit

import msgspec

from raftkv.errors import ConfigError, SnapshotDamaged, SnapshotMissing, StoreFenced, StoreUnavailable
from raftkv.snapshot import codec
from raftkv.snapshot.bucket import Bucket, DirectoryBucket, Index
from raftkv.snapshot.codec import Manifest
from raftkv.snapshot.rados import Location, RadosBucket
from raftkv.snapshot.ranges import Ranges
from raftkv.snapshot.store import Reader, damaged

OBJECT_BYTES_MAX: Final = 8 << 20  # a larger chunk is stored in parts; RADOS refuses objects above 128 MB
GRACE_MS: Final = 3_600_000  # after which no write that timed out can still arrive
ABANDONED_MS: Final = 600_000  # an attempt of nobody we know is taken for dead after this
# Each turn means that somebody else changed the index in the milliseconds between: there are few of them.
CHANGES_MAX: Final = 20
KNOWN_MAX: Final = 1_000

T = TypeVar("T")


class Attempt(msgspec.Struct, frozen=True, omit_defaults=True):
    """One try to publish a snapshot. `parts`: objects of each chunk that has more than one."""

    name: str
    snapshot: str
    cluster: str
    term: int
    publisher: str
    time_ms: int  # begun; Unix time
    chunks: int
    manifest_sha256: str
    parts: dict[str, int] = {}
    since_ms: int = 0  # given up, or deleted
    finished: bool = False  # was a whole snapshot: nothing of it is still on its way
    swept: bool = False

    @property
    def index(self) -> int:
        return codec.index_and_revision(self.snapshot)[0]

    @property
    def revision(self) -> int:
        return codec.index_and_revision(self.snapshot)[1]

    @property
    def manifest_object(self) -> str:
        return f"{self.name}.manifest"

    def chunk_objects(self, number: int) -> list[str]:
        parts = self.parts.get(str(number), 1)
        return [f"{self.name}.{number:05d}.{part}" for part in range(parts)]

    def objects(self) -> Iterator[str]:
        """The manifest first: without it the rest is nothing."""
        yield self.manifest_object
        for number in range(self.chunks):
            yield from self.chunk_objects(number)


class Head(msgspec.Struct, frozen=True):
    term: int
    publisher: str


@dataclass(frozen=True, slots=True)
class Retention:
    """`count` newest snapshots of a cluster stay, those older than `age_s` go (None: at no age). The newest
    stays whatever its age."""

    count: int = 10
    age_s: float | None = None


@dataclass(frozen=True, slots=True)
class Pruned:
    """What went: ids of snapshots, names of attempts that were never finished."""

    snapshots: tuple[str, ...]
    unfinished: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """Of the index. Values None: the key goes."""

    values: dict[str, Attempt | Head | None]


# --- entries of the index: PURE --------------------------------------------------------------------------


def encode_entry(key: str, value: Attempt | Head) -> bytes:
    text = msgspec.json.encode(value)
    return text + b"\n" + _digest(key, text)


def decode_attempt(key: str, data: bytes) -> Attempt:
    attempt = _decode(key, data, Attempt)
    wanted = attempt.snapshot if key.startswith("s/") else attempt.name
    if key[2:] != wanted or not codec.is_snapshot_id(attempt.snapshot):
        raise SnapshotDamaged(f"the store's index has another's entry under {key!r}")
    return attempt


def _decode(key: str, data: bytes, kind: type[T]) -> T:
    text, _, digest = data.partition(b"\n")
    if digest != _digest(key, text):
        raise SnapshotDamaged(f"the store's index: entry {key!r} doesn't match the checksum at its end")
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SnapshotDamaged(f"the store's index: entry {key!r}: {error}") from error


def _digest(key: str, text: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\n" + text).hexdigest()[:32].encode()


def head_of(index: Index, cluster: str) -> Head | None:
    key = f"h/{cluster}"
    return _decode(key, index.entries[key], Head) if key in index.entries else None


def attempts(index: Index, kind: str, cluster: str | None) -> list[Attempt]:
    """Those under "s", "p" or "d", oldest snapshot first; of one cluster, or of all."""
    found = [decode_attempt(key, data) for key, data in index.entries.items() if key.startswith(f"{kind}/")]
    found = [each for each in found if cluster in (None, each.cluster)]
    return sorted(found, key=lambda each: (each.snapshot, each.name))


# --- decisions: PURE -------------------------------------------------------------------------------------


def claim(index: Index, attempt: Attempt, now_ms: int) -> Change:
    head = head_of(index, attempt.cluster)
    if head is not None and head.term > attempt.term:
        raise StoreFenced(
            f"{head.publisher} publishes in term {head.term}; {attempt.publisher} of term {attempt.term} "
            "has been deposed"
        )
    values: dict[str, Attempt | Head | None] = {
        f"h/{attempt.cluster}": Head(attempt.term, attempt.publisher),
        f"p/{attempt.name}": attempt,
    }
    for other in attempts(index, "p", attempt.cluster):
        if other.name != attempt.name:
            values |= _given_up(other, now_ms)
    return Change(values)


def commit(index: Index, attempt: Attempt) -> Change:
    own = index.entries.get(f"s/{attempt.snapshot}")
    if own is not None and decode_attempt(f"s/{attempt.snapshot}", own).name == attempt.name:
        return Change({})  # a commit that timed out did happen
    if own is not None or f"p/{attempt.name}" not in index.entries:
        raise StoreFenced(f"attempt {attempt.name} was given up by a later publisher")
    return Change({f"p/{attempt.name}": None, f"s/{attempt.snapshot}": attempt})


def give_up(index: Index, attempt: Attempt, now_ms: int) -> Change:
    return Change(_given_up(attempt, now_ms) if f"p/{attempt.name}" in index.entries else {})


def expire(
    index: Index, *, cluster: str | None, retention: Retention | None, term: int | None, now_ms: int
) -> Change:
    """Snapshots beyond the retention and attempts of the dead. `term`: the caller's, who leads in it."""
    values: dict[str, Attempt | Head | None] = {}
    if term is not None and cluster is not None:
        head = head_of(index, cluster)
        if head is not None and head.term > term:
            raise StoreFenced(f"{head.publisher} publishes in term {head.term}, this node led in term {term}")
    for other in attempts(index, "p", cluster):
        head = head_of(index, other.cluster)
        deposed = head is not None and other.term < head.term
        if deposed or term is not None or now_ms - other.time_ms > ABANDONED_MS:
            values |= _given_up(other, now_ms)
    for each in [] if retention is None else _beyond(attempts(index, "s", cluster), retention, now_ms):
        values |= _deleted(each, now_ms)
    return Change(values)


def _beyond(there: list[Attempt], retention: Retention, now_ms: int) -> Iterator[Attempt]:
    by_cluster: dict[str, list[Attempt]] = {}
    for each in there:
        by_cluster.setdefault(each.cluster, []).append(each)
    for own in by_cluster.values():
        for place, each in enumerate(reversed(own)):
            old = retention.age_s is not None and now_ms - each.time_ms > retention.age_s * 1000
            if place > 0 and (place >= retention.count or old):
                yield each


def _given_up(attempt: Attempt, now_ms: int) -> dict[str, Attempt | Head | None]:
    dead = msgspec.structs.replace(attempt, since_ms=now_ms, swept=False)
    return {f"p/{attempt.name}": None, f"d/{attempt.name}": dead}


def _deleted(attempt: Attempt, now_ms: int) -> dict[str, Attempt | Head | None]:
    dead = msgspec.structs.replace(attempt, since_ms=now_ms, finished=True)
    return {f"s/{attempt.snapshot}": None, f"d/{attempt.name}": dead}


def to_sweep(index: Index, cluster: str | None, now_ms: int) -> list[Attempt]:
    return [each for each in attempts(index, "d", cluster) if not each.swept or _is_over(each, now_ms)]


def swept(index: Index, gone: Iterable[Attempt], now_ms: int) -> Change:
    values: dict[str, Attempt | Head | None] = {}
    for each in gone:
        if f"d/{each.name}" in index.entries:
            over = each.finished or _is_over(each, now_ms)
            values[f"d/{each.name}"] = None if over else msgspec.structs.replace(each, swept=True)
    return Change(values)


def _is_over(attempt: Attempt, now_ms: int) -> bool:
    return now_ms - attempt.since_ms > GRACE_MS


# --- the store -------------------------------------------------------------------------------------------


class RemoteStore:
    """A `Reader`, and `publish`, `delete`, `prune`. Blocks; for worker threads, several at a time."""

    advice = (
        "The copy can't be used: take another snapshot of the list, delete this one, and look for what is "
        "wrong with the store's disks."
    )

    def __init__(self, bucket: Bucket, clock: Callable[[], float] = time.time) -> None:
        self._bucket = bucket
        self._clock = clock
        self._known: dict[str, Attempt] = {}  # of snapshots whose manifest was read: where their chunks are

    @property
    def bucket(self) -> Bucket:
        """For what else is kept there (`ranges.py`)."""
        return self._bucket

    @property
    def url(self) -> str:
        return self._bucket.url

    def close(self) -> None:
        self._bucket.close()

    def location(self, name: str) -> str:
        """Of an object, or of the one that holds what a manifest calls by this name."""
        attempt = self._known.get(codec.snapshot_of_file(name) or "")
        if attempt is not None:
            number = codec.number_of_chunk(name)
            name = attempt.manifest_object if number is None else attempt.chunk_objects(number)[0]
        return f"{name} in {self._bucket.url}"

    # --- publishing --------------------------------------------------------------------------------

    def publish(
        self,
        source: Reader,
        snapshot: str,
        *,
        term: int,
        publisher: str,
        going_on: Callable[[], bool] = lambda: True,
    ) -> Manifest:
        """Copies a snapshot of `source` here; what is here already under this id stays as it is.

        `term` is the one that the publisher leads in. `going_on` is asked between chunks: False ends it with
        StoreFenced. Raises StoreFenced, StoreUnavailable, SnapshotMissing, SnapshotDamaged; of all that
        raise, nothing is listed, unless it was a commit that timed out.
        """
        manifest = source.manifest(snapshot)
        if f"s/{snapshot}" in self._bucket.index().entries:
            return manifest
        attempt = self._attempt(manifest, term, publisher)
        try:
            self._change(lambda index: claim(index, attempt, self._now_ms()))
            self._bucket.write(_objects(source, manifest, attempt, going_on))
            self._create(attempt.manifest_object, codec.encode_manifest(manifest))
            self._change(lambda index: commit(index, attempt))
        except StoreFenced:
            self._clean_up(attempt)
            raise
        except (SnapshotDamaged, SnapshotMissing, StoreUnavailable):
            self._clean_up(attempt)
            raise
        return manifest

    def copy(self, source: Reader, snapshot: str) -> Manifest:
        """`publish` by hand, as no leader: in the term of whoever last published here, if that is later than
        the snapshot's own. An attempt of that leader would be given up, and tried again by it."""
        manifest = source.manifest(snapshot)
        head = head_of(self._bucket.index(), manifest.cluster)
        term = max(manifest.term, head.term if head is not None else 0)
        return self.publish(source, snapshot, term=term, publisher="copy")

    def _attempt(self, manifest: Manifest, term: int, publisher: str) -> Attempt:
        parts = {str(number): _parts(chunk.bytes) for number, chunk in enumerate(manifest.chunks)}
        return Attempt(
            name=f"{manifest.id}.{secrets.token_hex(4)}",
            snapshot=manifest.id,
            cluster=manifest.cluster,
            term=term,
            publisher=publisher,
            time_ms=self._now_ms(),
            chunks=len(manifest.chunks),
            manifest_sha256=hashlib.sha256(codec.encode_manifest(manifest)).hexdigest(),
            parts={number: count for number, count in parts.items() if count > 1},
        )

    def _create(self, name: str, data: bytes) -> None:
        try:
            self._bucket.create(name, data)
        except FileExistsError as error:
            # The name is of this attempt alone: an earlier try of this very operation got through.
            if self._bucket.read(name) != data:
                raise SnapshotDamaged(f"{self.location(name)} is not what was written") from error

    def _clean_up(self, attempt: Attempt) -> None:
        """As far as the store can be reached; a later prune does the rest."""
        try:
            self._change(lambda index: give_up(index, attempt, self._now_ms()))
            self._sweep(
                [each for each in attempts(self._bucket.index(), "d", None) if each.name == attempt.name]
            )
        except (StoreUnavailable, StoreFenced, SnapshotDamaged):
            pass

    # --- deleting ----------------------------------------------------------------------------------

    def delete(self, snapshot: str) -> None:
        """Raises SnapshotMissing, StoreUnavailable."""

        def decide(index: Index) -> Change:
            return Change(_deleted(self._attempt_of(index, snapshot), self._now_ms()))

        change = self._change(decide)
        self._sweep([each for each in change.values.values() if isinstance(each, Attempt)])

    def prune(
        self, *, cluster: str | None = None, retention: Retention | None = None, term: int | None = None
    ) -> Pruned:
        """Deletes what is beyond the retention, and every trace of attempts that nobody goes on with.

        `term`: the caller leads the cluster in it, and has no attempt under way; so none is alive. Without
        it, an attempt counts as alive for ten minutes, unless a later leader has published.
        """
        before = self._bucket.index()
        change = self._change(
            lambda index: expire(
                index, cluster=cluster, retention=retention, term=term, now_ms=self._now_ms()
            )
        )
        gone = to_sweep(self._bucket.index(), cluster, self._now_ms())
        self._sweep(gone)
        ids = {key[2:] for key in change.values if key.startswith("s/")}
        listed = {key[2:] for key in before.entries if key.startswith("s/")}
        self._prune_log(cluster)
        unfinished = [each.name for each in gone if not each.finished and not each.swept]
        return Pruned(tuple(sorted(ids & listed)), tuple(unfinished))

    def _prune_log(self, cluster: str | None) -> None:
        """The archived log that is wholly behind the oldest snapshot of its cluster."""
        oldest = {each.cluster: each for each in reversed(attempts(self._bucket.index(), "s", cluster))}
        for each in oldest.values():
            Ranges(self._bucket).prune(each.cluster, codec.index_of(each.snapshot))

    def _sweep(self, gone: list[Attempt]) -> None:
        for each in gone:
            self._bucket.remove([each.manifest_object])
            self._bucket.remove(name for name in each.objects() if name != each.manifest_object)
        if gone:
            self._change(lambda index: swept(index, gone, self._now_ms()))

    # --- reading -----------------------------------------------------------------------------------

    def list(self, cluster: str | None = None) -> list[Manifest]:
        """Oldest first. Raises SnapshotDamaged where a manifest can't be read: never a shorter list."""
        found = []
        for attempt in attempts(self._bucket.index(), "s", cluster):
            try:
                found.append(self._manifest(attempt))
            except SnapshotMissing:  # deleted meanwhile, or lost
                if f"s/{attempt.snapshot}" in self._bucket.index().entries:
                    raise damaged(self, attempt.manifest_object, "it is gone") from None
        return found

    def newest(self, cluster: str) -> Attempt | None:
        """As the index has it: also where its objects are damaged, which must not keep others from coming."""
        there = attempts(self._bucket.index(), "s", cluster)
        return there[-1] if there else None

    def manifest(self, snapshot: str) -> Manifest:
        attempt = self._attempt_of(self._bucket.index(), snapshot)
        try:
            return self._manifest(attempt)
        except SnapshotMissing as error:
            raise damaged(self, attempt.manifest_object, "it is gone") from error

    def _manifest(self, attempt: Attempt) -> Manifest:
        name = attempt.manifest_object
        data = self._bucket.read(name)
        if hashlib.sha256(data).hexdigest() != attempt.manifest_sha256:
            raise damaged(self, name, "it is not the manifest that the index knows")
        try:
            manifest = codec.decode_manifest(data)
        except SnapshotDamaged as error:
            raise damaged(self, name, error) from error
        if manifest.id != attempt.snapshot or len(manifest.chunks) != attempt.chunks:
            raise damaged(self, name, f"it is the manifest of {manifest.id}")
        if len(self._known) >= KNOWN_MAX:
            self._known.clear()
        self._known[manifest.id] = attempt
        return manifest

    def read_chunk(self, snapshot: str, number: int, offset: int = 0, size: int | None = None) -> bytes:
        attempt = self._known.get(snapshot) or self._attempt_of(self._bucket.index(), snapshot)
        if not 0 <= number < attempt.chunks:
            raise SnapshotMissing(f"snapshot {snapshot} has no chunk {number}")
        names = attempt.chunk_objects(number)
        if len(names) == 1:
            return self._bucket.read(names[0], offset, size)
        data = b"".join(self._bucket.read(name) for name in names)
        return data[offset : None if size is None else offset + size]

    # --- inside ------------------------------------------------------------------------------------

    def _attempt_of(self, index: Index, snapshot: str) -> Attempt:
        key = f"s/{snapshot}"
        if not codec.is_snapshot_id(snapshot) or key not in index.entries:
            raise SnapshotMissing(f"there is no snapshot {snapshot!r} in {self.url}")
        return decode_attempt(key, index.entries[key])

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _change(self, decide: Callable[[Index], Change]) -> Change:
        """What was decided, once it is in force."""
        for _ in range(CHANGES_MAX):
            index = self._bucket.index()
            change = decide(index)
            put = {key: encode_entry(key, value) for key, value in change.values.items() if value is not None}
            drop = [key for key, value in change.values.items() if value is None]
            for key in drop:
                self._known.pop(key.removeprefix("s/"), None)
            if not (put or drop) or self._bucket.change(index.generation, put, drop):
                return change
        raise StoreUnavailable(
            f"the index of {self.url} changed {CHANGES_MAX} times while it was to be changed",
            reason="contended",
        )


def _parts(size: int) -> int:
    return max(1, -(-size // OBJECT_BYTES_MAX))


def _objects(
    source: Reader, manifest: Manifest, attempt: Attempt, going_on: Callable[[], bool]
) -> Iterator[tuple[str, bytes]]:
    """Each chunk's objects. Raises SnapshotDamaged before the last part of a chunk that is not what its
    manifest says: rot on this disk must not become the backup."""
    for number, chunk in enumerate(manifest.chunks):
        names = attempt.chunk_objects(number)
        whole, size = hashlib.sha256(), 0
        for part, name in enumerate(names):
            if not going_on():
                raise StoreFenced(f"publishing {manifest.id} was broken off")
            try:
                data = source.read_chunk(manifest.id, number, part * OBJECT_BYTES_MAX, OBJECT_BYTES_MAX)
            except OSError as error:  # of this disk: not to be taken for one of the store's
                raise damaged(source, chunk.name, f"it can't be read: {error.strerror}") from error
            whole.update(data)
            size += len(data)
            if part == len(names) - 1 and (size, whole.hexdigest()) != (chunk.bytes, chunk.sha256):
                raise damaged(source, chunk.name, "it doesn't match its manifest")
            yield name, data


def open_remote(url: str, environment: Mapping[str, str]) -> RemoteStore:
    """`file:///PATH`, or `rados://…` as `rados.Location` reads it. Touches nothing yet.

    Raises ConfigError."""
    return RemoteStore(open_bucket(url, environment))


def open_bucket(url: str, environment: Mapping[str, str]) -> Bucket:
    """As `open_remote`."""
    if url.startswith("file:///"):
        return DirectoryBucket(Path(unquote(urlsplit(url).path)))
    if url.startswith("rados://"):
        return RadosBucket(Location.parse(url, environment))
    raise ConfigError(f"snapshot store {url!r}: allowed are file:///ABSOLUTE/PATH and rados://POOL/NAMESPACE")
