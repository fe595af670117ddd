"""An ordered table from bytes to bytes, whose cost per operation does not grow with its size. PURE.

A list of blocks, each a plain dict of at most 340 keys, and beside it the list of the blocks' lowest
possible keys: block i holds the keys k with `lows[i] <= k < lows[i + 1]`, in no order of its own. A lookup
bisects `lows` and asks one dict; order is made where somebody asks for it, by sorting one block.

    lows     b""        b"fig"       b"pear"
    blocks   {…}        {…}          {…}

Invariants: `lows[0]` is empty; `lows` ascends; no block but a sole one is empty.

Why not one dict and a sorted list of its keys: growing a dict of a million keys moves them all at once
(tens of milliseconds), and the lists of a sorted list are walked key by key by every full garbage
collection. A dict that holds nothing but bytes is not tracked by the collector (CPython 3.11 to 3.13), so
here it has the two lists to walk, some 5,000 pointers a million keys. 340 keys are what a dict of 512
slots takes without growing, 170 the same for 256: splitting in halves wastes no slot.

Views: a `TableView` sees the table as it was when it was taken. The table tells open views of a change
before it happens, and each keeps what it has yet to pass.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import lt

BLOCK_KEYS_MAX = 340
_BLOCK_KEYS_HALF = BLOCK_KEYS_MAX // 2
_BLOCK_KEYS_LOW = BLOCK_KEYS_MAX // 4
_BLOCK_KEYS_LOADED = BLOCK_KEYS_MAX * 3 // 4  # room for some inserts before the first split

Block = dict[bytes, bytes]


class Table:
    """Values are never empty: in a view's memory an empty one says that the key was absent."""

    __slots__ = ("_blocks", "_changes", "_lows", "_views", "bytes", "count")

    def __init__(self, changes: list[bytes] | None = None) -> None:
        """Every change is also added to `changes`, as the key and its new value (empty: it is gone), in an
        order that does not depend on how the keys lie in blocks."""
        self._changes = changes
        self._lows: list[bytes] = [b""]
        self._blocks: list[Block] = [{}]
        self._views: list[TableView] = []
        self.count = 0
        self.bytes = 0  # lengths of all keys and values

    # --- one key -----------------------------------------------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        return self._blocks[bisect_right(self._lows, key) - 1].get(key)

    def locate(self, key: bytes) -> Block:
        """The block that holds `key` or would: read it, and hand it to `store` before any other change."""
        return self._blocks[bisect_right(self._lows, key) - 1]

    def store(self, block: Block, key: bytes, old: bytes | None, new: bytes) -> None:
        """Writes `key` into `block = locate(key)`, where `old = block.get(key)`."""
        if self._views:
            for view in self._views:
                view._before(key, old)
        if old is not None:
            self.bytes += len(new) - len(old)
        else:
            if len(block) >= BLOCK_KEYS_MAX:
                block = self._split(key)
            self.count += 1
            self.bytes += len(key) + len(new)
        block[key] = new
        if self._changes is not None:
            self._changes += (key, new)

    def set(self, key: bytes, new: bytes) -> None:
        block = self.locate(key)
        self.store(block, key, block.get(key), new)

    def delete(self, key: bytes) -> bytes | None:
        """What the key held, None where it was absent."""
        block = self.locate(key)
        old = block.get(key)
        if old is None:
            return None
        if self._views:
            for view in self._views:
                view._before(key, old)
        del block[key]
        if self._changes is not None:
            self._changes += (key, b"")
        self.count -= 1
        self.bytes -= len(key) + len(old)
        if len(block) < _BLOCK_KEYS_LOW and len(self._blocks) > 1:
            self._merge(key)
        return old

    def _split(self, key: bytes) -> Block:
        """Makes room in the full block that `key` belongs to; answers the block that takes it now."""
        at = bisect_right(self._lows, key) - 1
        block = self._blocks[at]
        keys = sorted(block)
        if key > keys[-1]:
            # Ascending keys (time stamps, sequences, a sorted import) leave full blocks behind, not halves.
            self._lows.insert(at + 1, key)
            self._blocks.insert(at + 1, {})
            return self._blocks[at + 1]
        middle = keys[_BLOCK_KEYS_HALF]
        self._blocks[at] = {each: block[each] for each in keys[:_BLOCK_KEYS_HALF]}
        self._blocks.insert(at + 1, {each: block[each] for each in keys[_BLOCK_KEYS_HALF:]})
        self._lows.insert(at + 1, middle)
        return self._blocks[at] if key < middle else self._blocks[at + 1]

    def _merge(self, key: bytes) -> None:
        """Joins a block that has become small to a neighbour, where both together are at most half full."""
        at = bisect_right(self._lows, key) - 1
        for left in (at, at - 1):
            if 0 <= left < len(self._blocks) - 1:
                first, second = self._blocks[left], self._blocks[left + 1]
                if not first or not second or len(first) + len(second) <= _BLOCK_KEYS_HALF:
                    self._blocks[left : left + 2] = [{**first, **second}]
                    del self._lows[left + 1]
                    return

    # --- many keys ---------------------------------------------------------------------------------

    def read(
        self,
        start: bytes,
        end: bytes | None,
        count: int,
        bytes_max: int | None = None,
        overlay: Table | None = None,
    ) -> tuple[list[bytes], list[bytes], bytes | None]:
        """`(keys, values, next)`: the pairs with `start <= key < end` in order of key (`end` None: no end).

        Ends after `count` pairs, or with the pair that brings their lengths to `bytes_max`; `next` is where
        to go on, None when nothing is left. `overlay` has values that stand in for the table's own, an empty
        one for absence.
        """
        keys: list[bytes] = []
        values: list[bytes] = []
        size = 0
        at = bisect_right(self._lows, start) - 1
        while len(keys) < count and (bytes_max is None or not keys or size < bytes_max):
            if end is not None and start >= end:
                return keys, values, None
            block, whole, upper = self._segment(at, start, end, overlay)
            here = sorted(block) if whole else sorted(_within(block, start, upper))
            if len(here) > count - len(keys):
                del here[count - len(keys) :]
                upper = here[-1] + b"\0"
            found = list(map(block.__getitem__, here))
            if bytes_max is not None:
                sizes = list(accumulate(map(_pair_length, here, found), initial=size))
                cut = bisect_left(sizes, bytes_max, 1)  # so many pairs are needed to reach it
                if cut < len(here):
                    del here[cut:], found[cut:]
                    upper = here[-1] + b"\0"
                size = sizes[len(here)]
            keys += here
            values += found
            if upper is None:
                return keys, values, None
            start = upper
            if at + 1 < len(self._lows) and upper >= self._lows[at + 1]:
                at += 1
        return keys, values, start

    def _segment(
        self, at: int, start: bytes, end: bytes | None, overlay: Table | None
    ) -> tuple[Block, bool, bytes | None]:
        """The pairs from `start` up to the end of block `at`, of the overlay's block, or of the range, in a
        dict that may hold others too unless the second value says not; and where that end is.

        A block of either table at a time: after many deletions one block faces thousands of kept pairs.
        """
        block = self._blocks[at]
        high = self._lows[at + 1] if at + 1 < len(self._lows) else None
        upper = _lower(high, end)
        whole = upper == high and self._lows[at] >= start
        if overlay is not None:
            there = bisect_right(overlay._lows, start) - 1
            kept = overlay._blocks[there]
            upper = _lower(upper, overlay._lows[there + 1] if there + 1 < len(overlay._lows) else None)
            if kept:
                merged = {**block, **kept}
                return {key: value for key, value in merged.items() if value}, False, upper
            whole = whole and upper == high
        return block, whole, upper

    def delete_first(self, start: bytes, end: bytes | None, count: int) -> int:
        """Deletes the first `count` keys with `start <= key < end`; answers how many there were.

        Whole blocks go at once: a third of the cost of as many calls of `delete`.
        """
        deleted = 0
        at = bisect_right(self._lows, start) - 1
        while deleted < count and at < len(self._blocks) and (end is None or self._lows[at] < end):
            block, whole, upper = self._segment(at, start, end, None)
            doomed = block
            if not whole or len(block) > count - deleted:
                first = sorted(_within(block, start, upper))[: count - deleted]
                doomed = {key: block[key] for key in first}
            for view in self._views:
                for key, old in doomed.items():
                    view._before(key, old)
            if self._changes is not None:
                for key in sorted(doomed):
                    self._changes += (key, b"")
            deleted += len(doomed)
            self.count -= len(doomed)
            self.bytes -= sum(map(len, doomed)) + sum(map(len, doomed.values()))
            if len(doomed) == len(block):
                del self._blocks[at], self._lows[at]
            else:
                for key in doomed:
                    del block[key]
                at += 1
        if not self._blocks:
            self._blocks, self._lows = [{}], [b""]
        self._lows[0] = b""
        return deleted

    def first(self) -> tuple[bytes, bytes] | None:
        """The pair of the smallest key, in a table whose keys were only ever added in ascending order."""
        return next(iter(self._blocks[0].items()), None)

    def extend(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        """Adds pairs that all lie behind those the table has. Raises ValueError where order is broken.

        For loading: no view may be open.
        """
        assert not self._views
        if not keys:
            return
        block = self._blocks[-1]
        if (self.count and max(block) >= keys[0]) or not all(map(lt, keys, keys[1:])):
            raise ValueError("keys are not in ascending order")
        if not all(values) or len(keys) != len(values):
            raise ValueError("a value is empty or missing")
        at = min(max(_BLOCK_KEYS_LOADED - len(block), 0), len(keys))
        block.update(zip(keys[:at], values[:at], strict=True))
        for begin in range(at, len(keys), _BLOCK_KEYS_LOADED):
            part = slice(begin, begin + _BLOCK_KEYS_LOADED)
            self._lows.append(keys[begin])
            self._blocks.append(dict(zip(keys[part], values[part], strict=True)))
        self.count += len(keys)
        self.bytes += sum(map(len, keys)) + sum(map(len, values))

    @property
    def viewed(self) -> bool:
        """A view is open."""
        return bool(self._views)

    def view(self, start: bytes = b"", end: bytes | None = None) -> TableView:
        view = TableView(self, start, end)
        self._views.append(view)
        return view

    def clear(self) -> None:
        """Lets go of everything, block by block: other threads get their turn in between."""
        while self._blocks:
            self._blocks.pop()
        self._blocks, self._lows = [{}], [b""]
        self.count = self.bytes = 0

    def _drop_blocks_below(self, bound: bytes) -> None:
        """Lets go of whole blocks below `bound`; `count` and `bytes` follow."""
        passed = bisect_right(self._lows, bound) - 1
        for block in self._blocks[:passed]:
            self.count -= len(block)
            self.bytes -= sum(map(len, block)) + sum(map(len, block.values()))
        del self._blocks[:passed], self._lows[:passed]
        self._lows[0] = b""


class TableView:
    """The pairs of a table's range at the moment the view was taken, read forward while writes go on.

    Taking it costs nothing. Until it is closed, the first change to a key that it has yet to pass keeps that
    key's old value alive (the same object, not a copy): at worst, everything in its range. Close it.
    """

    __slots__ = ("_end", "_kept", "_next", "_table")

    def __init__(self, table: Table, start: bytes, end: bytes | None) -> None:
        self._table = table
        self._end = end
        self._next: bytes | None = start  # keys below it are passed; None: all are
        self._kept = Table()

    @property
    def kept(self) -> int:
        """How many old values the view holds."""
        return self._kept.count

    def read(self, count: int, bytes_max: int | None = None) -> tuple[list[bytes], list[bytes]]:
        """The next pairs in order of key; none at the end. Cut as in `Table.read`."""
        if self._next is None:
            return [], []
        overlay = self._kept if self._kept.count else None
        keys, values, self._next = self._table.read(self._next, self._end, count, bytes_max, overlay)
        if self._next is None:
            self.close()
        elif overlay is not None:
            overlay._drop_blocks_below(self._next)
        return keys, values

    def close(self) -> None:
        """Idempotent."""
        self._next = None
        self._kept = Table()
        if self in self._table._views:
            self._table._views.remove(self)

    def _before(self, key: bytes, old: bytes | None) -> None:
        if self._next is None or key < self._next or (self._end is not None and key >= self._end):
            return
        block = self._kept.locate(key)
        if key not in block:
            self._kept.store(block, key, None, old if old is not None else b"")


def _within(block: Block, start: bytes, upper: bytes | None) -> Iterator[bytes]:
    return (key for key in block if key >= start and (upper is None or key < upper))


def _lower(one: bytes | None, other: bytes | None) -> bytes | None:
    """The lower of two upper bounds; None is no bound."""
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


def _pair_length(key: bytes, value: bytes) -> int:
    return len(key) + len(value)
