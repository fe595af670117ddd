"""A majority of disks lost for good, and a new cluster of what is left, with real processes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.local import LocalCluster, find_base_port
from raftkv.client import SyncClient
from raftkv.raft.survivor import read_survivor


@pytest.fixture
def old(tmp_path: Path) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path / "old", base_port=find_base_port()) as cluster:
        cluster.start_all()
        cluster.wait_ready()
        yield cluster


def recover(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "raftkv", "cluster", "recover", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("compacted", [False, True])
def test_the_newest_disk_that_is_left_becomes_a_cluster(
    old: LocalCluster, tmp_path: Path, compacted: bool
) -> None:
    with SyncClient(old.api_urls()) as client:
        for number in range(50):
            client.put(f"key/{number}", b"%d" % number)
        if compacted:
            client.create_snapshot()
        client.put("after", b"the snapshot")
        revision = client.incr("counter", 7).revision
    leader = old.wait_leader()
    lagging = next(name for name in old.names if name != leader)
    new = LocalCluster(tmp_path / "new", nodes=1, base_port=find_base_port())
    member = f"n1={new.raft_address('n1')},{new.api_url('n1')}"
    words = [
        *("--from", str(old.node_dir(lagging)), "--from", str(old.node_dir(leader))),
        *("--data-dir", str(new.node_dir("n1")), "--member", member),
    ]

    running = recover("--unsafe", *words)
    assert running.returncode == 1
    assert "another process uses the journal" in running.stderr
    old.kill(lagging)
    with SyncClient(old.api_urls()) as client:
        revision = client.put("last", b"one").revision  # on two disks of three
    old.kill_all()
    shutil.rmtree(old.node_dir(next(name for name in old.names if name not in (leader, lagging))))
    assert read_survivor(old.node_dir(leader)).last > read_survivor(old.node_dir(lagging)).last

    refused = recover(*words)
    assert refused.returncode == 2
    assert "--unsafe" in refused.stderr
    assert "may be missing" in refused.stderr
    assert not new.node_dir("n1").exists()
    done = recover("--unsafe", *words)
    assert done.returncode == 0, done.stderr
    assert f"taken: {old.node_dir(leader)}" in done.stdout
    with new:
        new.start_all()
        new.wait_ready()
        with SyncClient(new.api_urls()) as client:
            values = [client.get(f"key/{number}").value for number in range(50)]
            assert values == [b"%d" % number for number in range(50)]
            assert client.get("last").value == b"one"
            assert client.get("counter").value == b"7"
            assert client.put("on", b"it goes").revision == revision + 1
    again = recover("--unsafe", *words)
    assert again.returncode == 2
    assert "is not empty" in again.stderr
