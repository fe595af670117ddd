"""The port that shakes hands: how many sockets it lets be open, whatever becomes of them."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest

from raftkv.tls.credentials import client_context
from raftkv.tls.port import SecurePort, open_port
from tests.certificates import Certificates
from tests.unit.raft_port import LOOPS, run, until

pytestmark = pytest.mark.parametrize("loop", list(LOOPS))

CONNECTIONS_MAX = 10

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


def opened(certificates: Certificates) -> SecurePort:
    return open_port(
        "127.0.0.1",
        0,
        certificates.api(),
        Echo,
        backlog=100,
        handshake_seconds_max=5,
        shaking_max=CONNECTIONS_MAX,
        connections_max=CONNECTIONS_MAX,
    )


def standing(port: SecurePort) -> int:
    """Sockets that are open."""
    return sum(each.fileno() >= 0 for each in port._open)


async def echoed(port: SecurePort, tls: ssl.SSLContext) -> Streams:
    """A connection that has got an answer. Raises OSError where it got none."""
    reader, writer = await asyncio.open_connection(*port.address, ssl=tls)
    writer.write(b"x")
    if await reader.read(1) != b"x":
        raise ConnectionResetError
    return reader, writer


async def close(streams: Streams) -> None:
    streams[1].close()
    with suppress(OSError):
        await streams[1].wait_closed()


def test_connections_that_have_closed_leave_room_however_they_ended(
    loop: str, certificates: Certificates
) -> None:
    async def main() -> None:
        port, tls = opened(certificates), client_context(certificates.ca)
        for _ in range(3 * CONNECTIONS_MAX):
            await close(await echoed(port, tls))
            plain = await asyncio.open_connection(*port.address)
            plain[1].write(b"GET / HTTP/1.1\r\n\r\n")
            assert await plain[0].read() == b""
            await close(plain)
            await until(lambda: standing(port) == 0)
        port.close()

    run(loop, main())


def test_beyond_the_bound_nobody_gets_in_until_one_has_gone(loop: str, certificates: Certificates) -> None:
    async def main() -> None:
        port, tls = opened(certificates), client_context(certificates.ca)
        held = [await echoed(port, tls) for _ in range(CONNECTIONS_MAX)]
        assert (standing(port), port.shaking) == (CONNECTIONS_MAX, 0)
        with pytest.raises(OSError):  # noqa: PT011  # a reset, or an end in the handshake
            await echoed(port, tls)
        await close(held.pop())
        await until(lambda: standing(port) == CONNECTIONS_MAX - 1)
        held.append(await echoed(port, tls))
        for each in held:
            await close(each)
        port.close()

    run(loop, main())
