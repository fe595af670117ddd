"""The log on its way to a real Ceph whose only OSD is killed: no write waits, nothing is missing after."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.local import LocalCluster, find_base_port
from raftkv.client import SyncClient
from raftkv.raft.restore import Target, recover
from raftkv.snapshot.rados import RadosBucket
from raftkv.snapshot.remote import RemoteStore
from tests.ceph import Ceph


def log_archive(cluster: LocalCluster) -> dict[str, Any]:
    status = cluster.status(cluster.wait_leader())
    assert status is not None
    return {**status["log_archive"], "applied": status["applied_index"]}


def test_an_osd_that_is_away_delays_no_write_and_leaves_no_gap(tmp_path: Path, ceph: Ceph) -> None:
    location = ceph.new_location()
    words = ("--snapshots", ceph.url(location))
    with (
        LocalCluster(tmp_path / "nodes", base_port=find_base_port(), extra_args=words) as cluster,
        SyncClient(cluster.api_urls(), timeout_s=10) as client,
    ):
        cluster.start_all()
        cluster.wait_ready()
        written = 0

        def write_until(condition: Callable[[], bool], what: str, timeout_s: float) -> float:
            """Writes all the while; the longest that one took."""
            nonlocal written
            longest, deadline = 0.0, time.monotonic() + timeout_s
            while not condition():
                assert time.monotonic() < deadline, f"never came: {what}: {log_archive(cluster)}"
                began = time.monotonic()
                for _ in range(20):
                    client.put(f"{written:06d}", b"x")
                    written += 1
                longest = max(longest, (time.monotonic() - began) / 20)
            return longest

        write_until(lambda: log_archive(cluster)["index"] > 20, "a first range", 20)
        ceph.run("kill-osd")
        try:
            longest = write_until(
                lambda: log_archive(cluster)["state"] in ("lagging", "failing"), "an alarm", 40
            )
        finally:
            ceph.run("start-osd")
        assert longest < 0.5
        write_until(lambda: log_archive(cluster)["state"] == "current", "an archive that caught up", 60)
        deadline = time.monotonic() + 30
        while (archive := log_archive(cluster))["index"] < archive["applied"]:
            assert time.monotonic() < deadline, archive
            time.sleep(0.05)
        assert archive["gaps"] == 0
    bucket = RadosBucket(location)
    try:
        recovered = recover(RemoteStore(bucket), Target())
    finally:
        bucket.close()
    keys = [item.key for item in recovered.machine.scan(b"", None, written + 1)]
    assert keys == [b"%06d" % number for number in range(written)]
