"""One client connection: aiohttp's parser and request loop, under our bounds and with our errors.

aiohttp answers a malformed request as text, bounds single header lines but not all of them together, and has
no deadline for headers or bodies. So a `Connection` walks the stream once more, only as far as to know where
a head ends: it feeds aiohttp's parser one head or one piece of a body at a time, counts and times the head,
and turns whatever the parser refuses into a `RaftkvError`. It also keeps the connection open where a client
has said all it will (half-closed) and still waits for its answer.

    head, within header_seconds_max of its first byte, request line and headers within their bounds
      -> body, as long as Content-Length says, or chunked until the parser sees its end
      -> head

Works on aiohttp 3.14's `web_protocol.py`; a test holds each behaviour that this file leans on.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from email.utils import formatdate
from typing import Any, Protocol, cast

from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, RequestPayloadError, _ErrInfo

from raftkv.api.errors import (
    HeadersTooLarge,
    HttpVersionNotSupported,
    NotImplementedHere,
    RequestLineTooLarge,
    RequestTimeout,
)
from raftkv.api.limits import Limits
from raftkv.api.routes import METHODS
from raftkv.api.wire import Answer, answer_head, shown
from raftkv.errors import BadRequest, Overloaded, RaftkvError
from raftkv.tls.port import bytes_taken, secured, unsent_mark

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HEAD_END = b"\r\n\r\n"
FIRST_LINE_KEPT_BYTES = 256  # enough to tell what a refused request line tried to be
STREAM_CHUNK_BYTES = 64 << 10


class Connections(Protocol):
    """What a connection needs of its server."""

    limits: Limits
    connections_open: int
    bytes_received: int
    bytes_sent: int
    closing: bool  # every answer from now on ends its connection

    def refused(self, connection: Connection, error: RaftkvError) -> Answer:
        """The answer to a request that never became one."""
        ...

    def common_headers(self) -> str: ...


class Hot(Protocol):
    """The other kind of connection, and what is for it."""

    def takes_back(self, data: bytes) -> bool: ...
    def hot(self) -> asyncio.Protocol: ...


class Connection(RequestHandler):
    __slots__ = (
        "_body",
        "_body_left",
        "_first_line",
        "_head_began",
        "_head_bytes",
        "_head_tail",
        "_head_timer",
        "_held",
        "_hot",
        "_line_bytes",
        "_refused",
        "_server",
        "_taken",
        "body_failure",
        "half_closed",
    )

    def __init__(
        self,
        manager: Any,
        server: Connections,
        hot: Hot | None = None,
        *,
        loop: asyncio.AbstractEventLoop,
        head_began: float | None = None,
    ) -> None:
        """`head_began`: when the first request's first byte came to who had this connection before."""
        limits = server.limits
        super().__init__(
            manager,
            loop=loop,
            keepalive_timeout=limits.idle_seconds_max,
            access_log=None,  # type: ignore[arg-type]  # None turns it off
            max_line_size=limits.request_line_bytes_max,
            max_field_size=limits.header_bytes_max,
            max_headers=limits.headers_max,
            lingering_time=5.0,  # to read a refused body away, or a reset would eat the answer
            auto_decompress=False,
        )
        self._server = server
        self._hot = hot  # None: it stays here
        self._body: StreamReader | None = None  # that of the last message, until its end
        self._body_left: int | None = None  # bytes of it to come; None: chunked
        self._held = b""  # what came while the parser was paused
        self._refused = False
        self._taken = 0  # of the answers, when last looked; only with TLS
        self.half_closed = False
        # The body that did not come whole, and what is wrong with its encoding ("": it was cut short).
        self.body_failure: tuple[StreamReader, str] | None = None
        self._start_head(head_began)

    def _start_head(self, head_began: float | None = None) -> None:
        self._head_bytes = 0
        self._line_bytes = 0  # 0 until the request line's end was seen
        self._head_tail = b""
        self._first_line = b""
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_began = head_began

    # --- coming and going --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        server = self._server
        server.connections_open += 1
        if server.connections_open > server.limits.connections_max:
            self._turn_away(cast(asyncio.Transport, transport))
            return
        super().connection_made(transport)

    def _turn_away(self, transport: asyncio.Transport) -> None:
        limits = self._server.limits
        answer = self._server.refused(
            self,
            Overloaded(
                f"{limits.connections_max} connections are open already "
                f"({limits.flag('connections_max')}); try again, or another node"
            ),
        )
        head = answer_head(
            answer,
            self._server.common_headers(),
            keep_alive=False,
            old_version=False,
            length=len(answer.body),
        )
        self._refused = True
        transport.write(head + answer.body)
        transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._server.connections_open -= 1
        self._cancel_head_timer()
        self._held = b""
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio asks for a bool or None
        """The client will send nothing more. True keeps the other direction open for what it waits for. Not
        with TLS: asyncio's ends both directions at once."""
        return self._close_half() and not secured(self.transport)

    def _close_half(self) -> bool:
        self.half_closed = True
        if self._body is not None and not self._body.is_eof():
            self._refused = True
            self._end_body("")
            return True
        if self._head_bytes and not self._refused:
            self._refuse(BadRequest("the request ends inside its headers; allowed is a complete request"))
            return True
        return self._request_in_progress or bool(self._messages)

    @property
    def _is_idle(self) -> bool:
        """Between two requests: the last is answered, and nothing of the next has come."""
        waiter = self._waiter
        return (
            waiter is not None
            and not waiter.done()
            and not (self._messages or self._held or self._head_bytes or self._body is not None)
            and not (self._reading_paused or self._buffer_paused or self.writing_paused)
            and not (self.half_closed or self._server.closing)
        )

    def _hand_back(self, hot: Hot, data: bytes) -> None:
        """To the hot path, with the request that these bytes begin with. What it gives back at once was not
        for it, whatever it looked like: such a connection stays here."""
        transport = self.transport
        assert transport is not None
        protocol = hot.hot()
        self.transport = None  # which goes on: only this connection's part in it ends
        self.connection_lost(None)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(data)
        then = transport.get_protocol()
        if isinstance(then, Connection):
            then._hot = None

    # --- what comes in -----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._refused or self._force_close or self._close:
            return
        if self._hot is not None and data and self._is_idle and self._hot.takes_back(data):
            self._hand_back(self._hot, data)
            return
        self._server.bytes_received += len(data)
        if not data:  # the parser was paused and goes on
            self._feed(b"")
        if self._held:
            data, self._held = self._held + data, b""
        while data and not self._refused:
            if self._reading_paused or self._buffer_paused:
                self._held = data  # at most what one read brought: the transport is paused as well
                return
            data = self._take_body(data) if self._body is not None else self._take_head(data)

    def _resume_reading_for_buffer(self) -> None:
        super()._resume_reading_for_buffer()
        if self._held:
            self.data_received(b"")

    def _take_body(self, data: bytes) -> bytes:
        """Feeds what belongs to the body; returns the rest."""
        if self._body_left is None:
            self._feed(data)
            return b""
        piece, rest = data[: self._body_left], data[self._body_left :]
        self._body_left -= len(piece)
        self._feed(piece)
        if not self._body_left:
            self._body = None
        return rest

    def _take_head(self, data: bytes) -> bytes:
        """Feeds what belongs to the head; returns the rest."""
        kept = len(self._head_tail)
        end = (self._head_tail + data if kept else data).find(HEAD_END)
        cut = len(data) if end < 0 else end + len(HEAD_END) - kept
        piece = data[:cut]
        refusal = self._count_head(piece)
        if refusal is not None:
            self._refuse(refusal)
            return b""
        if end < 0:
            self._head_tail = (self._head_tail + piece)[-(len(HEAD_END) - 1) :]
            if self._head_timer is None:
                began = self._loop.time() if self._head_began is None else self._head_began
                self._head_timer = self._loop.call_at(
                    began + self._server.limits.header_seconds_max, self._head_too_slow
                )
        self._feed(piece)
        return data[cut:]

    def _count_head(self, piece: bytes) -> RaftkvError | None:
        limits = self._server.limits
        if not self._line_bytes:
            newline = piece.find(b"\n")
            if len(self._first_line) < FIRST_LINE_KEPT_BYTES:
                line = piece if newline < 0 else piece[:newline]
                self._first_line = (self._first_line + line)[:FIRST_LINE_KEPT_BYTES]
            seen = self._head_bytes + (len(piece) if newline < 0 else newline + 1)
            if seen > limits.request_line_bytes_max + 2:
                return request_line_too_large(limits)
            if newline >= 0:
                self._line_bytes = seen
        self._head_bytes += len(piece)
        if self._line_bytes and self._head_bytes - self._line_bytes > limits.header_bytes_max:
            return headers_too_large(limits)
        return None

    def _head_too_slow(self) -> None:
        self._head_timer = None
        limits = self._server.limits
        self._refuse(
            RequestTimeout(
                f"the headers were not complete within {limits.header_seconds_max} s of the first byte "
                f"({limits.flag('header_seconds_max')})"
            )
        )

    def _feed(self, piece: bytes) -> None:
        """Hands a piece to aiohttp's parser, and looks what came of it."""
        before = self._messages[-1] if self._messages else None
        super().data_received(piece)
        if self._messages and self._messages[-1] is not before:
            self._adopt(*self._messages[-1])
        elif self._body is not None and self._body.is_eof() and self._body_left is None:
            self._body = None  # a chunked one has ended

    def _adopt(self, message: Any, payload: StreamReader) -> None:
        """The parser gave out a request, or an error in its place."""
        if isinstance(message, _ErrInfo):
            error = refusal_of(message.exc, self._first_line, self._server.limits)
            self._refused = True
            self._cancel_head_timer()
            if self._body is not None and not self._body.is_eof():
                self._messages.pop()  # the error is in a body: who reads that answers it
                self._end_body(first_line(message.message))
            else:
                self._messages[-1] = (_ErrInfo(status=400, exc=error, message=""), EMPTY_PAYLOAD)
            return
        in_step = self._body is None
        self._cancel_head_timer()
        self._start_head()
        self._body = self._body_left = None
        if payload is EMPTY_PAYLOAD or payload.is_eof():
            return
        if message.method == "CONNECT":
            payload.feed_eof()  # what follows is for the other side of a tunnel that is not made
            return
        self._body = payload
        if in_step and not message.chunked:
            self._body_left = int(message.headers["Content-Length"])

    def _end_body(self, broken: str) -> None:
        """The body ends here though it is not whole: who reads it reads what came, and then learns of it."""
        assert self._body is not None
        self.body_failure = (self._body, broken)
        self._body.feed_eof()

    def _refuse(self, error: RaftkvError) -> None:
        """Answers the error after what came before it, and closes."""
        self._refused = True
        self._cancel_head_timer()
        self._messages.append((_ErrInfo(status=400, exc=error, message=""), EMPTY_PAYLOAD))
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    # --- aiohttp's hook for idle connections -------------------------------------------------------

    def _process_keepalive(self) -> None:
        """With TLS a connection may look idle whose client still takes its answer."""
        taken = bytes_taken(self.transport)
        if taken is None or taken == self._taken:
            super()._process_keepalive()
            return
        self._taken = taken
        self._keepalive_handle = self._loop.call_later(
            self._server.limits.idle_seconds_max, self._process_keepalive
        )

    # --- aiohttp's hooks for errors ----------------------------------------------------------------

    def _make_error_handler(self, err_info: Any) -> Callable[[Any], Awaitable[Any]]:
        async def handler(exchange: Exchange) -> Sent:
            return await exchange.send(self._server.refused(self, err_info.exc))

        return handler

    def handle_error(
        self, request: Any, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> Any:
        """Only what failed while an answer was being written gets here: the connection is of no more use."""
        raise ConnectionResetError("the connection failed while an answer was written") from exc

    # --- what goes out -----------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        transport = self.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        self._server.bytes_sent += len(data)
        transport.write(data)

    async def flushed(self) -> None:
        """Returns when the client has taken enough to go on; cuts it off where it takes nothing."""
        stall_s = self._server.limits.write_stall_seconds_max
        while self._paused:
            transport = self.transport
            if transport is None:
                raise ConnectionResetError("the client is gone")
            waiting = unsent_mark(transport)
            try:
                async with asyncio.timeout(stall_s):
                    await asyncio.shield(self._drain_helper())
            except TimeoutError:
                if unsent_mark(transport) == waiting:
                    transport.abort()
                    raise ConnectionResetError("the client took nothing of its answer") from None


class Sent:
    """What aiohttp asks of a response, when it has been written already."""

    __slots__ = ("keep_alive",)

    def __init__(self, keep_alive: bool) -> None:
        self.keep_alive = keep_alive

    async def prepare(self, request: object) -> None:
        pass

    async def write_eof(self) -> None:
        pass


class Exchange:
    """One request on a connection, and the way to answer it; stands in for aiohttp's own request object."""

    __slots__ = ("_continued", "_task", "_writer", "connection", "message", "payload", "server")

    def __init__(
        self, message: Any, payload: StreamReader, protocol: Any, writer: Any, task: asyncio.Task[None]
    ) -> None:
        self.message = message
        self.payload = payload
        self.connection: Connection = protocol
        self.server = self.connection._server
        # aiohttp says so a turn of the loop later, and the end of the stream may come in between.
        self.connection._request_in_progress = True
        self._writer = writer
        self._task: asyncio.Task[None] | None = task
        self._continued = False

    # What aiohttp's request loop calls.

    def _finish(self) -> None:
        pass

    def _cancel(self, error: BaseException) -> None:
        """The connection is lost, for whatever reason."""
        self.payload.set_exception(ConnectionResetError("the client is gone"))

    # --- the answer --------------------------------------------------------------------------------

    @property
    def keeps_alive(self) -> bool:
        connection = self.connection
        no_more = (connection._refused or connection.half_closed) and not connection._messages
        ends = self.message.should_close or connection._force_close or connection._upgraded
        return not (no_more or ends or self.server.closing)

    @property
    def expects_continue(self) -> bool:
        """The client waits for a 100 before it sends its body, and has not got it."""
        return (
            not self._continued
            and not self.payload.is_eof()
            and self.message.headers.get("Expect", "").lower() == "100-continue"
        )

    async def send(self, answer: Answer, extra: str = "") -> Sent:
        """A body that was not asked for after `Expect: 100-continue` may or may not come: such a connection
        ends with the answer, for nobody could tell the body from the next request."""
        connection = self.connection
        keep_alive = self.keeps_alive and not answer.close and not self.expects_continue
        head = answer_head(
            answer,
            self.server.common_headers() + extra,
            keep_alive=keep_alive,
            old_version=self.message.version < (1, 1),
            length=len(answer.body),
        )
        if self.message.method == "HEAD" or answer.status == 304 or not answer.body:
            connection.write(head)
        else:
            connection.write(head + answer.body)
        if connection.writing_paused:
            await connection.flushed()
        return Sent(keep_alive)

    async def stream(self, answer: Answer, chunks: AsyncIterator[bytes], extra: str = "") -> Sent:
        """A body whose length nobody knows yet. Where `chunks` raises, the connection is cut without an end,
        so that no client takes a part for the whole."""
        connection = self.connection
        chunked = self.message.version >= (1, 1)
        keep_alive = chunked and self.keeps_alive and not self.expects_continue
        head = answer_head(
            answer,
            self.server.common_headers() + extra + ("Transfer-Encoding: chunked\r\n" if chunked else ""),
            keep_alive=keep_alive,
            old_version=not chunked,
            length=None,
        )
        connection.write(head)
        if self.message.method == "HEAD":
            await cast(AsyncGenerator[bytes, None], chunks).aclose()
            return Sent(keep_alive)
        async with aclosing(cast(AsyncGenerator[bytes, None], chunks)):
            async for chunk in chunks:
                if chunk:
                    connection.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunked else chunk)
                    if connection.writing_paused:
                        await connection.flushed()
        if chunked:
            connection.write(b"0\r\n\r\n")
        return Sent(keep_alive and self.keeps_alive)

    # --- the body ----------------------------------------------------------------------------------

    @property
    def body_length(self) -> int | None:
        """What Content-Length says; 0 without a body, None where it is chunked."""
        if self.payload is EMPTY_PAYLOAD:
            return 0
        if self.message.chunked:
            return None
        return int(self.message.headers.get("Content-Length", "0"))

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes, at the least rate or better. Raises RequestTimeout, BadRequest."""
        payload = self.payload
        if self.expects_continue:
            self._continued = True
            self.connection.write(CONTINUE)
        loop = self.connection._loop
        limits = self.server.limits
        deadline = loop.time() + limits.header_seconds_max
        received = 0
        while not payload.at_eof():
            try:
                if payload.is_eof() or payload.total_bytes > received:
                    piece = await payload.readany()
                else:
                    async with asyncio.timeout_at(deadline + received / limits.body_bytes_per_second_min):
                        piece = await payload.readany()
            except TimeoutError:
                self.connection._refused = True
                raise RequestTimeout(
                    f"body: {received} bytes came, at less than {limits.body_bytes_per_second_min} a second "
                    f"({limits.flag('body_bytes_per_second_min')})"
                ) from None
            except RequestPayloadError as error:
                raise broken_body(first_line(str(error))) from error
            received += len(piece)
            yield piece
        failure = self.connection.body_failure
        if failure is not None and failure[0] is payload:
            if failure[1]:
                raise broken_body(failure[1])
            length = self.body_length
            whole = "the chunk that ends it" if length is None else f"all of its {length} bytes"
            raise BadRequest(
                f"body: it ends after {received} bytes, before {whole}; allowed is a complete body"
            )


# --- what the parser refuses ------------------------------------------------------------------------------

_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([^ ]+) (HTTP/[^ ]*)$")
_VERSION = re.compile(rb"HTTP/([0-9])\.([0-9])$")


def refusal_of(error: BaseException, line: bytes, limits: Limits) -> RaftkvError:
    """What a client is told of what aiohttp's parser raised; `line` is the request line's start."""
    if isinstance(error, RaftkvError):
        return error
    line = line.strip(b"\r\n")
    said = first_line(str(getattr(error, "message", "") or error))
    if isinstance(error, LineTooLong):
        if error.args[1] == limits.request_line_bytes_max:
            return request_line_too_large(limits)
        return headers_too_large(limits)
    if "Too many headers" in said:
        return HeadersTooLarge(
            f"the request has more than {limits.headers_max} headers ({limits.flag('headers_max')})",
            limit=limits.headers_max,
            size=None,
            flag=limits.flag("headers_max"),
        )
    if not line.isascii() and b" HTTP/" in line:
        return BadRequest(
            f"request target: {shown(line)} holds bytes that are not ASCII; "
            "allowed are UTF-8 bytes, each percent-encoded"
        )
    if line.startswith(b"\x16\x03"):
        return BadRequest(
            "the connection began with a TLS handshake; this port speaks plain HTTP: use http://"
        )
    return (
        _refused_line(line)
        or _refused_coding(said)
        or BadRequest(
            f"the request is not HTTP/1.1 as RFC 9112 has it: {said}; the request line was {shown(line)}"
        )
    )


def _refused_line(line: bytes) -> RaftkvError | None:
    """A request line that is well formed and asks for what is not there."""
    match = _REQUEST_LINE.match(line)
    if match is None:
        return None
    version = _VERSION.match(match[3])
    if version is not None and (version[1], version[2]) not in ((b"1", b"1"), (b"1", b"0")):
        return HttpVersionNotSupported(
            f"{match[3].decode()} is not supported; allowed is HTTP/1.1, or HTTP/1.0"
        )
    method = match[1].decode()
    if version is not None and method not in METHODS and method.upper() not in METHODS:
        return NotImplementedHere(
            f"method {shown(method)} is not implemented; allowed: GET, HEAD, PUT, POST, DELETE"
        )
    return None


def _refused_coding(said: str) -> RaftkvError | None:
    if "ransfer-Encoding" in said and "Content-Length" not in said:
        return NotImplementedHere(f"header Transfer-Encoding: {said}; allowed is chunked")
    return None


def broken_body(said: str) -> BadRequest:
    return BadRequest(f"body: its chunked encoding is broken ({said}); allowed is what RFC 9112 §7.1 has")


def request_line_too_large(limits: Limits) -> RaftkvError:
    return RequestLineTooLarge(
        f"the request line has more than {limits.request_line_bytes_max} bytes "
        f"({limits.flag('request_line_bytes_max')}); a key has {limits.key_bytes_max} at most",
        limit=limits.request_line_bytes_max,
        size=None,
        flag=limits.flag("request_line_bytes_max"),
    )


def headers_too_large(limits: Limits) -> RaftkvError:
    return HeadersTooLarge(
        f"the headers have more than {limits.header_bytes_max} bytes ({limits.flag('header_bytes_max')})",
        limit=limits.header_bytes_max,
        size=None,
        flag=limits.flag("header_bytes_max"),
    )


def first_line(text: str) -> str:
    """Of a parser's error, which draws an arrow below."""
    return " ".join(text.split("\n", 1)[0].strip().rstrip(":").split())


def http_date(now_s: float | None = None) -> str:
    return formatdate(time.time() if now_s is None else now_s, usegmt=True)
