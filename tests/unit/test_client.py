"""The client over real sockets, against nodes that misbehave on demand."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import ssl
import time
import warnings
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp
import pytest

from raftkv.client import (
    BadRequest,
    Client,
    NotARaftkv,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    SyncClient,
    Unavailable,
    parse_endpoints,
)
from raftkv.client.asynchronous import _Connector
from tests.certificates import Certificates
from tests.unit.fake_node import Drop, FakeNode, Reply, Request, Silence, problem, redirect, written

NO_LEADER = problem(503, "no_leader", retryable=True, Retry_After=1)


def refused_port() -> str:
    """A URL where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


async def test_a_put_carries_key_value_type_and_an_idempotency_key() -> None:
    async with FakeNode(written(57)) as node, Client(node.url) as client:
        done = await client.put("a/b", b"\x00\xff", content_type="image/png")
        assert (done.revision, done.created, done.replayed) == (57, True, False)
        (request,) = node.requests
        assert (request.method, request.target) == ("PUT", "/v1/kv/a/b")
        assert request.body == b"\x00\xff"
        assert request.headers["content-type"] == "image/png"
        assert request.idempotency_key == f"{client.client_id}/1"


async def test_an_empty_value_is_sent_as_one() -> None:
    async with FakeNode(written()) as node, Client(node.url) as client:
        await client.put("k", b"")
        assert node.requests[0].headers["content-length"] == "0"


@pytest.mark.parametrize(
    ("key", "target"),
    [
        ("plain-key_1.txt", "/v1/kv/plain-key_1.txt"),
        ("a//b", "/v1/kv?key=a%2F%2Fb"),
        ("a/../b", "/v1/kv?key=a%2F..%2Fb"),
        ("/a", "/v1/kv?key=%2Fa"),
        ("a b+c%", "/v1/kv?key=a%20b%2Bc%25"),
        ("schlüssel", "/v1/kv?key=schl%C3%BCssel"),
        ("a?b#c", "/v1/kv?key=a%3Fb%23c"),
    ],
)
async def test_every_key_reaches_the_node_unchanged(key: str, target: str) -> None:
    async with FakeNode(written()) as node, Client(node.url) as client:
        await client.put(key, b"v")
        assert node.requests[0].target == target


async def test_a_redirect_is_followed_with_the_same_body_and_key_and_remembered() -> None:
    async with (
        FakeNode(written(2)) as leader,
        FakeNode(redirect(leader.url)) as follower,
        Client(follower.url) as client,
    ):
        await client.put("k", b"v")
        assert leader.requests[0].body == follower.requests[0].body == b"v"
        assert leader.requests[0].target == "/v1/kv/k"
        assert leader.requests[0].idempotency_key == follower.requests[0].idempotency_key
        assert client.leader == leader.url
        await client.put("k", b"w")
        assert len(follower.requests) == 1
        assert leader.requests[1].idempotency_key == f"{client.client_id}/2"


async def test_the_leader_is_learnt_from_any_answer() -> None:
    async with FakeNode(written(2)) as leader:
        reply = Reply(200, b"v", {"ETag": '"1"', "Raftkv-Leader": leader.url})
        async with FakeNode(reply) as follower, Client(follower.url) as client:
            value = await client.get("k")
            assert (value.value, value.revision) == (b"v", 1)
            await client.put("k", b"w")
            assert [request.method for request in follower.requests] == ["GET"]
            assert [request.method for request in leader.requests] == ["PUT"]


async def test_a_dead_node_is_passed_over() -> None:
    async with FakeNode(written()) as node, Client([refused_port(), node.url]) as client:
        await client.put("k", b"v")
        assert len(node.requests) == 1


async def test_a_dead_leader_is_forgotten() -> None:
    """The follower sends us to the dead leader at first, to the new one later."""
    async with FakeNode(written(2)) as leader:
        dead = refused_port()
        async with (
            FakeNode(redirect(dead), redirect(dead), redirect(leader.url)) as follower,
            Client(follower.url) as client,
        ):
            assert (await client.put("k", b"v")).revision == 2


async def test_an_advertised_leader_that_means_nothing_here_is_tried_once() -> None:
    """Containers advertise names that only they can resolve, and pass writes on."""
    async with FakeNode(written(1, **{"Raftkv-Leader": "http://n1.invalid:8400"})) as node:
        async with Client(node.url) as client:
            await client.put("k", b"1")
            assert client.leader == "http://n1.invalid:8400"
            await client.put("k", b"2")
            assert client.leader is None
            await client.put("k", b"3")
            assert client.leader is None
        assert [request.body for request in node.requests] == [b"1", b"2", b"3"]


async def test_no_leader_is_waited_out_even_without_a_key() -> None:
    async with (
        FakeNode(NO_LEADER, NO_LEADER, written(9)) as node,
        Client(node.url, idempotent=False) as client,
    ):
        assert (await client.put("k", b"v")).revision == 9
        assert [request.idempotency_key for request in node.requests] == [None] * 3


async def test_a_lost_answer_is_asked_for_again_under_the_same_key() -> None:
    replay = written(5, 201, **{"Raftkv-Replayed": "true"})
    async with FakeNode(Drop(), replay) as node, Client(node.url) as client:
        done = await client.put("k", b"v")
        assert done.replayed
        assert len({request.idempotency_key for request in node.requests}) == 1
        assert len(node.requests) == 2


Writing = Callable[[Client], Awaitable[object]]
WRITES: dict[str, Writing] = {
    "put": lambda client: client.put("k", b"v"),
    "delete": lambda client: client.delete("k"),
    "append": lambda client: client.append("k", b"v"),
    "incr": lambda client: client.incr("k"),
    "delete_prefix": lambda client: client.delete_prefix("k"),
    "txn": lambda client: client.txn(success=[{"put": {"key": "k", "value": "v"}}]),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
async def test_no_write_without_a_key_is_ever_sent_twice(write: Writing) -> None:
    """Also not on a kept-alive connection that drops, where aiohttp itself would repeat PUT and DELETE."""
    fine = Reply(200, b'{"revision": 1, "deleted": 1, "length": 1, "value": 1, "responses": []}')
    async with FakeNode(fine, Drop(), fine) as node, Client(node.url, idempotent=False) as client:
        await write(client)
        with pytest.raises(OutcomeUnknown) as lost:
            await write(client)
        assert lost.value.outcome == "unknown"
        assert len(node.requests) == 2
        assert node.requests[1].connection == 2, "a write without a key has a connection of its own"


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_the_sessions_own_retry_is_off(method: str) -> None:
    """The shared session, kept-alive connections and all: a drop is an error there, not a second request."""
    async with FakeNode(Reply(), Drop(), Reply()) as node, Client(node.url) as client:
        for attempt in range(2):
            try:
                async with client.session().request(method, node.url + "/v1/kv/k", data=b"v") as answer:
                    await answer.read()
                    assert attempt == 0
            except aiohttp.ClientError:
                assert attempt == 1
        assert len(node.requests) == 2
        assert node.requests[1].connection == 1, "the second went out on the connection of the first"


async def test_a_node_that_never_answers_is_left_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftkv.client.asynchronous.ATTEMPT_SECONDS_FIRST", 0.1)
    async with (
        FakeNode(Silence()) as paused,
        FakeNode(written(3)) as node,
        Client([paused.url, node.url]) as client,
    ):
        assert (await client.put("k", b"v")).revision == 3
        assert paused.requests[0].idempotency_key == node.requests[0].idempotency_key


async def test_silence_until_the_deadline_leaves_a_write_unknown_and_a_read_unavailable() -> None:
    async with FakeNode(Silence()) as node, Client(node.url, timeout_s=0.3) as client:
        began = time.monotonic()
        with pytest.raises(OutcomeUnknown):
            await client.put("k", b"v")
        with pytest.raises(Unavailable):
            await client.get("k")
        assert time.monotonic() - began < 5


async def test_no_node_at_all_is_unavailable_and_not_applied() -> None:
    url = refused_port()
    async with Client(url, timeout_s=0.2) as client:
        with pytest.raises(Unavailable, match=f"PUT {url}: connection refused") as refused:
            await client.put("k", b"v")
        assert refused.value.outcome == "not_applied"


async def test_a_connection_that_is_not_made_in_time_is_not_applied() -> None:
    """A listener whose queue is full neither takes nor refuses: the deadline comes before the sending."""
    with socket.socket() as listener, socket.socket() as filler, socket.socket() as more:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for each in (filler, more):
            each.setblocking(False)
            each.connect_ex(listener.getsockname())
        async with Client(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.3) as client:
            with pytest.raises(Unavailable) as refused:
                await client.put("k", b"v")
            assert refused.value.outcome == "not_applied"


async def test_refusals_carry_the_problem() -> None:
    async with (
        FakeNode(
            problem(404, "key_not_found"),
            problem(412, "precondition_failed", ETag='"7"'),
            problem(413, "value_too_large"),
        ) as node,
        Client(node.url) as client,
    ):
        with pytest.raises(NotFound):
            await client.get("k")
        with pytest.raises(PreconditionFailed) as failed:
            await client.put("k", b"v", if_revision=3)
        assert failed.value.current == 7
        assert node.requests[1].target == "/v1/kv/k?if_revision=3"
        with pytest.raises(BadRequest) as refused:
            await client.put("k", b"v")
        assert refused.value.problem.code == "value_too_large"
        assert refused.value.problem.request_id == "r1"
        assert refused.value.problem.detail == "said so"


async def test_conditions_on_existence_are_headers() -> None:
    async with FakeNode(written()) as node, Client(node.url) as client:
        await client.put("k", b"v", if_exists=False)
        await client.put("k", b"v", if_exists=True)
        assert node.requests[0].headers["if-none-match"] == "*"
        assert node.requests[1].headers["if-match"] == "*"


async def test_something_else_on_the_port_is_said_so() -> None:
    async with FakeNode(Reply(200, b"<html>")) as node, Client(node.url) as client:
        with pytest.raises(NotARaftkv):
            await client.put("k", b"v")
        with pytest.raises(NotARaftkv):
            await client.get("k")
        with pytest.raises(NotARaftkv):
            await client.status()


async def test_list_follows_cursors_and_stops_at_the_limit() -> None:
    def page(request: Request) -> Reply:
        second = "cursor=" in request.target
        keys = ["c"] if second else ["a", "b"]
        items = [
            {
                "key": key,
                "value": key,
                "content_type": "",
                "create_revision": 1,
                "mod_revision": 1,
                "version": 1,
            }
            for key in keys
        ]
        return Reply(200, json.dumps({"items": items, "next_cursor": None if second else "x"}).encode())

    async with FakeNode(page) as node, Client(node.url) as client:
        assert [item.key async for item in client.list("")] == ["a", "b", "c"]
        assert "cursor=x" in node.requests[1].target
        assert [item.value async for item in client.list("", limit=2)] == [b"a", b"b"]
        assert "limit=2" in node.requests[2].target
        assert len(node.requests) == 3


async def test_keys_rise_and_at_most_256_writes_are_under_way() -> None:
    """The 257th waits until one of the first is answered."""
    gate = asyncio.Event()
    waiting = 0
    most = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal waiting, most
        while await reader.readline():
            while await reader.readline() != b"\r\n":
                pass
            waiting += 1
            most = max(most, waiting)
            if waiting == 256:
                gate.set()
            await gate.wait()
            waiting -= 1
            writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"revision": 1}')
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with Client(f"http://127.0.0.1:{port}") as client:
        async with asyncio.timeout(30):
            await asyncio.gather(*(client.put("k", b"") for _ in range(300)))
    server.close()
    assert most == 256


async def test_a_snapshot_is_waited_for_on_the_node_that_makes_it() -> None:
    def operation(**more: object) -> bytes:
        return json.dumps({"id": "snapshot-1", "kind": "snapshot", **more}).encode()

    started = Reply(202, operation(state="running"), {"Location": "/v1/operations/snapshot-1"})
    async with (
        FakeNode(
            started,
            Reply(200, operation(state="running")),
            Reply(200, operation(state="done", result={"id": "s9"})),
            started,
            Reply(200, operation(state="failed", detail="no room")),
        ) as node,
        Client([refused_port(), node.url]) as client,
    ):
        assert await client.create_snapshot() == {"id": "s9"}
        with pytest.raises(Unavailable, match="no room"):
            await client.create_snapshot()
        assert node.requests[1].target == "/v1/operations/snapshot-1"


async def test_a_given_idempotency_key_is_used_as_it_is() -> None:
    async with FakeNode(written()) as node, Client(node.url, idempotent=False) as client:
        await client.put("k", b"v", idempotency_key="mine")
        assert node.requests[0].idempotency_key == "mine"


def test_closing_does_not_wait_for_a_node_to_end_tls_and_leaves_no_socket_open(tmp_path: Path) -> None:
    """The node answers, and then takes no part in TLS's closing handshake."""
    context, trusting = _both_ends(tmp_path)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        ThreadPoolExecutor(1) as thread,
        warnings.catch_warnings(record=True) as warned,
    ):
        warnings.simplefilter("always")
        listener.settimeout(20)
        connected = thread.submit(_answer_over_tls, listener, context)
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with SyncClient(url, tls=trusting, idempotent=False) as client:  # so on a connection of its own
            assert client.put("k", "v").revision == 5
        gc.collect()
        with connected.result() as connection:
            assert _ends(connection)
    assert [str(each.message) for each in warned] == []


async def test_a_connection_closed_after_it_was_lost_does_not_keep_the_client_from_closing(
    tmp_path: Path,
) -> None:
    """So aiohttp may do with one whose answer is still read when the node ends it."""
    context, trusting = _both_ends(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as thread:
        listener.settimeout(20)
        connected = thread.submit(_answer_over_tls, listener, context)
        async with Client(f"https://127.0.0.1:{listener.getsockname()[1]}", tls=trusting) as client:
            await client.put("k", b"v")
            connector = client.session().connector
            assert isinstance(connector, _Connector)
            ((protocol, transport),) = connector._made.items()
            lost = protocol.closed
            assert lost is not None
            connected.result().close()
            await asyncio.wait_for(lost, 20)
            transport.close()
            with pytest.raises(AttributeError):  # else there would be nothing to guard against
                transport.abort()


def _both_ends(directory: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts of a server and of a client that trusts it."""
    certificates = Certificates(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificates.node("n1"))
    return context, ssl.create_default_context(cafile=str(certificates.ca))


def _answer_over_tls(listener: socket.socket, context: ssl.SSLContext) -> socket.socket:
    """Answers one request; gives back the connection below TLS."""
    connection, _ = listener.accept()
    secured = context.wrap_socket(connection, server_side=True)
    secured.settimeout(20)
    request = b""
    while not request.endswith(b"\r\n\r\nv"):
        request += secured.recv(65536)
    body = b'{"revision": 5}'
    secured.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    below = socket.socket(fileno=secured.detach())
    below.settimeout(20)
    return below


def _ends(connection: socket.socket) -> bool:
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


def test_endpoints_are_urls_or_host_and_port() -> None:
    assert parse_endpoints("http://h:1/, h:2") == ("http://h:1", "http://h:2")
    for wrong in ("", "ftp://h", "http://h/path", "http://", "h:1,,h:2"):
        with pytest.raises(ValueError, match="endpoint"):
            parse_endpoints(wrong)


def test_a_deadline_beyond_the_promise_of_idempotency_is_refused() -> None:
    for wrong in (0, -1, 101):
        with pytest.raises(ValueError, match="timeout_s"):
            Client(timeout_s=wrong)


def test_the_synchronous_client_does_the_same() -> None:
    async def script() -> tuple[FakeNode, str]:
        node = FakeNode(written(4), problem(404, "key_not_found"))
        await node.__aenter__()
        return node, node.url

    with SyncClient(refused_port(), timeout_s=0.2) as other:
        node, url = other.run(script())
        with SyncClient(url) as client:
            assert client.put("k", "v").revision == 4
            with pytest.raises(NotFound):
                client.get("k")
        with pytest.raises(Unavailable):
            other.get("k")
        other.run(node.stop())
