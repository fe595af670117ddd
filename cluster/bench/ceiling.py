"""As fast as one Python process can answer: the node's protocol with nothing behind it.

    python -m cluster.bench.ceiling PORT VALUE_BYTES

The same loop (uvloop) and the same HTTP parser as a node's, answers of the same size with the same headers,
but every one a constant: target, headers and body are taken in, as no server can do without, and not looked
at; nothing is stored, no other process is asked. What raftkv reaches of this is what replication, journal and
semantics leave.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import cast

import httptools
import uvloop

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


async def serve(port: int, value_bytes: int) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    read = read_answer(value_bytes)
    server = await loop.create_server(lambda: Constant(read), "127.0.0.1", port, backlog=1024)
    await stop.wait()
    server.close()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2])))
