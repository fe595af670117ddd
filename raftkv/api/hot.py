"""The hot path: `GET`, `HEAD`, `PUT` and `DELETE` of one key, without a task, future or header map a call.

    bytes -> request line, header block, body -> what is asked (wire.py) -> KVService, with a callback
          -> Turn, in the order of the requests -> one write for all answers that are ready

What is not plain is not touched: the connection is handed whole to the cold path (`connection.py`), at the
start of that request and with every byte of it, and comes back with the first plain request that finds it
idle there. Plain is a complete HTTP/1.1 request for
`/v1/kv/KEY` whose every byte is of the kind that needs no second thought, and which the functions of
`wire.py` take. So whatever is malformed, streamed, too large, slow or rare is refused or answered by the
cold path alone, and both share the functions that give a plain request its meaning.

Invariants:
- Answers leave in the order of their requests. Pipelined requests go on together only while they are all
  reads or all writes (RFC 9112 §9.3.2): writes reach the log in their order, and a read that follows a
  write on its connection sees it.
- A connection has at most `TURNS_MAX` unanswered requests and holds at most about `PLAIN_BYTES_MAX` of an
  unfinished one; beyond that, and while the client takes no answers, it is not read from.
- A connection that meets a full queue is not read from for `REST_S` after its refusal.
- No timer a request: deadlines are the engine's, and the server looks over all connections once a second.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, Protocol, TypeVar, cast

import msgspec

from raftkv.access.caller import Caller
from raftkv.access.guard import Unverified
from raftkv.api.admission import Admission
from raftkv.api.errors import KeyNotFound, refusal
from raftkv.api.handlers import result_answer
from raftkv.api.limits import Limits
from raftkv.api.request_log import Ended, RequestLog
from raftkv.api.routes import BY_TEMPLATE, KEY_TEMPLATE
from raftkv.api.wire import (
    NO_READ_CONDITIONS,
    STATUS_LINES,
    Answer,
    ReadConditions,
    answer_fields,
    check_key,
    collect_headers,
    decoded,
    envelope,
    idempotency_key_of,
    item_answer,
    json_answer,
    parse_query,
    read_conditions,
    request_id_of,
    route_of,
    shown,
    stored_content_type,
    value_fields,
    write_conditions,
    written_body,
    written_fields,
)
from raftkv.errors import NotLeader, Overloaded, RaftkvError
from raftkv.kv import record
from raftkv.kv.command import Delete, Put
from raftkv.metrics import RequestTimes
from raftkv.model import Applied, Deleted, Written
from raftkv.service import LINEARIZABLE, Freshness, KVService, keyed
from raftkv.tls.port import bytes_taken, secured, unsent_mark

T = TypeVar("T")

# Enough for a client that pipelines to keep a batch full; little enough that one connection is no crowd.
TURNS_MAX = 64
# Of a request that is served here: larger ones cost so much in themselves that the path matters little.
PLAIN_BYTES_MAX = 48 << 10
# How long an unfinished request may stay here; then the cold path waits for the rest, with its deadlines.
UNFINISHED_S = 1.0
# A connection that was refused for a full queue is not read from for so long: a client that asks again at
# once, whatever Retry-After says, would otherwise keep the loop busy with refusals alone. Short enough for
# whoever shares the connection.
REST_S = 0.1
# Answers that are joined into one write.
JOINED_BYTES_MAX = 64 << 10

_REQUEST_LINE = re.compile(
    rb"(GET|HEAD|PUT|DELETE) "
    rb"(/v1/kv/([A-Za-z0-9._~!$&'()*+,;=:@/%-]+)(?:\?([A-Za-z0-9._~!$&'()*+,;=:@/?%-]*))?)"
    rb" HTTP/1\.1\r\n"
)
_METHODS = (b"GET ", b"HEAD ", b"PUT ", b"DELETE ")
_HEADER_BLOCK = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e]*\r\n)+")
_HOST = re.compile(rb"[A-Za-z0-9._-]+(?::[0-9]{1,5})?")
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,8}")
_PARAMETERS = {method: BY_TEMPLATE[KEY_TEMPLATE][method].by_name for method in ("GET", "PUT", "DELETE")}

# A header of which any value needs the cold path.
_NOT_PLAIN = frozenset(
    {b"transfer-encoding", b"expect", b"upgrade", b"content-encoding", b"trailer", b"te", b"http2-settings"}
)


class Head:
    """A plain header block: the length of the body, and what the headers mean to a read and to a write; None
    where they mean nothing that is allowed, which is for the cold path to say."""

    __slots__ = (
        "caller",
        "content_type",
        "headers",
        "idempotency_key",
        "length",
        "read_conditions",
        "request_id",
        "write_condition",
        "writes",
    )

    def __init__(self, headers: dict[str, str], length: int, request_id: str | None, limits: Limits) -> None:
        self.headers = headers
        self.length = length
        self.request_id = request_id
        self.read_conditions: ReadConditions | None = _or_none(lambda: read_conditions(headers))
        self.content_type: str | None = _or_none(
            lambda: stored_content_type(headers.get("Content-Type"), "header Content-Type", limits)
        )
        condition = _or_none(lambda: write_conditions(headers, {}))
        self.write_condition = None if condition is None else condition.condition
        self.idempotency_key = _or_none(lambda: idempotency_key_of(headers))
        refused = self.idempotency_key is None and "Idempotency-Key" in headers
        self.writes = condition is not None and not refused
        self.caller: Caller | None = None  # whose token is in it, as `api/admission.py` found


def _or_none(parse: Callable[[], T]) -> T | None:
    try:
        return parse()
    except RaftkvError:
        return None


def parse_block(block: bytes, limits: Limits) -> Head | None:
    """The lines of a header block, each with its line end. None: it is not plain."""
    if not _HEADER_BLOCK.fullmatch(block):
        return None
    lines = block[:-2].split(b"\r\n")
    if len(lines) >= limits.headers_max:
        return None
    hosts = 0
    length: int | None = None
    pairs: list[tuple[bytes, bytes]] = []
    for line in lines:
        name, _, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if name == b"host":
            hosts += 1
            if not _HOST.fullmatch(value):
                return None
        elif name == b"content-length":
            if length is not None or not _LENGTH.fullmatch(value):
                return None
            length = int(value)
        elif name in _NOT_PLAIN or (name == b"connection" and value.lower() != b"keep-alive"):
            return None
        pairs.append((name, value))
    if hosts != 1:
        return None
    try:
        headers = collect_headers(pairs)
        request_id = request_id_of(headers)
        route_of(headers, "redirect")
    except RaftkvError:
        return None
    if "," in headers.get("If-Match", ""):
        return None  # several revisions: the key is read before it is written
    return Head(headers, length or 0, request_id, limits)


def is_plain(data: bytes, blocks: Blocks) -> bool:
    """Whether these bytes begin with a whole request that this path would take, as far as its bytes tell."""
    line = _REQUEST_LINE.match(data)
    if line is None:
        return False
    block_end = data.find(b"\r\n\r\n", line.end() - 2)
    head = blocks.head(data[line.end() : block_end + 2]) if block_end >= 0 else None
    return head is not None and block_end + 4 + head.length <= min(len(data), PLAIN_BYTES_MAX)


# Each of these names one request.
ONCE = frozenset({"Idempotency-Key", "Traceparent"})


class Blocks:
    """Header blocks by their bytes, since a client sends the same one again and again. Those that name one
    request only are not kept."""

    BLOCKS_MAX = 1024
    BLOCK_BYTES_MAX = 512

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._known: dict[bytes, Head | None] = {}
        self.find = self._known.get  # None: not known, or not plain

    def head(self, block: bytes) -> Head | None:
        if block in self._known:
            return self._known[block]
        head = parse_block(block, self._limits)
        once = head is not None and (head.request_id is not None or not ONCE.isdisjoint(head.headers))
        if not once and len(block) <= self.BLOCK_BYTES_MAX:
            if len(self._known) >= self.BLOCKS_MAX:
                self._known.clear()
            self._known[block] = head
        return head


class Query:
    """A parsed query, and what it means. Nobody changes it."""

    __slots__ = ("contradicts", "freshness", "json", "prev", "said", "timeout_s", "values")

    def __init__(self, values: dict[str, Any], limits: Limits) -> None:
        self.values = values
        self.timeout_s: float = values.get("timeout", limits.timeout_seconds)
        self.prev: bool = values.get("prev", False)  # of a write, as it asks for the value before
        self.json = values.get("format") == "json"  # of a read, as what follows
        self.freshness = Freshness(
            values.get("consistency", LINEARIZABLE.consistency),
            values.get("min_revision"),
            values.get("max_staleness_ms"),
        )
        stale = self.freshness.consistency == "stale"
        self.contradicts = self.freshness.max_staleness_ms is not None and not stale
        self.said = f"Raftkv-Consistency: {self.freshness.consistency}\r\n"


class Queries:
    """Parsed queries by their bytes: the same few come again and again."""

    QUERIES_MAX = 1024
    QUERY_BYTES_MAX = 128

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._known: dict[tuple[str, bytes], Query] = {}
        self.none = Query({}, limits)

    def query(self, method: str, query: bytes) -> Query:
        """Raises BadRequest."""
        found = self._known.get((method, query))
        if found is None:
            found = Query(parse_query(query, _PARAMETERS[method], self._limits), self._limits)
            if len(query) <= self.QUERY_BYTES_MAX:
                if len(self._known) >= self.QUERIES_MAX:
                    self._known.clear()
                self._known[method, query] = found
        return found


class Server(Protocol):
    """What a hot connection needs of its server."""

    service: KVService
    limits: Limits
    admission: Admission
    connections_open: int
    requests_in_flight: int
    bytes_received: int
    bytes_sent: int
    requests: RequestLog
    closing: bool
    blocks: Blocks
    queries: Queries
    route: str
    hot: set[HotConnection]

    @property
    def key_times(self) -> Mapping[str, RequestTimes]:
        """By method."""
        ...

    def common_headers(self) -> str: ...
    def new_request_id(self) -> str: ...
    def request_ended(self, count: int) -> None: ...
    def problem_answer(self, error: RaftkvError, request_id: str, write: bool) -> Answer: ...
    def internal_answer(self, error: Exception, request_id: str, label: str, effect: str) -> Answer: ...
    def not_leader(self, turn: Turn, error: NotLeader) -> Answer | None: ...
    def flush_soon(self, connection: HotConnection) -> None: ...
    def settle_soon(self, authorization: str | None, done: Callable[[bool], None]) -> None: ...


class Cold(Protocol):
    """Makes the other kind of connection."""

    def cold(self, head_began: float | None) -> asyncio.Protocol:
        """`head_began`: when the first byte came of the request that it is given at once."""
        ...


class Turn(msgspec.Struct, eq=False, gc=False):
    """One request that was taken, until its answer was written. `status` is 0 until there is one.

    A struct that the collector does not look at: one is made for each request. Nothing it holds leads back
    to it but its connection's turns, which end with the connection.
    """

    connection: HotConnection
    method: str
    line: re.Match[bytes]  # the request line
    key: bytes
    query: Query
    head: Head
    request_id: str
    began: float
    value: bytes  # of a write
    extra: str  # header lines of the answer that come before its own
    status: int = 0
    fields: str = ""  # header lines of the answer, but for those of every answer
    answer_body: bytes = b""
    close: bool = False
    caller: Caller | None = None  # where a token is asked for

    @property
    def headers(self) -> dict[str, str]:
        return self.head.headers

    @property
    def target(self) -> bytes:
        return self.line[2]

    @property
    def rest(self) -> bytes:
        """Of the path, behind `/v1/kv/`."""
        return self.line[3]

    def ended(self, seconds: float) -> Ended:
        """For the log."""
        return Ended(
            self.method, KEY_TEMPLATE, self.status, seconds, self.request_id, self.headers, self.answer_body
        )

    # --- reading -----------------------------------------------------------------------------------

    def reached(self, error: RaftkvError | None) -> None:
        """The state here is as fresh as asked, or will not be."""
        if error is not None:
            self.refuse(error)
            return
        try:
            if self.caller is not None:
                self.connection.server.admission.still(self.caller)
            self._read()
        except RaftkvError as refused:
            self.refuse(refused)
        except Exception as bug:  # noqa: BLE001  # the edge: whatever it is, the client is told
            self.fail(bug)

    def _read(self) -> None:
        machine = self.connection.service.machine
        query = self.query
        if query.freshness.consistency == "stale":
            self.extra += f"Raftkv-Applied-Revision: {machine.revision}\r\n"
        found = machine.lookup(self.key)
        if found is None:
            raise KeyNotFound(f"no key {shown(self.key)} at revision {machine.revision}")
        conditions = self.head.read_conditions
        plain = record.revision_and_value(found)
        if plain is not None and conditions is NO_READ_CONDITIONS and not query.json:
            revision, value = plain
            self._settle(200, value_fields(len(value), revision), value)
            return
        item = record.item(self.key, found)
        assert conditions is not None
        if conditions.is_not_modified(item.mod_revision):
            etag = f'"{item.mod_revision}"'
            self.answer(Answer(304, headers=(("ETag", etag), ("Cache-Control", "no-cache"))))
        elif query.json:
            self.answer(json_answer(200, envelope(item), ("ETag", f'"{item.mod_revision}"')))
        else:
            self.answer(item_answer(item))

    # --- writing -----------------------------------------------------------------------------------

    def applied(self, outcome: Applied | RaftkvError) -> None:
        try:
            if isinstance(outcome, RaftkvError):
                self.refuse(outcome)
                return
            if outcome.replayed:
                self.extra += "Raftkv-Replayed: true\r\n"
            result = outcome.result
            if type(result) is Written and not self.query.prev:
                body = written_body(result.revision)
                fields = written_fields(len(body), result.revision)
                self._settle(201 if result.created else 200, fields, body)
                return
            error = refusal(result)
            if error is not None:
                self.refuse(error)
                return
            assert isinstance(result, Written | Deleted)
            status = 201 if isinstance(result, Written) and result.created else 200
            self.answer(result_answer(status, result, prev=self.query.prev))
        except Exception as bug:  # noqa: BLE001  # the edge, as above
            self.fail(bug)

    # --- the answer --------------------------------------------------------------------------------

    @property
    def writes(self) -> bool:
        return self.method == "PUT" or self.method == "DELETE"

    def refuse(self, error: RaftkvError) -> None:
        server = self.connection.server
        server.admission.denied(self.caller, f"{self.method} {KEY_TEMPLATE}", error, self.request_id)
        if isinstance(error, NotLeader):
            made = server.not_leader(self, error)
            if made is None:
                return  # it was passed on, and the answer comes later
        else:
            made = server.problem_answer(error, self.request_id, self.writes)
        self.answer(made)

    def fail(self, bug: Exception) -> None:
        effect = "write" if self.writes else "read"
        self.answer(self.connection.server.internal_answer(bug, self.request_id, KEY_TEMPLATE, effect))

    def answer(self, made: Answer) -> None:
        self.close = made.close
        self._settle(made.status, answer_fields(made, len(made.body)), made.body)

    def _settle(self, status: int, fields: str, body: bytes) -> None:
        self.status = status
        self.fields = f"Request-Id: {self.request_id}\r\n{self.extra}{fields}"
        if self.method != "HEAD" and status != 304:
            self.answer_body = body
        self.connection.answered()


class HotConnection(asyncio.Protocol):
    __slots__ = (
        "_active_at",
        "_blocked",
        "_find_head",
        "_flush_is_due",
        "_guarded",
        "_half_closed",
        "_head_bytes_max",
        "_held",
        "_held_bytes",
        "_held_since",
        "_leaving",
        "_listener",
        "_loop",
        "_over",
        "_reading_paused",
        "_resting",
        "_stalled",
        "_taken",
        "_taking",
        "_transport",
        "_turns",
        "_wanted_bytes",
        "_writing_paused",
        "server",
        "service",
    )

    def __init__(self, server: Server, listener: Cold, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.service = server.service
        self._listener = listener
        self._loop = loop
        self._find_head = server.blocks.find
        self._transport: asyncio.Transport
        self._turns: deque[Turn] = deque()
        self._held: list[bytes] = []  # of requests that were not taken yet
        self._held_bytes = 0
        self._held_since = 0.0
        self._wanted_bytes = 0  # to be held before another look at them is worth it
        self._blocked = False  # what is held waits for turns to end, or for the client
        self._resting = False  # it was refused for a full queue a moment ago
        self._head_bytes_max = min(server.limits.request_line_bytes_max, server.limits.header_bytes_max)
        self._guarded = server.admission.guard is not None
        self._writing_paused = False
        self._reading_paused = False
        self._taking = False
        self._flush_is_due = False
        self._leaving = False  # to the cold path, once all turns are over
        self._half_closed = False
        self._over = False
        self._active_at = 0.0  # when bytes came last
        self._taken = 0  # of the answers, when last looked; only with TLS
        self._stalled: tuple[float, object] | None = None  # since when, with how many bytes unsent

    # --- coming and going --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._active_at = self._loop.time()
        server = self.server
        server.hot.add(self)
        server.connections_open += 1
        if server.connections_open > server.limits.connections_max:
            self._hand_over()  # which turns it away

    def connection_lost(self, error: Exception | None) -> None:
        self._end()

    def _end(self) -> None:
        if self._over:
            return
        self._over = True
        self.server.hot.discard(self)
        self.server.connections_open -= 1
        self.server.request_ended(len(self._turns))
        self._turns.clear()
        self._held.clear()

    def eof_received(self) -> bool:
        """True keeps the other direction open for the answers that the client still waits for. Not with TLS:
        asyncio's ends both directions at once."""
        self._half_closed = True
        if self._held and not self._blocked:
            self._leave()  # an unfinished request: the cold path says so
        return (self._over or bool(self._turns or self._held)) and not secured(self._transport)

    @property
    def busy(self) -> bool:
        return bool(self._turns)

    def close_if_idle(self) -> None:
        if not self._turns:
            self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def _leave(self) -> None:
        """Hands over to the cold path what is held, when all that came before it is answered."""
        self._leaving = self._blocked = True
        if self._turns or self._writing_paused:
            self._pause_reading()
        else:
            self._hand_over()

    def _hand_over(self) -> None:
        transport, held = self._transport, b"".join(self._held)
        self.server.bytes_received -= len(held)  # they are counted where they go
        self._end()
        # Where this side would not read, the time since the request's first byte is not the client's.
        cold = self._listener.cold(self._held_since if held and not self._reading_paused else None)
        transport.set_protocol(cold)
        cold.connection_made(transport)
        if self._reading_paused:
            transport.resume_reading()
        if held:
            cold.data_received(held)
        if self._half_closed and not cold.eof_received():
            transport.close()

    def look(self, now: float) -> None:
        """Once a second: is something overdue?"""
        limits = self.server.limits
        if self._writing_paused:
            unsent = unsent_mark(self._transport)
            if self._stalled is None or unsent != self._stalled[1]:
                self._stalled = (now, unsent)
            elif now - self._stalled[0] > limits.write_stall_seconds_max:
                self.abort()
        elif self._held and not self._blocked:
            if now - self._held_since > UNFINISHED_S:
                self._leave()
        elif not self._turns and not self._held and now - self._active_at > limits.idle_seconds_max:
            self._idle_too_long(now)

    def _idle_too_long(self, now: float) -> None:
        taken = bytes_taken(self._transport)
        if taken is None:
            self._transport.close()
        elif taken == self._taken:
            self.abort()
        else:  # it has not all of its answer yet, and takes it
            self._taken = taken
            self._active_at = now

    # --- what comes in -----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        # Not the loop's time, which uvloop keeps in whole milliseconds: most requests take less than one.
        self._active_at = monotonic()
        self.server.bytes_received += len(data)
        if self._held:
            self._held.append(data)
            self._held_bytes += len(data)
            if self._blocked or self._held_bytes < self._wanted_bytes:
                return
            data = b"".join(self._held)
            self._held.clear()
        self._take(data)

    def _take(self, data: bytes) -> None:
        """Takes the requests that are there, as many as may go on together, and holds the rest."""
        at, end = 0, len(data)
        self._taking = True
        while at < end and not self._over:
            if self._writing_paused or self._resting or len(self._turns) >= TURNS_MAX:
                self._block()
                break
            taken = self._take_one(data, at)
            if not taken:
                break
            at += taken
        self._taking = False
        if at < end and not self._over:
            if at or not self._held_bytes:
                self._held_since = self._active_at  # another request than the one that was held before
            self._held.append(data[at:] if at else data)
            self._held_bytes = end - at
        else:
            self._held_bytes = 0
        if self._turns and self._turns[0].status:
            self.flush()
        if self._leaving and not self._over:
            self._leave()

    def _take_one(self, data: bytes, at: int) -> int:
        """Takes the request at that place; how many bytes it has, 0 where it has to wait or is not plain."""
        line = _REQUEST_LINE.match(data, at)
        if line is None:
            return self._unfinished(data, at, plain=data.find(b"\n", at) < 0)
        block_at = line.end()
        block_end = data.find(b"\r\n\r\n", block_at - 2)
        if block_end < 0:
            return self._unfinished(data, at, plain=True)
        block = data[block_at : block_end + 2]
        head = self._find_head(block) or self.server.blocks.head(block)
        if head is None:
            self._leaving = True
            return 0
        body_at = block_end + 4
        size = body_at + head.length - at
        if size > PLAIN_BYTES_MAX or body_at - at > self._head_bytes_max:
            self._leaving = True
            return 0
        if at + size > len(data):
            self._wanted_bytes = size
            return 0
        method = line[1]
        if method == b"GET" or method == b"HEAD":
            started = self._read(method.decode(), line, head)
        else:
            started = self._write(method.decode(), line, head, data[body_at : at + size])
        return size if started else 0

    def _unfinished(self, data: bytes, at: int, *, plain: bool) -> int:
        """No whole head: if it is `plain` so far, the rest may come."""
        start = data[at : at + len(b"DELETE ")]
        known = any(start.startswith(method) or method.startswith(start) for method in _METHODS)
        if not plain or not known or len(data) - at > self._head_bytes_max:
            self._leaving = True
        self._wanted_bytes = 0
        return 0

    def _read(self, method: str, line: re.Match[bytes], head: Head) -> bool:
        """False: it has to wait, or is not plain."""
        turns, service = self._turns, self.service
        if turns and turns[0].writes:
            self._block()
            return False
        try:
            query = self._query("GET", line[4])
            key = self._key(line[3])
        except RaftkvError:
            self._leaving = True
            return False
        freshness = query.freshness
        ahead = freshness.min_revision is not None and freshness.min_revision > service.machine.revision
        if ahead or query.contradicts or head.length or head.read_conditions is None:
            self._leaving = True
            return False
        caller = self._caller(head) if self._guarded else None
        if self._blocked:
            return False
        turn = self._turn(method, line, key, query, head, b"", query.said)
        if caller is not None and not self._admitted(turn, caller, writes=False, reads=True):
            return True
        try:
            if service.reach_soon(freshness, turn.reached, timeout_s=query.timeout_s):
                turn.reached(None)
        except RaftkvError as error:
            turn.refuse(error)
            if isinstance(error, Overloaded):
                self._rest()
        except Exception as bug:  # noqa: BLE001  # the edge: whatever it is, the client is told
            turn.fail(bug)
        return True

    def _write(self, method: str, line: re.Match[bytes], head: Head, value: bytes) -> bool:
        """As `_read`."""
        turns, service = self._turns, self.service
        if turns and not turns[0].writes:
            self._block()
            return False
        try:
            query = self._query(method, line[4])
            key = self._key(line[3])
            condition = head.write_condition
            if query.values:
                condition = write_conditions(head.headers, query.values).condition
        except RaftkvError:
            self._leaving = True
            return False
        command: Put | Delete
        if method == "PUT":
            kind, length_max = head.content_type, self.server.limits.value_bytes_max
            command = Put(key, value, kind or "", condition, query.prev)
        else:
            kind, length_max = "", 0
            command = Delete(key, condition, query.prev)
        if not head.writes or kind is None or len(value) > length_max:
            self._leaving = True
            return False
        if not service.leads and route_of(head.headers, self.server.route) == "forward":
            self._leaving = True  # to be passed on, or refused as it was before
            return False
        if head.idempotency_key is not None:
            command = keyed(command, head.idempotency_key)
        caller = self._caller(head) if self._guarded else None
        if self._blocked:
            return False
        turn = self._turn(method, line, key, query, head, value, "")
        if caller is not None and not self._admitted(turn, caller, writes=True, reads=query.prev):
            return True
        try:
            service.write_soon(command, turn.applied, timeout_s=query.timeout_s, size_bytes=len(value))
        except RaftkvError as error:
            turn.refuse(error)
            if isinstance(error, Overloaded):
                self._rest()
        except Exception as bug:  # noqa: BLE001  # the edge: whatever it is, the client is told
            turn.fail(bug)
        return True

    # --- who asks ----------------------------------------------------------------------------------

    def _caller(self, head: Head) -> Caller | RaftkvError | None:
        """Who asks, or why that is nobody. None: that has to be found out first, and what is held waits."""
        server = self.server
        try:
            return server.admission.caller_of(head)
        except Unverified:
            self._block()
            server.settle_soon(head.headers.get("Authorization"), self._settled)
            return None

    def _settled(self, failed: bool) -> None:
        """It is known who asks; or not, and then the cold path says why."""
        self._leaving = self._leaving or failed
        self._go_on()

    def _admitted(self, turn: Turn, caller: Caller | RaftkvError, *, writes: bool, reads: bool) -> bool:
        """False: the turn is refused."""
        try:
            if isinstance(caller, RaftkvError):
                raise caller
            turn.caller = caller
            self.server.admission.admit_key(caller, turn.key, writes=writes, reads=reads)
        except RaftkvError as error:
            turn.refuse(error)
            return False
        return True

    # --- turns -------------------------------------------------------------------------------------

    def _query(self, method: str, query: bytes | None) -> Query:
        """Raises BadRequest."""
        queries = self.server.queries
        return queries.query(method, query) if query else queries.none

    def _key(self, rest: bytes) -> bytes:
        """Raises BadRequest, KeyTooLarge."""
        limits = self.server.limits
        if b"%" in rest or len(rest) > limits.key_bytes_max:
            return check_key(decoded(rest, "path: key"), "path: key", limits)
        return rest  # the request line's expression takes one byte and more, and ASCII alone

    def _turn(
        self,
        method: str,
        line: re.Match[bytes],
        key: bytes,
        query: Query,
        head: Head,
        value: bytes,
        extra: str,
    ) -> Turn:
        server = self.server
        request_id = head.request_id or server.new_request_id()
        turn = Turn(self, method, line, key, query, head, request_id, self._active_at, value, extra)
        self._turns.append(turn)
        server.requests_in_flight += 1
        return turn

    def _block(self) -> None:
        self._blocked = True
        self._pause_reading()

    def _rest(self) -> None:
        if not self._resting:
            self._resting = True
            self._block()
            self._loop.call_later(REST_S, self._rested)

    def _rested(self) -> None:
        self._resting = False
        self._go_on()

    def _pause_reading(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    # --- what goes out -----------------------------------------------------------------------------

    def answered(self) -> None:
        """A turn has its answer."""
        turns = self._turns
        if self._taking or self._over or turns[0].status == 0:
            return  # those before it come first, or the caller will flush
        if len(turns) == 1:
            self.flush()
        elif not self._flush_is_due:
            self._flush_is_due = True
            self.server.flush_soon(self)  # the others may be about to have theirs

    def flush(self) -> None:
        """Writes the answers that are ready and in turn."""
        self._flush_is_due = False
        server, turns = self.server, self._turns
        times, now = server.key_times, monotonic()
        observe_s = server.requests.observe_s
        while turns and turns[0].status and not self._writing_paused and not self._over:
            common = server.common_headers()
            ended = server.closing or (self._half_closed and not self._held)
            out: list[bytes] = []
            size = count = 0
            last = False
            while turns and (status := turns[0].status) and not last and size < JOINED_BYTES_MAX:
                turn = turns.popleft()
                count += 1
                last = turn.close or (ended and not turns)
                ending = "Connection: close\r\n\r\n" if last else "\r\n"
                head = f"{STATUS_LINES[status]}{common}{turn.fields}{ending}"
                out += (head.encode("utf-8", "surrogateescape"), turn.answer_body)
                size += len(turn.answer_body)
                seconds = now - turn.began
                times[turn.method].add(status, seconds)
                if seconds >= observe_s or status >= 500:
                    server.requests.ended(turn.ended(seconds))
            server.request_ended(count)
            joined = b"".join(out)
            server.bytes_sent += len(joined)
            self._transport.write(joined)
            if last:
                self._transport.close()
                self._end()
        if self._blocked and not self._over:
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        """What was held back may go on now."""
        if self._over or self._writing_paused or self._resting or not self._blocked:
            return
        if self._leaving:
            if not self._turns:
                self._hand_over()
            return
        if len(self._turns) > TURNS_MAX // 2:
            return
        self._blocked = False
        data = b"".join(self._held)
        self._held.clear()
        self._take(data)
        if not self._blocked and not self._over and self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()

    def pause_writing(self) -> None:
        self._writing_paused = True
        self._stalled = None

    def resume_writing(self) -> None:
        self._writing_paused = False
        self.flush()
