"""What a look at all nodes comes to: the verdict on their cluster, and what happened between two looks."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from cluster.health import EXIT_CODES, document, judge
from cluster.survey import Between, Node, Readings, in_order, quantile, unasked
from cluster.top_cli import History, cluster_now, drawn, duration, size
from raftkv.metrics import Distribution, Histogram, Metrics, Sample


def peers(*reachable: bool, lag: int = 0, learners: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "name": f"n{at + 1}",
            "client_url": f"http://h{at + 1}:8400",
            "peer": f"h{at + 1}:8401",
            "role": "learner" if at >= len(reachable) - learners else "follower",
            "reachable": each,
            "lag": lag if at else 0,
        }
        for at, each in enumerate(reachable)
    ]


def node(number: int, *, leads: bool = False, ready: bool = True, **more: Any) -> Node:
    status = {
        "name": f"n{number}",
        "cluster_id": "c",
        "role": "leader" if leads else "follower",
        "term": 3,
        "leader": "n1",
        "peers": peers(True, True, True),
        "alarms": [],
        "ready": ready,
        "commit_index": 7,
        "applied_index": 7,
        "revision": 5,
        "keys": 1,
        "bytes": 10,
    }
    status |= more
    return Node(f"http://h{number}:8400", f"n{number}", status, ready_error=None if ready else "no majority")


def gone(number: int) -> Node:
    return Node(f"http://h{number}:8400", f"n{number}", error="refused")


def test_all_there_is_healthy() -> None:
    found = judge([node(1, leads=True), node(2), node(3)])
    assert (found.state, found.problems, found.failures_tolerated) == ("healthy", (), 1)
    assert "3 of 3 voters ready, n1 leads in term 3" in found.summary


@pytest.mark.parametrize(
    ("nodes", "problem"),
    [
        ([node(1, leads=True), node(2), gone(3)], "n3 can't be reached"),
        ([node(1, leads=True), node(2), node(3, ready=False)], "n3 is not ready"),
        ([node(1, leads=True), node(2, peers=peers(True, True, False)), node(3)], "n2 can't reach n3"),
        (
            [node(1, leads=True, peers=peers(True, True, True, lag=50_000)), node(2), node(3)],
            "50000 entries behind",
        ),
        (
            [node(1, leads=True, alarms=[{"name": "disk_low", "detail": "3 bytes"}]), node(2), node(3)],
            "n1 raises disk_low: 3 bytes",
        ),
        ([node(1, leads=True), node(2), node(3, cluster_id="d")], "2 different clusters"),
    ],
)
def test_whatever_is_missing_degrades_it(nodes: list[Node], problem: str) -> None:
    found = judge(nodes)
    assert found.state == "degraded"
    assert any(problem in each for each in found.problems), found.problems


def test_links_to_a_node_that_is_down_are_not_told_again() -> None:
    seen = peers(True, True, False)
    found = judge([node(1, leads=True, peers=seen), node(2, peers=seen), gone(3)])
    assert len(found.problems) == 1
    assert found.failures_tolerated == 0


def test_without_a_read_served_it_is_down() -> None:
    found = judge([node(1, ready=False, leader=None), gone(2), gone(3)])
    assert (found.state, EXIT_CODES[found.state]) == ("down", 2)
    assert "no quorum" in found.summary
    assert judge([gone(1)]).state == "down"


def test_nodes_that_want_a_token_say_nothing_of_the_cluster() -> None:
    refused = Node("http://h1:8400", error="unauthenticated", turned_away=True)
    assert "--token-file" in judge([refused, gone(2)]).summary


def test_learners_don_t_count() -> None:
    seen = peers(True, True, True, True, learners=1)
    found = judge([node(1, leads=True, peers=seen), node(2, peers=seen), node(3, peers=seen), gone(4)])
    assert (found.voters, found.ready, found.failures_tolerated) == (3, 3, 1)


def test_the_document_has_every_node() -> None:
    nodes = [node(1, leads=True), gone(2), node(3, ready=False)]
    told = document(judge(nodes), nodes)
    assert [(each["name"], each["answers"], each["ready"]) for each in told["nodes"]] == [
        ("n1", True, True),
        ("n2", False, False),
        ("n3", True, False),
    ]


def test_nodes_are_found_through_each_other_and_stand_once() -> None:
    by_another_name = Node("http://localhost:1", "n1", node(1).status)
    assert unasked([by_another_name]) == {"n2": "http://h2:8400", "n3": "http://h3:8400"}
    assert unasked([node(1), node(2), gone(3)]) == {}
    nameless = Node("http://h3:8400", error="refused")
    order = in_order([nameless, by_another_name, node(2), Node("http://other:1", error="refused")])
    assert [each.name for each in order] == ["n1", "n2", "n3", ""]


# --- between two looks -------------------------------------------------------------------------------------


def readings(at: float, *, requests: float, syncs: list[float]) -> Readings:
    """Through a node's own exposition."""
    metrics = Metrics()
    histogram = Histogram((0.001, 0.01, 0.1))
    for seconds in syncs:
        histogram.add(seconds)
    metrics.source(
        lambda: [
            Sample("requests", "", requests, {"method": "PUT"}, counter=True),
            Sample("requests", "", 7.0, {"method": "GET"}, counter=True),
            Distribution("sync_seconds", "", histogram),
        ]
    )
    return Readings(metrics.text().decode(), at)


def test_rates_and_quantiles_are_of_the_time_between() -> None:
    before = readings(10.0, requests=100, syncs=[0.05] * 1000)
    after = readings(12.0, requests=140, syncs=[0.05] * 1000 + [0.0005] * 98 + [0.005] * 2)
    happened = Between(before, after)
    assert happened.rate("raftkv_requests_total", method="PUT") == 20
    assert happened.rate("raftkv_requests_total") == 20
    assert happened.quantile(0.5, "raftkv_sync_seconds") == pytest.approx(0.00051, rel=0.01)
    assert happened.quantile(0.99, "raftkv_sync_seconds") == pytest.approx(0.0055, rel=0.01)
    assert happened.mean("raftkv_sync_seconds") == pytest.approx((98 * 0.0005 + 2 * 0.005) / 100)


def test_a_node_that_restarted_counts_from_zero() -> None:
    happened = Between(
        readings(1.0, requests=100, syncs=[0.05] * 50), readings(2.0, requests=3, syncs=[0.005])
    )
    assert happened.grown("raftkv_requests_total", method="PUT") == 3
    assert happened.quantile(0.5, "raftkv_sync_seconds") == pytest.approx(0.0055)


def test_nothing_happened_has_no_quantile() -> None:
    same = readings(1.0, requests=1, syncs=[0.005])
    assert Between(same, same).quantile(0.99, "raftkv_sync_seconds") is None
    assert Between(same, same).mean("raftkv_sync_seconds") is None
    assert quantile(0.5, [], []) is None
    assert quantile(0.99, [0.1, float("inf")], [0, 5]) == 0.1  # above all bounds: the last of them


def test_top_draws_nodes_that_are_there_and_that_are_not() -> None:
    there = node(1, leads=True)
    there.readings = readings(1.0, requests=1, syncs=[])
    now = cluster_now([there, gone(2)], {})
    history = History()
    history.add(now)
    history.add(now)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(drawn(now, history))
    text = console.export_text()
    assert "n1 leads in term 3" in text
    assert "1 of 2 nodes answer" in text
    assert "unreachable" in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (duration(0.00025), "250 µs"),
        (duration(0.0123), "12.3 ms"),
        (duration(2.5), "2.5 s"),
        (duration(None), "-"),
        (size(512), "512 B"),
        (size(1536), "1.5 KiB"),
        (size(3 << 30), "3.0 GiB"),
    ],
)
def test_numbers_are_short(text: str, shown: str) -> None:
    assert text == shown
