"""A share of the fault campaign; `scripts/soak` runs long ones."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from cluster import churn, nemesis

ELECTION_SECONDS_MAX = 2.0  # the promise: the median time from kill -9 of the leader to the next write


@pytest.mark.parametrize(("nodes", "seed"), [(3, 1), (5, 2)])
def test_no_promise_is_broken_under_overlapping_faults(nodes: int, seed: int, tmp_path: Path) -> None:
    report = nemesis.run(tmp_path, nodes=nodes, seed=seed, minutes=0.25)
    print("\n".join(report.lines()))
    assert report.violations == []
    assert sum(report.faults.values()) >= 3
    assert report.operations > 500, "too little was done to prove anything"


def test_writes_resume_soon_after_each_kill_of_the_leader(tmp_path: Path) -> None:
    report = nemesis.run(tmp_path, nodes=3, seed=3, minutes=0, elections=5)
    print("\n".join(report.lines()))
    assert report.violations == []
    assert len(report.elections_s) == 5
    assert statistics.median(report.elections_s) <= ELECTION_SECONDS_MAX


def test_no_promise_is_broken_while_members_come_and_go(tmp_path: Path) -> None:
    report = churn.run(tmp_path, seed=1, minutes=0.4)
    print("\n".join(report.lines()))
    assert report.violations == []
    assert report.write_gap_with_majority[0] <= churn.WRITE_GAP_SECONDS_MAX
    assert len({"add", "remove", "promote", "replace"} & report.faults.keys()) >= 2
    assert report.operations > 500, "too little was done to prove anything"
