"""Idle and dripping connections at a real node, over both: cut, kept, bounded, and no harm to who means well.

`scripts/flood.py` measures the same with thousands of them, and what it costs the others.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cluster.flood import flooding, resident_bytes
from cluster.local import LocalCluster, find_base_port
from raftkv.client import SyncClient

IDLE, DRIPPING = 400, 200
HEADER_SECONDS = 3
CUT_LATE_SECONDS_MAX = 2.0  # of a machine with other things to do
CONNECTION_BYTES_MAX = 128 << 10
SECONDS_MAX = 60.0


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_drips_are_cut_and_idle_connections_are_kept(tmp_path: Path, tls: bool) -> None:
    limit = ("--header-seconds-max", str(HEADER_SECONDS))
    with LocalCluster(tmp_path, nodes=1, base_port=find_base_port(1), tls=tls, extra_args=limit) as cluster:
        cluster.start_all()
        cluster.wait_ready()
        pid = cluster.pid("n1")
        assert pid is not None
        ca_file = cluster.tls_dir / "ca.pem" if tls else None
        with SyncClient(cluster.api_url("n1"), tls=cluster.client_tls) as client:
            client.put("a", b"v")
            before = resident_bytes(pid)
            with flooding(cluster.api_url("n1"), idle=IDLE, dripping=DRIPPING, ca_file=ca_file) as flood:
                began = time.monotonic()
                writes = 0
                # Until each dripping connection was cut once, or should have been.
                while writes < 200 or time.monotonic() - began < HEADER_SECONDS + CUT_LATE_SECONDS_MAX:
                    client.put("a", b"v")  # raises where it fails
                    writes += 1
                    assert time.monotonic() - began < SECONDS_MAX
                after = resident_bytes(pid)
                seen = flood.end()
        assert len(seen.cut_after_s) >= DRIPPING
        assert min(seen.cut_after_s) >= HEADER_SECONDS - 0.5  # and not before their time
        assert max([*seen.cut_after_s, seen.dripping_longest_s]) <= HEADER_SECONDS + CUT_LATE_SECONDS_MAX
        assert (seen.idle_lost, seen.failed) == (0, 0)
        assert after - before < (IDLE + DRIPPING) * CONNECTION_BYTES_MAX
        assert cluster.stop("n1") == 0
