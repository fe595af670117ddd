"""Batches are done exactly once and in order whatever the nodes do; an export that was cut is said to be."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import pytest

from raftkv.client import BadRequest, Client, LineResult, OutcomeUnknown, StreamCut, Unavailable
from tests.unit.fake_node import FakeNode, Reply, problem, redirect


@dataclass
class Store:
    """What two nodes of one cluster share: lines done, in order, each once per idempotency key."""

    done: list[str] = field(default_factory=list)
    outcomes: dict[str, int] = field(default_factory=dict)

    def do(self, line: dict[str, str]) -> dict[str, object]:
        key = line["idempotency_key"]
        if key not in self.outcomes:
            self.done.append(line["value"])
            self.outcomes[key] = len(self.done)
            return {"status": 201, "revision": len(self.done)}
        return {"status": 201, "revision": self.outcomes[key], "replayed": True}


NO_LEADER = {"status": 503, "code": "no_leader", "outcome": "not_applied", "retryable": True, "detail": ""}
TIMED_OUT = {"status": 504, "code": "commit_timeout", "outcome": "unknown", "retryable": True, "detail": ""}
TOO_LARGE = {
    "status": 413,
    "code": "value_too_large",
    "outcome": "not_applied",
    "retryable": False,
    "detail": "",
}


@dataclass(frozen=True)
class Stream:
    """How one stream goes: it is cut after `answers`, when `extra` more lines were done; or line number
    `at` is answered with `answer`, having been done where `done` is set."""

    cut_after: int | None = None
    extra: int = 0
    at: int | None = None
    answer: dict[str, object] = field(default_factory=dict)
    done: bool = False


class BatchNode:
    """Streams of a batch, each gone through as scripted; the last word repeats."""

    def __init__(self, store: Store, *script: Stream) -> None:
        self.store = store
        self.script = list(script)
        self.streams = 0
        self._server: asyncio.Server | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.streams += 1
        stream = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"POST /v1/batch HTTP/1.1\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            await self._answer(stream, _lines(reader), writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    async def _answer(
        self, stream: Stream, lines: AsyncIterator[bytes], writer: asyncio.StreamWriter
    ) -> None:
        number = 0
        async for text in lines:
            number += 1
            line = json.loads(text)
            if stream.cut_after is not None and number > stream.cut_after:
                if number > stream.cut_after + stream.extra:
                    return
                self.store.do(line)
                continue
            if number == stream.at:
                if stream.done:
                    self.store.do(line)
                answer: dict[str, object] = stream.answer
            else:
                answer = self.store.do(line)
            body = json.dumps(answer).encode() + b"\n"
            writer.write(b"%x\r\n%b\r\n" % (len(body), body))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0)


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The lines of a chunked request body, as they come."""
    rest = b""
    while size := int(await reader.readline(), 16):
        *lines, rest = (rest + await reader.readexactly(size)).split(b"\n")
        await reader.readexactly(2)
        for line in lines:
            yield line
    await reader.readline()


def operations(count: int, *, keys: int | None = None) -> list[dict[str, str]]:
    """`value` is the line's number; `keys` different keys, as many as lines by default."""
    return [{"op": "put", "key": f"k{n % (keys or count)}", "value": str(n)} for n in range(count)]


async def run(url: str, lines: list[dict[str, str]]) -> list[LineResult]:
    results: list[LineResult] = []
    async with Client(url) as client, asyncio.timeout(30):
        await client.batch(lines, results.append)
    return results


async def test_every_line_gets_its_result_in_order() -> None:
    store = Store()
    async with BatchNode(store, Stream()) as node:
        results = await run(node.url, operations(2000))
    assert [result.number for result in results] == list(range(1, 2001))
    assert all(result.error is None for result in results)
    assert store.done == [str(n) for n in range(2000)]
    assert node.streams == 1


@pytest.mark.parametrize("extra", [0, 7, 200])
async def test_a_stream_that_breaks_is_taken_up_again_without_doubling(extra: int) -> None:
    """`extra` lines were done and their answers lost."""
    store = Store()
    script = [Stream(cut_after=50, extra=extra), Stream(cut_after=1, extra=3), Stream()]
    async with BatchNode(store, *script) as node:
        results = await run(node.url, operations(1000))
    assert sorted(result.number for result in results) == list(range(1, 1001))
    assert all(result.error is None for result in results)
    assert store.done == [str(n) for n in range(1000)]
    assert node.streams == 3


@pytest.mark.parametrize(("answer", "done"), [(NO_LEADER, False), (TIMED_OUT, False), (TIMED_OUT, True)])
async def test_a_line_that_may_be_tried_again_is(answer: dict[str, object], done: bool) -> None:
    store = Store()
    async with BatchNode(store, Stream(at=10, answer=answer, done=done), Stream()) as node:
        results = await run(node.url, operations(1000))
    assert all(result.error is None for result in results)
    assert sorted(store.done, key=int) == [str(n) for n in range(1000)]
    assert len(results) == 1000


async def test_writes_of_one_key_keep_their_order_when_one_is_tried_again() -> None:
    """Line 10 is refused while the lines behind it are done: those of its key must not be among them."""
    store = Store()
    async with BatchNode(store, Stream(at=10, answer=NO_LEADER), Stream()) as node:
        await run(node.url, operations(400, keys=8))
    for key in range(8):
        of_key = [int(value) for value in store.done if int(value) % 8 == key]
        assert of_key == sorted(of_key)
    assert len(store.done) == 400


async def test_a_refused_line_is_told_and_the_rest_goes_on() -> None:
    store = Store()
    async with BatchNode(store, Stream(at=10, answer=TOO_LARGE)) as node:
        results = await run(node.url, operations(100))
    refused = [result for result in results if result.error is not None]
    assert [result.number for result in refused] == [10]
    assert isinstance(refused[0].error, BadRequest)
    assert len(store.done) == 99


async def test_the_stream_goes_to_the_leader() -> None:
    store = Store()
    async with BatchNode(store, Stream()) as leader, FakeNode(redirect(leader.url)) as follower:
        results = await run(follower.url, operations(10))
    assert len(results) == 10
    assert len(store.done) == 10


async def test_a_cluster_that_is_away_ends_in_a_result_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftkv.client.bulk.LINE_SECONDS_MAX", 0.3)
    away = problem(503, "no_leader", retryable=True)
    async with FakeNode(away) as node:
        results = await run(node.url, operations(3))
    assert [type(result.error) for result in results] == [Unavailable] * 3
    async with BatchNode(Store(), Stream(cut_after=0)) as node_that_drops:
        results = await run(node_that_drops.url, operations(3))
    assert [type(result.error) for result in results] == [OutcomeUnknown] * 3


async def test_what_on_result_raises_ends_the_batch() -> None:
    class Enough(Exception):
        pass

    def refuse(result: LineResult) -> None:
        raise Enough

    async with BatchNode(Store(), Stream()) as node, Client(node.url) as client:
        with pytest.raises(Enough):
            await client.batch(operations(10), refuse)


async def test_what_the_source_raises_comes_after_the_lines_before_it() -> None:
    async def source() -> AsyncIterator[dict[str, str]]:
        for operation in operations(5):
            yield operation
        raise RuntimeError("the file is broken")

    store = Store()
    results: list[LineResult] = []
    async with BatchNode(store, Stream()) as node, Client(node.url) as client:
        with pytest.raises(RuntimeError, match="the file is broken"):
            await client.batch(source(), results.append)
    assert len(store.done) == len(results) == 5


# --- export --------------------------------------------------------------------------------------------


def exported(count: int, /, **wrong: object) -> bytes:
    lines = b"".join(
        b'{"key":"k%d","value":"v","content_type":"t","create_revision":1,"mod_revision":1,"version":1}\n' % n
        for n in range(count)
    )
    end = {"_end": True, "count": count, "revision": 9, "sha256": hashlib.sha256(lines).hexdigest(), **wrong}
    return lines + json.dumps(end, separators=(",", ":")).encode() + b"\n"


async def test_a_whole_export_is_given_line_by_line_and_item_by_item() -> None:
    async with FakeNode(Reply(200, exported(3000))) as node, Client(node.url) as client:
        lines = [line async for line in client.export_lines("k")]
        assert b"".join(lines) == exported(3000)
        assert node.requests[0].target == "/v1/export?prefix=k"
        assert [item.key async for item in client.export("k")] == [f"k{n}" for n in range(3000)]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        exported(10).rsplit(b"\n", 2)[0] + b"\n",
        exported(10)[:-2],
        exported(10)[:100],
        exported(10, count=9),
        exported(10, sha256="0" * 64),
        exported(10).replace(b'"k3"', b'"k4"'),
        b'{"_end":true}\n',
    ],
)
async def test_an_export_that_is_not_whole_is_said_to_be_cut(body: bytes) -> None:
    async with FakeNode(Reply(200, body)) as node, Client(node.url) as client:
        with pytest.raises(StreamCut):
            async for _ in client.export_lines():
                pass


async def test_an_export_waits_for_its_turn() -> None:
    busy = problem(429, "overloaded", retryable=True, Retry_After=0)
    async with FakeNode(busy, busy, Reply(200, exported(1))) as node, Client(node.url) as client:
        assert len([line async for line in client.export_lines()]) == 2
