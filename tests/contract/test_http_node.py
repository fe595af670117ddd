"""What a cluster, a slow client or a full queue does to a node, as its clients see it."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from raftkv.api.app import connections_within
from raftkv.api.batch import Batch
from raftkv.api.calls import OPEN
from raftkv.api.limits import Limits
from raftkv.errors import CommitTimeout, LeaderChanged, NoLeader, NotReady, Overloaded
from raftkv.kv.command import Put
from raftkv.kv.image import Image
from tests.contract.conftest import Node, start_node
from tests.contract.plain import DEADLINE_S, Reply, request

DEFAULT = Limits()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110  # the condition is the server's, which tells nobody
            await asyncio.sleep(0.001)


# --- which node answers ----------------------------------------------------------------------------------


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Node, Node]]:
    """A follower, and the leader that it knows."""
    leader = await start_node(DEFAULT, "n1")
    follower = await start_node(DEFAULT, "n2")
    follower.consensus.follow("n1", f"http://127.0.0.1:{leader.api.port}")
    yield follower, leader
    await follower.api.close()
    await leader.api.close()


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("PUT", "/v1/kv/a//b/../c%2Fd%20?prev=true&timeout=2s", b"v"),
        ("PUT", "/v1/kv?key=a%2Fb+c", b"v"),
        ("DELETE", "/v1/kv/a", None),
        ("POST", "/v1/kv/a?op=incr&by=1", b""),
        ("POST", "/v1/kv/a?op=append", b"v"),
        ("DELETE", "/v1/kv?prefix=a", None),
        ("POST", "/v1/txn", b'{"success": [{"get": {"key": "a"}}]}'),
        ("POST", "/v1/batch", b'{"op": "put", "key": "a", "value": "1"}\n'),
    ],
)
async def test_a_follower_sends_writes_to_the_leader(
    pair: tuple[Node, Node], method: str, target: str, body: bytes | None
) -> None:
    follower, leader = pair
    reply = await follower.http(method, target, body)
    assert reply.status == 307
    assert reply.headers["location"] == f"http://127.0.0.1:{leader.api.port}{target}"
    assert reply.headers["raftkv-leader"] == f"http://127.0.0.1:{leader.api.port}"
    assert not follower.consensus.proposed
    assert not leader.consensus.proposed


async def test_the_absolute_form_is_redirected_by_its_path(pair: tuple[Node, Node]) -> None:
    follower, leader = pair
    reply = await follower.http("PUT", "http://proxy:1/v1/kv/a?prev=1", b"v")
    assert reply.headers["location"] == f"http://127.0.0.1:{leader.api.port}/v1/kv/a?prev=1"


async def test_reads_are_served_by_any_node(pair: tuple[Node, Node]) -> None:
    follower, _ = pair
    for target in ("/v1/kv?prefix=a", "/v1/export", "/v1/status", "/readyz"):
        assert (await follower.http("GET", target)).status == 200


async def test_expect_100_continue_is_redirected_before_the_body(pair: tuple[Node, Node]) -> None:
    follower, _ = pair
    async with follower.http.connect() as connection:
        connection.send(request("PUT", "/v1/kv/a", [("Expect", "100-continue"), ("Content-Length", "1000")]))
        reply = await connection.reply()
        assert (reply.status, reply.continued, reply.headers["connection"]) == (307, False, "close")


async def test_a_body_that_comes_all_the_same_is_read_away(pair: tuple[Node, Node]) -> None:
    follower, _ = pair
    async with follower.http.connect() as connection:
        connection.send(request("PUT", "/v1/kv/a", [], b"v" * 500_000) + request("GET", "/livez"))
        assert (await connection.reply()).status == 307
        assert (await connection.reply()).status == 200


async def test_local_gets_503_rather_than_a_hop(pair: tuple[Node, Node]) -> None:
    follower, leader = pair
    reply = await follower.http("PUT", "/v1/kv/a", b"v", {"Raftkv-Route": "local"})
    assert (reply.status, reply.json["code"], reply.json["outcome"]) == (503, "not_leader", "not_applied")
    assert reply.json["leader"] == f"http://127.0.0.1:{leader.api.port}"
    assert reply.headers["retry-after"]


@pytest.mark.parametrize("key", ["a", "a//b", "a/../b", "a%2Fb", "%25", "a%20b+c", "%C3%A9"])
async def test_forward_passes_the_key_on_as_it_stands(pair: tuple[Node, Node], key: str) -> None:
    follower, leader = pair
    reply = await follower.http(
        "PUT", "/v1/kv/" + key, b"v", {"Raftkv-Route": "forward", "Content-Type": "x/y"}
    )
    assert (reply.status, reply.json) == (201, {"revision": 1})
    got = await leader.http("GET", "/v1/kv/" + key)
    assert (got.body, got.headers["content-type"]) == (b"v", "x/y")


async def test_forward_relays_conditions_and_refusals(pair: tuple[Node, Node]) -> None:
    follower, leader = pair
    await leader.http("PUT", "/v1/kv/a", b"1")
    forward = {"Raftkv-Route": "forward"}
    assert (await follower.http("PUT", "/v1/kv/a", b"2", {**forward, "If-Match": '"1"'})).status == 200
    refused = await follower.http("PUT", "/v1/kv/a", b"3", {**forward, "If-Match": '"1"'})
    assert (refused.status, refused.json["code"], refused.headers["etag"]) == (
        412,
        "precondition_failed",
        '"2"',
    )
    assert refused.headers["request-id"] == refused.json["request_id"]


async def test_forward_makes_a_key_where_there_is_none(pair: tuple[Node, Node]) -> None:
    follower, leader = pair
    for _ in range(2):
        reply = await follower.http("POST", "/v1/kv/a?op=incr", b"", {"Raftkv-Route": "forward"})
    assert reply.json["value"] == 2
    keys = [command.idempotency for command in leader.consensus.proposed]
    assert all(key is not None for key in keys)
    assert keys[0] != keys[1]
    await follower.http(
        "POST", "/v1/kv/a?op=incr", b"", {"Raftkv-Route": "forward", "Idempotency-Key": "mine"}
    )
    last = leader.consensus.proposed[-1].idempotency
    assert last is not None
    assert last.key == b"mine"


async def test_a_forwarded_request_is_never_forwarded_again(pair: tuple[Node, Node]) -> None:
    """Two nodes that each take the other for the leader: no loop, and an honest answer."""
    follower, leader = pair
    leader.consensus.follow("n2", f"http://127.0.0.1:{follower.api.port}")
    headers = {"Raftkv-Route": "forward"}
    reply = await follower.http("PUT", "/v1/kv/a?timeout=200ms", b"v", headers)
    assert (reply.status, reply.json["code"], reply.json["outcome"]) == (503, "no_leader", "not_applied")
    marked = await leader.http("PUT", "/v1/kv/a", b"v", {**headers, "Raftkv-Forwarded-By": "n9"})
    assert (marked.status, marked.json["code"]) == (503, "not_leader")


async def test_a_forward_to_a_node_that_is_gone_is_not_applied(pair: tuple[Node, Node]) -> None:
    follower, leader = pair
    await leader.api.close()
    reply = await follower.http("PUT", "/v1/kv/a?timeout=200ms", b"v", {"Raftkv-Route": "forward"})
    assert (reply.status, reply.json["outcome"]) == (503, "not_applied")


async def test_a_forward_without_an_answer_is_unknown(pair: tuple[Node, Node]) -> None:
    follower, leader = pair
    leader.consensus.hold()
    reply = await follower.http("PUT", "/v1/kv/a?timeout=200ms", b"v", {"Raftkv-Route": "forward"})
    assert (reply.status, reply.json["code"], reply.json["outcome"]) == (504, "commit_timeout", "unknown")


async def test_a_forward_is_repeated_where_leadership_moves_here(pair: tuple[Node, Node]) -> None:
    follower, leader = pair
    leader.consensus.propose_error = LeaderChanged("moved")
    waiting = asyncio.create_task(follower.http("PUT", "/v1/kv/a", b"v", {"Raftkv-Route": "forward"}))
    await until(lambda: leader.api.metrics._requests != {})
    follower.consensus.follow("n2", "http://127.0.0.1:1")
    follower.consensus.leadership = replace(follower.consensus.leadership, role="leader")
    assert (await waiting).status == 201
    (command,) = follower.consensus.proposed
    assert command.idempotency is not None


async def test_a_batch_is_streamed_through(pair: tuple[Node, Node]) -> None:
    follower, leader = pair
    lines = b"".join(b'{"op": "append", "key": "a", "value": "%d,"}\n' % number for number in range(300))
    reply = await follower.http("POST", "/v1/batch", lines, {"Raftkv-Route": "forward"})
    assert [line["status"] for line in reply.lines] == [200] * 300
    assert (await leader.http("GET", "/v1/kv/a")).body == b"".join(b"%d," % number for number in range(300))


async def test_a_node_may_forward_by_default() -> None:
    leader = await start_node(DEFAULT, "n1")
    follower = await start_node(DEFAULT, "n2", route="forward")
    follower.consensus.follow("n1", f"http://127.0.0.1:{leader.api.port}")
    assert (await follower.http("PUT", "/v1/kv/a", b"v")).status == 201
    assert (await follower.http("PUT", "/v1/kv/a", b"v", {"Raftkv-Route": "redirect"})).status == 307
    await follower.api.close()
    await leader.api.close()


async def test_without_a_leader_a_write_is_refused_at_once(node: Node) -> None:
    node.consensus.follow(None, None)
    reply = await node.http("PUT", "/v1/kv/a", b"v")
    assert (reply.status, reply.json["code"], reply.json["outcome"]) == (503, "no_leader", "not_applied")
    assert reply.headers["retry-after"]
    assert reply.json["retryable"] is True
    assert "raftkv-leader" not in reply.headers
    assert not node.consensus.proposed
    status = await node.http("GET", "/v1/status")
    assert (status.status, status.json["leader"]) == (200, None)


# --- reading ---------------------------------------------------------------------------------------------


async def test_a_read_that_no_majority_confirms_is_not_answered(node: Node) -> None:
    await node.http("PUT", "/v1/kv/a", b"v")
    node.consensus.read_error = NotReady("the leader's first entry is not applied yet")
    for target in ("/v1/kv/a", "/v1/kv?prefix=a", "/v1/export", "/readyz"):
        reply = await node.http("GET", target)
        assert (reply.status, reply.json["code"]) == (503, "not_ready")
    assert (await node.http("GET", "/v1/kv/a?consistency=stale")).body == b"v"
    assert (await node.http("GET", "/livez")).status == 200


async def test_a_read_has_a_deadline(node: Node) -> None:
    node.consensus.read_error = TimeoutError()
    reply = await node.http("GET", "/v1/kv/a?timeout=1s")
    assert (reply.status, reply.json["code"]) == (503, "not_ready")
    assert "consistency=stale" in reply.json["detail"]


async def test_a_state_that_is_too_old_is_not_read(node: Node) -> None:
    await node.http("PUT", "/v1/kv/a", b"v")
    node.consensus.staleness = 800.0
    target = "/v1/kv/a?consistency=stale&max_staleness_ms="
    assert (await node.http("GET", target + "900")).body == b"v"
    reply = await node.http("GET", target + "700")
    assert (reply.status, reply.json["code"]) == (503, "too_stale")


async def test_min_revision_waits_for_the_write(node: Node) -> None:
    waiting = asyncio.create_task(node.http("GET", "/v1/kv/a?consistency=stale&min_revision=1"))
    await until(lambda: node.service.reads_in_flight == 1)
    await node.http("PUT", "/v1/kv/a", b"v")
    assert (await waiting).body == b"v"


@pytest.mark.parametrize(
    ("allowed", "wanted", "cap"), [(1000, 10_000, 744), (50_000, 10_000, 10_000), (100, 50, 50)]
)
def test_the_connection_cap_leaves_files_for_the_node(allowed: int, wanted: int, cap: int) -> None:
    assert connections_within(replace(DEFAULT, connections_max=wanted), allowed).connections_max == cap


async def test_an_export_is_of_one_revision_however_long_it_takes(node: Node) -> None:
    for number in range(3000):
        node.consensus.machine.apply(number + 1, 0, Put(b"k%04d" % number, b"x" * 500))
    async with node.http.connect() as connection:
        connection.send(request("GET", "/v1/export"))
        status, _ = await connection._head()
        assert status == 200
        for number in range(3000):
            node.consensus.machine.apply(4000 + number, 0, Put(b"k%04d" % number, b"changed"))
        body, ended = await connection._chunks()
    *items, end = [json.loads(line) for line in body.splitlines()]
    assert ended
    assert {item["value"] for item in items} == {"x" * 500}
    assert (end["count"], end["revision"]) == (3000, 3000)


# --- exactly once ----------------------------------------------------------------------------------------


async def test_the_same_key_while_the_first_is_on_its_way(node: Node) -> None:
    node.consensus.hold()
    headers = {"Idempotency-Key": "k"}
    first = asyncio.create_task(node.http("PUT", "/v1/kv/a", b"1", headers))
    await until(lambda: node.service.writes_in_flight == 1)
    second = await node.http("PUT", "/v1/kv/a", b"1", headers)
    assert (second.status, second.json["code"], second.json["outcome"]) == (409, "in_flight", "unknown")
    assert second.headers["retry-after"]
    other = await node.http("PUT", "/v1/kv/a", b"2", headers)
    assert (other.status, other.json["code"]) == (422, "idempotency_mismatch")
    node.consensus.release()
    assert (await first).status == 201
    assert (await node.http("PUT", "/v1/kv/a", b"1", headers)).headers["raftkv-replayed"] == "true"


async def test_a_write_that_times_out_may_be_asked_for_again(node: Node) -> None:
    node.consensus.hold()
    headers = {"Idempotency-Key": "k"}
    lost = await node.http("PUT", "/v1/kv/a?timeout=50ms", b"1", headers)
    assert (lost.status, lost.json["code"], lost.json["outcome"]) == (504, "commit_timeout", "unknown")
    node.consensus.release()
    assert (await node.http("PUT", "/v1/kv/a", b"1", headers)).status == 201


@pytest.mark.parametrize("limits", [replace(DEFAULT, idempotency_bytes_max=1)])
async def test_keyed_writes_are_refused_where_their_outcomes_would_not_fit(node: Node) -> None:
    assert (await node.http("PUT", "/v1/kv/a", b"1", {"Idempotency-Key": "k1"})).status == 201
    reply = await node.http("PUT", "/v1/kv/a", b"1", {"Idempotency-Key": "k2"})
    assert (reply.status, reply.json["code"], reply.json["outcome"]) == (429, "overloaded", "not_applied")
    assert "--idempotency-bytes-max" in reply.json["detail"]
    assert (await node.http("PUT", "/v1/kv/a", b"1")).status == 200


# --- what goes wrong -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "code", "outcome"),
    [
        (CommitTimeout("late"), 504, "commit_timeout", "unknown"),
        (LeaderChanged("moved"), 504, "leader_changed", "unknown"),
        (NoLeader("none"), 503, "no_leader", "not_applied"),
        (NotReady("soon"), 503, "not_ready", "not_applied"),
        (Overloaded("full"), 429, "overloaded", "not_applied"),
        (ZeroDivisionError("bug"), 500, "internal", "unknown"),
    ],
)
async def test_what_consensus_says_of_a_write_is_what_the_client_learns(
    node: Node, error: Exception, status: int, code: str, outcome: str
) -> None:
    node.consensus.propose_error = error
    reply = await node.http("PUT", "/v1/kv/a", b"v")
    assert (reply.status, reply.json["code"], reply.json["outcome"]) == (status, code, outcome)
    (line,) = (await node.http("POST", "/v1/batch", b'{"key": "a", "value": "v"}')).lines
    assert (line["status"], line["code"], line["outcome"]) == (status, code, outcome)


async def test_a_bug_is_logged_once_with_its_request_id(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.consensus.read_error = ZeroDivisionError("secret detail")
    reply = await node.http("GET", "/v1/kv/a")
    assert (reply.status, reply.json["code"]) == (500, "internal")
    assert "secret" not in reply.body.decode()
    records = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(records) == 1
    assert reply.json["request_id"] in records[0].getMessage()


@pytest.mark.parametrize("limits", [replace(DEFAULT, writes_in_flight_max=10)])
async def test_writes_beyond_the_bound_are_refused_at_once(node: Node) -> None:
    node.consensus.hold()
    writes = [asyncio.create_task(node.http("PUT", f"/v1/kv/{n}", b"v")) for n in range(10)]
    await until(lambda: node.service.writes_in_flight == 10)
    reply = await node.http("PUT", "/v1/kv/a", b"v")
    assert (reply.status, reply.json["code"], reply.json["outcome"]) == (429, "overloaded", "not_applied")
    assert reply.headers["retry-after"]
    node.consensus.release()
    assert {(await write).status for write in writes} == {201}
    assert (node.service.writes_in_flight, node.service.write_bytes_in_flight) == (0, 0)


@pytest.mark.parametrize("limits", [replace(DEFAULT, writes_in_flight_max=10)])
async def test_lines_beyond_the_bound_are_refused_and_those_within_are_not(node: Node) -> None:
    node.consensus.hold()
    line = b'{"key": "a", "value": "v"}\n'
    waiting = asyncio.create_task(node.http("POST", "/v1/batch", line * 15))
    await until(lambda: node.service.writes_in_flight == 10)
    node.consensus.release()
    lines = (await waiting).lines
    assert [line["status"] for line in lines] == [201] + [200] * 9 + [429] * 5
    assert {(line["code"], line["outcome"]) for line in lines[10:]} == {("overloaded", "not_applied")}


@pytest.mark.parametrize("limits", [replace(DEFAULT, batch_in_flight_max=7)])
async def test_a_batch_holds_no_more_lines_than_it_may(node: Node) -> None:
    node.consensus.hold()
    line = b'{"key": "a", "value": "v"}\n'
    waiting = asyncio.create_task(node.http("POST", "/v1/batch", line * 100))
    await until(lambda: node.service.writes_in_flight == 7)
    for _ in range(100):
        await asyncio.sleep(0)
    assert node.service.writes_in_flight == 7
    node.consensus.release()
    assert [line["status"] for line in (await waiting).lines] == [201] + [200] * 99


@pytest.mark.parametrize("limits", [replace(DEFAULT, exports_max=1)])
async def test_exports_beyond_the_bound_are_refused(node: Node) -> None:
    for number in range(6000):
        node.consensus.machine.apply(number + 1, 0, Put(b"%d" % number, b"x" * 5000))
    async with node.http.connect() as connection:
        cast(asyncio.Transport, connection.writer.transport).pause_reading()
        connection.send(request("GET", "/v1/export"))
        await until(lambda: node.service.exports == 1)
        reply = await node.http("GET", "/v1/export")
        assert (reply.status, reply.json["code"]) == (429, "overloaded")
    await until(lambda: node.service.exports == 0)
    assert (await node.http("GET", "/v1/export?prefix=1999")).status == 200


@pytest.mark.parametrize("limits", [replace(DEFAULT, write_stall_seconds_max=1)])
async def test_a_client_that_takes_nothing_of_its_answer_is_cut_off(node: Node) -> None:
    for number in range(4000):
        node.consensus.machine.apply(number + 1, 0, Put(b"%d" % number, b"x" * 5000))
    async with node.http.connect() as connection:
        cast(asyncio.Transport, connection.writer.transport).pause_reading()
        connection.send(request("GET", "/v1/export"))
        await until(lambda: node.service.exports == 1)
        await until(lambda: node.service.exports == 0)


@pytest.mark.parametrize("limits", [replace(DEFAULT, header_seconds_max=1)])
async def test_headers_have_a_deadline(node: Node) -> None:
    async with node.http.connect() as connection:
        connection.send(b"GET /livez HTTP/1.1\r\nHost:")
        reply = await connection.reply()
        assert (reply.status, reply.json["code"], reply.json["outcome"]) == (
            408,
            "request_timeout",
            "not_applied",
        )
        assert "--header-seconds-max" in reply.json["detail"]
        assert await connection.closed()


@pytest.mark.parametrize("limits", [replace(DEFAULT, header_seconds_max=1)])
async def test_the_deadline_of_headers_starts_with_each_request(node: Node) -> None:
    async with node.http.connect() as connection:
        connection.send(request("GET", "/livez") + b"GET /livez HTTP/1.1\r\n")
        assert (await connection.reply()).status == 200
        assert (await connection.reply()).status == 408


@pytest.mark.parametrize("limits", [replace(DEFAULT, header_seconds_max=3)])
async def test_headers_that_drip_are_cut_off_by_the_deadline_of_their_first_byte(node: Node) -> None:
    """On the hot path, which has no timers and hands what is not finished to the other after a second."""
    loop = asyncio.get_running_loop()
    async with node.http.connect() as connection:
        began = loop.time()
        reply = asyncio.create_task(connection.reply())
        for byte in b"PUT /v1/kv/a HTTP/1.1\r\nHost: a-host-with-a-long-name":
            connection.send(bytes([byte]))
            await asyncio.wait([reply], timeout=0.1)
            if reply.done():
                break
        assert (await reply).status == 408
        assert 3 <= loop.time() - began < 3.9  # not a second more, which is when it was handed over


@pytest.mark.parametrize("limits", [replace(DEFAULT, header_seconds_max=1)])
async def test_a_body_that_drips_is_cut_off(node: Node) -> None:
    async with node.http.connect() as connection:
        connection.send(request("PUT", "/v1/kv/a", [("Content-Length", "100000")]) + b"v")
        reply = await connection.reply()
        assert (reply.status, reply.json["code"]) == (408, "request_timeout")
        assert "--body-bytes-per-second-min" in reply.json["detail"]


@pytest.mark.parametrize("limits", [replace(DEFAULT, idle_seconds_max=1)])
async def test_an_idle_connection_is_closed(node: Node) -> None:
    async with node.http.connect() as connection:
        connection.send(request("GET", "/livez"))
        assert (await connection.reply()).status == 200
        assert await connection.closed()


@pytest.mark.parametrize("limits", [replace(DEFAULT, connections_max=3)])
async def test_connections_beyond_the_cap_are_told(node: Node) -> None:
    held = [node.http.connect() for _ in range(3)]
    for connection in held:
        await connection.__aenter__()
    await until(lambda: node.api.connections_open == 3)
    async with node.http.connect() as one_more:
        reply = await one_more.reply()
        assert (reply.status, reply.json["code"]) == (429, "overloaded")
        assert await one_more.closed()
    for connection in held:
        await connection.__aexit__()
    await until(lambda: node.api.connections_open == 0)
    assert (await node.http("GET", "/livez")).status == 200


@pytest.mark.parametrize("limits", [replace(DEFAULT, buffered_body_bytes_max=1 << 20)])
async def test_bodies_in_memory_are_bounded_together(node: Node) -> None:
    node.consensus.hold()
    first = asyncio.create_task(node.http("PUT", "/v1/kv/a", b"v" * 800_000))
    await until(lambda: node.service.writes_in_flight == 1)
    second = await node.http("PUT", "/v1/kv/b", b"v" * 800_000)
    assert (second.status, second.json["code"]) == (429, "overloaded")
    node.consensus.release()
    assert (await first).status == 201
    assert (await node.http("PUT", "/v1/kv/b", b"v" * 800_000)).status == 201


@pytest.mark.parametrize("limits", [replace(DEFAULT, batch_line_bytes_max=2000)])
async def test_a_long_line_costs_only_itself(node: Node) -> None:
    long = b'{"key": "a", "value": "' + b"x" * 300_000 + b'"}\n'
    good = b'{"key": "b", "value": "1"}\n'
    reply = await node.http("POST", "/v1/batch", good + long + good + long[:-1])
    assert [line["status"] for line in reply.lines] == [201, 413, 200, 413]
    assert "--batch-line-bytes-max" in reply.lines[1]["detail"]


@pytest.mark.parametrize("limits", [replace(DEFAULT, list_bytes_max=2000)])
async def test_a_page_is_bounded_in_bytes(node: Node) -> None:
    for number in range(10):
        await node.http("PUT", f"/v1/kv/{number}", b"x" * 900)
    page = (await node.http("GET", "/v1/kv")).json
    assert 1 <= len(page["items"]) <= 3
    assert page["next_cursor"]


# --- the end ---------------------------------------------------------------------------------------------


async def test_a_draining_node_answers_what_it_has_taken(node: Node) -> None:
    node.consensus.hold()
    taken = asyncio.create_task(node.http("PUT", "/v1/kv/a", b"v"))
    await until(lambda: node.service.writes_in_flight == 1)
    draining = asyncio.create_task(node.api.drain())
    await until(lambda: node.consensus.drained)
    refused = await node.http("PUT", "/v1/kv/b", b"v")
    assert (refused.status, refused.json["code"], refused.json["outcome"]) == (503, "draining", "not_applied")
    ready = await node.http("GET", "/readyz?verbose")
    assert (ready.status, ready.json["checks"][0]["ok"]) == (503, False)
    assert (await node.http("GET", "/livez")).status == 200
    node.consensus.release()
    reply = await taken
    assert (reply.status, reply.headers["connection"]) == (201, "close")
    await draining


async def test_a_draining_node_that_leads_no_more_still_sends_on(node: Node) -> None:
    await node.api.drain()
    node.consensus.follow("n2", "http://n2:8400")
    assert (await node.http("PUT", "/v1/kv/a", b"v")).headers["location"] == "http://n2:8400/v1/kv/a"


async def test_close_ends_idle_connections_and_the_listener(node: Node) -> None:
    async with node.http.connect() as connection:
        connection.send(request("GET", "/livez"))
        await connection.reply()
        await node.api.close()
        assert await connection.closed()
    with pytest.raises(ConnectionError):
        await node.http("GET", "/livez")


async def test_probes_say_what_is_missing(node: Node) -> None:
    node.consensus.ready = node.consensus.started = False
    for probe in ("/readyz", "/startupz"):
        reply = await node.http("GET", probe)
        assert (reply.status, reply.json["code"]) == (503, "not_ready")
        assert "n2 and n3" in reply.json["detail"]
    assert (await node.http("GET", "/livez")).status == 200


async def test_the_ops_listener_has_probes_and_metrics_only() -> None:
    made = await start_node(DEFAULT, ops=("127.0.0.1", 0))
    assert made.api.ops_port is not None
    ops = replace(made.http, port=made.api.ops_port)
    statuses = {
        target: (await ops("GET", target)).status for target in ("/livez", "/readyz", "/startupz", "/metrics")
    }
    assert set(statuses.values()) == {200}
    refused: list[Reply] = [
        await ops("GET", target) for target in ("/v1/status", "/v1/kv/a", "/v1/kv", "/docs")
    ]
    assert {(reply.status, reply.json["code"]) for reply in refused} == {(404, "no_such_route")}
    assert (await made.http("GET", "/livez")).status == 200
    await made.api.close()


async def test_a_stream_that_breaks_is_cut_and_never_ended(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without its last chunk and line, no client can take a part for the whole."""
    for number in range(3000):
        node.consensus.machine.apply(number + 1, 0, Put(b"%d" % number, b"x"))
    pages = iter([node.consensus.machine.image_of_items().next_page()])
    monkeypatch.setattr(Image, "next_page", lambda self, count: next(pages))
    reply = await node.http("GET", "/v1/export")
    assert not reply.ended
    assert len(reply.lines) == 1000
    assert any("internal_error" in record.getMessage() for record in caplog.records)
    assert node.service.exports == 0


@pytest.mark.parametrize(
    ("data", "served"),
    [
        (request("PUT", "/v1/kv/a", [("Content-Length", "1000")]) + b"half", 0),
        (request("POST", "/v1/batch", [("Content-Length", "1000")]) + b'{"key": "a", "value": "1"}\n', 1),
        (request("GET", "/v1/export"), 0),
        (request("PUT", "/v1/kv/a", [], b"v") + b"GET /half", 1),
    ],
    ids=["half a body", "half a batch", "an export", "half a head"],
)
@pytest.mark.parametrize("reset", [False, True])
async def test_a_client_that_is_gone_is_no_error(
    node: Node, caplog: pytest.LogCaptureFixture, data: bytes, served: int, reset: bool
) -> None:
    for number in range(6000):
        node.consensus.machine.apply(number + 1, 0, Put(b"%d" % number, b"x" * 5000))
    async with node.http.connect() as connection:
        connection.send(data)
        await until(lambda: node.api.requests_in_flight == 1 or len(node.consensus.proposed) == 1)
        if reset:  # rather than an orderly end
            linger = struct.pack("ii", 1, 0)
            connection.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        connection.writer.transport.abort()
    await until(lambda: node.api.connections_open == node.api.requests_in_flight == node.service.exports == 0)
    assert len(node.consensus.proposed) == served
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_snapshot_that_fails_says_why(node: Node) -> None:
    node.consensus.read_error = NotReady("x")
    started = await node.http("POST", "/v1/snapshots", b"")

    async def state() -> dict[str, str]:
        made: dict[str, str] = (await node.http("GET", started.headers["location"])).json
        return made

    async with asyncio.timeout(DEADLINE_S):
        while (operation := await state())["state"] == "running":
            pass
    assert (operation["state"], operation["detail"]) == ("failed", "the store is away")


async def test_one_snapshot_at_a_time(node: Node) -> None:
    node.consensus.hold()
    first = await node.http("POST", "/v1/snapshots", b"")
    second = await node.http("POST", "/v1/snapshots", b"")
    assert first.headers["location"] == second.headers["location"]
    assert (await node.http("GET", first.headers["location"])).json["state"] == "running"
    node.consensus.release()


async def test_a_batch_that_is_closed_between_answers_ends_without_a_word(node: Node) -> None:
    """A client that is gone has the generator closed where it yields: that is no failure of its tasks."""

    async def one_line_and_no_end() -> AsyncIterator[bytes]:
        yield b'{"key": "a", "value": "1"}\n'
        await asyncio.Event().wait()

    call = SimpleNamespace(
        headers={},
        limits=Limits(),
        service=node.service,
        timeout_s=5.0,
        admission=OPEN,
        body=SimpleNamespace(pieces=one_line_and_no_end),
    )
    answers = cast(AsyncGenerator[bytes, None], Batch(cast(Any, call)).answers())
    assert b'"status":201' in await anext(answers)
    await answers.aclose()
    assert len(node.consensus.proposed) == 1
