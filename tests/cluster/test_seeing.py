"""What a person sees of real nodes, from one of them: health, top, doctor, a bundle for others to look at."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cluster.local import LocalCluster, find_base_port
from raftkv.client import SyncClient


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("cluster"), base_port=find_base_port()) as cluster:
        cluster.start_all()
        cluster.wait_ready()
        yield cluster


def raftkv(nodes: LocalCluster, *arguments: str, through: str = "n1") -> subprocess.CompletedProcess[str]:
    """With the address of one node only."""
    return subprocess.run(
        [sys.executable, "-m", "raftkv", *arguments, "--endpoints", nodes.api_url(through)],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_top_shows_what_all_nodes_did_between_two_looks(nodes: LocalCluster) -> None:
    with SyncClient(nodes.api_urls()) as client:
        client.put("seen", b"x")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "raftkv", "top", "--once", "--interval", "2", "-o", "json"),
            *("--endpoints", nodes.api_url("n1")),
        ],
        stdout=subprocess.PIPE,
    )
    with SyncClient(nodes.api_urls()) as client:
        while process.poll() is None:
            client.put("seen", b"y")
    assert process.stdout is not None
    shown = json.loads(process.stdout.read())
    process.stdout.close()
    assert process.returncode == 0
    assert [node["name"] for node in shown["nodes"]] == list(nodes.names)
    assert shown["leader"] == nodes.leader()
    assert shown["puts"] > 0
    leading = next(node for node in shown["nodes"] if node["name"] == shown["leader"])
    assert leading["role"] == "leader"
    assert 0 < leading["put_p50_s"] <= leading["put_p99_s"] < 5
    assert 0 < leading["sync_p50_s"] <= leading["sync_p99_s"] < 5
    assert leading["batch_commands"] >= 1
    assert leading["memory_bytes"] > 10_000_000
    drawn = raftkv(nodes, "top", "--once", "--interval", "0.2")
    assert drawn.returncode == 0
    assert all(name in drawn.stdout for name in (*nodes.names, "PUT/s", "BEHIND", "SYNC/s"))


def test_health_is_the_exit_code(nodes: LocalCluster) -> None:
    well = raftkv(nodes, "cluster", "health")
    assert (well.returncode, well.stdout.partition(":")[0]) == (0, "healthy")
    leader = nodes.wait_leader()
    first, second = (name for name in nodes.names if name != leader)
    nodes.kill(first)
    degraded = raftkv(nodes, "cluster", "health", "--json", through=leader)
    assert degraded.returncode == 1
    told = json.loads(degraded.stdout)
    assert (told["state"], told["ready"], told["failures_tolerated"]) == ("degraded", 2, 0)
    assert any(first in problem for problem in told["problems"])
    nodes.pause(second)
    down = raftkv(nodes, "cluster", "health", "-q", through=leader)
    assert (down.returncode, down.stdout) == (2, "")
    nodes.resume(second)
    nodes.start(first)
    nodes.wait_ready()
    assert raftkv(nodes, "cluster", "health", "-q").returncode == 0
