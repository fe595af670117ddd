"""A rolling restart is nothing that a client notices; `scripts/rolling_restart.py` runs longer ones."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cluster.local import LocalCluster, find_base_port
from cluster.rolling import Rolling


@pytest.mark.parametrize("drain", ["0", "300ms"])
def test_no_request_fails_while_every_node_is_restarted(drain: str, tmp_path: Path) -> None:
    with LocalCluster(tmp_path, base_port=find_base_port(), extra_args=("--drain-seconds", drain)) as cluster:
        cluster.start_all()
        report = asyncio.run(Rolling(cluster, seed=1).run())
    print("\n".join(report.lines()))
    assert report.failed == []
    assert report.violations == []
    assert report.write_gap[0] <= 1.0
    assert report.operations > 500, "too little was done to prove anything"
    assert any(leave.led for leave in report.leaves)
    if drain != "0":
        assert all(leave.unready for leave in report.leaves), "a load balancer had no chance to see it go"
