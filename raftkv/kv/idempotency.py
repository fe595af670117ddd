"""The outcomes of keyed commands, so that a repeated one is answered and not done again. PURE.

Two kinds of idempotency key:

- `<client>/<n>` costs one window a client: the last 1,024 outcomes, counted from the highest n seen. A
  window goes after its client has sent nothing for at least 120 s of log time (240 s at most).
- Any other key is kept for at least 120 s of log time.

Five ordered tables hold it all, so that an image of the state machine covers it like the items:

    plain     key                          -> msgpack [queued_ms, fingerprint, result]
    clients   client                       -> session u64 | highest u64 | used_ms u64 | queued_ms u64
    outcomes  session u64 | n u64 (both big endian)  -> msgpack [fingerprint, result]
    queue     sequence u64 big endian | "p"          -> key of `plain`
              sequence u64 big endian | "c"          -> "c" client, or
                                                        "d" session u64 | next_n u64 | highest u64

The queue is first in, first out: what stands at its head is looked at when it has stood there for 120 s. A
plain key goes then; a client that was heard meanwhile goes to the back, another one is forgotten, and its
outcomes are dropped a few at a time ("d"), for a command must not pay for a thousand. Each life of a client
is a session of its own, so what remains of an old one is never taken for the new one's.

Expiry is part of applying, hence the same on every replica: a few steps a command, always more than one
command can add.
"""

from __future__ import annotations

import re
import struct
from typing import Any, Final, NamedTuple

import msgspec

from raftkv.kv.table import Table
from raftkv.model import (
    Appended,
    Deleted,
    Got,
    IdempotencyExpired,
    IdempotencyMismatch,
    Incremented,
    Item,
    NotANumber,
    PreconditionFailed,
    Reconfigured,
    Result,
    ResultTooLarge,
    TokenCreated,
    TokenRefused,
    TokenRevoked,
    TransactionDone,
    Written,
)

KEEP_MS: Final = 120_000
WINDOW: Final = 1_024  # four times the 256 that a client may have in flight
STEPS_PER_COMMAND: Final = 4
_RECORD_OVERHEAD_BYTES: Final = 200  # objects' heads and dict slots of an outcome and its place in the queue
_NEVER: Final = 1 << 66  # above any log time

_CLIENT_KEY = re.compile(rb"([A-Za-z0-9_-]{1,64})/([1-9][0-9]{0,18})")
_QUEUE_KEY = struct.Struct(">Qc")
_CLIENT = struct.Struct("<QQQQ")
_OUTCOME_KEY = struct.Struct(">QQ")
_DROPPING = struct.Struct("<cQQQ")

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class Known(NamedTuple):
    """What a keyed command gets without being run. `replayed`: it is the stored outcome."""

    result: Result
    replayed: bool


class Place(NamedTuple):
    """Where a new outcome goes: a plain key (n is 0), or a client's n with what its header says.

    A tuple rather than a dataclass: one is made for every keyed write, and costs a quarter.
    """

    name: bytes
    n: int = 0
    session: int = -1  # none yet
    highest: int = 0
    queued_ms: int = 0


class IdempotencyTable:
    """What `Machine` asks before and tells after each keyed command."""

    __slots__ = ("clients", "due_ms", "outcomes", "plain", "queue", "sequence")

    def __init__(self, changes: list[bytes] | None = None) -> None:
        self.plain = Table(changes)
        self.clients = Table(changes)
        self.outcomes = Table(changes)
        self.queue = Table(changes)
        self.sequence = 0  # numbers queue entries and sessions
        self.due_ms = _NEVER  # log time at which `expire` has something to do

    @property
    def records(self) -> int:
        """Outcomes kept."""
        return self.plain.count + self.outcomes.count

    @property
    def memory_bytes(self) -> int:
        """Memory held, estimated."""
        tables = (self.plain, self.clients, self.outcomes, self.queue)
        return sum(table.bytes for table in tables) + _RECORD_OVERHEAD_BYTES * (
            self.records + self.clients.count
        )

    def find(self, key: bytes, fingerprint: bytes, now_ms: int) -> Known | Place:
        """The answer for a key that can't be run again; or, where the command is new, what `keep` needs."""
        match = _CLIENT_KEY.fullmatch(key)
        if match is None:
            stored = self.plain.get(key)
            return Place(key) if stored is None else _answer(_decode(stored), fingerprint)
        client, n = match[1], int(match[2])
        header = self.clients.get(client)
        if header is None:
            return Place(client, n)
        session, highest, _, queued_ms = _CLIENT.unpack(header)
        if n > highest:
            return Place(client, n, session, highest, queued_ms)
        stored = self.outcomes.get(_OUTCOME_KEY.pack(session, n))
        lowest = highest - WINDOW + 1
        if stored is None and n >= lowest:
            return Place(client, n, session, highest, queued_ms)
        self.clients.set(client, _CLIENT.pack(session, highest, now_ms, queued_ms))  # heard, hence not idle
        if stored is None or n < lowest:
            return Known(IdempotencyExpired(lowest), False)
        return _answer(_decode(stored), fingerprint)

    def has(self, key: bytes) -> bool:
        """Whether an outcome is kept under that key. Changes nothing."""
        match = _CLIENT_KEY.fullmatch(key)
        if match is None:
            return self.plain.get(key) is not None
        header = self.clients.get(match[1])
        if header is None:
            return False
        return self.outcomes.get(_OUTCOME_KEY.pack(_CLIENT.unpack(header)[0], int(match[2]))) is not None

    def keep(self, place: Place, fingerprint: bytes, result: Result, now_ms: int) -> None:
        """Stores the outcome of a command for which `find` just gave that place."""
        name, n, session, highest, queued_ms = place
        if n == 0:
            self.plain.set(name, _encode((now_ms, fingerprint, _tuple_of(result))))
            self._enqueue(b"p", name, now_ms)
            return
        if session < 0:
            session, highest, queued_ms = self.sequence, n, now_ms
            self._enqueue(b"c", b"c" + name, now_ms)
        elif n > highest:
            for passed in range(max(highest - WINDOW, 0) + 1, min(n - WINDOW, highest) + 1):
                self.outcomes.delete(_OUTCOME_KEY.pack(session, passed))
            highest = n
        self.clients.set(name, _CLIENT.pack(session, highest, now_ms, queued_ms))
        self.outcomes.set(_OUTCOME_KEY.pack(session, n), _encode((fingerprint, _tuple_of(result))))

    def expire(self, now_ms: int) -> None:
        """A few steps at the head of the queue; to be called when `now_ms >= due_ms`."""
        for _ in range(STEPS_PER_COMMAND):
            if now_ms < self.due_ms:
                return
            self._step(now_ms)
            self.look()

    def look(self) -> None:
        """Finds out when the head of the queue is due."""
        head = self.queue.first()
        if head is None:
            self.due_ms = _NEVER
        elif head[0][-1:] == b"p":
            self.due_ms = _decode(self.plain.get(head[1]) or b"")[0] + KEEP_MS
        elif head[1][:1] == b"c":
            self.due_ms = _CLIENT.unpack(self.clients.get(head[1][1:]) or b"")[3] + KEEP_MS
        else:
            self.due_ms = 0

    def _step(self, now_ms: int) -> None:
        head = self.queue.first()
        assert head is not None
        place, name = head
        if place[-1:] == b"p":
            self.plain.delete(name)
            self.queue.delete(place)
        elif name[:1] == b"c":
            self._look_at_client(place, name[1:], now_ms)
        else:
            _, session, n, highest = _DROPPING.unpack(name)
            self.outcomes.delete(_OUTCOME_KEY.pack(session, n))
            if n < highest:
                self.queue.set(place, _DROPPING.pack(b"d", session, n + 1, highest))
            else:
                self.queue.delete(place)

    def _look_at_client(self, place: bytes, client: bytes, now_ms: int) -> None:
        session, highest, used_ms, _ = _CLIENT.unpack(self.clients.get(client) or b"")
        if now_ms < used_ms + KEEP_MS:
            self.queue.delete(place)
            self.clients.set(client, _CLIENT.pack(session, highest, used_ms, now_ms))
            self._enqueue(b"c", b"c" + client, now_ms)
            return
        self.clients.delete(client)
        lowest = max(highest - WINDOW, 0) + 1
        self.queue.set(place, _DROPPING.pack(b"d", session, lowest, highest))

    def _enqueue(self, kind: bytes, name: bytes, now_ms: int) -> None:
        self.queue.set(_QUEUE_KEY.pack(self.sequence, kind), name)
        self.sequence += 1
        self.due_ms = min(self.due_ms, now_ms + KEEP_MS)


def _answer(outcome: list[Any], fingerprint: bytes) -> Known:
    *_, original, result = outcome
    if original != fingerprint:
        return Known(IdempotencyMismatch(), False)
    return Known(_result_of(result), True)


# --- results as msgpack arrays: a tag, then the fields in their order -----------------------------------


def _item_tuple(item: Item | None) -> tuple[Any, ...] | None:
    if item is None:
        return None
    return (
        item.key,
        item.value,
        item.content_type,
        item.create_revision,
        item.mod_revision,
        item.version,
    )


def _tuple_of(result: Result | Got) -> tuple[Any, ...]:
    match result:  # the most frequent first
        case Written(revision, created, previous):
            return "w", revision, created, _item_tuple(previous)
        case Deleted(revision, deleted, more, previous):
            return "d", revision, deleted, more, _item_tuple(previous)
        case Appended(revision, length):
            return "a", revision, length
        case Incremented(revision, value):
            return "i", revision, value
        case Got(item):
            return "g", _item_tuple(item)
        case PreconditionFailed(current):
            return "c", current
        case NotANumber(detail):
            return "n", detail
        case ResultTooLarge(size, limit):
            return "l", size, limit
        case TransactionDone(succeeded, revision, responses):
            return "t", succeeded, revision, [_tuple_of(response) for response in responses]
        case TokenCreated(revision):
            return "k", revision
        case TokenRevoked(revision):
            return "r", revision
        case TokenRefused(reason):
            return "f", reason
        case IdempotencyMismatch() | IdempotencyExpired() | Reconfigured():
            raise AssertionError("only first outcomes are stored")


_WITH_PREVIOUS: Final[dict[str, type[Any]]] = {"w": Written, "d": Deleted}
_TAGS: Final[dict[str, type[Any]]] = {
    "a": Appended,
    "i": Incremented,
    "c": PreconditionFailed,
    "n": NotANumber,
    "l": ResultTooLarge,
    "k": TokenCreated,
    "r": TokenRevoked,
    "f": TokenRefused,
}


def _result_of(stored: list[Any]) -> Any:
    tag, *fields = stored
    match tag:
        case "w" | "d":
            *plain, previous = fields
            return _WITH_PREVIOUS[tag](*plain, _item_of(previous))
        case "g":
            return Got(_item_of(fields[0]))
        case "t":
            succeeded, revision, responses = fields
            return TransactionDone(succeeded, revision, tuple(map(_result_of, responses)))
        case _:
            return _TAGS[tag](*fields)


def _item_of(fields: list[Any] | None) -> Item | None:
    return None if fields is None else Item(*fields)
