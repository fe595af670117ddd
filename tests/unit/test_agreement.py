"""Replicas compare the hash of their states while they run; a difference is an alarm that stays."""

from __future__ import annotations

import logging

import pytest

from raftkv.kv.command import Put
from raftkv.raft.agreement import TELL_S
from raftkv.raft.messages import StateHash
from raftkv.raft.status import Divergence
from tests.unit.test_engine import Node, Trio, grown_past_a_follower


def write(trio: Trio, leader: Node, count: int = 3) -> None:
    for number in range(count):
        leader.put(b"key/%d" % number)
        trio.settle()
        trio.wait(TELL_S)


def test_followers_compare_and_agree() -> None:
    trio = Trio()
    leader = trio.elect()
    write(trio, leader)
    for node in trio.nodes.values():
        agreement = node.engine.agreement
        assert agreement.mismatches == 0
        assert agreement.divergence is None
        if node is not leader:
            assert agreement.checks >= 2
            assert agreement.checked_index == leader.engine.core.last_applied
            assert node.engine.machine.state_hash == leader.engine.machine.state_hash


def test_a_divergence_that_was_planted_is_told_once_and_stays(caplog: pytest.LogCaptureFixture) -> None:
    trio = Trio()
    leader = trio.elect()
    write(trio, leader)
    wrong = trio.follower_of(leader)
    machine = wrong.engine.machine
    machine.apply(machine.applied_index, machine.log_time_ms, Put(b"planted", b"here alone"))
    with caplog.at_level(logging.ERROR, "raftkv.raft"):
        write(trio, leader)
    divergence = wrong.engine.agreement.divergence
    assert divergence is not None
    assert divergence.leader == leader.name
    assert divergence.hash != divergence.leaders_hash
    assert wrong.engine.agreement.mismatches >= 2
    assert [record.message.split()[0] for record in caplog.records] == ["state_diverged"]
    for node in trio.nodes.values():
        if node is not wrong:
            assert node.engine.agreement.divergence is None


def test_at_most_one_comparison_a_second() -> None:
    trio = Trio()
    leader = trio.elect()
    trio.seen.clear()
    for number in range(20):
        leader.put(b"key/%d" % number)
        trio.settle()
    told = [message for _, to, message in trio.seen if isinstance(message, StateHash)]
    assert len(told) <= 2  # one to each follower


def test_a_stranger_to_the_term_is_not_believed() -> None:
    trio = Trio()
    leader = trio.elect()
    write(trio, leader)
    follower = trio.follower_of(leader)
    checks = follower.engine.agreement.checks
    core = follower.engine.core
    other = next(name for name in trio.nodes if name not in (leader.name, follower.name))
    for peer, term in ((other, core.term), (leader.name, core.term - 1)):
        follower.engine.receive(peer, StateHash(term, core.last_applied, b"x" * 16))
    assert follower.engine.agreement.checks == checks
    follower.engine.receive(leader.name, StateHash(core.term, core.last_applied, b"x" * 16))
    assert follower.engine.agreement.mismatches == 1


def test_a_snapshot_of_the_leader_ends_the_alarm_and_agrees() -> None:
    trio, leader, behind = grown_past_a_follower()
    agreement = behind.engine.agreement
    agreement.divergence = Divergence(2, "00", "11", leader.name)
    trio.cut.clear()
    trio.wait(1.0)
    assert behind.engine.machine.keys == 40
    assert agreement.divergence is None
    write(trio, leader)
    assert agreement.checks
    assert agreement.mismatches == 0
