"""The HTTP server: from a request on a connection to a handler, and back. aiohttp carries the bytes.

    HotConnection  ->  one key's GET, HEAD, PUT, DELETE, where they are plain (hot.py); else, whole, to a
    Connection  ->  answer: request id, route, query, headers  ->  handler  ->  Answer or Streamed
                    any RaftkvError  ->  a problem (errors.py)
                    NotLeader  ->  307, or passed on, or 503, as Raftkv-Route says

Nothing stands in between: no middleware, no second router. What every answer has in common is put on in one
place, and so is every error.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import resource
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from aiohttp import web

from raftkv.access.caller import ANYONE
from raftkv.access.guard import Guard, Hasher
from raftkv.api import batch, handlers, members, node, tokens
from raftkv.api.admission import Admission
from raftkv.api.calls import OPEN, Body, Buffered, Call, Streamed
from raftkv.api.connection import Connection, Exchange, Sent, http_date
from raftkv.api.errors import (
    PROBLEM,
    HttpVersionNotSupported,
    InternalError,
    InternalErrorOnWrite,
    problem,
    problem_headers,
    status_of,
)
from raftkv.api.forward import Forwarder
from raftkv.api.hot import Blocks, HotConnection, Queries, Turn, is_plain
from raftkv.api.limits import Limits
from raftkv.api.request_log import AnySpan, Ended, RequestLog
from raftkv.api.routes import BY_TEMPLATE, KEY_TEMPLATE, METHODS, ROUTES, Match, match
from raftkv.api.samples import access_samples, http_samples, tls_samples
from raftkv.api.trace import trace_context
from raftkv.api.wire import (
    JSON,
    Answer,
    collect_headers,
    encode_json,
    parse_query,
    query_names,
    request_id_of,
    route_of,
    shown,
    split_target,
    usable_request_id,
)
from raftkv.errors import BadRequest, Draining, NotLeader, RaftkvError
from raftkv.metrics import Metrics, RequestTimes
from raftkv.service import LINEARIZABLE, KVService
from raftkv.tls.credentials import Credentials, Security
from raftkv.tls.port import SecurePort, open_port

log = logging.getLogger("raftkv.api")

BACKLOG = 4096  # connections that the kernel holds while the loop is busy; it cuts this to somaxconn
FILES_RESERVED = 256  # for the journal, snapshots, peers, and connections to a leader
OPEN_FILES_MAX = 1 << 20  # where there is no hard limit
LOOK_S = 1.0  # between two looks over all hot connections; 10,000 of them cost 2 ms
TOKEN_REFRESH_S = 1.0  # to ask the leader about a token that is not known here
UNMATCHED = "unmatched"  # the metrics' route of what has none

Handler = Callable[[Call], Awaitable[Answer | Streamed]]


class ApiServer:
    """Listeners and their connections. `route`: what happens to writes on a follower by default.

    Made by `start_api`. Stop it with `drain`, then `close`.
    """

    def __init__(
        self,
        service: KVService,
        *,
        limits: Limits,
        route: str = "redirect",
        metrics: Metrics | None = None,
        hot_path: bool = True,
        security: Security | None = None,
        requests: RequestLog | None = None,
    ) -> None:
        """`hot_path` False leaves every request to aiohttp: slower, and the same. `security`: what is on;
        with its API credentials, calls to other nodes are made."""
        self.service = service
        self.hasher = Hasher()
        self.limits = limits
        self.metrics = metrics or Metrics()
        self.connections_open = 0
        self.connections_accepted = 0
        self.bytes_received = 0
        self.bytes_sent = 0
        self.requests = requests or RequestLog()
        self.closing = False
        self.requests_in_flight = 0
        self._idle = asyncio.Event()
        self.hot_path = hot_path
        self.hot: set[HotConnection] = set()
        self.blocks = Blocks(limits)
        self.queries = Queries(limits)
        self.key_times = KeyTimes(self.metrics)
        self._flushes: list[HotConnection] = []
        self._relays: set[asyncio.Task[None]] = set()
        self._look_handle: asyncio.TimerHandle | None = None
        self.port = 0
        self.ops_port: int | None = None
        self.route = route
        self._buffered = Buffered()
        self.security = security or Security()
        self.admission = Admission(self._guard() if self.security.auth == "tokens" else None)
        self._forwarder = Forwarder(service.name, limits, self.security.api)
        self._operations = node.Operations()
        self._handlers = self._bind(node.NodeHandlers(service, self.metrics, self._operations, self.security))
        self.metrics.source(lambda: http_samples(self))
        self.metrics.source(lambda: tls_samples(self.security))
        self.metrics.source(lambda: access_samples(self.admission.audit, service.machine.tokens.count))
        self._listeners: list[tuple[asyncio.Server | SecurePort, Listener]] = []
        self._id_prefix = secrets.token_hex(6)
        self._ids = itertools.count(1)
        self._told: tuple[int, object, int] = (-1, None, 0)  # what is in the text below
        self._common_text = ""
        self._date: tuple[int, str] = (-1, "")

    def _bind(self, own: node.NodeHandlers) -> dict[str, Handler]:
        """The handler of each route, by its name."""
        found: dict[str, Handler] = {
            "get_key": handlers.get_key,
            "put_key": handlers.put_key,
            "delete_key": handlers.delete_key,
            "change_key": handlers.change_key,
            "list_keys": handlers.list_keys,
            "delete_prefix": handlers.delete_prefix,
            "transact": handlers.transact,
            "export": handlers.export,
            "batch": batch.batch,
            "status": own.status,
            "limits": node.limits,
            "cluster": node.cluster,
            "add_member": members.add_member,
            "remove_member": members.remove_member,
            "promote_member": members.promote_member,
            "transfer_leadership": members.transfer_leadership,
            "list_tokens": tokens.list_tokens,
            "create_token": tokens.Creator(self.hasher).create_token,
            "revoke_token": tokens.revoke_token,
            "livez": node.livez,
            "readyz": node.readyz,
            "startupz": node.startupz,
            "list_snapshots": own.list_snapshots,
            "create_snapshot": own.create_snapshot,
            "get_snapshot": own.get_snapshot,
            "get_snapshot_manifest": own.get_snapshot_manifest,
            "get_snapshot_chunk": own.get_snapshot_chunk,
            "delete_snapshot": own.delete_snapshot,
            "verify_snapshot": own.verify_snapshot,
            "get_operation": own.get_operation,
            "metrics": own.metrics,
            "openapi": own.openapi,
            "docs": own.docs,
        }
        return {route.name: found.get(route.name, handlers.not_implemented) for route in ROUTES}

    @property
    def forwarded(self) -> int:
        """Requests that were passed on to a leader."""
        return self._forwarder.count

    # --- life --------------------------------------------------------------------------------------

    async def listen(
        self, host: str, port: int, *, ops: bool = False, credentials: Credentials | None = None
    ) -> int:
        """Opens a listener, with TLS where there are credentials, and returns its port; `port` 0 takes any
        that is free."""
        loop = asyncio.get_running_loop()
        listener = Listener(self, ops=ops, loop=loop)
        server: asyncio.Server | SecurePort
        if credentials is None:
            server = await loop.create_server(
                listener.connect, host, port, backlog=BACKLOG, reuse_address=True
            )
            bound = int(server.sockets[0].getsockname()[1])
        else:
            server = open_port(
                host,
                port,
                credentials,
                listener.connect,
                backlog=BACKLOG,
                handshake_seconds_max=self.limits.tls_handshake_seconds_max,
                shutdown_seconds_max=self.limits.write_stall_seconds_max,
                shaking_max=self.limits.connections_max,
                connections_max=self.limits.connections_max,
            )
            bound = server.address[1]
        self._listeners.append((server, listener))
        if self._look_handle is None:
            self._look()
        return bound

    def retire(self) -> None:
        """Is not ready from now on. Everything is still answered, and every answer closes its connection, so
        that clients have gone elsewhere before this node goes."""
        self.service.retire()
        self.closing = True

    async def drain(self, timeout_s: float = 5.0) -> None:
        """Takes no more writes, and waits for the requests that are on their way."""
        self.retire()
        self.service.drain()
        await self._wait_idle(timeout_s)

    async def _wait_idle(self, timeout_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.requests_in_flight:
                    self._idle.clear()
                    await self._idle.wait()

    async def close(self, timeout_s: float = 1.0) -> None:
        """Closes listeners, then connections: idle ones at once, others after `timeout_s` at most."""
        self.closing = True
        if self._look_handle is not None:
            self._look_handle.cancel()
        for server, _ in self._listeners:
            server.close()
        for connection in list(self.hot):
            connection.close_if_idle()
        for _, listener in self._listeners:
            listener.server.pre_shutdown()
        for _, listener in self._listeners:
            await listener.server.shutdown(timeout_s)
        if any(connection.busy for connection in self.hot):
            await self._wait_idle(timeout_s)
        for connection in list(self.hot):
            connection.abort()
        for relay in self._relays:
            relay.cancel()
        if self.admission.guard is not None:
            await self.admission.guard.close()
        self.hasher.close()
        await self._operations.close()
        await self._forwarder.close()
        self._listeners.clear()

    def _guard(self) -> Guard:
        return Guard(lambda: self.service.machine.tokens, self.hasher, self._refresh)

    async def _refresh(self) -> None:
        """This node may not have heard of the newest tokens yet."""
        await self.service.reach(LINEARIZABLE, timeout_s=TOKEN_REFRESH_S)

    # --- one request -------------------------------------------------------------------------------

    async def answer(self, exchange: Exchange, ops: bool) -> Sent:
        """Answers one request, whatever it is. Raises only where the connection is of no more use."""
        began = time.monotonic()
        message = exchange.message
        call: Call | None = None
        label, effect, request_id = UNMATCHED, "write", None
        headers: dict[str, str] = {}
        span: AnySpan = None
        self.requests_in_flight += 1
        try:
            try:
                headers = collect_headers(message.raw_headers)
                request_id = usable_request_id(headers) or self.new_request_id()
                check_version(message.version)
                target = message.path.encode("utf-8", "surrogateescape")
                path, query = split_target(target)
                found = await self._matched(message.method, path, query, headers, ops)
                label, effect = found.route.template, found.route.effect
                asked = not ops and found.route.access != "open"
                caller = await self.admission.identify(headers) if asked else ANYONE
                request_id_of(headers)
                call = Call(
                    self.service,
                    self.limits,
                    found.route,
                    message.method,
                    target,
                    found.rest,
                    parse_query(query, found.route.by_name, self.limits),
                    headers,
                    Body(exchange, self.limits, self._buffered),
                    request_id,
                    admission=OPEN if ops else self.admission,
                    caller=caller,
                )
                check_expect(headers)
                admit(call)
                if self.requests.spans is not None:
                    span, call.trace = self.requests.spans.begin(
                        message.method, label, trace_context(headers)
                    )
                made = await self._handle(call)
            except RaftkvError as error:
                request_id = request_id or self.new_request_id()
                what = f"{known_method(message.method)} {label}"
                self.admission.denied(None if call is None else call.caller, what, error, request_id)
                made = self.problem_answer(error, request_id, effect == "write")
            except ConnectionError:
                raise
            except Exception as error:  # noqa: BLE001  # the edge: whatever it is, the client is told
                request_id = request_id or self.new_request_id()
                made = self.internal_answer(error, request_id, label, effect)
            status = made.answer.status if isinstance(made, Streamed) else made.status
            if call is not None and call.route.audited and status not in (401, 403, 429):
                self._audit(call, status)
            try:
                return await self._send(exchange, made, request_id, call)
            finally:
                seconds = time.monotonic() - began
                self.metrics.request(label, known_method(message.method), status, seconds)
                if seconds >= self.requests.observe_s or status >= 500:
                    answer = made.answer if isinstance(made, Streamed) else made
                    self.requests.ended(
                        Ended(
                            known_method(message.method),
                            label,
                            status,
                            seconds,
                            request_id,
                            headers,
                            answer.body,
                            streamed=isinstance(made, Streamed),
                            probe=effect == "node",
                        ),
                        span,
                    )
        finally:
            self.request_ended(1)
            if call is not None:
                call.body.release()

    async def _matched(
        self, method: str, path: bytes, query: bytes | None, headers: dict[str, str], ops: bool
    ) -> Match:
        """The route. Whoever needs a token and has none is not told what there is."""
        try:
            return match(method, path, query_names(query), ops=ops)
        except RaftkvError:
            if not ops:
                await self.admission.identify(headers)
            raise

    def _audit(self, call: Call, status: int) -> None:
        self.admission.audit.done(
            call.caller.who,
            call.what,
            status=status,
            revision=self.service.machine.revision,
            request_id=call.request_id,
            target=call.target_id or (call.rest or b"").decode("ascii", "replace"),
        )

    async def _handle(self, call: Call) -> Answer | Streamed:
        handler = self._handlers[call.route.name]
        route = route_of(call.headers, self.route)
        call.passes_on = route == "forward" and not call.forwarded and not self.service.leads
        try:
            return await handler(call)
        except NotLeader as error:
            if route == "local" or call.forwarded:
                raise
            if route == "forward":
                return await self._forwarder.relay(call, error.leader_url, handler)
            return redirect(call.target, error)

    def request_ended(self, count: int) -> None:
        self.requests_in_flight -= count
        if self.closing and not self.requests_in_flight:
            self._idle.set()

    # --- the hot path's needs ----------------------------------------------------------------------

    def flush_soon(self, connection: HotConnection) -> None:
        """After everything that is ready to run now: so many answers become one write."""
        if not self._flushes:
            asyncio.get_running_loop().call_soon(self._flush)
        self._flushes.append(connection)

    def settle_soon(self, authorization: str | None, done: Callable[[bool], None]) -> None:
        """`done(False)` when the guard knows who that is, `done(True)` where it can't be found out now."""
        guard = self.admission.guard
        assert guard is not None
        task = asyncio.get_running_loop().create_task(guard.settle(authorization))
        self._relays.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._relays.discard(task)
            if not task.cancelled():
                done(task.exception() is not None)

        task.add_done_callback(ended)

    def _flush(self) -> None:
        flushes, self._flushes = self._flushes, []
        for connection in flushes:
            connection.flush()

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._look_handle = loop.call_later(LOOK_S, self._look)
        now = loop.time()
        for connection in list(self.hot):
            connection.look(now)

    def not_leader(self, turn: Turn, error: NotLeader) -> Answer | None:
        """As `_handle` has it, for a write whose leader was lost before it was in the log. None: it is
        passed on, and the turn gets its answer later."""
        route = route_of(turn.headers, self.route)
        if route == "local" or "Raftkv-Forwarded-By" in turn.headers:
            return self.problem_answer(error, turn.request_id, True)
        if route != "forward":
            return redirect(turn.target, error)
        task = asyncio.get_running_loop().create_task(self._relay(turn, error))
        self._relays.add(task)
        task.add_done_callback(self._relays.discard)
        return None

    async def _relay(self, turn: Turn, error: NotLeader) -> None:
        route = BY_TEMPLATE[KEY_TEMPLATE][turn.method]
        body = Body.whole(turn.value, NoSource(), self.limits, self._buffered)
        headers = dict(turn.headers)
        call = Call(
            self.service,
            self.limits,
            route,
            turn.method,
            turn.target,
            turn.rest,
            dict(turn.query.values),
            headers,
            body,
            turn.request_id,
        )
        try:
            made = await self._forwarder.relay(call, error.leader_url, self._handlers[route.name])
            assert isinstance(made, Answer)
        except RaftkvError as refused:
            made = self.problem_answer(refused, turn.request_id, True)
        except Exception as bug:  # noqa: BLE001  # the edge, as in `answer`
            made = self.internal_answer(bug, turn.request_id, route.template, "write")
        turn.extra += "".join(f"{name}: {value}\r\n" for name, value in call.extra)
        turn.answer(made)

    async def _send(
        self, exchange: Exchange, made: Answer | Streamed, request_id: str | None, call: Call | None
    ) -> Sent:
        extra = f"Request-Id: {request_id}\r\n"
        if call is not None:
            for name, value in call.extra:
                extra += f"{name}: {value}\r\n"
        if isinstance(made, Answer):
            return await exchange.send(made, extra)
        try:
            return await exchange.stream(made.answer, made.chunks, extra)
        except RaftkvError as error:  # in the middle of a stream: all that is left is to cut it
            log.warning("stream_cut request_id=%s code=%s detail=%s", request_id, error.code, error)
            raise ConnectionResetError("the stream was cut") from error
        except ConnectionError:
            raise
        except Exception as error:
            log.error("internal_error request_id=%s stream=cut", request_id, exc_info=error)
            raise ConnectionResetError("the stream was cut") from error

    # --- what all answers share --------------------------------------------------------------------

    def new_request_id(self) -> str:
        return f"{self._id_prefix}-{next(self._ids):x}"

    def common_headers(self) -> str:
        """Header lines of every answer; made anew when a number in them or the second has changed."""
        leadership = self.service.leadership
        revision = self.service.machine.revision
        second = int(time.time())
        if revision != self._told[0] or leadership is not self._told[1] or second != self._told[2]:
            self._told = (revision, leadership, second)
            if second != self._date[0]:
                self._date = (second, http_date(second))
            leader = f"Raftkv-Leader: {leadership.leader_url}\r\n" if leadership.leader_url else ""
            self._common_text = (
                f"Date: {self._date[1]}\r\n"
                f"Raftkv-Revision: {revision}\r\n"
                f"Raftkv-Served-By: {self.service.name}\r\n"
                f"{leader}Raftkv-Term: {leadership.term}\r\n"
            )
        return self._common_text

    def problem_answer(self, error: RaftkvError, request_id: str, write: bool) -> Answer:
        made = problem(
            error, request_id=request_id, leader_url=self.service.leadership.leader_url, write=write
        )
        close = isinstance(error, Draining)
        return Answer(made.status, encode_json(made), PROBLEM, problem_headers(error), close)

    def refused(self, connection: Connection, error: RaftkvError) -> Answer:
        """The answer to what never became a request; its connection ends with it."""
        self.metrics.request(UNMATCHED, "other", status_of(error).status, 0.0)
        request_id = self.new_request_id()
        made = self.problem_answer(error, request_id, True)
        headers = (*made.headers, ("Request-Id", request_id))
        return Answer(made.status, made.body, made.content_type, headers, close=True)

    def internal_answer(self, error: Exception, request_id: str, label: str, effect: str) -> Answer:
        log.error("internal_error request_id=%s route=%s", request_id, label, exc_info=error)
        kind = InternalErrorOnWrite if effect == "write" else InternalError
        return self.problem_answer(
            kind(f"something went wrong on this node; its log has it under request id {request_id}"),
            request_id,
            effect == "write",
        )


class KeyTimes(dict[str, RequestTimes]):
    """What the metrics have of one key's requests, by method."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def __missing__(self, method: str) -> RequestTimes:
        times = self[method] = self._metrics.times(KEY_TEMPLATE, method)
        return times


class Listener:
    """One listening address: aiohttp's server object, with our connections."""

    def __init__(self, api: ApiServer, *, ops: bool, loop: asyncio.AbstractEventLoop) -> None:
        self._api = api
        self._ops = ops
        self._loop = loop
        self.server = web.Server(self._answer, request_factory=Exchange, loop=loop)  # type: ignore[arg-type]

    def connect(self) -> asyncio.Protocol:
        self._api.connections_accepted += 1
        return self.hot() if self._api.hot_path and not self._ops else self.cold()

    def hot(self) -> HotConnection:
        return HotConnection(self._api, self, self._loop)

    def cold(self, head_began: float | None = None) -> Connection:
        return Connection(self.server, self._api, self, loop=self._loop, head_began=head_began)

    def takes_back(self, data: bytes) -> bool:
        """Whether a request on a cold connection that is idle is for the hot path."""
        return self._api.hot_path and not self._ops and is_plain(data, self._api.blocks)

    async def _answer(self, exchange: Any) -> Any:
        return await self._api.answer(exchange, self._ops)


class NoSource:
    """Of a body that is in memory whole."""

    body_length = None

    def pieces(self) -> AsyncIterator[bytes]:
        raise AssertionError("the body was read already")


def admit(call: Call) -> None:
    """Raises Forbidden where the caller may not do what the head of the request asks for."""
    if call.admission.guard is not None:
        one_key = call.route.access in ("read_key", "write_key")
        key = handlers.key_of(call) if one_key else None
        call.admission.admit(call.caller, call.route, key, call.query)


def redirect(target: bytes, error: NotLeader) -> Answer:
    """The same request at the leader's advertised URL: path and query byte for byte as they came."""
    path, query = split_target(target)
    target = path if query is None else path + b"?" + query
    location = error.leader_url + target.decode("utf-8", "surrogateescape")
    body = encode_json({"leader": error.leader, "location": error.leader_url})
    return Answer(307, body, JSON, (("Location", location),))


def check_version(version: tuple[int, int]) -> None:
    """The parser lets HTTP/0.9 through, and other versions that never were."""
    if version != (1, 1) and version != (1, 0):
        raise HttpVersionNotSupported(
            f"HTTP/{version[0]}.{version[1]} is not supported; allowed: HTTP/1.1, HTTP/1.0"
        )


def check_expect(headers: dict[str, str]) -> None:
    expect = headers.get("Expect")
    if expect is not None and expect.lower() != "100-continue":
        raise BadRequest(f"header Expect: {shown(expect)} is not allowed; allowed is 100-continue")


def known_method(method: str) -> str:
    return method if method in METHODS else "other"


def raise_open_files_limit() -> int:
    """How many files this process may have open from now on."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES_MAX if hard == resource.RLIM_INFINITY else hard
    with suppress(ValueError, OSError):  # a container may forbid it; then the soft limit stands
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def connections_within(limits: Limits, open_files: int) -> Limits:
    cap = max(open_files - FILES_RESERVED, open_files // 2)
    if limits.connections_max <= cap:
        return limits
    log.warning("connections_capped max=%d open_files=%d", cap, open_files)
    return replace(limits, connections_max=cap)


async def start_api(
    service: KVService,
    *,
    host: str,
    port: int,
    limits: Limits,
    route: str = "redirect",
    ops: tuple[str, int] | None = None,
    security: Security | None = None,
    metrics: Metrics | None = None,
    requests: RequestLog | None = None,
    hot_path: bool = True,
) -> ApiServer:
    """Listens at once, with TLS where `security` has credentials for the API. `ops` opens one more plain
    listener for the probes and the metrics.

    Raises the process's soft limit on open files as far as it may, and lowers the cap on connections to what
    that leaves room for: beyond it, accepting would fail, and so would the journal.
    """
    limits = connections_within(limits, raise_open_files_limit())
    server = ApiServer(
        service,
        limits=limits,
        route=route,
        metrics=metrics,
        hot_path=hot_path,
        security=security,
        requests=requests,
    )
    try:
        server.port = await server.listen(host, port, credentials=server.security.api)
        if ops is not None:
            server.ops_port = await server.listen(*ops, ops=True)
    except BaseException:
        await server.close()
        raise
    return server
