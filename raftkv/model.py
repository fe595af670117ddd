"""What the layers hand to each other: items, results of commands, members, identities.

Everything here is a frozen value. Keys are UTF-8 bytes: byte order is code point order, so the order of
the store is the order of the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

DEFAULT_CONTENT_TYPE = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Item:
    """One key as it was at one revision. `version` counts writes since the key was created, from 1."""

    key: bytes
    value: bytes
    content_type: str
    create_revision: int
    mod_revision: int
    version: int


# --- results: what `Machine.apply` answers for each command. Values, never exceptions. ------------------


class _Value(msgspec.Struct, frozen=True, gc=False):
    """As a frozen dataclass, at a fifth of what making one costs: each node makes two for each write."""


class Written(_Value, frozen=True, gc=False):
    """A put. `created` tells 201 from 200; `previous` only when it was asked for and existed."""

    revision: int
    created: bool
    previous: Item | None = None


class Deleted(_Value, frozen=True, gc=False):
    """A delete of one key or a prefix. `revision` is the store's when nothing was there to delete."""

    revision: int
    deleted: int
    more: bool = False
    previous: Item | None = None


class Appended(_Value, frozen=True, gc=False):
    revision: int
    length: int


class Incremented(_Value, frozen=True, gc=False):
    revision: int
    value: int


class Got(_Value, frozen=True, gc=False):
    """A `get` inside a transaction: it sees the writes of the operations before it."""

    item: Item | None


class PreconditionFailed(_Value, frozen=True, gc=False):
    """`current` is the key's mod_revision, 0 where it is absent."""

    current: int


class NotANumber(_Value, frozen=True, gc=False):
    """incr on a value that is not a decimal integer of 64 bits, or whose sum is not. `detail` says which."""

    detail: str


class ResultTooLarge(_Value, frozen=True, gc=False):
    """append would make the value longer than the limit that its command carried."""

    size: int
    limit: int


class TransactionDone(_Value, frozen=True, gc=False):
    """`responses` has one result an operation of the branch that ran, in order.

    A branch in which an operation failed (`NotANumber`, `ResultTooLarge`) was not applied at all: the
    transaction's result is then that failure itself, not a `TransactionDone`.
    """

    succeeded: bool
    revision: int
    responses: tuple[Written | Deleted | Appended | Incremented | Got, ...]


class IdempotencyMismatch(_Value, frozen=True, gc=False):
    """The idempotency key was used before, for a different request."""


class IdempotencyExpired(_Value, frozen=True, gc=False):
    """n lies below the window of its client's last outcomes. `lowest` is the lowest n still accepted."""

    lowest: int


@dataclass(frozen=True, slots=True)
class Reconfigured:
    """The log entry with this membership was committed. No command's result, but told in the same way."""

    membership: Membership


class TokenCreated(_Value, frozen=True, gc=False):
    revision: int


class TokenRevoked(_Value, frozen=True, gc=False):
    revision: int


class TokenRefused(_Value, frozen=True, gc=False):
    """`exists`: a token has that id. `too_many`: there are as many as there may be. `not_first`: there are
    tokens already. `missing`: there is none with that id. `last_admin`: nobody would be left to let others
    in."""

    reason: Literal["exists", "too_many", "not_first", "missing", "last_admin"]


Result = (
    Written
    | Deleted
    | Appended
    | Incremented
    | PreconditionFailed
    | NotANumber
    | ResultTooLarge
    | TransactionDone
    | IdempotencyMismatch
    | IdempotencyExpired
    | Reconfigured
    | TokenCreated
    | TokenRevoked
    | TokenRefused
)


class Applied(_Value, frozen=True, gc=False):
    """A command's result as applied at log `index`. `replayed`: the stored outcome of an earlier attempt."""

    index: int
    result: Result
    replayed: bool = False


# --- who is who ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the cluster. `peer` is HOST:PORT of its raft listener, `client_url` its advertised URL."""

    name: str
    peer: str
    client_url: str


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this node is. `instance` is drawn once for an empty disk; `cluster` is empty until formed."""

    name: str
    instance: str  # 32 hex digits
    cluster: str  # 32 hex digits, or "" before the cluster has formed


class Membership(msgspec.Struct, frozen=True, omit_defaults=True):
    """The replicated configuration: members in order of name, and each one's instance.

    `instances` has "" for a member that was added and has not shown its disk yet. `learners` are members
    that get the log and count in no quorum; those of `promoting` become voters once they have caught up.
    `level` is the protocol that every member speaks: what needs more must not be written yet.
    (`term`, `index`) of the log entry that carries it orders the memberships of one cluster: a committed one
    is newer than all that were committed before it.
    """

    cluster: str
    members: tuple[Member, ...]
    instances: tuple[tuple[str, str], ...]  # (name, instance), in order of name
    learners: tuple[str, ...] = ()
    promoting: tuple[str, ...] = ()
    level: int = 1
    term: int = 0
    index: int = 1

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.members)

    @property
    def voters(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.members if member.name not in self.learners)

    @property
    def version(self) -> tuple[int, int]:
        return self.term, self.index

    def member(self, name: str) -> Member | None:
        return next((member for member in self.members if member.name == name), None)

    def instance(self, name: str) -> str | None:
        """ "" for one that has not shown its disk, None for a stranger."""
        return dict(self.instances).get(name)
