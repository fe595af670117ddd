"""Real nodes that publish to a real Ceph: while it is well, while it is away, and while they die."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.local import LocalCluster, find_base_port
from raftkv.client import ClientError, SyncClient
from raftkv.snapshot.loader import verify
from raftkv.snapshot.rados import Location, RadosBucket
from raftkv.snapshot.remote import RemoteStore, attempts
from tests.ceph import Ceph


def until(condition: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return found


class Published:
    """A cluster of three on `rados://`, its client, and the store seen from outside."""

    def __init__(self, ceph: Ceph, location: Location, directory: Path) -> None:
        self.ceph = ceph
        self.location = location
        self.store = RemoteStore(RadosBucket(location))
        self.nodes = LocalCluster(
            directory,
            base_port=find_base_port(),
            extra_args=[
                *("--snapshots", ceph.url(location)),
                *("--snapshot-entries-max", "200"),
                *("--snapshot-spacing-seconds", "1"),
                *("--snapshots-kept", "3"),
            ],
        )
        self.nodes.start_all()
        self.nodes.wait_ready()
        self.client = SyncClient(self.nodes.api_urls(), timeout_s=20)

    def archive(self, name: str | None = None) -> dict[str, Any]:
        status = self.nodes.status(name or self.nodes.wait_leader())
        return {} if status is None else status["archive"] or {}

    def close(self) -> None:
        self.client.close()
        self.store.close()
        self.nodes.close()


@pytest.fixture
def published(ceph: Ceph, tmp_path: Path) -> Iterator[Published]:
    made = Published(ceph, ceph.new_location(), tmp_path / "nodes")
    try:
        yield made
    finally:
        ceph.run("start")
        made.close()


class Writer:
    """Puts one key after the other until it is stopped; notes each that was acknowledged, and the longest
    time that one took."""

    def __init__(self, urls: list[str]) -> None:
        self.acknowledged = 0
        self.longest_s = 0.0
        self._urls = urls
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        with SyncClient(self._urls, timeout_s=20) as client:
            for number in itertools.count():
                if self._over.is_set():
                    return
                began = time.monotonic()
                try:
                    client.put(f"key/{number % 500}", b"%d" % number * 20)
                except ClientError:
                    continue
                self.longest_s = max(self.longest_s, time.monotonic() - began)
                self.acknowledged += 1


def test_the_leader_publishes_by_itself_and_on_demand_through_any_node(published: Published) -> None:
    nodes, client = published.nodes, published.client
    with Writer(nodes.api_urls()) as writer:
        until(lambda: writer.acknowledged > 450, "writes go through")
        until(lambda: len(published.store.list()) >= 2, "snapshots arrive by themselves")
    follower = next(name for name in nodes.names if name != nodes.wait_leader())
    made = client.create_snapshot(nodes.api_url(follower), timeout_s=20)
    newest = published.store.list()[-1]
    assert (newest.id, newest.revision) == (made["id"], client.status(nodes.api_url(follower))["revision"])
    assert client.verify_snapshot(made["id"], nodes.api_url(follower), timeout_s=20)["verified"]
    for name in nodes.names:
        assert made["id"] in [each["id"] for each in client.snapshots(nodes.api_url(name))]
    states = [published.archive(name)["state"] for name in nodes.names]
    assert sorted(set(states)) in (["idle", "standby"], ["publishing", "standby"])
    assert states.count("standby") == 2


def test_with_the_osd_paused_writes_go_on_the_journal_stays_bounded_and_it_catches_up(
    published: Published,
) -> None:
    nodes, ceph = published.nodes, published.ceph
    with Writer(nodes.api_urls()) as writer:
        until(lambda: published.store.list(), "a first snapshot")
        ceph.run("pause-osd")
        before = writer.acknowledged
        writer.longest_s = 0.0
        until(lambda: published.archive().get("state") == "failing", "the failure is told")
        until(lambda: writer.acknowledged > before + 1_000, "writes go on")
        assert writer.longest_s < 5, "no write waits for the store"
        leader = nodes.status(nodes.wait_leader())
        assert leader is not None
        assert leader["journal"]["last_index"] - leader["journal"]["first_index"] < 4 * 200
        assert "Ceph" in leader["archive"]["error"]
        ceph.run("resume-osd")
        applied = leader["applied_index"]
        until(lambda: published.archive().get("index", 0) > applied, "it catches up by itself")
    assert published.archive()["failures_in_row"] == 0


def test_nodes_stop_in_time_while_the_store_hangs(published: Published) -> None:
    nodes, ceph = published.nodes, published.ceph
    published.client.put("k", b"v")
    ceph.run("pause-osd")
    leader = nodes.wait_leader()
    published.client.start_snapshot(nodes.api_url(leader))
    until(lambda: published.archive(leader)["state"] == "publishing", "a publication hangs")
    began = time.monotonic()
    assert [nodes.stop(name) for name in nodes.names] == [0, 0, 0]
    assert time.monotonic() - began < 30


def test_a_killed_publisher_leaves_nothing_half_and_the_next_leader_goes_on(published: Published) -> None:
    with Writer(published.nodes.api_urls()):
        for _ in range(4):
            kill_while_publishing(published)
    made = published.client.create_snapshot(timeout_s=20)
    until(lambda: published.archive().get("state") == "idle", "it is done")
    index = RadosBucket(published.location).index()
    assert made["id"] in [each.snapshot for each in attempts(index, "s", None)]
    whole = {name for each in attempts(index, "s", None) for name in each.objects()}
    names = published.ceph.object_names(published.location)
    assert {each for each in names if snapshot_of(each)} == whole


def snapshot_of(name: str) -> str:
    """The id in an object's name; "" for what belongs to no snapshot."""
    begin = name.partition(".")[0]
    return begin if begin.count("-") > 2 else ""


def kill_while_publishing(published: Published) -> None:
    nodes, store = published.nodes, published.store
    leader = nodes.wait_leader()
    uploads = published.archive(leader).get("uploads", 0)
    until(lambda: published.archive(leader).get("uploads", 0) != uploads, "it publishes")
    until(lambda: published.archive(leader).get("state") == "publishing", "and again")
    nodes.kill(leader)
    for each in store.list():
        verify(store, each.id)
    newest = store.list()[-1].index
    successor = nodes.wait_leader()
    until(lambda: published.archive(successor).get("index", 0) > newest, "the next leader publishes")
    nodes.start(leader)
    nodes.wait_ready()
