"""Snapshots over HTTP: one of them, its end, its verdict, and who makes one where a store is shared."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from raftkv.api.node import CHUNKS_SENT_MAX
from raftkv.errors import SnapshotDamaged, StoreUnavailable
from raftkv.raft.status import ArchiveStatus
from raftkv.snapshot import store as store_module
from raftkv.snapshot.codec import Chunk, Manifest, decode_manifest
from raftkv.snapshot.directory import DirectoryStore
from tests.contract.conftest import Node
from tests.contract.plain import Http, request
from tests.unit.snapshot_samples import a_machine, publish


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


# --- its bytes -------------------------------------------------------------------------------------------


@pytest.fixture
def stored(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """A snapshot of several chunks, its files in `tmp_path`."""
    monkeypatch.setattr(store_module, "CHUNK_RAW_BYTES", 1_000)
    store = DirectoryStore.open(tmp_path)
    node.consensus.reader = store
    return publish(store, a_machine(1))


async def test_a_snapshot_comes_byte_for_byte_as_it_is_stored(
    node: Node, stored: Manifest, tmp_path: Path
) -> None:
    answer = await node.http("GET", f"/v1/snapshots/{stored.id}/manifest")
    assert answer.body == (tmp_path / f"{stored.id}.manifest").read_bytes()
    assert answer.headers["etag"] == f'"{hashlib.sha256(answer.body).hexdigest()}"'
    assert decode_manifest(answer.body) == stored
    assert len(stored.chunks) > 2
    for number, chunk in enumerate(stored.chunks):
        answer = await node.http("GET", f"/v1/snapshots/{stored.id}/chunks/{number}")
        assert (answer.status, answer.headers["content-type"]) == (200, "application/octet-stream")
        assert answer.body == (tmp_path / chunk.name).read_bytes()
        assert answer.headers["etag"] == f'"{chunk.sha256}"'


@pytest.mark.parametrize("part", ["manifest", "chunks/0"])
async def test_a_head_of_its_bytes_is_their_etag(node: Node, stored: Manifest, part: str) -> None:
    whole = await node.http("GET", f"/v1/snapshots/{stored.id}/{part}")
    for _ in range(CHUNKS_SENT_MAX + 1):
        head = await node.http("HEAD", f"/v1/snapshots/{stored.id}/{part}")
        assert (head.status, head.headers["etag"], head.body) == (200, whole.headers["etag"], b"")


async def test_bytes_that_are_not_there_are_a_404(node: Node, stored: Manifest) -> None:
    other = stored.id.replace("r41", "r42")
    for path in (f"{other}/manifest", f"{other}/chunks/0", f"{stored.id}/chunks/{len(stored.chunks)}"):
        answer = await node.http("GET", f"/v1/snapshots/{path}")
        assert (answer.status, answer.json["code"]) == (404, "snapshot_missing"), path
    for path in (f"{stored.id}/chunks", f"{stored.id}/chunks/", f"{stored.id}/chunks/0/1", "/chunks/0"):
        answer = await node.http("GET", f"/v1/snapshots/{path}")
        assert (answer.status, answer.json["code"]) == (404, "no_such_route"), path


async def test_bytes_are_for_reading_only(node: Node, stored: Manifest) -> None:
    for path in ("manifest", "chunks/0"):
        answer = await node.http("DELETE", f"/v1/snapshots/{stored.id}/{path}")
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


async def test_a_chunk_that_is_rotten_on_the_disk_is_not_given_out(
    node: Node, stored: Manifest, tmp_path: Path
) -> None:
    rotten = tmp_path / stored.chunks[1].name
    rotten.write_bytes(rotten.read_bytes()[:-1] + b"?")
    answer = await node.http("GET", f"/v1/snapshots/{stored.id}/chunks/1")
    assert (answer.status, answer.json["code"]) == (500, "snapshot_damaged")
    assert rotten.name in answer.json["detail"]
    rotten.unlink()
    answer = await node.http("GET", f"/v1/snapshots/{stored.id}/chunks/1")
    assert (answer.status, answer.json["code"]) == (500, "snapshot_damaged")
    assert "chunk 1 is gone" in answer.json["detail"]


async def test_chunks_that_nobody_takes_are_bounded_and_give_way_when_they_are_given_up(node: Node) -> None:
    data = bytes(32 << 20)  # more than the sockets' buffers hold

    async def large(name: str, number: int) -> tuple[Chunk, bytes]:
        return Chunk("c", len(data), len(data), "0" * 64), data

    node.consensus.snapshot_chunk = large  # type: ignore[method-assign]

    async def until(status: int) -> None:
        async with asyncio.timeout(10):
            while (await node.http("HEAD", "/v1/snapshots/s1/chunks/0")).status != status:
                pass

    await until(200)
    with ExitStack() as slow:
        for _ in range(CHUNKS_SENT_MAX):
            reader = slow.enter_context(socket.create_connection(("127.0.0.1", node.api.port)))
            reader.sendall(request("GET", "/v1/snapshots/s1/chunks/0"))
        await until(429)
    await until(200)


# --- publishing ------------------------------------------------------------------------------------------


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
