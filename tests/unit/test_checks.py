"""What `raftkv doctor` says of a machine and of nodes, from numbers that a sound one does not have."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from pathlib import Path

import pytest

from cluster.checks import (
    Check,
    clocks_check,
    file_system_check,
    files_check,
    members_check,
    node_checks,
    readings_checks,
    room_check,
    sync_check,
)
from cluster.survey import Node, Readings
from raftkv.metrics import SHORT_BUCKETS, Distribution, Histogram, Metrics, Sample
from raftkv.raft.measures import memory_limit_bytes
from tests.unit.test_health import gone, node, peers

LIMITS = {"limits": [{"name": "connections_max", "value": 10_000}]}
SOUND: Mapping[str, float] = {
    "disk_free_bytes": 50e9,
    "disk_bytes": 100e9,
    "store_bytes": 1e6,
    "memory_limit_bytes": 8e9,
    "open_fds": 100,
    "max_fds": 20_000,
    "round_trip": 0.0003,
    "sync": 0.002,
    "late": 0.001,
    "certificate": 300 * 86_400.0,
}


def readings(**changed: float) -> Readings:
    told = {**SOUND, "resident": 1e9, **changed}
    histograms = {name: Histogram(SHORT_BUCKETS) for name in ("sync", "late")}
    for name, histogram in histograms.items():
        for _ in range(100):
            histogram.add(told[name])
    metrics = Metrics(process=False)
    plain = ("disk_free_bytes", "disk_bytes", "store_bytes", "memory_limit_bytes")
    metrics.source(
        lambda: [
            *(Sample(name, "", told[name], {}) for name in plain),
            Sample("process_resident_memory_bytes", "", told["resident"], {}),
            Sample("process_open_fds", "", told["open_fds"], {}),
            Sample("process_max_fds", "", told["max_fds"], {}),
            Sample("peer_round_trip_seconds", "", told["round_trip"], {"peer": "n2"}),
            Sample("tls_certificate_expiry_seconds", "", told["certificate"], {"use": "api"}),
            Distribution("journal_sync_seconds", "", histograms["sync"]),
            Distribution("loop_late_seconds", "", histograms["late"]),
        ]
    )
    return Readings(metrics.text().decode(), 1.0)


def test_a_sound_node_is_ok_in_all() -> None:
    found = list(readings_checks("n1", readings(), LIMITS))
    assert {check.name.partition(": ")[2] for check in found} == {
        *("fsync", "cpu", "round trip", "room", "memory", "open files", "certificates"),
    }
    assert {check.state for check in found} == {"ok"}


@pytest.mark.parametrize(
    ("changed", "name", "state"),
    [
        ({"sync": 0.2}, "fsync", "warn"),
        ({"late": 0.4}, "cpu", "warn"),
        ({"round_trip": 0.3}, "round trip", "warn"),
        ({"disk_free_bytes": 1e9}, "room", "warn"),
        ({"store_bytes": 30e9}, "room", "warn"),
        ({"resident": 7.9e9}, "memory", "warn"),
        ({"open_fds": 19_000}, "open files", "warn"),
        ({"max_fds": 1024}, "open files", "warn"),
        ({"certificate": 86_400.0}, "certificates", "warn"),
        ({"certificate": -1.0}, "certificates", "fail"),
    ],
)
def test_each_is_told_where_it_is_short(changed: dict[str, float], name: str, state: str) -> None:
    wrong = [check for check in readings_checks("n1", readings(**changed), LIMITS) if check.state != "ok"]
    assert [(check.name, check.state) for check in wrong] == [(f"n1: {name}", state)]
    assert len(wrong[0].detail) > 20


def timed(number: int, offset_s: float, answered_s: float = 0.01) -> Node:
    made = node(number, time=0.0)
    made.offset_s, made.answered_s = offset_s, answered_s
    return made


def test_clocks_that_differ_are_told_but_not_what_the_way_may_explain() -> None:
    assert clocks_check([timed(1, 0.0), timed(2, 0.2)]).state == "ok"
    found = clocks_check([timed(1, 0.0), timed(2, -7.0), timed(3, 0.1)])
    assert found.state == "warn"
    assert "n2 and n3" in found.detail
    assert clocks_check([timed(1, 0.0), timed(2, 1.5, answered_s=2.0)]).state == "ok"


def test_an_even_number_and_a_lone_one_are_told() -> None:
    assert members_check([node(1)]).state == "ok"
    assert "odd" in members_check([node(1, peers=peers(True, True, True, True))]).detail
    assert members_check([node(1, peers=peers(True))]).state == "warn"


def test_nodes_that_are_away_not_ready_or_in_alarm_are_told() -> None:
    nodes = [
        node(1, leads=True, version="1", peers=peers(True, False, True)),
        node(2, ready=False, ready_reason="no leader is known here", version="2"),
        node(4, version="1", alarms=[{"name": "archive_failing", "detail": "pool is full"}]),
        gone(3),
    ]
    found = list(node_checks(nodes, LIMITS))
    assert Check("node", "warn", "n1 at http://h1:8400 can't reach n2 at their raft addresses") in found
    assert Check("node", "fail", "n2 at http://h2:8400: no leader is known here") in found
    assert Check("node", "fail", "n3: refused") in found
    assert Check("n4: alarm", "fail", "pool is full") in found
    assert next(check for check in found if check.name == "versions").state == "warn"
    assert [check.state for check in node_checks([gone(1)], {})] == ["fail"]


# --- the machine -------------------------------------------------------------------------------------------


def test_the_disk_is_timed_and_left_as_it_was(tmp_path: Path) -> None:
    found = sync_check(tmp_path)
    assert "p99" in found.detail
    assert list(tmp_path.iterdir()) == []
    assert room_check(tmp_path).name == "room"
    assert sync_check(tmp_path / "not there").state == "fail"


@pytest.mark.parametrize(
    ("kind", "state"), [("ext4", "ok"), ("xfs", "ok"), ("tmpfs", "fail"), ("nfs4", "warn"), ("overlay", "ok")]
)
def test_what_the_file_system_is(tmp_path: Path, kind: str, state: str) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/a / ext4 rw 0 0\nb {tmp_path} {kind} rw 0 0\nc {tmp_path}-other nfs rw 0 0\n")
    found = file_system_check(tmp_path, mounts)
    assert found.state == state
    assert kind in found.detail


def test_few_open_files_are_told() -> None:
    assert files_check(1024).state == "warn"
    assert files_check(65_536).state == "ok"
    assert files_check(resource.RLIM_INFINITY).state == "ok"


def test_the_memory_limit_is_the_control_groups_where_it_has_one(tmp_path: Path) -> None:
    machine = memory_limit_bytes(tmp_path)
    assert machine > 100_000_000
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    assert memory_limit_bytes(tmp_path) == machine
    (group / "memory.max").write_text("123000000\n")
    assert memory_limit_bytes(tmp_path) == 123_000_000
