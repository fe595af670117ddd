"""The schedule of faults, whom they hit, and what they leave standing."""

from __future__ import annotations

from itertools import pairwise

import pytest

from cluster.nemesis import (
    BETWEEN_SECONDS,
    PROCESS_FAULTS,
    WEIGHTS,
    Fault,
    Kind,
    links_of,
    majority_stands,
    schedule,
    standing_stretches,
    victim,
)
from cluster.network import both_ways

THREE = ("n1", "n2", "n3")
FIVE = ("n1", "n2", "n3", "n4", "n5")


def fault(kind: Kind, dice: float = 0.0) -> Fault:
    return Fault(kind, 0, 1, "any", dice)


def test_a_seed_is_one_schedule() -> None:
    assert schedule(7, 300) == schedule(7, 300)
    assert schedule(7, 300) != schedule(8, 300)


def test_a_schedule_fills_its_time_with_every_kind_and_overlaps() -> None:
    faults = schedule(7, 600)
    assert {each.kind for each in faults} == set(WEIGHTS)
    starts = [each.at_s for each in faults]
    assert starts == sorted(starts)
    assert 600 - BETWEEN_SECONDS[1] <= starts[-1] < 600
    overlaps = [one for one, other in pairwise(faults) if one.at_s + one.lasting_s > other.at_s]
    assert len(overlaps) > len(faults) / 4


def test_only_the_kinds_that_are_asked_for() -> None:
    assert {each.kind for each in schedule(7, 600, PROCESS_FAULTS)} == set(PROCESS_FAULTS)


def test_the_aim_decides_whom_it_hits() -> None:
    leader = Fault("kill", 0, 1, "leader", 0.99)
    assert victim(leader, THREE, "n2") == "n2"
    assert victim(leader, THREE, None) == "n3"
    follower = Fault("kill", 0, 1, "follower", 0.5)
    assert victim(follower, THREE, "n1") == "n3"
    assert {victim(Fault("kill", 0, 1, "follower", dice / 10), FIVE, "n1") for dice in range(10)} == set(
        FIVE[1:]
    )


def test_one_way_cuts_leave_the_other_way() -> None:
    assert links_of(fault("deaf"), THREE, "n1") == {("n2", "n1"), ("n3", "n1")}
    assert links_of(fault("mute"), THREE, "n1") == {("n1", "n2"), ("n1", "n3")}
    assert links_of(fault("isolate"), THREE, "n1") == both_ways(["n1"], ["n2", "n3"])
    assert links_of(fault("link", 0.9), THREE, "n1") == both_ways(["n1"], ["n3"])


def test_lossy_links_are_all_of_them() -> None:
    assert links_of(fault("lossy"), THREE, "n1") == both_ways(["n1"], ["n2", "n3"]) | both_ways(
        ["n2"], ["n3"]
    )


@pytest.mark.parametrize("names", [THREE, FIVE])
@pytest.mark.parametrize("hit", ["n1", "n3"])
def test_a_split_leaves_a_majority_without_the_victim(names: tuple[str, ...], hit: str) -> None:
    cut = links_of(fault("split"), names, hit)
    assert majority_stands(names, names, cut)
    side = [name for name in names if (hit, name) not in cut]
    assert hit in side
    assert not majority_stands(names, side, cut)


def test_a_majority_must_work_and_be_whole_both_ways() -> None:
    assert majority_stands(THREE, ["n1", "n3"], set())
    assert not majority_stands(THREE, ["n1"], set())
    assert not majority_stands(THREE, ["n1", "n3"], {("n1", "n3")})
    assert majority_stands(THREE, THREE, both_ways(["n1"], ["n3"]))
    ring_broken = both_ways(["n1"], ["n3"]) | both_ways(["n1"], ["n2"]) | {("n2", "n3")}
    assert not majority_stands(THREE, THREE, ring_broken)
    assert not majority_stands(FIVE, ["n1", "n2"], set())


def test_stretches_in_which_a_majority_stood() -> None:
    changes = [(0.0, True), (2.0, True), (3.0, False), (4.0, False), (6.0, True)]
    assert standing_stretches(changes, 9.0) == [(0.0, 3.0), (6.0, 9.0)]
    assert standing_stretches([(0.0, False)], 9.0) == []
