"""HTTP as bytes on a socket: for requests that no HTTP library would send, and answers read strictly."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

DEADLINE_S = 20.0


@dataclass(frozen=True)
class Reply:
    """Header names in lower case; `continued`: a 100 came first; `ended`: its body came whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    continued: bool = False
    ended: bool = True

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]


@dataclass
class Connection:
    """One connection; use it with `async with`."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None
    reader: asyncio.StreamReader = field(init=False)
    writer: asyncio.StreamWriter = field(init=False)

    async def __aenter__(self) -> Connection:
        self.reader, self.writer = await asyncio.open_connection(
            self.host, self.port, limit=1 << 24, ssl=self.tls
        )
        return self

    async def __aexit__(self, *failure: object) -> None:
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def end(self) -> None:
        """Nothing more will be sent. Over TLS asyncio can't say so and go on reading."""
        if self.tls is not None:
            pytest.skip("no half-closed connections over TLS")
        self.writer.write_eof()

    async def reply(self, method: str = "GET") -> Reply:
        async with asyncio.timeout(DEADLINE_S):
            status, headers = await self._head()
            continued = status == 100
            if continued:
                status, headers = await self._head()
            body, ended = await self._body(method, status, headers)
            return Reply(status, headers, body, continued, ended)

    async def closed(self) -> bool:
        """Waits for the other side to close, reading away what comes."""
        async with asyncio.timeout(DEADLINE_S):
            with suppress(ConnectionError):
                await self.reader.read()
            return True

    async def _head(self) -> tuple[int, dict[str, str]]:
        first = (await self.reader.readuntil(b"\r\n")).decode("latin-1").rstrip("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version == "HTTP/1.1"
        headers: dict[str, str] = {}
        while (line := await self.reader.readuntil(b"\r\n")) != b"\r\n":
            name, colon, value = line.decode("latin-1").partition(":")
            assert colon, line
            name = name.lower()
            assert name not in headers, f"{name} stands there twice"
            headers[name] = value.strip()
        return int(status), headers

    async def _body(self, method: str, status: int, headers: Mapping[str, str]) -> tuple[bytes, bool]:
        if method == "HEAD" or status in (204, 304):
            return b"", True
        if headers.get("transfer-encoding") == "chunked":
            return await self._chunks()
        return await self.reader.readexactly(int(headers["content-length"])), True

    async def _chunks(self) -> tuple[bytes, bool]:
        body = b""
        try:
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                body += await self.reader.readexactly(size)
                assert await self.reader.readexactly(2) == b"\r\n"
            await self.reader.readuntil(b"\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return body, False
        return body, True


def request(
    method: str,
    target: str | bytes,
    headers: Sequence[tuple[str, str]] = (),
    body: bytes | None = None,
    *,
    length: bool = True,
) -> bytes:
    """The bytes of a request with Host, and Content-Length where there is a body."""
    raw_target = target.encode() if isinstance(target, str) else target
    lines = [method.encode() + b" " + raw_target + b" HTTP/1.1", b"Host: test"]
    lines += [f"{name}: {value}".encode("latin-1") for name, value in headers]
    if body is not None and length:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + (body or b"")


@dataclass(frozen=True)
class Http:
    """Requests to one node, each on a connection of its own. `headers` go with every one of them."""

    host: str
    port: int
    headers: tuple[tuple[str, str], ...] = ()
    tls: ssl.SSLContext | None = None

    def connect(self) -> Connection:
        return Connection(self.host, self.port, self.tls)

    async def raw(self, data: bytes, *, method: str = "GET", half_close: bool = False) -> Reply:
        async with self.connect() as connection:
            connection.send(data)
            if half_close:
                connection.end()
            return await connection.reply(method)

    async def __call__(
        self,
        method: str,
        target: str | bytes,
        body: bytes | None = None,
        headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    ) -> Reply:
        pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
        return await self.raw(request(method, target, [*self.headers, *pairs], body), method=method)
