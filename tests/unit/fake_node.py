"""A scripted HTTP server on a real socket: each request is answered by the next word of a script.

It stands in for a node that misbehaves on demand, which a real one does not: a connection dropped after
the request was read, an answer that never comes, a redirect in a circle.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    connection: int  # counts the connections that the node has taken

    @property
    def idempotency_key(self) -> str | None:
        return self.headers.get("idempotency-key")


@dataclass(frozen=True)
class Reply:
    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Drop:
    """Reads the request and closes the connection without an answer."""


@dataclass(frozen=True)
class Silence:
    """Reads the request and never answers."""


Word = Reply | Drop | Silence
Script = list[Word | Callable[[Request], Word]]


def problem(
    status: int, code: str, *, outcome: str = "not_applied", retryable: bool = False, **more: object
) -> Reply:
    document = {
        "status": status,
        "code": code,
        "detail": "said so",
        "outcome": outcome,
        "retryable": retryable,
    }
    headers = {"Content-Type": "application/problem+json", "Request-Id": "r1"}
    headers |= {str(name).replace("_", "-"): str(value) for name, value in more.items()}
    return Reply(status, json.dumps(document).encode(), headers)


def written(revision: int = 1, status: int = 201, **headers: str) -> Reply:
    return Reply(status, json.dumps({"revision": revision}).encode(), headers)


def redirect(url: str) -> Reply:
    return Reply(307, b"", {"Location": url + "/v1/kv/k", "Raftkv-Leader": url})


class FakeNode:
    """`requests` are those it has read, in order. The script's last word repeats."""

    def __init__(self, *script: Word | Callable[[Request], Word]) -> None:
        self.script: Script = list(script)
        self.requests: list[Request] = []
        self.connections = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Connections are refused from here on."""
        if self._server is None:
            return
        self._server.close()
        for writer in list(self._open):
            writer.transport.abort()
        self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        self._open.add(writer)
        try:
            while (request := await _read_request(reader, number)) is not None:
                self.requests.append(request)
                if not await self._answer(request, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        word = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if not isinstance(word, Reply | Drop | Silence):
            word = word(request)
        match word:
            case Drop():
                return False
            case Silence():
                await asyncio.Event().wait()
                return False
            case Reply(status, body, headers):
                lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}"]
                lines += [f"{name}: {value}" for name, value in headers.items()]
                writer.write("\r\n".join([*lines, "", ""]).encode() + body)
                await writer.drain()
        return (
            "transfer-encoding" not in request.headers
        )  # a streamed body is not read: nothing can follow it


async def _read_request(reader: asyncio.StreamReader, connection: int) -> Request | None:
    line = await reader.readline()
    if not line:
        return None
    method, target, _ = line.decode().split()
    headers: dict[str, str] = {}
    while (line := await reader.readline()) not in (b"\r\n", b""):
        name, _, value = line.decode().partition(":")
        headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, target, headers, body, connection)
