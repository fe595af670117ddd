"""A node without room for more, as its clients see it, on both paths."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from raftkv.api.limits import Limits
from raftkv.room import Reading
from tests.contract.conftest import Node, start_node


@pytest.fixture(params=["hot", "cold"])
async def full(request: pytest.FixtureRequest) -> AsyncIterator[Node]:
    """100 bytes are there, and 100 are allowed."""
    node = await start_node(Limits(), hot_path=request.param == "hot")
    assert (await node.http("PUT", "/v1/kv/a", b"v" * 99)).status == 201
    node.service.room.quota_bytes = 100
    node.service.room.bounded = True
    yield node
    await node.api.close()


GROWING = [
    ("PUT", "/v1/kv/b", b""),
    ("PUT", "/v1/kv/a", b"v" * 100),
    ("POST", "/v1/kv/a?op=append", b"v"),
    ("POST", "/v1/kv/b?op=incr", b""),
    ("POST", "/v1/txn", b'{"success": [{"put": {"key": "b", "value": ""}}]}'),
    ("POST", "/v1/txn", b'{"failure": [{"append": {"key": "a", "value": "v"}}]}'),
]
PASSING = [
    ("PUT", "/v1/kv/a", b"w" * 99),
    ("PUT", "/v1/kv/a?if_revision=77", b"w" * 9),
    ("POST", "/v1/txn", b'{"success": [{"delete": {"key": "a"}}, {"put": {"key": "b", "value": "x"}}]}'),
    ("DELETE", "/v1/kv/a", None),
    ("DELETE", "/v1/kv/absent", None),
    ("DELETE", "/v1/kv?prefix=a", None),
    ("GET", "/v1/kv/a", None),
]


@pytest.mark.parametrize(("method", "target", "body"), GROWING)
async def test_what_grows_is_refused(full: Node, method: str, target: str, body: bytes) -> None:
    reply = await full.http(method, target, body)
    assert (reply.status, reply.json["code"], reply.json["outcome"]) == (507, "quota_exceeded", "not_applied")
    assert (reply.json["limit"], reply.json["size"], reply.json["flag"]) == (100, 100, "--quota-bytes")
    assert not reply.json["retryable"]
    assert full.consensus.machine.bytes == 100


@pytest.mark.parametrize(("method", "target", "body"), PASSING)
async def test_what_does_not_grow_passes(full: Node, method: str, target: str, body: bytes | None) -> None:
    assert (await full.http(method, target, body)).status != 507


async def test_it_clears_itself(full: Node) -> None:
    assert (await full.http("PUT", "/v1/kv/b", b"v")).status == 507
    status = (await full.http("GET", "/v1/status")).json
    assert status["room"]["refusing"] == ["quota"]
    assert [each["name"] for each in status["alarms"]] == ["no_room"]
    assert b'raftkv_room_refusing{what="quota"} 1.0' in (await full.http("GET", "/metrics")).body
    await full.http("DELETE", "/v1/kv/a")
    assert (await full.http("PUT", "/v1/kv/b", b"v")).status == 201
    assert (await full.http("GET", "/v1/status")).json["room"]["refusing"] == []


async def test_each_line_of_a_batch_by_itself(full: Node) -> None:
    lines = [
        {"key": "b", "value": "1"},
        {"op": "delete", "key": "a"},
        {"key": "c", "value": "2"},
        {"key": "d", "value": "v" * 120},
        {"key": "e", "value": "3"},
    ]
    body = "\n".join(map(json.dumps, lines)).encode()
    first = (await full.http("POST", "/v1/batch", body)).lines
    # What is in flight counts, and what it deletes does not yet.
    assert [answer["status"] for answer in first] == [507, 200, 507, 507, 507]
    again = (await full.http("POST", "/v1/batch", body)).lines
    assert [answer["status"] for answer in again] == [201, 200, 201, 507, 201]


async def test_the_floors_say_which(full: Node) -> None:
    room = full.service.room
    room.quota_bytes = 0
    room.disk_free_bytes_min = room.memory_available_bytes_min = 100
    for reading, code, flag in (
        (Reading(disk_free=9, memory_available=999), "disk_space_low", "--disk-free-bytes-min"),
        (Reading(disk_free=999, memory_available=9), "memory_low", "--memory-available-bytes-min"),
    ):
        room.read(reading)
        reply = await full.http("PUT", "/v1/kv/b", b"v")
        assert (reply.status, reply.json["code"]) == (507, code)
        assert flag in reply.json["detail"]
        assert (await full.http("DELETE", "/v1/kv/nothing")).status == 200
    room.read(Reading(disk_free=999, memory_available=999))
    assert (await full.http("PUT", "/v1/kv/b", b"v")).status == 201


async def test_limits_has_them(node: Node) -> None:
    names = {each["name"]: each["flag"] for each in (await node.http("GET", "/v1/limits")).json["limits"]}
    assert names["quota_bytes"] == "--quota-bytes"
    assert {"disk_free_bytes_min", "memory_available_bytes_min"} <= names.keys()
