"""What is made of a k6 summary, and when k6 itself is said to be in the way."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.bench.loadtest import DURATIONS, SCRIPTS, Run, read_summary, seconds_of

SUMMARY: dict[str, Any] = {
    "metrics": {
        "http_req_duration": {"med": 1.5, "p(99)": 9.0},
        "http_reqs": {"count": 1000, "rate": 100.0},
        "dropped_iterations": {"count": 11},
    }
}


def run(**changes: Any) -> Run:
    numbers = {"passed": True, "seconds": 10.0, "k6_cpu_seconds": 2.0, "node_cpu_seconds": 9.0, **changes}
    return read_summary(SUMMARY, **numbers)


def test_a_summary_gives_requests_percentiles_and_what_was_left_out() -> None:
    found = run()
    assert (found.requests, found.p50_ms, found.p99_ms, found.dropped) == (1000, 1.5, 9.0, 11)


def test_without_dropped_iterations_k6_leaves_the_metric_out() -> None:
    metrics = {name: value for name, value in SUMMARY["metrics"].items() if name != "dropped_iterations"}
    found = read_summary({"metrics": metrics}, passed=True, seconds=1, k6_cpu_seconds=0.1, node_cpu_seconds=1)
    assert found.dropped == 0
    assert found.kept_rate
    assert found.notes() == []


def test_more_than_one_in_a_hundred_left_out_is_not_that_rate() -> None:
    assert not run().kept_rate
    assert any("left out 11" in note for note in run().notes())


@pytest.mark.parametrize(("k6", "nodes"), [(8.5, 9.0), (3.0, 2.0)])
def test_k6_is_called_the_bottleneck_where_it_is_one(k6: float, nodes: float) -> None:
    assert any("bottleneck" in note for note in run(k6_cpu_seconds=k6, node_cpu_seconds=nodes).notes())
    assert not any("bottleneck" in note for note in run().notes())


def test_every_script_has_thresholds_and_a_duration_of_its_own() -> None:
    scripts = {path.stem for path in SCRIPTS.glob("*.js")} - {"cluster"}
    assert scripts == set(DURATIONS)
    for name in scripts:
        assert "thresholds: {" in (SCRIPTS / f"{name}.js").read_text(), name
        assert seconds_of(DURATIONS[name]) >= 10
