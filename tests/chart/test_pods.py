"""The chart's pods, jobs and probes, run as real processes: see pods.py for what stands in for Kubernetes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cluster import network
from cluster.local import LocalCluster, find_base_port
from raftkv.client import SyncClient
from tests.chart.pods import Namespace
from tests.chart.rendering import NAME

_why_not = network.unavailable()
pytestmark = pytest.mark.skipif(_why_not is not None, reason=str(_why_not))

VALUES = {"leaveSeconds": 0}


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Namespace]:
    with Namespace(tmp_path) as found:
        yield found


def names(count: int) -> set[str]:
    return {f"{NAME}-{ordinal}" for ordinal in range(count)}


def put(space: Namespace, ordinal: int, key: str, value: bytes) -> None:
    status, body = space.get(f"{space.url(ordinal)}/v1/kv/{key}", "PUT", value)
    assert status in (200, 201), body


def test_installed_killed_scaled_up_and_down_upgraded_and_installed_again(space: Namespace) -> None:
    space.install(VALUES)
    space.wait_ready()
    space.wait(lambda: set(space.members()) == names(3))
    put(space, 2, "first", b"1")
    space.wait(lambda: all(space.probe(each, "startup") == 200 for each in range(3)))
    assert [space.probe(each, "liveness") for each in range(3)] == [200] * 3
    assert "deleted" in space.run_test()

    space.kill(0)
    space.wait(lambda: space.restarts[0] == 1)
    space.wait_ready()

    space.upgrade({**VALUES, "replicas": 5})
    space.wait(lambda: set(space.members()) == names(5) and "learner" not in space.members().values())
    space.wait_ready()
    put(space, 4, "second", b"2")

    space.upgrade(VALUES)
    space.wait(lambda: set(space.members()) == names(3))
    put(space, 0, "third", b"3")

    changed = {**VALUES, "config": {"log_format": "json"}}
    space.upgrade(changed)  # which restarts them one by one
    space.wait(lambda: set(space.members()) == names(3))

    space.upgrade({**changed, "replicas": 5})  # on the volumes of the members that were removed
    space.wait(lambda: set(space.members()) == names(5) and "learner" not in space.members().values())
    space.wait_ready()
    assert (space.volume(4) / "node.removed" / "identity.json").exists()
    assert space.get(f"{space.url(4)}/v1/kv/third") == (200, b"3")

    space.uninstall()
    space.install({**changed, "replicas": 5})
    space.wait_ready()
    for ordinal, (key, value) in enumerate({"first": b"1", "second": b"2", "third": b"3"}.items()):
        assert space.get(f"{space.url(ordinal)}/v1/kv/{key}") == (200, value)


def test_a_pod_that_comes_without_the_upgrade_waits_and_one_that_goes_without_it_is_missed(
    space: Namespace,
) -> None:
    space.install(VALUES)
    space.wait_ready()
    space.scale_behind_its_back(4)
    space.wait(lambda: space.restarts[3] >= 1)
    assert "--name kv-raftkv-3 is not among the members" in space.log(3)
    space.wait(lambda: set(space.members()) == names(3))
    space.upgrade({**VALUES, "replicas": 4})
    space.wait(lambda: space.members().get(f"{NAME}-3") in ("follower", "leader"))

    space.scale_behind_its_back(3)
    space.wait_ready()
    space.wait(lambda: set(space.members()) == names(4))  # it still counts
    put(space, 0, "still", b"there")
    space.upgrade({**VALUES, "replicas": 4})
    space.wait_ready()
    assert space.get(f"{space.url(3)}/v1/kv/still") == (200, b"there")
    assert not (space.volume(3) / "node.removed").exists(), "it was a member all along"


def test_a_lost_volume_is_replaced_and_the_pod_then_joins_by_itself(space: Namespace) -> None:
    space.install(VALUES)
    space.wait_ready()
    put(space, 0, "kept", b"1")
    space.uninstall()
    space.delete_volume(1)
    space.install(VALUES)
    space.wait(lambda: space.restarts[1] >= 1)
    assert "the disk of kv-raftkv-1 is empty" in space.log(1)
    space.wait(lambda: space.get(f"{space.url(0)}/v1/kv/kept") == (200, b"1"))
    assert "kv-raftkv-1" in space.execute(0, "raftkv", "member", "replace", "kv-raftkv-1")
    space.wait(lambda: space.members().get(f"{NAME}-1") in ("follower", "leader"))
    space.wait_ready()
    assert space.get(f"{space.url(1)}/v1/kv/kept") == (200, b"1")


def test_a_cluster_that_can_not_be_asked_does_not_keep_an_upgrade_from_mending_it(space: Namespace) -> None:
    space.install(VALUES)
    space.wait_ready()
    space.scale_behind_its_back(0)
    space.upgrade({**VALUES, "membership": {"timeoutSeconds": 10}})
    space.wait_ready()


def test_one_member_alone_grows_to_three_and_back(space: Namespace) -> None:
    space.install({**VALUES, "replicas": 1})
    space.wait_ready()
    put(space, 0, "first", b"1")
    space.upgrade({**VALUES, "replicas": 3})
    space.wait(lambda: sorted(space.members().values()) == ["follower", "follower", "leader"])
    space.wait_ready()
    space.delete_pod(0)  # whoever leads, another one takes over first
    space.wait_ready()
    space.upgrade({**VALUES, "replicas": 1})
    space.wait(lambda: space.members() == {f"{NAME}-0": "leader"})
    assert space.get(f"{space.url(0)}/v1/kv/first") == (200, b"1")


def test_tls_on_both_ports_and_tokens_from_the_first_start_to_a_change_of_scale(space: Namespace) -> None:
    values = {
        **VALUES,
        "tls": {"enabled": True, "clientCertificates": True},
        "peerTls": {"enabled": True},
        "auth": {"enabled": True},
    }
    space.install(values)
    space.wait_ready()
    assert "deleted" in space.run_test()
    space.upgrade({**values, "replicas": 4})
    space.wait_ready()
    assert space.listed(3) == names(4)
    for ordinal in range(4):  # three of them pass it on, over TLS, and show who they are
        assert "revision" in space.execute(ordinal, "raftkv", "kv", "put", f"from {ordinal}", "x")
    space.delete_pod(3)
    space.wait_ready()
    space.upgrade(values)
    assert space.listed(0) == names(3)
    assert space.get(f"{space.url(0)}/v1/kv/a")[0] == 0, "plain HTTP is not spoken"
    for ordinal in range(3):
        assert "security_off" not in space.log(ordinal)
        assert "can be read by others" not in space.log(ordinal)


def test_empty_volumes_are_filled_from_a_snapshot_and_only_once(space: Namespace, tmp_path: Path) -> None:
    store = f"file://{tmp_path}/store"
    with LocalCluster(
        tmp_path / "old", nodes=1, base_port=find_base_port(1), extra_args=["--snapshots", store]
    ) as old:
        old.start_all()
        old.wait_ready()
        with SyncClient(old.api_urls()) as client:
            client.put("kept", b"1")
            snapshot = client.create_snapshot()["id"]
            client.put("later", b"2")
    restore = {"enabled": True, "from": store, "snapshot": snapshot, "newClusterId": "ab" * 16}
    within = {**VALUES, "restore": {**restore, "until": time_after(3600)}}
    unfinished = space.volume(1) / "node" / "restore-unfinished"
    unfinished.parent.mkdir(parents=True)
    unfinished.write_text("cut short")  # by a node that went down while it restored

    space.install(within)
    space.wait_ready()
    assert space.get(f"{space.url(1)}/v1/kv/kept") == (200, b"1")
    assert space.get(f"{space.url(2)}/v1/kv/later")[0] == 404
    assert json.loads(space.get(f"{space.url(2)}/v1/status")[1])["cluster_id"] == "ab" * 16
    put(space, 0, "new", b"3")

    space.delete_pod(0)
    space.wait_ready()
    assert "holds a member's data already" in space.log(0)
    assert space.get(f"{space.url(0)}/v1/kv/new") == (200, b"3")

    space.uninstall()
    space.delete_volume(2)
    space.install({**VALUES, "restore": {**restore, "until": time_after(-1)}})
    space.wait(lambda: space.restarts[2] >= 1)
    assert "(restore.until): the volume stays empty" in space.log(2)
    assert "the disk of kv-raftkv-2 is empty" in space.log(2)
    space.wait(lambda: space.get(f"{space.url(1)}/v1/kv/new") == (200, b"3"))


def time_after(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
