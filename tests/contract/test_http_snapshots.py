"""Snapshots over HTTP: one of them, its end, its verdict, and who makes one where a store is shared."""

from __future__ import annotations

import asyncio

from raftkv.errors import SnapshotDamaged, StoreUnavailable
from raftkv.raft.status import ArchiveStatus
from tests.contract.conftest import Node
from tests.contract.plain import Http


async def made(node: Node) -> str:
    await node.consensus.create_snapshot()
    return (await node.consensus.snapshots())[-1].id


async def ended(http: Http, location: str) -> dict[str, object]:
    async with asyncio.timeout(10):
        while (operation := (await http("GET", location)).json)["state"] == "running":
            pass
    return dict(operation)


async def test_one_snapshot_tells_its_manifest(node: Node) -> None:
    name = await made(node)
    body = (await node.http("GET", f"/v1/snapshots/{name}")).json
    assert (body["id"], body["chunks"], body["members"]) == (name, 0, [])
    assert {"cluster", "index", "term", "revision", "time", "bytes", "sha256", "raw_bytes"} <= body.keys()


async def test_what_is_not_there_is_a_404_at_once(node: Node) -> None:
    for method, path in (("GET", "s9"), ("DELETE", "s9"), ("POST", "s9/verify"), ("GET", "%2e%2e")):
        answer = await node.http(method, f"/v1/snapshots/{path}")
        assert (answer.status, answer.json["code"]) == (404, "snapshot_missing")


async def test_a_deleted_snapshot_is_gone(node: Node) -> None:
    name = await made(node)
    assert (await node.http("DELETE", f"/v1/snapshots/{name}")).json == {"deleted": name}
    assert (await node.http("GET", "/v1/snapshots")).json == {"snapshots": []}


async def test_a_verdict_is_an_operation(node: Node) -> None:
    name = await made(node)
    started = await node.http("POST", f"/v1/snapshots/{name}/verify")
    assert started.status == 202
    operation = await ended(node.http, started.headers["location"])
    assert operation["state"] == "done"
    assert operation["result"]["verified"]  # type: ignore[index]

    async def rotten(name: str) -> None:
        raise SnapshotDamaged("chunk 2 is rotten")

    node.consensus.verify_snapshot = rotten  # type: ignore[method-assign, assignment]
    started = await node.http("POST", f"/v1/snapshots/{name}/verify")
    operation = await ended(node.http, started.headers["location"])
    assert (operation["state"], operation["detail"]) == ("failed", "chunk 2 is rotten")


async def test_with_a_shared_store_a_follower_sends_on_who_asks_for_a_snapshot(node: Node) -> None:
    node.consensus.publishes = True
    node.consensus.follow("n2", "http://127.0.0.1:8410")
    answer = await node.http("POST", "/v1/snapshots")
    assert (answer.status, answer.headers["location"]) == (307, "http://127.0.0.1:8410/v1/snapshots")
    node.consensus.follow(None, None)
    assert (await node.http("POST", "/v1/snapshots")).json["code"] == "no_leader"


async def test_with_a_shared_store_the_operation_is_found_on_the_leader_by_its_url(node: Node) -> None:
    node.consensus.publishes = True
    started = await node.http("POST", "/v1/snapshots")
    assert started.headers["location"].startswith("http://127.0.0.1:8400/v1/operations/snapshot-")


async def test_a_store_that_is_away_is_a_503_that_says_why(node: Node) -> None:
    async def away() -> None:
        raise StoreUnavailable("pool raftkv is full: make room", reason="full")

    node.consensus.snapshots = away  # type: ignore[method-assign, assignment]
    answer = await node.http("GET", "/v1/snapshots")
    assert (answer.status, answer.json["code"]) == (503, "store_unavailable")
    assert answer.json["detail"] == "pool raftkv is full: make room"
    assert answer.json["retryable"]


async def test_publishing_shows_in_status_and_metrics(node: Node) -> None:
    assert (await node.http("GET", "/v1/status")).json["archive"] is None
    assert b"raftkv_archive" not in (await node.http("GET", "/metrics")).body
    node.consensus.archive = ArchiveStatus(
        store="rados://p/n",
        state="failing",
        id="s7",
        index=7,
        age_s=12.5,
        uploads=3,
        bytes=4000,
        seconds_last=0.5,
        failures=2,
        failures_in_row=1,
        error="pool p is full",
    )
    archive = (await node.http("GET", "/v1/status")).json["archive"]
    assert (archive["state"], archive["age_s"], archive["error"]) == ("failing", 12.5, "pool p is full")
    metrics = (await node.http("GET", "/metrics")).body.decode().splitlines()
    for line in (
        "raftkv_archive_failing 1.0",
        "raftkv_archive_publishing 1.0",
        "raftkv_archive_age_seconds 12.5",
        "raftkv_archive_uploads_total 3.0",
        "raftkv_archive_failures_total 2.0",
    ):
        assert line in metrics
