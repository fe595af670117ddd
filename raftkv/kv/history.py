"""One hash for all that a state machine has ever done, so that replicas can compare themselves. PURE.

    hash(0)   = GENESIS, 16 zero bytes
    hash(n+1) = the first 16 bytes of sha256 of
                    hash(n) | index u64 | revision u64 | log_time_ms u64 | lengths u32 × parts | parts
                of the next log entry that changed anything; little endian

`parts` are the keys and new values of every change that the entry made, in the order in which it made them,
to items, outcomes kept under idempotency keys and tokens alike; an empty value is a deletion. Equal hashes
at an index mean: the same changes in the same order, hence the same state. A snapshot carries the hash at
its index, and who loads it goes on from there.

Why a chain over the entries and not a sum over the records, which could be computed from the state alone:
a sum needs two hashes a write (the old record's out, the new one's in), 2.6 µs; the chain hashes an entry's
changes in one call: 0.4 µs a write of 128 bytes where an entry has 16 or more, 0.8 µs with an idempotency
key, 2 µs for an entry of one write, which costs a node some 50 µs anyway. Both miss the same thing, a record
that changes in memory without being written, until it is read again by a command; the sha256 of a snapshot's
pages finds that. Hashing the log's entries alone would be cheaper still, and say nothing of what `apply`
made of them.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from array import array
from typing import Final

Hash = bytes

HASH_BYTES: Final = 16
GENESIS: Final = bytes(HASH_BYTES)

_HEAD = struct.Struct("<QQQ")


class History:
    """`changes` is for the tables to add to. An empty `hash` stays empty: what came before is not known."""

    __slots__ = ("changes", "hash")

    def __init__(self, state_hash: bytes) -> None:
        assert len(state_hash) in (0, HASH_BYTES)
        self.hash = state_hash
        self.changes: list[bytes] = []

    def seal(self, index: int, revision: int, log_time_ms: int) -> None:
        """The changes since the last call are those of one whole entry."""
        changes = self.changes
        if self.hash:
            lengths = array("I", map(len, changes))
            if sys.byteorder == "big":
                lengths.byteswap()
            head = _HEAD.pack(index, revision, log_time_ms)
            self.hash = hashlib.sha256(b"".join((self.hash, head, lengths, *changes))).digest()[:HASH_BYTES]
        changes.clear()
