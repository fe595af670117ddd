"""HTTP as bytes: one connection of a real `ApiServer`, hot path and cold, without a socket.

The transport keeps what is written; the loop turns until nothing is left to do. Every answer must be one of
HTTP/1.1, and none may be the node's own fault.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import Sequence
from typing import Any

from raftkv.api.app import ApiServer, Listener
from raftkv.api.limits import Limits
from raftkv.kv.command import Put
from raftkv.service import KVService
from tests.contract.local import LocalConsensus

CONNECTIONS_A_SERVER = 500  # then a new one: what inputs wrote must not grow without end
TURNS_MAX = 400  # of the loop, for one input: a read takes twenty
TURNS_IDLE = 30  # in a row without a write: it waits for the client

_STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ")
_INTERNAL = b'"code":"internal"'


class Wire(asyncio.Transport):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop
        self._closing = False
        self.protocol: Any = None
        self.written = bytearray()

    def write(self, data: Any) -> None:
        if not self._closing:
            self.written += data

    def writelines(self, list_of_data: Any) -> None:
        for data in list_of_data:
            self.write(data)

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self._lost)

    abort = close

    def _lost(self) -> None:
        self.protocol.connection_lost(None)

    def is_closing(self) -> bool:
        return self._closing

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self.protocol
        return protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else default

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def is_reading(self) -> bool:
        return True

    def can_write_eof(self) -> bool:
        return False


class _Server:
    """A node with a few keys. Whatever it would have logged or swallowed is kept in `complaints`."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(lambda _, context: self.complaints.append(repr(context)))
        self.complaints: list[str] = []
        self.left = 0

    def renew(self) -> None:
        consensus = LocalConsensus()
        for number, key in enumerate((b"a", b"b/c", b"n"), 1):
            consensus.machine.apply(number, 0, Put(key, b"%d" % number))
        self.api = ApiServer(KVService(consensus, name="n1"), limits=Limits(timeout_seconds_max=1))
        self.listener = Listener(self.api, ops=False, loop=self.loop)
        self.left = CONNECTIONS_A_SERVER

    async def converse(self, data: bytes) -> bytes:
        self.left -= 1
        wire = Wire(self.loop)
        wire.protocol = protocol = self.listener.connect()
        protocol.connection_made(wire)
        rng, at = random.Random(data[0] if data else 0), 1
        while at < len(data) and not wire.is_closing():
            size = rng.choice((1, 5, 100, 10_000))
            wire.protocol.data_received(data[at : at + size])
            at += size
            if rng.random() < 0.3:
                await asyncio.sleep(0)
        await self._settle(wire)
        if not wire.is_closing() and not wire.protocol.eof_received():
            wire.close()
        await self._settle(wire)
        wire.close()
        for _ in range(TURNS_MAX):
            await asyncio.sleep(0)
            if not self.api.requests_in_flight and not self.api.connections_open:
                break
        return bytes(wire.written)

    async def _settle(self, wire: Wire) -> None:
        idle, before = 0, -1
        for _ in range(TURNS_MAX):
            await asyncio.sleep(0)
            idle = idle + 1 if len(wire.written) == before else 0
            before = len(wire.written)
            if wire.is_closing() or idle >= TURNS_IDLE:
                return


_server: _Server | None = None


def run(data: bytes) -> None:
    global _server
    if _server is None:
        logging.getLogger("raftkv.api").setLevel(logging.CRITICAL)
        _server = _Server()
    if not _server.left:
        _server.renew()
    written = _server.loop.run_until_complete(_server.converse(data))
    assert not _server.complaints, _server.complaints
    assert not written or _STATUS.match(written), f"an answer that is not HTTP/1.1: {written[:60]!r}"
    assert _INTERNAL not in written, f"the node's own fault: {written[:2000]!r}"
    assert _server.api.connections_open == 0, "the connection is still counted"
    assert _server.api.requests_in_flight == 0, "a request is still counted"


def samples() -> Sequence[bytes]:
    """Each with a byte before it, which draws how it is cut."""
    host = b"Host: n1\r\n"

    def request(line: bytes, headers: bytes = b"", body: bytes = b"") -> bytes:
        length = b"Content-Length: %d\r\n" % len(body) if body else b""
        return line + b" HTTP/1.1\r\n" + host + headers + length + b"\r\n" + body

    json = b"Content-Type: application/json\r\n"
    made = [
        request(b"GET /v1/kv/a"),
        request(b"GET /v1/kv/b%2Fc?format=json&consistency=stale&max_staleness_ms=5"),
        request(b"HEAD /v1/kv/a?min_revision=2&timeout=10ms", b'If-None-Match: "2", W/"3"\r\n'),
        request(b"PUT /v1/kv/x?prev=true", b"Idempotency-Key: c/1\r\nContent-Type: text/plain\r\n", b"value"),
        request(b"PUT /v1/kv/x", b'If-Match: "5", "6"\r\nRaftkv-Route: local\r\n', b"v" * 200),
        request(b"PUT /v1/kv/x?if_revision=0", b"Transfer-Encoding: chunked\r\n")
        + b"5\r\nvalue\r\n0\r\n\r\n",
        request(b"PUT /v1/kv/x", b"Expect: 100-continue\r\n", b"value"),
        request(b"DELETE /v1/kv/a", b"If-Match: *\r\nRequest-Id: r-1\r\n"),
        request(b"POST /v1/kv/n?op=incr&by=-3"),
        request(b"POST /v1/kv/n?op=append", b"", b"more"),
        request(
            b"GET /v1/kv?prefix=a&limit=2&delimiter=/&keys_only=true&cursor=",
            b"Accept: application/x-ndjson\r\n",
        ),
        request(b"DELETE /v1/kv?prefix=b&limit=5"),
        request(
            b"POST /v1/txn",
            json,
            b'{"compare": [], "success": [{"put": {"key": "t", "value": "1"}}], "failure": []}',
        ),
        request(
            b"POST /v1/batch",
            b"Content-Type: application/x-ndjson\r\n",
            b'{"op": "put", "key": "b1", "value": "1"}\n{"op": "get", "key": "a"}\n{"op": "incr"}\n',
        ),
        request(b"GET /v1/export?prefix="),
        request(b"GET /v1/status"),
        request(b"GET /v1/cluster"),
        request(b"POST /v1/cluster/leader", json, b'{"to": "n2"}'),
        request(b"GET /readyz?verbose"),
        request(b"OPTIONS *"),
        b"GET /v1/kv/a HTTP/1.0\r\n\r\n",
    ]
    pipelined = [b"".join(made[:2]), made[3] + made[4] + made[0], made[0] * 70, made[7] + made[12] + made[0]]
    return [bytes([n % 256]) + each for n, each in enumerate((*made, *pipelined))]
