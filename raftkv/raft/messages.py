"""The messages that members exchange, schema-checked on arrival. PURE.

Each is a msgpack array whose first element is the type's tag. The transport frames, authenticates and
bounds them; who sent one is known from the connection it came on, never from the message.

`term` is the sender's current term when the core spoke (not when a gate let the message go). `sequence`
numbers the leader's append_entries messages to one peer within one term; an answer echoes it, which is
what ReadIndex and liveness count (thesis §6.4).
"""

from __future__ import annotations

from typing import Annotated

import msgspec

NUMBER_MAX = (1 << 63) - 1  # terms, indexes and sequences are 64 bits on the disk
Number = Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX)]


class _Message(msgspec.Struct, frozen=True, array_like=True, tag_field="t", gc=False):
    pass


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    term: Number
    payload: bytes  # PySyncObj's command: one type byte, then the batch


class PreVote(_Message, frozen=True, tag="pv"):
    """Would you vote for me in `term`? Changes nothing at the receiver (thesis §9.6)."""

    term: Number  # the term the sender would campaign in
    last_log_index: Number
    last_log_term: Number


class PreVoteReply(_Message, frozen=True, tag="pr"):
    term: Number  # echoed
    granted: bool
    current_term: Number


class RequestVote(_Message, frozen=True, tag="rv"):
    term: Number
    last_log_index: Number
    last_log_term: Number


class VoteReply(_Message, frozen=True, tag="vr"):
    term: Number
    granted: bool


class AppendEntries(_Message, frozen=True, tag="ae"):
    """Entries `prev_log_index + 1 …`; none is a heartbeat that still verifies `prev_log_index`."""

    term: Number
    sequence: Number
    prev_log_index: Number
    prev_log_term: Number
    commit_index: Number
    entries: tuple[Entry, ...]


class AppendReply(_Message, frozen=True, tag="ar"):
    """`success`: the log matches the leader's up to `match_index`, durably.
    Otherwise `match_index` is where the leader should probe next."""

    term: Number
    sequence: Number
    success: bool
    match_index: Number


class Commit(_Message, frozen=True, tag="co"):
    """The leader's log is committed up to `index`, whose entry is of `index_term`. Who has that very entry
    has the leader's log up to it (Log Matching, Raft §5.3), and commits; who has not passes it over. It is
    not answered: what it says comes again with the next message that has a place in the log."""

    term: Number
    index: Number
    index_term: Number


class Heartbeat(_Message, frozen=True, tag="hb"):
    """Sent where no log position can be named (a snapshot is under way) or need be (a round of reads);
    commits nothing."""

    term: Number
    sequence: Number


class Echo(_Message, frozen=True, tag="ec"):
    """The core accepted message `sequence` of the leader of `term`. Not durable, claims nothing about
    the log: it is liveness and ReadIndex only, and never waits for a disk."""

    term: Number
    sequence: Number


class SnapshotOffer(_Message, frozen=True, tag="so"):
    """The entries that the follower needs are compacted: fetch this snapshot instead."""

    term: Number
    sequence: Number
    manifest: bytes


class SnapshotFetch(_Message, frozen=True, tag="sf"):
    """Bytes of chunk number `chunk` from `offset`, as many as a frame may hold."""

    snapshot: str
    chunk: Number
    offset: Number


class SnapshotPart(_Message, frozen=True, tag="sp"):
    """Answers one fetch. Empty `data`: the snapshot is gone here, ask for a new offer."""

    snapshot: str
    chunk: Number
    offset: Number
    data: bytes


class SnapshotInstalled(_Message, frozen=True, tag="si"):
    """The follower's state is now durable up to `index`."""

    term: Number
    index: Number


class ReadIndexRequest(_Message, frozen=True, tag="rr"):
    """A follower asks its leader for a read index; `request` is the follower's own number for it."""

    term: Number
    request: Number


class ReadIndexReply(_Message, frozen=True, tag="ri"):
    """`index` is -1 where the peer does not lead, or could not confirm that it does."""

    term: Number
    request: Number
    index: Annotated[int, msgspec.Meta(ge=-1, le=NUMBER_MAX)]


class TimeoutNow(_Message, frozen=True, tag="tn"):
    """Campaign at once: the leader hands over (thesis §3.10)."""

    term: Number


class StateHash(_Message, frozen=True, tag="sh"):
    """The leader's `Machine.state_hash` at `index`, for the followers to compare theirs with."""

    term: Number
    index: Number
    hash: bytes


Message = (
    PreVote
    | PreVoteReply
    | RequestVote
    | VoteReply
    | AppendEntries
    | AppendReply
    | Commit
    | Heartbeat
    | Echo
    | SnapshotOffer
    | SnapshotFetch
    | SnapshotPart
    | SnapshotInstalled
    | ReadIndexRequest
    | ReadIndexReply
    | TimeoutNow
    | StateHash
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def decode(payload: bytes | memoryview) -> Message:
    """Raises ValueError for anything but one well-formed message of a known type."""
    try:
        return _decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not a message of this protocol version: {error}") from error
