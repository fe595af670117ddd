"""The commands that the log carries, and their encoding. PURE.

A log entry of type REGULAR holds one *batch*: every command that was proposed while the batch before it
was on its way, with the leader's log time.

    entry   = version u8 (1) | log_time_ms u64 | command*         little endian
    command = length u32 | msgpack of a tagged array (see `Put` and the rest)

Log time is milliseconds that only the leader's monotonic clock advances; it never goes back, and it is
the only time that the state machine ever sees.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Literal, get_args

import msgspec

from raftkv.kv.tokens import Token

ENTRY_VERSION = 1

CompareTarget = Literal["value", "mod_revision", "create_revision", "version", "exists"]
CompareOperator = Literal["==", "!=", "<", ">"]


class _Tagged(msgspec.Struct, frozen=True, array_like=True, tag_field="t", gc=False):
    """Encoded as a msgpack array whose first element is the tag."""


class Condition(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """When a single-key write may happen; the fields that are set must all hold.

    `revision`: the key's mod_revision equals it (0: absent). `exists`: present (True) or absent (False).
    """

    revision: int | None = None
    exists: bool | None = None


class Idempotency(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`key` as the client sent it; `fingerprint` is 16 bytes that name the request it came with."""

    key: bytes
    fingerprint: bytes


class Put(_Tagged, frozen=True, tag="p"):
    key: bytes
    value: bytes
    content_type: str = "application/octet-stream"
    condition: Condition | None = None
    return_previous: bool = False
    idempotency: Idempotency | None = None


class Delete(_Tagged, frozen=True, tag="d"):
    key: bytes
    condition: Condition | None = None
    return_previous: bool = False
    idempotency: Idempotency | None = None


class DeletePrefix(_Tagged, frozen=True, tag="x"):
    """Deletes the first `limit` keys with the prefix, in key order, in one revision."""

    prefix: bytes
    limit: int
    idempotency: Idempotency | None = None


class Append(_Tagged, frozen=True, tag="a"):
    """`value_bytes_max` travels in the command, so that every replica decides alike."""

    key: bytes
    value: bytes
    value_bytes_max: int
    content_type: str = "application/octet-stream"
    condition: Condition | None = None
    idempotency: Idempotency | None = None


class Increment(_Tagged, frozen=True, tag="i"):
    key: bytes
    by: int
    condition: Condition | None = None
    idempotency: Idempotency | None = None


class Get(_Tagged, frozen=True, tag="g"):
    """Only inside a transaction."""

    key: bytes


class Compare(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`value` is bytes for `value`, bool for `exists`, int for the others. Absent keys: numbers are 0,
    and every comparison of `value` with an absent key is false except `!=`."""

    key: bytes
    target: CompareTarget
    operator: CompareOperator
    value: bytes | bool | int


Operation = Put | Delete | Append | Increment | Get


class Transaction(_Tagged, frozen=True, tag="t"):
    compare: tuple[Compare, ...]
    success: tuple[Operation, ...]
    failure: tuple[Operation, ...]
    idempotency: Idempotency | None = None


class TokenCommand(_Tagged, frozen=True):
    """A change of who is let in."""


class CreateToken(TokenCommand, frozen=True, tag="k"):
    """`only_first`: only where there are no tokens yet, as for the first administrator of a new cluster."""

    token: Token
    only_first: bool = False
    idempotency: Idempotency | None = None


class RevokeToken(TokenCommand, frozen=True, tag="r"):
    id: str
    idempotency: Idempotency | None = None


Command = Put | Delete | DeletePrefix | Append | Increment | Transaction | CreateToken | RevokeToken

_HEAD = struct.Struct("<BQ")
_LENGTH = struct.Struct("<I")
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_TAGS = frozenset(kind.__struct_config__.tag for kind in get_args(Command))


def encode(command: Command) -> bytes:
    """One command as it stands in a batch, without its length."""
    return _encoder.encode(command)


def encode_entry(log_time_ms: int, commands: Iterable[bytes]) -> bytes:
    """A batch of encoded commands as a log entry's payload."""
    parts = [_HEAD.pack(ENTRY_VERSION, log_time_ms)]
    for command in commands:
        parts.append(_LENGTH.pack(len(command)))
        parts.append(command)
    return b"".join(parts)


def decode_entry(payload: bytes) -> tuple[int, Sequence[Command]]:
    """`(log_time_ms, commands)`. Raises ValueError: every entry was encoded by a leader of this release or
    an older one, so bytes that don't decode mean damage or a newer release, and the node must stop."""
    if len(payload) < _HEAD.size:
        raise ValueError(f"log entry of {len(payload)} bytes is shorter than its head of {_HEAD.size}")
    version, log_time_ms = _HEAD.unpack_from(payload)
    if version != ENTRY_VERSION:
        raise ValueError(
            f"log entry of version {version}; this release reads version {ENTRY_VERSION}: start the release "
            "that wrote it, or a newer one"
        )
    commands: list[Command] = []
    view = memoryview(payload)
    at = _HEAD.size
    while at < len(payload):
        if at + _LENGTH.size > len(payload):
            raise ValueError(f"log entry ends inside a length at byte {at}")
        (length,) = _LENGTH.unpack_from(payload, at)
        at += _LENGTH.size
        if at + length > len(payload):
            raise ValueError(f"log entry ends inside a command at byte {at}")
        try:
            commands.append(_decoder.decode(view[at : at + length]))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            reason = _unreadable(view[at : at + length], error)
            raise ValueError(f"log entry holds an unreadable command at byte {at}: {reason}") from error
        at += length
    return log_time_ms, commands


def _unreadable(command: memoryview, error: Exception) -> str:
    """What is wrong with a command that does not decode."""
    with suppress(msgspec.MsgspecError, RecursionError, TypeError, ValueError):
        tag, *_ = msgspec.msgpack.decode(command)
        if isinstance(tag, str) and tag not in _TAGS:
            return (
                f"this release does not know its kind {tag[:20]!r}; where a newer release wrote it, start "
                "that one, or a newer one"
            )
    return str(error)
