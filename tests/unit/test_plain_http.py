"""The client of the recorded histories: one request for one call, and the truth about what was sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from cluster.plain_http import Connection, NoAnswer, NotSent

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[Connection]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    connection = Connection(server.sockets[0].getsockname()[:2])
    async with server:
        yield connection
        connection.close()


async def test_a_whole_request_and_a_whole_answer_twice_on_one_connection() -> None:
    heads: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            await reader.readexactly(5)
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            writer.write(b'HTTP/1.1 201 Created\r\nETag: "7"\r\nContent-Length: 2\r\n\r\n{}')
        await reader.read()

    async with serving(handler) as connection:
        for _ in range(2):
            answer = await connection.request("PUT", "/v1/kv/a", {"X": "y"}, b"hello", timeout_s=5)
            assert (answer.status, answer.headers["etag"], answer.body) == (201, '"7"', b"{}")
    assert len(heads) == 2
    first, *lines = heads[0].decode().split("\r\n")
    assert first == "PUT /v1/kv/a HTTP/1.1"
    assert {"X: y", "Content-Length: 5"} <= set(lines)


async def test_chunked_and_empty_answers() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 304 Not Modified\r\n\r\n")
        await reader.read()

    async with serving(handler) as connection:
        assert (await connection.request("GET", "/", timeout_s=5)).body == b"abcd"
        assert (await connection.request("GET", "/", timeout_s=5)).status == 304


async def test_a_closed_port_means_not_sent() -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    address = server.sockets[0].getsockname()[:2]
    server.close()
    await server.wait_closed()
    with pytest.raises(NotSent):
        await Connection(address).request("PUT", "/", timeout_s=5)


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", b"nonsense\r\n\r\n"]
)
async def test_an_answer_cut_short_means_no_answer_and_no_second_request(answer: bytes) -> None:
    requests = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        await reader.readuntil(b"\r\n\r\n")
        requests += 1
        writer.write(answer)

    async with serving(handler) as connection:
        with pytest.raises(NoAnswer):
            await connection.request("PUT", "/", timeout_s=5)
    assert requests == 1


async def test_silence_means_no_answer_and_the_connection_is_not_used_again() -> None:
    """A late answer must not be taken for the answer to the next request."""
    connections = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        if connections == 2:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond")
        await reader.read()

    async with serving(handler) as connection:
        with pytest.raises(NoAnswer):
            await connection.request("PUT", "/", timeout_s=0.05)
        assert (await connection.request("PUT", "/", timeout_s=5)).body == b"second"


async def test_a_kept_connection_that_the_server_closed_is_replaced() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with serving(handler) as connection:
        await connection.request("PUT", "/", timeout_s=5)
        async with asyncio.timeout(5):
            while not connection.stale:  # noqa: ASYNC110 - no event tells of it
                await asyncio.sleep(0)
        assert (await connection.request("PUT", "/", timeout_s=5)).status == 200
