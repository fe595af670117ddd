"""A proxy between clients and one node that loses, delays and reorders what passes, one request at a time.

TCP hides lost packets; what a client sees of a bad network is late answers and broken connections. So each
request is held for a moment, and then it, or its answer, may be thrown away together with its connection:
in the second case the node has acted on it, and the client can't know.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from random import Random

from cluster.plain_http import Address

LOSS = 0.1  # of requests, and of answers
HELD_SECONDS_MAX = 0.03
HELD_LONG = 0.03  # of answers
HELD_LONG_SECONDS = (0.2, 2.0)  # long enough for a client to give up on it and send again
MESSAGE_BYTES_MAX = 1 << 20

_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def unreliable_endpoints(
    endpoints: Mapping[str, Address], host: str, random: Random
) -> AsyncIterator[dict[str, Address]]:
    """For each node the address of a proxy before it, on `host`."""
    async with AsyncExitStack() as stack:
        found: dict[str, Address] = {}
        for name, address in endpoints.items():
            proxy = _Proxy(address, random)
            server = await asyncio.start_server(proxy.handle, host, 0, limit=MESSAGE_BYTES_MAX)
            stack.callback(proxy.close)
            stack.callback(server.close)
            found[name] = server.sockets[0].getsockname()[:2]
        yield found


class _Proxy:
    def __init__(self, node: Address, random: Random) -> None:
        self._node = node
        self._random = random
        self._open: set[asyncio.StreamWriter] = set()

    def close(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        node: _Streams | None = None
        try:
            # A broken connection, on either side, ends both.
            with suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    request = await _read_message(reader)
                    await self._hold()
                    if self._random.random() < LOSS:
                        return
                    node = node or await asyncio.open_connection(*self._node, limit=MESSAGE_BYTES_MAX)
                    node[1].write(request)
                    answer = await _read_message(node[0])
                    await self._hold()
                    if self._random.random() < HELD_LONG:
                        await asyncio.sleep(self._random.uniform(*HELD_LONG_SECONDS))
                    if self._random.random() < LOSS:
                        return
                    writer.write(answer)
                    await writer.drain()
        finally:
            writer.transport.abort()
            self._open.discard(writer)
            if node is not None:
                node[1].transport.abort()

    async def _hold(self) -> None:
        await asyncio.sleep(self._random.uniform(0, HELD_SECONDS_MAX))


async def _read_message(reader: asyncio.StreamReader) -> bytes:
    """A request or an answer with a Content-Length, or without a body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    return head + await reader.readexactly(length)
