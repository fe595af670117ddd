"""Real members whose states differ say so: in the status, in the metrics and in the log."""

from __future__ import annotations

import time
from pathlib import Path

from cluster.local import LocalCluster, find_base_port, get
from cluster.restoring import local_members
from raftkv.client import SyncClient
from raftkv.kv.command import Put
from raftkv.kv.machine import Machine
from raftkv.raft.restore import Recovered, restore

CLUSTER = "ad" * 16


def a_state(value: bytes) -> Recovered:
    machine = Machine()
    machine.apply(9, 1, Put(b"a", value))
    return Recovered(machine, 1, CLUSTER, None, 0, 0, 0, "")


def test_a_member_with_another_state_is_told_in_status_metrics_and_log(tmp_path: Path) -> None:
    with LocalCluster(tmp_path / "nodes", base_port=find_base_port()) as cluster:
        for name in cluster.names:
            state = a_state(b"2" if name == "n2" else b"1")
            restore(state, {name: cluster.node_dir(name)}, local_members(cluster), cluster=CLUSTER)
        cluster.start_all()
        cluster.wait_ready()
        leader = cluster.wait_leader()
        wrong = ["n2"] if leader != "n2" else ["n1", "n3"]
        with SyncClient(cluster.api_urls()) as client:
            deadline = time.monotonic() + 20
            while not all((cluster.status(name) or {})["agreement"]["divergence"] for name in wrong):
                assert time.monotonic() < deadline, "no alarm came"
                client.put("b", b"something to compare after")
                time.sleep(0.1)
        for name in cluster.names:
            status = cluster.status(name)
            assert status is not None
            metrics = get(cluster.api_url(name) + "/metrics")[1].decode()
            log = "\n".join(cluster.last_log_lines(name, 200))
            if name in wrong:
                divergence = status["agreement"]["divergence"]
                assert divergence["leader"] == leader
                assert divergence["hash"] != divergence["leaders_hash"]
                assert "raftkv_state_diverged 1.0" in metrics
                assert log.count("state_diverged") == 1
            else:
                assert status["agreement"]["mismatches"] == 0
                assert "raftkv_state_diverged 0.0" in metrics
                assert "state_diverged" not in log
