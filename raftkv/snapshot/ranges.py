"""The log between snapshots, kept in the same `Bucket`: committed entries as ranges chained by hash.

    <cluster>.<first index, 20 digits>.range          one object a range, created exclusively, never changed

    range = head length u32 | head | body | sha256 of all before (32 bytes)       little endian
    head  = JSON of `Head`: which entries, what came before them, when they were applied
    body  = zstd of entry*
    entry = term u64 | payload length u32 | payload        of index first, first + 1, … last

A range names the sha256 of the one before it, and begins where that one ended. Only committed entries get
here, so whatever leader writes "from index 100 on" writes the same entries, if not as many: with names by
first index, created exclusively, there is one chain and no fork, whoever deposed whom. A write that timed
out and arrives late is refused or was the first; both are right.

The bucket's index knows each chain by a few of its ranges, and only by them:

    a/<cluster>/<first index of the chain, 20 digits>    Chain: first indexes of every 64th range or so

since an entry a second would outgrow it in a day. From a mark on, the next range's name is known from the
last one's end. A chain is in the index before its first object is there; a mark comes after its object. So
a missing object before a chain's last mark is a loss, and one after it is the end.

A chain ends, and another begins later, where the leader's journal no longer had the next entries: the store
was away for too long. Between the two nothing can be restored; a snapshot beyond the gap starts anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import zstandard

from raftkv.errors import SnapshotDamaged, SnapshotMissing, StoreUnavailable
from raftkv.snapshot.bucket import Bucket, Index

FORMAT: Final = 1
RAW_BYTES_MAX: Final = 1 << 30  # what a reader unpacks
MARK_EVERY: Final = 64
CHANGES_MAX: Final = 20
_COMPRESSION_LEVEL: Final = 1

_LENGTH = struct.Struct("<I")
_ENTRY = struct.Struct("<QI")
_DIGEST_BYTES = 32

Entry = tuple[int, bytes]  # term, payload


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """`times`: (index, Unix time in ms): by then all entries up to that index were applied at the leader;
    ascending, the last one's index is `last`. `previous`: sha256 of the range before in hex; "" where a
    chain begins. `base_term`: the term of the entry before `first`."""

    cluster: str
    first: int
    last: int
    base_term: int
    previous: str
    times: tuple[tuple[int, int], ...]
    raw_bytes: int
    format: int = FORMAT


class Chain(msgspec.Struct, frozen=True):
    """`marks`: first indexes of some of its ranges, ascending; the first one's object may be missing yet."""

    cluster: str
    first: int
    marks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Range:
    head: Head
    entries: Sequence[Entry]
    sha256: str
    bytes: int  # as stored

    @property
    def last_term(self) -> int:
        return self.entries[-1][0]

    def term_at(self, index: int) -> int:
        """Of an entry, or of the one before the first."""
        if index == self.head.first - 1:
            return self.head.base_term
        return self.entries[index - self.head.first][0]

    def time_ms(self, index: int) -> int:
        """When the entry had been applied, at the latest."""
        times = self.head.times
        return times[bisect_left(times, (index, 0))][1]


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a cluster's newest chain: the next range begins at `index + 1`."""

    cluster: str
    chain: int  # its first index
    index: int
    term: int
    sha256: str  # of the last range; "" where the chain has none yet
    since_mark: int  # ranges after the last mark


# --- bytes: PURE -----------------------------------------------------------------------------------------


def object_name(cluster: str, first: int) -> str:
    return f"{cluster}.{first:020d}.range"


def chain_key(cluster: str, first: int) -> str:
    return f"a/{cluster}/{first:020d}"


def encode_range(
    *,
    cluster: str,
    first: int,
    base_term: int,
    previous: str,
    times: Sequence[tuple[int, int]],
    entries: Sequence[Entry],
) -> bytes:
    raw = b"".join(part for term, payload in entries for part in (_ENTRY.pack(term, len(payload)), payload))
    head = msgspec.json.encode(
        Head(
            cluster=cluster,
            first=first,
            last=first + len(entries) - 1,
            base_term=base_term,
            previous=previous,
            times=tuple(times),
            raw_bytes=len(raw),
        )
    )
    body = zstandard.ZstdCompressor(level=_COMPRESSION_LEVEL, write_content_size=True).compress(raw)
    data = b"".join((_LENGTH.pack(len(head)), head, body))
    return data + hashlib.sha256(data).digest()


def decode_range(data: bytes) -> Range:
    """Raises SnapshotDamaged for anything but one whole range that agrees with itself."""
    text, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if len(text) < _LENGTH.size or hashlib.sha256(text).digest() != digest:
        raise SnapshotDamaged("it doesn't match the checksum at its end")
    (length,) = _LENGTH.unpack_from(text)
    try:
        head = msgspec.json.decode(text[_LENGTH.size : _LENGTH.size + length], type=Head)
        body = text[_LENGTH.size + length :]
        if head.format != FORMAT:
            raise SnapshotDamaged(
                f"it is of format {head.format}, this release reads format {FORMAT}: start the release that "
                "wrote it, or a newer one"
            )
        if not 0 <= head.raw_bytes <= RAW_BYTES_MAX:
            raise SnapshotDamaged(f"it says that it unpacks to {head.raw_bytes} bytes")
        if zstandard.frame_content_size(body) != head.raw_bytes:
            raise SnapshotDamaged("its body would not unpack to the size in its head")
        entries = _entries(zstandard.ZstdDecompressor().decompress(body))
    except (
        msgspec.MsgspecError,
        UnicodeDecodeError,
        RecursionError,
        zstandard.ZstdError,
        struct.error,
    ) as error:
        raise SnapshotDamaged(f"it is no range of log entries: {error}") from error
    indexes = [index for index, _ in head.times]
    if len(entries) != head.last - head.first + 1 or not entries:
        raise SnapshotDamaged(f"it holds {len(entries)} entries, its head says {head.first} to {head.last}")
    if indexes != sorted(set(indexes)) or not indexes or indexes[-1] != head.last:
        raise SnapshotDamaged("its times are out of order")
    return Range(head, entries, digest.hex(), len(data))


def _entries(raw: bytes) -> list[Entry]:
    found: list[Entry] = []
    at = 0
    while at < len(raw):
        term, length = _ENTRY.unpack_from(raw, at)
        at += _ENTRY.size
        if at + length > len(raw):
            raise SnapshotDamaged(f"an entry is cut at byte {at}")
        found.append((term, raw[at : at + length]))
        at += length
    return found


def chains(index: Index, cluster: str | None = None) -> list[Chain]:
    """In order of cluster, then of their first index."""
    return [
        _decode_chain(key, data)
        for key, data in sorted(index.entries.items())
        if key.startswith("a/" if cluster is None else f"a/{cluster}/")
    ]


def _encode_chain(key: str, chain: Chain) -> bytes:
    text = msgspec.json.encode(chain)
    return text + b"\n" + _digest(key, text)


def _decode_chain(key: str, data: bytes) -> Chain:
    text, _, digest = data.partition(b"\n")
    if digest != _digest(key, text):
        raise SnapshotDamaged(f"the store's index: entry {key!r} doesn't match the checksum at its end")
    try:
        chain = msgspec.json.decode(text, type=Chain)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SnapshotDamaged(f"the store's index: entry {key!r}: {error}") from error
    if key != chain_key(chain.cluster, chain.first) or not chain.marks:
        raise SnapshotDamaged(f"the store's index has another's entry under {key!r}")
    return chain


def _digest(key: str, text: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\n" + text).hexdigest()[:32].encode()


def mark_before(known: Sequence[Chain], index: int) -> tuple[Chain, int] | None:
    """The chain and its mark from which to walk to the range that holds `index`."""
    below = [(mark, chain) for chain in known for mark in chain.marks if mark <= index]
    if not below:
        return None
    mark, chain = max(below, key=lambda pair: pair[0])
    return chain, mark


# --- the store -------------------------------------------------------------------------------------------


class Ranges:
    """Blocks; for worker threads. One at a time appends, the leader; a deposed one that does not know does
    no harm."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    @property
    def url(self) -> str:
        return self._bucket.url

    # --- writing -----------------------------------------------------------------------------------

    def begin(self, cluster: str, first: int, base_term: int) -> Tail:
        """A new chain; what it had is kept where there is one of this first index already."""
        chain = Chain(cluster, first, (first,))

        def decide(index: Index) -> dict[str, Chain | None]:
            return {} if chain_key(cluster, first) in index.entries else {chain_key(cluster, first): chain}

        self._change(decide)
        return Tail(cluster, first, first - 1, base_term, "", 0)

    def append(self, tail: Tail, data: bytes, last: int, last_term: int) -> Tail:
        """Adds an encoded range, which ends with the entry (last, last_term), to the chain's end; the new
        end. Where another one of that first index is there already, that one counts.

        Raises StoreUnavailable: then it may be there or not, and the same may be tried again;
        SnapshotDamaged where what is there does not belong to the chain."""
        cluster, first = tail.cluster, tail.index + 1
        try:
            self._bucket.create(object_name(cluster, first), data)
            sha256 = data[-_DIGEST_BYTES:].hex()
        except FileExistsError:
            there = self.read(cluster, first)
            self._check_follows(tail.index, tail.term, tail.sha256, there)
            last, last_term, sha256 = there.head.last, there.last_term, there.sha256
        since = tail.since_mark + 1
        if since >= MARK_EVERY:
            self._mark(cluster, tail.chain, first)
            since = 0
        return Tail(cluster, tail.chain, last, last_term, sha256, since)

    def _mark(self, cluster: str, chain: int, first: int) -> None:
        key = chain_key(cluster, chain)

        def decide(index: Index) -> dict[str, Chain | None]:
            if key not in index.entries:  # pruned behind our back
                return {key: Chain(cluster, chain, (first,))}
            known = _decode_chain(key, index.entries[key])
            if first <= known.marks[-1]:
                return {}
            return {key: Chain(cluster, chain, (*known.marks, first))}

        self._change(decide)

    def prune(self, cluster: str, index: int) -> int:
        """Removes ranges that hold nothing beyond `index`, the oldest kept snapshot's, as far as marks
        divide them; how many. The walk's beginning goes last, so that a cut loses sight of nothing."""
        removed = 0
        known = chains(self._bucket.index(), cluster)
        for chain in known:
            for mark, upto in zip(chain.marks, (*chain.marks[1:], None), strict=True):
                if upto is None and chain is known[-1]:
                    break
                names, end = self._names(cluster, mark, upto)
                if end > index:
                    break
                for name in reversed(names):
                    self._bucket.remove([name])
                removed += len(names)
                self._drop_mark(chain, mark)
        return removed

    def _names(self, cluster: str, mark: int, upto: int | None) -> tuple[list[str], int]:
        """The objects from one mark to the next (None: to the chain's end), and the last index in them. A
        damaged one hides those between it and the next mark: they stay behind, rather than all of them."""
        names: list[str] = []
        first = mark
        with contextlib.suppress(SnapshotDamaged):
            while upto is None or first < upto:
                name = object_name(cluster, first)
                found = self._try_read(cluster, first)
                if found is None:
                    break  # the end, or where an earlier prune was cut short
                names.append(name)
                first = found.head.last + 1
            return names, first - 1 if upto is None else upto - 1
        return [*names, name], first - 1 if upto is None else upto - 1

    def _drop_mark(self, chain: Chain, mark: int) -> None:
        key = chain_key(chain.cluster, chain.first)

        def decide(index: Index) -> dict[str, Chain | None]:
            if key not in index.entries:
                return {}
            known = _decode_chain(key, index.entries[key])
            marks = tuple(each for each in known.marks if each > mark)
            return {key: Chain(chain.cluster, chain.first, marks) if marks else None}

        self._change(decide)

    # --- reading -----------------------------------------------------------------------------------

    def chains(self, cluster: str | None = None) -> list[Chain]:
        return chains(self._bucket.index(), cluster)

    def tail(self, cluster: str) -> Tail | None:
        """The end of the newest chain; None where there is none. Reads the ranges after its last mark."""
        known = self.chains(cluster)
        if not known:
            return None
        chain = known[-1]
        last: Range | None = None
        count, first = -1, chain.marks[-1]
        while (following := self._try_read(cluster, first)) is not None:
            last, first, count = following, following.head.last + 1, count + 1
        if last is None:
            if len(chain.marks) > 1:
                raise self._lost(cluster, chain.marks[-1])
            return None  # begun, and nothing written: to be begun again
        return Tail(cluster, chain.first, last.head.last, last.last_term, last.sha256, count)

    def read(self, cluster: str, first: int) -> Range:
        """Raises SnapshotMissing, SnapshotDamaged."""
        name = object_name(cluster, first)
        try:
            found = decode_range(self._bucket.read(name))
        except SnapshotDamaged as error:
            raise SnapshotDamaged(f"{name} in {self.url}: {error}") from error
        if (found.head.cluster, found.head.first) != (cluster, first):
            raise SnapshotDamaged(f"{name} in {self.url}: it is the range of another place")
        return found

    def walk(self, cluster: str, index: int, term: int) -> Iterator[Range]:
        """The ranges that hold the entries behind (index, term), in order and each verified to follow the
        one before; the first may begin earlier. Ends where the chain does. Raises SnapshotDamaged,
        SnapshotMissing for what should be there and is not."""
        known = self.chains(cluster)
        start = mark_before(known, index + 1)
        if start is None:
            return
        chain, first = start
        before: Range | None = None
        while (found := self._try_read(cluster, first)) is not None:
            if before is not None:
                self._check_follows(before.head.last, before.last_term, before.sha256, found)
            if found.head.last > index:
                if found.head.first <= index + 1 and found.term_at(index) != term:
                    raise SnapshotDamaged(
                        f"{object_name(cluster, first)} in {self.url} has term {found.term_at(index)} at "
                        f"index {index}, the snapshot has {term}: they are not of one history"
                    )
                yield found
            before, first = found, found.head.last + 1
        if first <= chain.marks[-1] and (before is not None or len(chain.marks) > 1):
            raise self._lost(cluster, first)

    def _try_read(self, cluster: str, first: int) -> Range | None:
        try:
            return self.read(cluster, first)
        except SnapshotMissing:
            return None

    def _lost(self, cluster: str, first: int) -> SnapshotDamaged:
        return SnapshotDamaged(
            f"{object_name(cluster, first)} is gone from {self.url}, though ranges behind it are there: "
            "entries are missing. Restore without the archive behind the snapshot, or up to a revision "
            "before them"
        )

    def _check_follows(self, index: int, term: int, sha256: str, found: Range) -> None:
        head = found.head
        if (head.first, head.base_term, head.previous) != (index + 1, term, sha256):
            raise SnapshotDamaged(
                f"{object_name(head.cluster, head.first)} in {self.url} does not follow the range before it: "
                f"it says that ({head.first - 1}, term {head.base_term}) came before, of sha256 "
                f"{head.previous[:16] or 'none'}; there is ({index}, term {term}), {sha256[:16] or 'none'}"
            )

    # --- inside ------------------------------------------------------------------------------------

    def _change(self, decide: Callable[[Index], dict[str, Chain | None]]) -> dict[str, Chain | None]:
        for _ in range(CHANGES_MAX):
            index = self._bucket.index()
            values = decide(index)
            put = {key: _encode_chain(key, chain) for key, chain in values.items() if chain is not None}
            drop = [key for key, chain in values.items() if chain is None]
            if not values or self._bucket.change(index.generation, put, drop):
                return values
        raise StoreUnavailable(
            f"the index of {self.url} changed {CHANGES_MAX} times while it was to be changed",
            reason="contended",
        )
