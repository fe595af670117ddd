"""What a token permits: the one place that decides it. PURE.

| asked | needs |
|---|---|
| what a key holds: read, list, export, compare, the value before a write, the sum of an addition | `read` |
| to write or delete a key, whatever the condition | `write` |
| a range | that role, for a prefix that the range's own prefix begins with |
| several operations | all that each of them needs, in both branches |
| tokens: make, list, revoke | `admin`; only such as permit nothing beyond its own prefixes |
| the cluster: members, leadership, snapshots, which hold every key | `admin` of every key |

`admin` of a prefix is `read` and `write` of it as well. What nothing here permits is refused.

A write tells its caller the revision, whether the key was there, and how long a value is after an append: no
value, and so no `read`. A condition on a revision (If-Match) tells the current one where it fails.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, NoReturn, assert_never

from raftkv.errors import Forbidden, RateLimited
from raftkv.kv.command import (
    Append,
    Command,
    CreateToken,
    Delete,
    DeletePrefix,
    Get,
    Increment,
    Put,
    RevokeToken,
    Transaction,
)
from raftkv.kv.tokens import Grant, Token

KeyRole = Literal["read", "write"]
NEVER = math.inf
SHOWN_BYTES_MAX = 80  # of a prefix in an error


class Caller:
    """One token, as every request with it is checked. `grants` and not the role alone: each has a prefix."""

    __slots__ = ("admins", "bucket", "epoch", "expires_s", "id", "name", "reads", "token", "writes")

    def __init__(self, token: Token) -> None:
        self.token = token
        self.id = token.id
        self.name = token.name
        self.epoch: object = None  # the guard's own, as long as the token stands
        self.expires_s = token.expires_ms / 1000 if token.expires_ms else NEVER
        self.admins = _prefixes(token.grants, ("admin",))
        self.reads = _prefixes(token.grants, ("read", "admin"))
        self.writes = _prefixes(token.grants, ("write", "admin"))
        self.bucket = Bucket(token.rate) if token.rate else None

    @property
    def who(self) -> str:
        """For logs and audits."""
        return f"{self.id}:{self.name}" if self.id else self.name

    # --- keys --------------------------------------------------------------------------------------

    def check_key(self, role: KeyRole, key: bytes) -> None:
        """Raises Forbidden. For a range: with the prefix that all its keys have."""
        if not key.startswith(self.reads if role == "read" else self.writes):
            self._refuse(role, f"the key or prefix {_shown(key)}")

    def check_range(self, role: KeyRole, prefix: bytes) -> None:
        """Raises Forbidden, unless every key that begins with `prefix` is permitted."""
        self.check_key(role, prefix)

    def check_command(self, command: Command | Get) -> None:
        """Everything that it does or may do. Raises Forbidden."""
        match command:
            case Put(key=key, return_previous=previous) | Delete(key=key, return_previous=previous):
                self.check_key("write", key)
                if previous:
                    self.check_key("read", key)
            case Append(key=key):
                self.check_key("write", key)
            case Increment(key=key):  # its answer is the value
                self.check_key("write", key)
                self.check_key("read", key)
            case DeletePrefix(prefix=prefix):
                self.check_range("write", prefix)
            case Get(key=key):
                self.check_key("read", key)
            case Transaction(compare=compares, success=success, failure=failure):
                for compare in compares:
                    self.check_key("read", compare.key)
                for operation in (*success, *failure):
                    self.check_command(operation)
            case CreateToken(token=token):
                self.check_token(token)
            case RevokeToken():  # which one, `check_token` was asked before
                self.check_admin()
            case _:
                assert_never(command)

    # --- beyond keys -------------------------------------------------------------------------------

    def check_admin(self) -> None:
        """Raises Forbidden."""
        if not self.admins:
            raise Forbidden(f"token {self.who} is no administrator: none of its grants is admin")

    def check_cluster(self) -> None:
        """Raises Forbidden. Whoever changes members or reads snapshots has every key."""
        if b"" not in self.admins:
            raise Forbidden(
                f"token {self.who} is no administrator of every key: that is admin with prefix ''"
            )

    def rules(self, token: Token) -> bool:
        """Whether it permits nothing that this one's admin grants don't cover."""
        return bool(self.admins) and all(each.prefix.startswith(self.admins) for each in token.grants)

    def check_token(self, token: Token) -> None:
        """May this one make or revoke that one? Raises Forbidden."""
        self.check_admin()
        if not self.rules(token):
            self._refuse("admin", "what that token may do")

    def _refuse(self, role: str, what: str) -> NoReturn:
        prefixes = {"read": self.reads, "write": self.writes, "admin": self.admins}[role]
        has = " and ".join(map(_shown, prefixes)) or "nothing"
        raise Forbidden(f"token {self.who} has no {role} for {what}; it has {role} for the prefixes {has}")


class Bucket:
    """So many operations a second, and as many at once after a second without any."""

    __slots__ = ("_at", "_level", "_most", "_rate")

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._most = self._level = float(max(rate, 1))
        self._at = -math.inf

    def take(self, now: float) -> None:
        """One operation at `now`, in seconds of a monotonic clock. Raises RateLimited."""
        if now > self._at:
            self._level = min(self._most, self._level + (now - self._at) * self._rate)
            self._at = now
        if self._level < 1.0:
            wait_s = (1.0 - self._level) / self._rate
            raise RateLimited(
                f"this token may do {self._rate} operations a second on a node; try again in {wait_s:.3f} s",
                retry_after_s=max(1, math.ceil(wait_s)),
            )
        self._level -= 1.0


def _prefixes(grants: Iterable[Grant], roles: tuple[str, ...]) -> tuple[bytes, ...]:
    return tuple(dict.fromkeys(each.prefix for each in grants if each.role in roles))


def _shown(prefix: bytes) -> str:
    text = prefix.decode(errors="backslashreplace")
    return repr(text if len(text) <= SHOWN_BYTES_MAX else text[:SHOWN_BYTES_MAX] + "…")


# Where nobody has to show a token.
ANYONE = Caller(Token("", "anyone", (Grant("admin", b""),), b"", b"", (0, 0, 0), 0))
