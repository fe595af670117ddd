"""A real node with a quota, and with a disk that has less left than it must."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.local import LocalCluster, find_base_port
from raftkv.client import SyncClient, Unavailable

QUOTA = 200_000


def test_a_quota_and_a_floor_hold_and_clear(tmp_path: Path) -> None:
    port = find_base_port(1)
    with LocalCluster(tmp_path, nodes=1, base_port=port, extra_args=("--quota-bytes", str(QUOTA))) as cluster:
        cluster.start("n1")
        cluster.wait_ready()
        with SyncClient(cluster.api_urls()) as client:
            for n in range(19):
                client.put(f"k{n:02d}", b"v" * 10_000)
            with pytest.raises(Unavailable, match="quota_exceeded") as refused:
                client.put("one-more", b"v" * 10_000)
            assert refused.value.outcome == "not_applied"
            assert client.status()["bytes"] <= QUOTA
            client.delete("k00")
            client.put("one-more", b"v" * 10_000)
        cluster.stop("n1")

    floor = ("--disk-free-bytes-min", "1000000GiB")
    with LocalCluster(tmp_path, nodes=1, base_port=port, extra_args=floor) as cluster:
        cluster.start("n1")
        cluster.wait_ready()
        with SyncClient(cluster.api_urls()) as client:
            with pytest.raises(Unavailable, match="disk_space_low"):
                client.put("k99", b"v")
            assert client.status()["room"]["refusing"] == ["disk"]
            assert client.delete("k01").deleted == 1
            assert client.get("one-more").value == b"v" * 10_000
        assert "room_low what=disk" in cluster.log_path("n1").read_text()
        cluster.stop("n1")
