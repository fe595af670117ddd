"""What a handler gets: one request, parsed as far as its route says, and its body. No aiohttp.

The body is read through `Body`, under the limit that the caller names, and never held beyond it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from raftkv.access.caller import ANYONE, Caller
from raftkv.api.admission import Admission
from raftkv.api.limits import Limits
from raftkv.api.routes import Route
from raftkv.api.trace import TraceContext
from raftkv.api.wire import Answer
from raftkv.errors import Overloaded, RaftkvError
from raftkv.kv.command import Command, Get
from raftkv.service import Freshness, KVService

OPEN = Admission()

TooLarge = Callable[[int | None], RaftkvError]


class Source(Protocol):
    """Where a body comes from; `connection.Exchange` is one."""

    @property
    def body_length(self) -> int | None: ...
    def pieces(self) -> AsyncIterator[bytes]: ...


@dataclass(slots=True)
class Buffered:
    """Bytes of bodies that the server holds in memory, for all its connections."""

    bytes: int = 0


class Body:
    """A request's body. `read` keeps what it read, so that the request can be passed on afterwards."""

    __slots__ = ("_buffered", "_limits", "_read", "_source", "held")

    def __init__(self, source: Source, limits: Limits, buffered: Buffered) -> None:
        self._source = source
        self._limits = limits
        self._buffered = buffered
        self._read: bytes | None = None
        self.held = 0

    @classmethod
    def whole(cls, data: bytes, source: Source, limits: Limits, buffered: Buffered) -> Body:
        """One that was read already."""
        body = cls(source, limits, buffered)
        body._read = data
        return body

    @property
    def length(self) -> int | None:
        """None where only its end will tell."""
        return self._source.body_length

    def check_length(self, limit: int, too_large: TooLarge) -> None:
        """Refuses at once what says itself that it is too large."""
        length = self._source.body_length
        if length is not None and length > limit:
            raise too_large(length)

    async def read(self, limit: int, too_large: TooLarge) -> bytes:
        """The whole body. Raises the error that `too_large` makes, RequestTimeout, BadRequest, Overloaded."""
        if self._read is not None:
            return self._read
        length = self._source.body_length
        if length == 0:
            self._read = b""
            return b""
        self.check_length(limit, too_large)
        parts: list[bytes] = []
        size = 0
        async for piece in self._source.pieces():
            size += len(piece)
            if size > limit:
                raise too_large(None)
            self._hold(len(piece))
            parts.append(piece)
        self._read = parts[0] if len(parts) == 1 else b"".join(parts)
        return self._read

    def _hold(self, size: int) -> None:
        limits = self._limits
        if self._buffered.bytes + size > limits.buffered_body_bytes_max:
            raise Overloaded(
                f"bodies of {self._buffered.bytes} bytes are in memory already; at most "
                f"{limits.buffered_body_bytes_max} are allowed ({limits.flag('buffered_body_bytes_max')}); "
                "try again shortly"
            )
        self._buffered.bytes += size
        self.held += size

    def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes, for what streams it."""
        return self._source.pieces()

    def release(self) -> None:
        """The request is over: its bytes count no more."""
        self._buffered.bytes -= self.held
        self.held = 0


@dataclass(slots=True)
class Call:
    """`rest` is the raw part of the path that the template names. `extra` is added to the answer's headers,
    whether that is a problem or not. `caller` was admitted to the route; what the body asks for beyond that,
    `permit` is asked for. `target_id` is what an administrator's request is about, for the audit."""

    service: KVService
    limits: Limits
    route: Route
    method: str
    target: bytes
    rest: bytes | None
    query: dict[str, Any]
    headers: dict[str, str]
    body: Body
    request_id: str
    extra: list[tuple[str, str]] = field(default_factory=list)
    trace: TraceContext | None = None  # what who goes on with this request is part of
    admission: Admission = OPEN
    caller: Caller = ANYONE
    target_id: str = ""
    passes_on: bool = False  # to the leader, where this node does not lead

    def permit(self, operation: Command | Get) -> None:
        """Raises Forbidden, Unauthenticated."""
        self.admission.operation(self.caller, operation)

    @property
    def what(self) -> str:
        """For logs: never a key."""
        return f"{self.method} {self.route.template}"

    @property
    def timeout_s(self) -> float:
        timeout: float | None = self.query.get("timeout")
        return self.limits.timeout_seconds if timeout is None else timeout

    @property
    def forwarded(self) -> bool:
        return "Raftkv-Forwarded-By" in self.headers

    def freshness(self) -> Freshness:
        query = self.query
        return Freshness(
            query.get("consistency", "linearizable"), query.get("min_revision"), query.get("max_staleness_ms")
        )


@dataclass(frozen=True, slots=True)
class Streamed:
    """An answer whose body is made as it goes."""

    answer: Answer
    chunks: AsyncIterator[bytes]
