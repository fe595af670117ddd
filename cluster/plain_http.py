"""A minimal HTTP/1.1 client that never repeats a request and says whether it was sent.

Libraries repeat a PUT behind the caller's back when a kept-alive connection drops; a recorded history can't
have that. Here one call is one request, and it ends in exactly one of: an `Answer`; `NotSent`, the server
can't have seen it; `NoAnswer`, it may have been seen, and whatever it asked for may have happened.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

Address = tuple[str, int]

HEAD_BYTES_MAX = 64 * 1024  # of an answer; our nodes send a few hundred


class NotSent(Exception):
    """Not a byte of the request reached the server."""


class NoAnswer(Exception):
    """The request was sent, at least in part, and no whole answer came back."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`headers` by lower-case name; of a repeated one, the last."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """To one server, opened when it is needed and kept while it is good. One request at a time."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        *,
        timeout_s: float,
    ) -> Answer:
        """`target` is percent-encoded already. Raises NotSent or NoAnswer; the connection is closed then."""
        sent = False
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await self._open()
                sent = True
                writer.write(self._encode(method, target, headers or {}, body))
                await writer.drain()
                answer, keep = await _read_answer(reader)
        except (OSError, TimeoutError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            self.close()
            kind = NoAnswer if sent else NotSent
            raise kind(f"{method} {target} at {self._address[0]}:{self._address[1]}: {error!r}") from error
        except asyncio.CancelledError:
            self.close()
            raise
        if not keep:
            self.close()
        return answer

    @property
    def stale(self) -> bool:
        """The server closed a kept connection."""
        return self._streams is not None and self._streams[0].at_eof()

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.stale:
            self.close()  # nothing of this request was sent there
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address, limit=HEAD_BYTES_MAX)
        return self._streams

    def _encode(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> bytes:
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self._address[0]}:{self._address[1]}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body or method in ("PUT", "POST"):
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join([*lines, "", ""]).encode() + body


async def _read_answer(reader: asyncio.StreamReader) -> tuple[Answer, bool]:
    """The answer, and whether the connection can be used again."""
    status, headers = await _read_head(reader)
    while 100 <= status < 200:
        status, headers = await _read_head(reader)
    if status in (204, 304):
        body = b""
    elif headers.get("transfer-encoding", "").lower() == "chunked":
        body = await _read_chunks(reader)
    else:
        body = await reader.readexactly(int(headers["content-length"]))
    return Answer(status, headers, body), headers.get("connection", "").lower() != "close"


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    version, status, *_ = first.split(" ", 2)
    if version != "HTTP/1.1":
        raise ValueError(f"answer begins with {first!r}")
    if "content-length" not in headers and "transfer-encoding" not in headers:
        headers["content-length"] = "0"
    return int(status), headers


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    parts: list[bytes] = []
    while True:
        line = await reader.readuntil(b"\r\n")
        length = int(line.split(b";")[0], 16)
        part = await reader.readexactly(length + 2)
        if length == 0:
            return b"".join(parts)
        parts.append(part[:-2])
