"""Where every request is let in or turned away: by its route, and by each operation that it holds.

    identify    the token, before anything else is done with a request        401, 429
    admit       the route's `access`, before its body is read                 403
    operation   a transaction, a line of a batch, any write                   403
    still       after a read has waited: the token may have been revoked      401

What each of them needs is `access/caller.py`'s to say; a route without an `access` can't be made. Both paths
of the server come through here, and nothing else in it decides. Without a guard (`--auth off`) everyone is
let in, and administrators' actions are audited all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, assert_never

from raftkv.access.audit import NOBODY, Audit
from raftkv.access.caller import ANYONE, Caller
from raftkv.access.guard import Guard
from raftkv.api.routes import Route
from raftkv.errors import Forbidden, RaftkvError, RateLimited, Unauthenticated
from raftkv.kv.command import Command, Get

if TYPE_CHECKING:
    from raftkv.api.hot import Head

DENIALS = (Unauthenticated, Forbidden, RateLimited)
AUDITED = ("tokens", "cluster")


class Admission:
    def __init__(self, guard: Guard | None = None, audit: Audit | None = None) -> None:
        self.guard = guard
        self.audit = audit or Audit()

    async def identify(self, headers: Mapping[str, str]) -> Caller:
        """Who asks. Takes one operation of what that may do a second.

        Raises Unauthenticated, RateLimited, Overloaded."""
        if self.guard is None:
            return ANYONE
        caller = await self.guard.identify(headers.get("Authorization"))
        self.guard.check_rate(caller)
        return caller

    def caller_of(self, head: Head) -> Caller | RaftkvError:
        """As `identify`, without the rate, for a head that is kept for its like: who asks, or why that is
        nobody. Raises Unverified: then `Guard.settle` comes first."""
        guard = self.guard
        assert guard is not None
        caller = head.caller
        try:
            if caller is not None and caller.epoch is guard.current():
                guard.check_time(caller)
            else:
                caller = head.caller = guard.caller(head.headers.get("Authorization"))
        except RaftkvError as error:
            return error
        return caller

    def admit_key(self, caller: Caller, key: bytes, *, writes: bool, reads: bool) -> None:
        """As `identify`'s rate and `admit`, for a request for one key. Raises RateLimited, Forbidden."""
        if caller.bucket is not None:
            assert self.guard is not None
            self.guard.check_rate(caller)
        if writes:
            caller.check_key("write", key)
        if reads:
            caller.check_key("read", key)

    def admit(self, caller: Caller, route: Route, key: bytes | None, query: Mapping[str, Any]) -> None:
        """`key` is what the request names, on the routes of one key. Raises Forbidden."""
        if self.guard is None:
            return
        match route.access:
            case "open" | "token" | "operations":
                return
            case "read_key":
                assert key is not None
                caller.check_key("read", key)
            case "write_key":
                assert key is not None
                caller.check_key("write", key)
                if query.get("prev", False) or query.get("op") == "incr":
                    caller.check_key("read", key)
            case "read_range":
                caller.check_range("read", query.get("prefix", b""))
            case "write_range":
                caller.check_range("write", query.get("prefix", b""))
            case "tokens":
                caller.check_admin()
            case "cluster":
                caller.check_cluster()
            case _:
                assert_never(route.access)

    def operation(self, caller: Caller, operation: Command | Get) -> None:
        """Raises Forbidden, and Unauthenticated where the token was revoked meanwhile."""
        if self.guard is not None:
            self.guard.check_still(caller)
            caller.check_command(operation)

    def line(self, caller: Caller, operation: Command | Get) -> None:
        """As `operation`, for one of many in a request: it counts like a request. Raises RateLimited too."""
        if self.guard is not None:
            self.guard.check_rate(caller)
            self.operation(caller, operation)

    def still(self, caller: Caller) -> None:
        """Raises Unauthenticated."""
        if self.guard is not None:
            self.guard.check_still(caller)

    def denied(self, caller: Caller | None, what: str, error: RaftkvError, request_id: str | None) -> None:
        """To be told of every error; keeps those that are denials."""
        if isinstance(error, DENIALS):
            self.audit.denied(NOBODY if caller is None else caller.who, what, error, request_id)
