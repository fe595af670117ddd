"""The tokens that let a client in, as the replicated state holds them: hashes, never the tokens. PURE.

A token is what its holder presents; a `Token` is what is kept of it: who it is for, what it may do, and the
salted scrypt hash of its secret, computed before it was proposed. One record a token:

    tokens    id, ASCII                            -> msgpack of `Token`, an array of its fields in order

A later release may append fields; those that a record does not have get their defaults.

What a token may do is the sum of its grants. `read` and `write` are apart from each other; `admin` is both
below its prefix, and more where that prefix is empty. `access/caller.py` says what each request needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from raftkv.kv.table import Table

Role = Literal["read", "write", "admin"]

TOKENS_MAX: Final = 1_000  # every node knows them all; part of what replicas must decide alike
GRANTS_MAX: Final = 32


class Grant(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`prefix`: keys that start with it; empty for every key."""

    role: Role
    prefix: bytes


class Token(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`hash` is scrypt of the secret with `salt` and cost `(n, r, p)`. Times are Unix milliseconds of the
    clock of the node that was asked; `expires_ms` and `rate` 0: never, and no limit. `rate` is in operations
    a second, on each node. `created_by` is the id of the token that asked, empty for a bootstrap token."""

    id: str
    name: str
    grants: tuple[Grant, ...]
    salt: bytes
    hash: bytes
    cost: tuple[int, int, int]
    created_ms: int
    expires_ms: int = 0
    rate: int = 0
    created_by: str = ""

    @property
    def rules_everything(self) -> bool:
        """An administrator of every key, for ever: one of these must be left."""
        return not self.expires_ms and any(each.role == "admin" and not each.prefix for each in self.grants)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Token).decode


class TokenTable:
    """`version` is another number after every change, so that what was derived from the tokens knows when
    it is out of date. It is of this process alone."""

    __slots__ = ("table", "version")

    def __init__(self, changes: list[bytes] | None = None) -> None:
        self.table = Table(changes)
        self.version = 0

    @property
    def count(self) -> int:
        return self.table.count

    def get(self, name: str) -> Token | None:
        found = self.table.get(name.encode())
        return None if found is None else _decode(found)

    def __iter__(self) -> Iterator[Token]:
        """In order of their ids."""
        _, records, _ = self.table.read(b"", None, TOKENS_MAX)
        return map(_decode, records)

    def check(self) -> None:
        """After loading. Raises ValueError where what was loaded are no tokens."""
        try:
            for name, token in zip(self.table.read(b"", None, TOKENS_MAX)[0], self, strict=True):
                if token.id.encode() != name:
                    raise ValueError(f"the record of token {name!r} is that of {token.id!r}")
        except msgspec.MsgspecError as error:
            raise ValueError(f"a record of a token can't be read: {error}") from error

    def set(self, token: Token) -> None:
        self.table.set(token.id.encode(), _encode(token))
        self.version += 1

    def delete(self, name: str) -> None:
        self.table.delete(name.encode())
        self.version += 1
