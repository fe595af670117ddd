"""As fast as one Python process can answer in raftkv's words, when nothing stands behind the answer.

    python -m cluster.bench.ceiling protocol PORT VALUE_BYTES
    python -m cluster.bench.ceiling parser PORT VALUE_BYTES

Both run in one process, on the same loop (uvloop) as a node, and give answers of the same size with the same
headers; nothing is stored, no other process is asked.

`protocol` is the node's own HTTP side, `raftkv.api`, as it is: every request is parsed, checked against the
limits, given an id, timed and answered by the code of a node. Only what it asks is a constant: each key has
one value, each write succeeds at once. What raftkv reaches of this is what replication, journal and state
machine leave.

`parser` is the least that Python needs to answer HTTP at all: `httptools`, a parser in C, takes target,
headers and body in, and nobody looks at them. What raftkv's protocol reaches of that is what its checks and
headers cost, on top of having no C of its own.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import httptools
import uvloop

from raftkv.api.app import start_api
from raftkv.api.limits import Limits
from raftkv.kv import collector, record
from raftkv.kv.command import Command
from raftkv.model import DEFAULT_CONTENT_TYPE, Applied, Written
from raftkv.raft.status import Leadership
from raftkv.service import Freshness, KVService

REVISION = 123456

COMMON = (
    "Date: Mon, 23 Nov 2026 17:45:32 GMT\r\n"
    "Raftkv-Revision: 123456\r\n"
    "Raftkv-Served-By: n1\r\n"
    "Raftkv-Leader: http://127.0.0.1:8400\r\n"
    "Raftkv-Term: 1\r\n"
    "Request-Id: 1f907e3d1be3-123456\r\n"
)
WRITTEN = (
    f"HTTP/1.1 200 OK\r\n{COMMON}Content-Type: application/json\r\nContent-Length: 19\r\n"
    'ETag: "123456"\r\n\r\n{"revision":123456}'
).encode()


def read_answer(value_bytes: int) -> bytes:
    head = (
        f"HTTP/1.1 200 OK\r\n{COMMON}Raftkv-Consistency: linearizable\r\n"
        f"Content-Type: application/octet-stream\r\nContent-Length: {value_bytes}\r\n"
        'ETag: "123456"\r\nCache-Control: no-cache\r\nX-Content-Type-Options: nosniff\r\n\r\n'
    )
    return head.encode() + b"x" * value_bytes


class Constant(asyncio.Protocol):
    """One connection."""

    def __init__(self, read: bytes) -> None:
        self._read = read

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_message_begin(self) -> None:
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body = b""

    def on_url(self, piece: bytes) -> None:
        self._target += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_body(self, piece: bytes) -> None:
        self._body += piece

    def on_message_complete(self) -> None:
        self._transport.write(self._read if self._parser.get_method() == b"GET" else WRITTEN)


class ConstantService:
    """What the protocol asks of a `KVService`, answered without a look at the question."""

    name = "n1"
    leads = True
    draining = False
    leadership = Leadership("leader", 1, "n1", "http://127.0.0.1:8400")

    def __init__(self, value_bytes: int) -> None:
        found = record.pack(1, REVISION, 1, DEFAULT_CONTENT_TYPE, b"x" * value_bytes)
        self.machine = SimpleNamespace(revision=REVISION, lookup=lambda key: found)
        self._applied = Applied(REVISION, Written(REVISION, False))

    def reach_soon(self, freshness: Freshness, done: Callable[[Any], None], *, timeout_s: float) -> bool:
        return True

    def write_soon(
        self, command: Command, done: Callable[[Any], None], *, timeout_s: float, size_bytes: int
    ) -> None:
        done(self._applied)


async def serve(kind: str, port: int, value_bytes: int) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    if kind == "protocol":
        service = cast(KVService, ConstantService(value_bytes))
        api = await start_api(service, host="127.0.0.1", port=port, limits=Limits())
        collector.settle()  # as a node does
        await stop.wait()
        await api.close()
    else:
        read = read_answer(value_bytes)
        server = await loop.create_server(lambda: Constant(read), "127.0.0.1", port, backlog=1024)
        await stop.wait()
        server.close()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
