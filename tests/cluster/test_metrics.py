"""What real nodes tell in `/metrics`, against what the documentation says they do."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from cluster.local import LocalCluster, find_base_port, get
from raftkv.client import SyncClient
from tests.unit.test_docs import READING


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    store = tmp_path_factory.mktemp("store")
    with LocalCluster(
        tmp_path_factory.mktemp("cluster"),
        base_port=find_base_port(),
        extra_args=("--snapshots", f"file://{store}"),
    ) as cluster:
        cluster.start_all()
        cluster.wait_ready()
        yield cluster


def families(nodes: LocalCluster, name: str) -> dict[str, Metric]:
    status, body = get(nodes.api_url(name) + "/metrics")
    assert status == 200
    return {family.name: family for family in text_string_to_metric_families(body.decode())}


def value(found: dict[str, Metric], name: str, sample: str = "", **labels: str) -> float:
    """Of the one sample of that family with these labels."""
    (only,) = (
        each.value
        for each in found[name].samples
        if each.name == (sample or each.name) and labels.items() <= each.labels.items()
    )
    return only


def exposed(found: dict[str, Metric]) -> set[str]:
    """Names as a person looks for them: counters with their suffix, histograms without theirs."""
    return {name + "_total" if family.type == "counter" else name for name, family in found.items()}


def documented() -> set[str]:
    section = READING.partition("## `GET /metrics`")[2].partition("## Alarms")[0]
    return set(re.findall(r"`(raftkv_\w+)(?:\{[\w,]+\})?`", section))


def test_reading_a_node_lists_exactly_what_nodes_expose(nodes: LocalCluster) -> None:
    leader = nodes.wait_leader()
    with SyncClient(nodes.api_urls()) as client:
        client.put("a", b"1")
        client.create_snapshot()
    told = set[str]()
    for name in nodes.names:
        told |= exposed(families(nodes, name))
    assert told == documented()
    assert {"raftkv_peer_lag", "raftkv_archive_age_seconds"} <= exposed(families(nodes, leader))


def test_what_is_done_is_counted(nodes: LocalCluster) -> None:
    leader = nodes.wait_leader()
    with SyncClient(nodes.api_url(leader)) as client:
        client.put("the first", b"")
        get(nodes.api_url(leader) + "/v1/kv/the%20first")
        before = families(nodes, leader)
        for number in range(20):
            client.put(f"counted/{number}", b"x" * 100)
            get(f"{nodes.api_url(leader)}/v1/kv/counted/{number}")
    after = families(nodes, leader)

    def grown(name: str, sample: str = "", **labels: str) -> float:
        return value(after, name, sample, **labels) - value(before, name, sample, **labels)

    key = {"route": "/v1/kv/{key}"}
    assert grown("raftkv_commands_applied") == 20
    assert grown("raftkv_batch_commands", "raftkv_batch_commands_sum") == 20
    assert grown("raftkv_keys") == 20
    assert grown("raftkv_journal_sync_seconds", "raftkv_journal_sync_seconds_count") >= 20
    assert grown("raftkv_journal_sync_bytes", "raftkv_journal_sync_bytes_sum") > 20 * 100
    assert grown("raftkv_read_rounds") >= 20
    assert grown("raftkv_http_received_bytes") > 20 * 100
    assert grown("raftkv_http_sent_bytes") > 20 * 100
    assert grown("raftkv_http_requests", method="PUT", status="201", **key) == 20
    counted = "raftkv_http_request_seconds_count"
    assert grown("raftkv_http_request_seconds", counted, method="GET", **key) == 20


def test_numbers_agree_with_the_status(nodes: LocalCluster) -> None:
    for name in nodes.names:
        status = nodes.status(name)
        assert status is not None
        found = families(nodes, name)
        assert value(found, "raftkv_role", role=status["role"]) == 1
        assert sum(each.value for each in found["raftkv_role"].samples) == 1
        assert value(found, "raftkv_members", role="voter") == 3
        assert value(found, "raftkv_keys") == status["keys"]
        peers = {each.labels["peer"]: each.value for each in found["raftkv_peer_reachable"].samples}
        assert peers == dict.fromkeys(nodes.names, 1.0)
        round_trips = found["raftkv_peer_round_trip_seconds"].samples
        assert {each.labels["peer"] for each in round_trips} == set(nodes.names) - {name}
        assert all(0 < each.value < 1 for each in round_trips)
        assert value(found, "raftkv_disk_free_bytes") > 0
        assert status["journal"]["disk_bytes"] == value(found, "raftkv_disk_bytes")
        assert sum(each.value for each in found["raftkv_alarm"].samples) == len(status["alarms"]) == 0
