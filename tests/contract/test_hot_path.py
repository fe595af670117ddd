# ruff: noqa: E501  # tables: one case a line where it fits

"""The hot path and the cold one are one API: each request here is sent to a node with both and to a node with
the cold one alone, and the answers are the same byte for byte, but for the date and the request's id."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

import pytest

from raftkv.api import hot
from raftkv.api.app import Listener
from raftkv.api.limits import Limits
from raftkv.errors import CommitTimeout, LeaderChanged, NoLeader, NotLeader, Overloaded, RaftkvError
from raftkv.kv.command import Append, Put
from tests.contract import test_bad_requests
from tests.contract.conftest import Node, start_node
from tests.contract.plain import DEADLINE_S, Connection, request

_VOLATILE = re.compile(rb'(?m)(^Date: |^Request-Id: |"request_id":")[^"\r]*')


@dataclass(frozen=True)
class Sent:
    """What a client sends on one connection; `hot`: that the hot path answers it."""

    what: str
    data: bytes
    method: str = "GET"
    hot: bool = True
    half_close: bool = False


def sent(
    what: str,
    method: str,
    target: str,
    headers: Sequence[tuple[str, str]] = (),
    body: bytes | None = None,
    *,
    hot: bool = True,
) -> Sent:
    return Sent(what, request(method, target, headers, body), method, hot)


def key(method: str, name: str, value: str, body: bytes | None = None, *, hot: bool = True) -> Sent:
    return sent(f"{method} with {name}: {value}", method, "/v1/kv/a", [(name, value)], body, hot=hot)


# The store: `a` is "first" and then "value" (revision 2), `text` is HTML, `bytes` is not UTF-8.
STORE = [
    Put(b"a", b"first"),
    Put(b"a", b"value"),
    Put(b"text", b"<p>", "text/html; charset=utf-8"),
    Put(b"bytes", b"\xff\x00"),
    Append(b"d/e f", b"", 100),
]

SAME = [
    sent("a read", "GET", "/v1/kv/a"),
    sent("a head", "HEAD", "/v1/kv/a"),
    sent("a read of what is not there", "GET", "/v1/kv/absent"),
    sent("a head of what is not there", "HEAD", "/v1/kv/absent"),
    sent("a read of a type that browsers run", "GET", "/v1/kv/text"),
    sent("a read of bytes", "GET", "/v1/kv/bytes"),
    sent("a read of nothing", "GET", "/v1/kv/d/e%20f"),
    sent("a plus in a key", "GET", "/v1/kv/d/e+f"),
    sent("dots and slashes", "GET", "/v1/kv/..//./a"),
    sent("a stale read", "GET", "/v1/kv/a?consistency=stale"),
    sent("a stale read of what is not there", "GET", "/v1/kv/absent?consistency=stale"),
    sent("a stale read within a bound", "GET", "/v1/kv/a?consistency=stale&max_staleness_ms=100"),
    sent("an envelope", "GET", "/v1/kv/a?format=json"),
    sent("an envelope of bytes", "GET", "/v1/kv/bytes?format=json&consistency=stale"),
    sent("a head of an envelope", "HEAD", "/v1/kv/a?format=json"),
    sent("a read with a deadline", "GET", "/v1/kv/a?timeout=500ms"),
    sent("a read of a revision that is here", "GET", "/v1/kv/a?min_revision=2"),
    sent("a question mark and nothing", "GET", "/v1/kv/a?"),
    sent("a doubled ampersand", "GET", "/v1/kv/a?&&timeout=1"),
    key("GET", "If-None-Match", '"2"'),
    key("HEAD", "If-None-Match", '"2"'),
    key("GET", "If-None-Match", '"1"'),
    key("GET", "If-None-Match", 'W/"2", "x"'),
    key("GET", "If-None-Match", "*"),
    key("GET", "If-Match", '"2"'),
    key("GET", "If-Match", '"7"'),
    key("GET", "If-Match", '"7", "2"', hot=False),
    key("GET", "Request-Id", "mine"),
    key("GET", "Accept", "text/plain"),
    key("GET", "raftkv-route", "local"),
    key("GET", "Cookie", "x=1; y=2"),
    key("GET", "X-Empty", ""),
    sent("a length of nothing", "GET", "/v1/kv/a", [("Content-Length", "0")]),
    sent("a put", "PUT", "/v1/kv/b", [], b"value"),
    sent("a put of nothing", "PUT", "/v1/kv/b", [], b""),
    sent("a put without a length", "PUT", "/v1/kv/b"),
    sent("a put over another", "PUT", "/v1/kv/a", [], b"third"),
    sent("a put that tells the one before", "PUT", "/v1/kv/a?prev=true", [], b"third"),
    sent("a put with a type", "PUT", "/v1/kv/a", [("Content-Type", "text/plain;charset=utf-8")], b"third"),
    sent("a put as curl types it", "PUT", "/v1/kv/a", [("Content-Type", "application/x-www-form-urlencoded")], b"x"),
    sent("a put over a revision", "PUT", "/v1/kv/a?if_revision=2", [], b"third"),
    sent("a put over a wrong revision", "PUT", "/v1/kv/a?if_revision=1", [], b"third"),
    key("PUT", "If-Match", '"2"', b"third"),
    key("PUT", "If-Match", '"1"', b"third"),
    key("PUT", "If-Match", '"1", "2"', b"third", hot=False),
    key("PUT", "If-Match", "*", b"third"),
    key("PUT", "If-None-Match", "*", b"third"),
    key("PUT", "Idempotency-Key", "k", b"third"),
    key("PUT", "Idempotency-Key", "client/1", b"third"),
    key("PUT", "Raftkv-Route", "forward", b"third"),
    key("PUT", "Content-Encoding", "identity", b"third", hot=False),
    key("PUT", "Expect", "100-continue", b"third", hot=False),
    key("PUT", "Connection", "keep-alive", b"third"),
    key("PUT", "Connection", "close", b"third", hot=False),
    sent("a delete", "DELETE", "/v1/kv/a"),
    sent("a delete of what is not there", "DELETE", "/v1/kv/absent"),
    sent("a delete that tells", "DELETE", "/v1/kv/a?prev"),
    key("DELETE", "If-Match", '"1"'),
    sent("a value as large as it may be", "PUT", "/v1/kv/a", [], b"v" * (1 << 20), hot=False),
    sent("a value that is not small", "PUT", "/v1/kv/a", [], b"v" * 40_000),
    sent("a key as long as it may be", "PUT", "/v1/kv/" + "k" * 4096, [], b"v"),
    sent("a key that is too long", "PUT", "/v1/kv/" + "k" * 4097, [], b"v", hot=False),
    sent("a key by query", "GET", "/v1/kv?key=a", hot=False),
    sent("a list", "GET", "/v1/kv?prefix=a", hot=False),
    sent("an append", "POST", "/v1/kv/a?op=append", [], b"x", hot=False),
    sent("a status", "GET", "/livez", hot=False),
    sent("the absolute form", "GET", "http://elsewhere/v1/kv/a", hot=False),
    Sent("an older version", b"GET /v1/kv/a HTTP/1.0\r\n\r\n", hot=False),
    Sent("an older version that goes on", b"GET /v1/kv/a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", hot=False),
    Sent("chunks", request("PUT", "/v1/kv/a", [("Transfer-Encoding", "chunked")]) + b"1\r\nx\r\n0\r\n\r\n", hot=False),
    Sent("an empty line before", b"\r\n" + request("GET", "/v1/kv/a"), hot=False),
    Sent("an end behind it", request("GET", "/v1/kv/a"), half_close=True),
    Sent("an end behind a put", request("PUT", "/v1/kv/a", [], b"v"), "PUT", half_close=True),
    Sent("two lengths", b"PUT /v1/kv/a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\ncontent-length: 1\r\n\r\nx", hot=False),
    Sent("two lengths in one", b"PUT /v1/kv/a HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\nx", hot=False),
    Sent("a length with a sign", b"PUT /v1/kv/a HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx", hot=False),
    Sent("a length with zeros before", b"PUT /v1/kv/a HTTP/1.1\r\nHost: a\r\nContent-Length: 01\r\n\r\nx", hot=False),
    Sent("a length in hexadecimal", b"PUT /v1/kv/a HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\nx", hot=False),
    Sent("an empty Host", b"GET /v1/kv/a HTTP/1.1\r\nHost:\r\n\r\n", hot=False),
    Sent("a Host that is none", b"GET /v1/kv/a HTTP/1.1\r\nHost: a b\r\n\r\n", hot=False),
    Sent("a Host of IPv6", b"GET /v1/kv/a HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", hot=False),
    Sent("a lone carriage return", b"GET /v1/kv/a HTTP/1.1\r\nHost: a\rb: c\r\n\r\n", hot=False),
    Sent("a lone line feed in headers", b"GET /v1/kv/a HTTP/1.1\r\nHost: a\nb: c\r\n\r\n", hot=False),
    Sent("a tab for a space", b"GET\t/v1/kv/a\tHTTP/1.1\r\nHost: a\r\n\r\n", hot=False),
    Sent("two spaces", b"GET  /v1/kv/a HTTP/1.1\r\nHost: a\r\n\r\n", hot=False),
    Sent("a name in lower case", b"get /v1/kv/a HTTP/1.1\r\nHost: a\r\n\r\n", hot=False),
    Sent("a fragment", b"GET /v1/kv/a#b HTTP/1.1\r\nHost: a\r\n\r\n", hot=False),
    Sent("UTF-8 as it stands", "GET /v1/kv/é HTTP/1.1\r\nHost: a\r\n\r\n".encode(), hot=False),
]  # fmt: skip

BROKEN = [Sent(case.what, case.raw, case.method, False, case.half_close) for case in test_bad_requests.ALL]


@pytest.fixture
async def both() -> AsyncIterator[tuple[Node, Node]]:
    """A node with the hot path and one without, in the same state."""
    nodes = (await start_node(Limits()), await start_node(Limits(), hot_path=False))
    for node in nodes:
        for index, command in enumerate(STORE, 1):
            node.consensus.machine.apply(index, 0, command)
    yield nodes
    for node in nodes:
        await node.api.close()


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows by one with every connection that the cold path takes."""
    made: list[object] = []
    cold = Listener.cold

    def count(listener: Listener, head_began: float | None = None) -> object:
        made.append(listener)
        return cold(listener, head_began)

    monkeypatch.setattr(Listener, "cold", count)
    return made


async def raw_reply(connection: Connection, method: str) -> bytes:
    """The bytes of an answer, but for what no two answers share."""
    async with asyncio.timeout(DEADLINE_S):
        head = await connection.reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 100 "):
            head += await connection.reader.readuntil(b"\r\n\r\n")
        length = re.findall(rb"(?mi)^Content-Length: (\d+)", head)
        body = b""
        if length and method != "HEAD" and b" 304 " not in head:
            body = await connection.reader.readexactly(int(length[-1]))
        return _VOLATILE.sub(rb"\1*", head + body)


async def conversation(node: Node, case: Sent, handed_over: list[object]) -> tuple[list[bytes], bool]:
    """The answer to the case, and to a plain read behind it where the connection goes on; and whether the
    hot path still had the connection after the first."""
    handed_over.clear()
    async with node.http.connect() as connection:
        connection.send(case.data)
        if case.half_close:
            connection.writer.write_eof()
        replies = [await raw_reply(connection, case.method)]
        hot_answered = not handed_over
        if case.half_close:  # whether its end or its answer was first is a matter of luck
            replies[0] = replies[0].replace(b"Connection: close\r\n", b"")
            return replies, hot_answered
        if b"Connection: close" in replies[0] or b"HTTP/1.0" in case.data:
            return replies, hot_answered
        if b" 413 " in replies[0] or b"Content-Length: 1000\r\n" in case.data:
            return replies, hot_answered  # the rest of its body would be in the way
        connection.send(request("GET", "/v1/kv/a"))
        replies.append(await raw_reply(connection, "GET"))
        return replies, hot_answered


@pytest.mark.parametrize("case", [*SAME, *BROKEN], ids=lambda case: case.what)
async def test_both_paths_give_the_same_answer(
    both: tuple[Node, Node], case: Sent, handed_over: list[object]
) -> None:
    with_hot, cold = both
    expected, was_hot = await conversation(cold, case, handed_over)
    assert not was_hot
    answers, was_hot = await conversation(with_hot, case, handed_over)
    assert answers == expected
    assert was_hot == case.hot
    assert with_hot.consensus.proposed == cold.consensus.proposed
    assert with_hot.service.machine.state_hash == cold.service.machine.state_hash


def prepare(node: Node, error: RaftkvError | str) -> None:
    match error:
        case "follows":
            node.consensus.follow("n2", "http://127.0.0.1:1")
        case "no leader":
            node.consensus.follow(None, None)
        case "drains":
            node.service.drain()
        case "stale":
            node.consensus.staleness = 5_000.0
        case RaftkvError():
            node.consensus.propose_error = error
            node.consensus.read_error = error


@pytest.mark.parametrize(
    "error",
    [
        "follows",
        "no leader",
        "drains",
        "stale",
        CommitTimeout("late"),
        LeaderChanged("moved"),
        NoLeader("lost"),
        Overloaded("full"),
        NotLeader("n2 leads", leader="n2", leader_url="http://127.0.0.1:1"),
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    "case",
    [
        sent("a read", "GET", "/v1/kv/a"),
        sent("a head", "HEAD", "/v1/kv/a"),
        sent("a stale read", "GET", "/v1/kv/a?consistency=stale&max_staleness_ms=100"),
        sent("a put", "PUT", "/v1/kv/a?timeout=2s&prev", [], b"v"),
        sent("a put to this node alone", "PUT", "/v1/kv/a", [("Raftkv-Route", "local")], b"v"),
        sent("a put that was passed on", "PUT", "/v1/kv/a", [("Raftkv-Forwarded-By", "n3")], b"v"),
        sent("a delete", "DELETE", "/v1/kv/a%2fb?timeout=2s"),
    ],
    ids=lambda case: case.what,
)
async def test_both_paths_refuse_alike(
    both: tuple[Node, Node], case: Sent, error: RaftkvError | str, handed_over: list[object]
) -> None:
    for node in both:
        prepare(node, error)
    expected, _ = await conversation(both[1], case, handed_over)
    answers, was_hot = await conversation(both[0], case, handed_over)
    assert answers == expected
    assert was_hot


async def test_a_keyed_write_is_replayed_alike(both: tuple[Node, Node]) -> None:
    case = request("PUT", "/v1/kv/a", [("Idempotency-Key", "k")], b"v")
    other = request("PUT", "/v1/kv/a", [("Idempotency-Key", "k")], b"w")
    told = []
    for node in both:
        async with node.http.connect() as connection:
            replies = []
            for data in (case, case, other):
                connection.send(data)
                replies.append(await raw_reply(connection, "PUT"))
            told.append(replies)
    assert told[0] == told[1]
    assert b"Raftkv-Replayed: true" in told[0][1]
    assert b" 422 " in told[0][2]


# --- the order of things ---------------------------------------------------------------------------------


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    made = await start_node(Limits())
    yield made
    await made.api.close()


async def test_pipelined_requests_are_answered_in_their_order(node: Node) -> None:
    """Reads behind writes see them, and writes behind reads are not seen by these; also beyond the number
    that goes on at once, and across the cold path."""
    async with node.http.connect() as connection:
        data = b""
        for number in range(200):
            data += request("PUT", "/v1/kv/a", [], b"%d" % number)
            data += request("GET", "/v1/kv/a")
            data += request("GET", "/v1/kv/a?consistency=stale")
        connection.send(data)
        for number in range(200):
            assert (await connection.reply()).status == (200 if number else 201)
            assert (await connection.reply()).body == b"%d" % number
            assert (await connection.reply()).body == b"%d" % number
        connection.send(
            request("PUT", "/v1/kv/a", [], b"5")
            + request("POST", "/v1/kv/a?op=incr", [], b"")
            + request("GET", "/v1/kv/a")
        )
        assert [(await connection.reply()).status for _ in range(2)] == [200, 200]
        assert (await connection.reply()).body == b"6"
    assert not node.api.hot


async def test_writes_of_one_connection_are_proposed_together(node: Node) -> None:
    node.consensus.hold()
    async with node.http.connect() as connection:
        connection.send(b"".join(request("PUT", f"/v1/kv/{n}", [], b"v") for n in range(hot.TURNS_MAX + 10)))
        await until(lambda: len(node.consensus.proposed) == hot.TURNS_MAX)
        connection.send(request("GET", "/v1/kv/0"))
        await asyncio.sleep(0)
        assert len(node.consensus.proposed) == hot.TURNS_MAX  # no more than that at once
        node.consensus.release()
        for _ in range(hot.TURNS_MAX + 10):
            assert (await connection.reply()).status == 201
        assert (await connection.reply()).body == b"v"


@pytest.mark.parametrize("method", ["PUT", "GET"])
async def test_a_request_may_come_in_any_pieces(node: Node, method: str) -> None:
    await node.http("PUT", "/v1/kv/a", b"v")
    data = request(method, "/v1/kv/a", [("X", "y")], b"value" if method == "PUT" else None)
    for cut in range(1, len(data)):
        async with node.http.connect() as connection:
            connection.send(data[:cut])
            while not any(each._held for each in node.api.hot):  # noqa: ASYNC110  # until that has come
                await asyncio.sleep(0)
            connection.send(data[cut:])
            assert (await connection.reply()).status == 200
            assert node.api.hot


async def test_an_unfinished_request_goes_to_the_cold_path(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which has deadlines for it; and what came before it is answered first."""
    monkeypatch.setattr(hot, "UNFINISHED_S", 0.0)
    node.consensus.hold()
    async with node.http.connect() as connection:
        connection.send(request("PUT", "/v1/kv/a", [], b"v") + b"GET /v1/kv/a HTTP/1.1\r\nHo")
        await until(lambda: any(each._leaving for each in node.api.hot))
        assert node.api.hot  # it waits for the write
        node.consensus.release()
        assert (await connection.reply()).status == 201
        await until(lambda: not node.api.hot)
        connection.send(b"st: a\r\n\r\n")
        assert (await connection.reply()).body == b"v"


async def test_a_connection_that_meets_a_full_queue_rests_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a client that asks again at once can't keep a full node busy with refusals."""
    node = await start_node(replace(Limits(), writes_in_flight_max=10))
    monkeypatch.setattr(hot, "REST_S", 3600.0)
    node.consensus.hold()
    async with node.http.connect() as connection:
        connection.send(request("PUT", "/v1/kv/a", [], b"v") * 15)
        await until(lambda: node.api.requests_in_flight == 11)
        (served,) = node.api.hot
        assert served._resting
        node.consensus.release()
        statuses = [(await connection.reply("PUT")).status for _ in range(11)]
        assert statuses == [201] + [200] * 9 + [429]
        connection.send(request("PUT", "/v1/kv/a", [], b"v"))
        for _ in range(100):
            await asyncio.sleep(0)
        assert (len(node.consensus.proposed), node.api.requests_in_flight) == (10, 0)
        served._rested()
        assert [(await connection.reply("PUT")).status for _ in range(5)] == [200] * 5
    await until(lambda: node.api.connections_open == 0)
    await node.api.close()


LIST = request("GET", "/v1/kv?prefix=a")


async def until_idle_on_the_cold_path(node: Node) -> None:
    """An answer is there a moment before its connection waits for the next request."""
    (listener,) = [each for _, each in node.api._listeners]
    await until(lambda: all(each._is_idle for each in listener.server.connections))


async def test_a_connection_comes_back_to_the_hot_path(node: Node, handed_over: list[object]) -> None:
    async with node.http.connect() as connection:
        for round in range(3):
            connection.send(LIST)
            assert (await connection.reply()).status == 200
            assert (len(handed_over), len(node.api.hot)) == (round + 1, 0)
            await until_idle_on_the_cold_path(node)
            for _ in range(2):
                connection.send(request("PUT", "/v1/kv/a", [], b"v"))
                assert (await connection.reply("PUT")).status in (200, 201)
                assert (len(handed_over), len(node.api.hot)) == (round + 1, 1)
        assert node.api.connections_open == 1
    await until(lambda: node.api.connections_open == len(node.api.hot) == 0)
    assert node.api.requests_in_flight == 0


async def test_what_only_looks_plain_brings_a_connection_back_once(
    node: Node, handed_over: list[object]
) -> None:
    async with node.http.connect() as connection:
        for count in (1, 2, 2, 2):
            connection.send(request("GET", "/v1/kv/a?zap=1"))
            assert (await connection.reply()).status == 400
            assert len(handed_over) == count
            await until_idle_on_the_cold_path(node)
        connection.send(request("GET", "/v1/kv/a"))
        assert (await connection.reply()).status == 404
        assert len(handed_over) == 2
    await until(lambda: node.api.connections_open == 0)


async def test_a_plain_request_behind_one_that_is_not_answered_yet_waits_its_turn(node: Node) -> None:
    """In one packet, in a packet of its own while the first waits, and in two halves."""
    plain = request("PUT", "/v1/kv/a", [], b"v")
    append = request("POST", "/v1/kv/a?op=append", [], b"w")
    async with node.http.connect() as connection:
        connection.send(append + plain)
        assert (await connection.reply("POST")).json["length"] == 1
        assert (await connection.reply("PUT")).json["revision"] == 2
        node.consensus.hold()
        connection.send(append)
        await until(lambda: len(node.consensus.proposed) == 3)
        connection.send(plain)
        node.consensus.release()
        assert (await connection.reply("POST")).json["length"] == 2
        assert (await connection.reply("PUT")).json["revision"] == 4
        await until_idle_on_the_cold_path(node)
        connection.send(plain[:10])
        await until(lambda: node.api.bytes_received == 2 * len(append + plain) + 10)
        connection.send(plain[10:])
        assert (await connection.reply("PUT")).json["revision"] == 5


async def test_a_connection_that_came_back_has_its_deadlines(handed_over: list[object]) -> None:
    node = await start_node(replace(Limits(), idle_seconds_max=1))
    async with node.http.connect() as connection:
        connection.send(LIST)
        await connection.reply()
        await until_idle_on_the_cold_path(node)
        connection.send(request("GET", "/v1/kv/a"))
        await connection.reply()
        assert (len(handed_over), len(node.api.hot)) == (1, 1)
        assert await connection.closed()
    await until(lambda: node.api.connections_open == 0)
    await node.api.close()


async def test_a_client_that_takes_no_answers_is_read_no_further(node: Node) -> None:
    await node.http("PUT", "/v1/kv/a", b"v" * 500_000)
    async with node.http.connect() as connection:
        connection.send(request("GET", "/v1/kv/a") * 200)
        await until(lambda: any(each._writing_paused for each in node.api.hot))
        (served,) = node.api.hot
        assert served._transport.get_write_buffer_size() < 4_000_000
        for _ in range(200):
            assert len((await connection.reply()).body) == 500_000


async def test_a_client_that_takes_nothing_is_cut_off() -> None:
    node = await start_node(replace(Limits(), write_stall_seconds_max=1))
    node.consensus.machine.apply(1, 0, Put(b"a", b"v" * 1_000_000))
    async with node.http.connect() as connection:
        connection.send(request("GET", "/v1/kv/a") * 50)
        await until(lambda: not node.api.hot)
        connection.writer.transport.abort()
    await node.api.close()


async def test_an_idle_connection_is_closed() -> None:
    node = await start_node(replace(Limits(), idle_seconds_max=1))
    async with node.http.connect() as connection:
        connection.send(request("PUT", "/v1/kv/a", [], b"v"))
        assert (await connection.reply()).status == 201
        assert await connection.closed()
    assert node.api.connections_open == 0
    await node.api.close()


async def test_what_is_on_its_way_is_answered_before_the_node_closes(node: Node) -> None:
    node.consensus.hold()
    async with node.http.connect() as idle, node.http.connect() as connection:
        connection.send(request("PUT", "/v1/kv/a", [], b"v"))
        await until(lambda: node.api.requests_in_flight == 1)
        draining = asyncio.create_task(node.api.drain())
        await asyncio.sleep(0)
        node.consensus.release()
        reply = await connection.reply()
        assert (reply.status, reply.headers["connection"]) == (201, "close")
        await draining
        await node.api.close()
        assert await idle.closed()


async def test_a_client_that_leaves_takes_its_requests_along(node: Node) -> None:
    node.consensus.hold()
    async with node.http.connect() as connection:
        connection.send(request("PUT", "/v1/kv/a", [], b"v") * 3)
        await until(lambda: node.api.requests_in_flight == 3)
        linger = struct.pack("ii", 1, 0)  # a reset: an orderly end would still wait for the answers
        connection.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        connection.writer.transport.abort()
    await until(lambda: node.api.requests_in_flight == 0)
    assert node.service.writes_in_flight == 3
    node.consensus.release()
    await until(lambda: node.service.writes_in_flight == 0)
    assert (node.api.connections_open, node.api.hot) == (0, set())


async def test_a_write_whose_leader_was_lost_in_the_queue_is_passed_on(node: Node) -> None:
    leader = await start_node(Limits(), "n2")
    url = f"http://127.0.0.1:{leader.api.port}"
    node.consensus.propose_error = NotLeader("n2 leads", leader="n2", leader_url=url)
    async with node.http.connect() as connection:
        connection.send(request("PUT", "/v1/kv/a%20b", [("Raftkv-Route", "forward")], b"value"))
        assert (await connection.reply()).status == 201
    assert leader.consensus.machine.get(b"a b") is not None
    await leader.api.close()


async def until(condition: object) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # type: ignore[operator]  # noqa: ASYNC110  # no event for what is looked at
            await asyncio.sleep(0.005)
