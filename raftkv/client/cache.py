"""Values that this client has read, for reads that may be a little old or need not be sent twice. PURE.

What an entry knows is a value and when it was surely the key's: at the moment before the read that brought or
confirmed it was sent, for only linearizable answers get in here, and such an answer reflects every write that
was acknowledged before its request. So an age counts from the request, never from the answer, and a stale
answer of a node, whose age nobody knows, is not kept.

A client sees its own writes: from the moment one is sent until it ended, and whatever became of it, nothing
is answered from here that was read before, and no read that was on its way meanwhile is kept. Writes of
others are what the age is about.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from raftkv.client.answers import Value

ENTRY_BYTES = 400  # an entry's objects and places, estimated; a key's and a value's bytes come on top


@dataclass(slots=True)
class Entry:
    value: Value
    current_at: float  # on the cache's clock


@dataclass(slots=True, eq=False)
class Read:
    """A linearizable read on its way. `known` is what the node is asked to confirm."""

    key: str
    sent_at: float
    known: Value | None
    void: bool = field(default=False)


class Cache:
    """At most about `bytes_max` of memory; what was not used for longest goes first."""

    def __init__(self, bytes_max: int, clock: Callable[[], float]) -> None:
        self._bytes_max = bytes_max
        self._clock = clock
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._bytes = 0
        self._reads: set[Read] = set()
        self._writing: Counter[str | None] = Counter()  # None: any key

    def __len__(self) -> int:
        return len(self._entries)

    def young(self, key: str, *, age_ms_max: float, min_revision: int | None) -> Value | None:
        """The key's value as it was at most so long ago; `age_ms` says how long."""
        entry = self._entries.get(key)
        if entry is None or self._is_written(key):
            return None
        age_ms = (self._clock() - entry.current_at) * 1000
        # A value that was written at a later revision than asked for reflects that one too.
        if age_ms > age_ms_max or (min_revision is not None and entry.value.revision < min_revision):
            return None
        self._entries.move_to_end(key)
        return replace(entry.value, age_ms=age_ms)

    @contextmanager
    def reading(self, key: str) -> Iterator[Read]:
        """Around a linearizable read, from before it is sent; `keep` or `absent` say what it brought."""
        entry = self._entries.get(key)
        read = Read(key, self._clock(), None if entry is None else entry.value)
        self._reads.add(read)
        try:
            yield read
        finally:
            self._reads.discard(read)

    def keep(self, read: Read, value: Value) -> None:
        """The key had this value when the read was sent, or later."""
        entry = self._entries.get(read.key)
        if read.void or self._is_written(read.key) or (entry and entry.current_at > read.sent_at):
            return
        self._drop(read.key)
        self._entries[read.key] = Entry(value, read.sent_at)
        self._bytes += _size(read.key, value)
        while self._bytes > self._bytes_max:
            self._drop(next(iter(self._entries)))

    def absent(self, read: Read) -> None:
        """The key was not there."""
        self._drop(read.key)

    @contextmanager
    def writing(self, key: str | None) -> Iterator[None]:
        """Around a write of the key (None: of any), from before it is sent until nothing more comes of it."""
        self._forget(key)
        self._writing[key] += 1
        try:
            yield
        finally:
            self._writing[key] -= 1
            if not self._writing[key]:
                del self._writing[key]
            self._forget(key)

    def _is_written(self, key: str) -> bool:
        return bool(self._writing) and (key in self._writing or None in self._writing)

    def _forget(self, key: str | None) -> None:
        for read in self._reads:
            if key is None or read.key == key:
                read.void = True
        if key is not None:
            self._drop(key)
        else:
            self._entries.clear()
            self._bytes = 0

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= _size(key, entry.value)


def _size(key: str, value: Value) -> int:
    return ENTRY_BYTES + 4 * len(key) + len(value.value) + len(value.content_type)
