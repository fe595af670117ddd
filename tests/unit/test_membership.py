"""Changes of membership by hand: the arithmetic, what a core makes of the entries, and what an engine takes.

What only many schedules can show is the simulation's (tests/sim/members.py)."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from raftkv.errors import (
    BadRequest,
    ChangeInFlight,
    MemberExists,
    NoLeader,
    NoSuchMember,
    NotCaughtUp,
    QuorumAtRisk,
)
from raftkv.model import Applied, Identity, Member, Membership, Reconfigured
from raftkv.raft.handshake import Hello, judge
from raftkv.raft.membership import (
    Add,
    Bind,
    Change,
    Move,
    Promote,
    Remove,
    changed,
    check_quorum,
    decode_membership,
    encode_membership,
    quorum_of,
)
from raftkv.raft.messages import AppendEntries, AppendReply, Entry, RequestVote
from raftkv.raft.roster import Roster
from tests.unit.core_bench import Bench, MemoryLog, instance_of, membership_of
from tests.unit.test_engine import Node, Trio

THREE = membership_of(("n1", "n2", "n3"))
N4 = Member("n4", "n4:1", "http://n4:2")


def after(membership: Membership, *changes: Change) -> Membership:
    for index, change in enumerate(changes, 2):
        membership = changed(membership, change, term=1, index=index)
    return membership


# --- arithmetic ------------------------------------------------------------------------------------------


def test_who_is_added_is_a_learner_until_it_is_promoted() -> None:
    added = after(THREE, Add(N4, promote=True))
    assert (added.voters, added.learners, added.promoting) == (("n1", "n2", "n3"), ("n4",), ("n4",))
    assert added.instance("n4") == ""
    bound = after(THREE, Add(N4, promote=True), Bind("n4", "4" * 32))
    assert bound.instance("n4") == "4" * 32
    promoted = after(THREE, Add(N4, promote=True), Bind("n4", "4" * 32), Promote("n4"))
    assert (promoted.voters, promoted.learners, promoted.promoting) == (("n1", "n2", "n3", "n4"), (), ())
    assert promoted.version == (1, 4)
    removed = after(THREE, Remove("n2"))
    assert removed.names == ("n1", "n3")
    assert removed.instance("n2") is None


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (Add(Member("n1", "h:9", "http://h:9")), MemberExists, "n1 is a member"),
        (Add(Member("n4", "n1:1", "http://n4:2")), BadRequest, "raft address of n1"),
        (Add(Member("n4", "n4:1", "http://n1:2")), BadRequest, "URL of n1"),
        (Promote("n2"), BadRequest, "voter already"),
        (Promote("n9"), NoSuchMember, "no member n9"),
        (Remove("n9"), NoSuchMember, "n1, n2, n3"),
        (Move(Member("n9", "h:1", "http://h:2")), NoSuchMember, "n9"),
        (Move(Member("n1", "n2:1", "http://n1:2")), BadRequest, "raft address of n2"),
    ],
)
def test_a_change_that_makes_no_sense_says_why(change: Change, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        changed(THREE, change, term=1, index=2)


def test_a_learner_that_has_not_joined_is_not_promoted() -> None:
    with pytest.raises(NotCaughtUp, match="has not joined yet"):
        after(THREE, Add(N4), Promote("n4"))


def test_the_only_voter_stays() -> None:
    with pytest.raises(QuorumAtRisk, match="only voter"):
        after(membership_of(("n1",)), Remove("n1"))


def test_a_change_that_would_stop_the_cluster_is_refused() -> None:
    with pytest.raises(QuorumAtRisk, match="n3 do not now"):
        check_quorum(THREE, after(THREE, Remove("n2")), {"n1", "n2"})
    check_quorum(THREE, after(THREE, Remove("n3")), {"n1", "n2"})
    learner = membership_of(("n1", "n2"), ("n4",))
    with pytest.raises(QuorumAtRisk, match="n2, n4 do not now"):
        check_quorum(learner, after(learner, Promote("n4")), {"n1"})
    check_quorum(THREE, after(THREE, Add(N4)), {"n1"})  # a learner costs no quorum


def test_quorum_and_tolerance() -> None:
    quorum = quorum_of(after(THREE, Add(N4)), {"n1", "n2", "n4"})
    assert (quorum.quorum, quorum.reachable, quorum.tolerance) == (2, 2, 0)
    assert quorum.learners == ("n4",)


def test_a_membership_survives_its_bytes_and_the_first_release_reads_the_same() -> None:
    added = after(THREE, Add(N4, promote=True))
    assert decode_membership(encode_membership(added)) == added
    assert b"learners" not in encode_membership(THREE)
    with pytest.raises(ValueError, match="not a membership"):
        decode_membership(b"\x02{}")


# --- in a log ----------------------------------------------------------------------------------------------


def entry(term: int, membership: Membership) -> Entry:
    return Entry(term, encode_membership(membership))


def test_a_membership_is_in_effect_before_it_is_committed() -> None:
    ours = Bench()
    five = membership_of(("n1", "n2", "n3", "n4", "n5"))
    ours.receive("n2", AppendEntries(1, 1, 1, 0, 1, (entry(1, five),)))
    assert ours.core.commit_index == 1
    assert ours.core.voters == set(five.voters)
    assert ours.core.membership_index == 2
    assert ours.core.membership_at(1) == THREE


def test_a_truncated_membership_is_out_of_effect() -> None:
    ours = Bench()
    ours.receive("n2", AppendEntries(1, 1, 1, 0, 1, (entry(1, membership_of(("n1", "n2"))),)))
    assert ours.core.voters == {"n1", "n2"}
    ours.receive("n3", AppendEntries(2, 1, 1, 0, 1, (Entry(2, b"\x01"),)))
    assert ours.core.membership == THREE
    assert ours.core.peers == ("n2", "n3")


def test_a_learner_does_not_stand_for_election() -> None:
    ours = Bench("n4", learners=("n4",))
    ours.wait(5.0)
    ours.core.campaign()
    assert ours.core.role == "follower"
    assert not any(isinstance(message, RequestVote) for _, message, _ in ours.sent)


def test_the_disk_before_ours_had_the_vote() -> None:
    """A node that was added anew replays a log in which an earlier disk under its name was a voter."""
    ours = Bench("n3")
    others = tuple((name, instance_of(name) if name != "n3" else "e" * 32) for name in THREE.names)
    ours.core.configurations = [(1, replace(THREE, instances=others))]
    ours.core._read_membership()
    assert not ours.core.is_voter
    ours.wait(5.0)
    assert ours.core.role == "follower"


def test_a_leader_counts_by_the_membership_that_it_has_just_appended() -> None:
    ours = Bench(log=MemoryLog(automatic=True))
    ours.lead()
    ours.receive("n2", AppendReply(1, 1, True, 2))
    assert ours.core.commit_index == 2
    index = ours.core.append(encode_membership(membership_of(("n1", "n2", "n3", "n4"))))
    ours.settle()
    ours.receive("n2", AppendReply(1, 9, True, index))
    assert ours.core.commit_index == 2  # 2 of 4
    ours.receive("n3", AppendReply(1, 9, True, index))
    assert ours.core.commit_index == index


# --- an engine ----------------------------------------------------------------------------------------------


@pytest.fixture
def leader() -> Node:
    return Trio().elect()


def propose(leader: Node, change: Change) -> list[Any]:
    outcome: list[Any] = []
    leader.engine.change_membership(change, outcome.append)
    return outcome


def test_one_change_at_a_time(leader: Node) -> None:
    outcome = propose(leader, Add(N4))
    with pytest.raises(ChangeInFlight):
        propose(leader, Add(Member("n5", "n5:1", "http://n5:2")))
    leader.bench.settle()
    [applied] = outcome
    assert isinstance(applied, Applied)
    assert applied.result == Reconfigured(leader.engine.membership)
    leader.bench.wait(0.1)
    assert all(node.engine.membership.learners == ("n4",) for node in leader.bench.nodes.values())
    propose(leader, Remove("n4"))


def test_a_new_leader_changes_nothing_before_its_own_term_has_committed(leader: Node) -> None:
    """Else two leaders in a row could each append a change, and the two would share no majority."""
    leader.engine.core.noop_index = leader.engine.core.last_applied + 1
    with pytest.raises(ChangeInFlight):
        propose(leader, Add(N4))


def test_a_leader_does_not_remove_itself(leader: Node) -> None:
    with pytest.raises(NoLeader, match="hands over"):
        propose(leader, Remove(leader.name))


def test_a_learner_that_does_not_answer_is_not_promoted(leader: Node) -> None:
    bench = leader.bench
    bench.cut.add("n4")
    propose(leader, Add(N4))
    bench.settle()
    leader.engine.steward(lambda name: Bind(name, "4" * 32) if name == "n4" else None)
    bench.settle()
    assert leader.engine.membership.instance("n4") == "4" * 32
    bench.wait(2.0)
    with pytest.raises(NotCaughtUp, match="does not answer"):
        propose(leader, Promote("n4"))


# --- doors -----------------------------------------------------------------------------------------------


def hello(name: str, instance: str, cluster: str, membership: Membership | None = None) -> Hello:
    return Hello(1, "0", cluster, name, instance, "n1", (), membership)


def test_a_node_that_was_away_lets_in_a_leader_that_it_has_never_heard_of() -> None:
    """And takes its word for the membership, since that is committed."""
    roster = Roster(THREE.members, None, joining=False)
    roster.learn(THREE)
    me = Identity("n1", instance_of("n1"), THREE.cluster)
    grown = after(THREE, Add(N4), Bind("n4", "4" * 32), Promote("n4"))
    stranger = hello("n4", "4" * 32, THREE.cluster)
    refusal = judge(stranger, roster.standing(me))
    assert refusal is not None
    assert refusal.code == "unknown_name"
    newer = hello("n4", "4" * 32, THREE.cluster, grown)
    assert judge(newer, roster.standing(me)) is None
    assert roster.called(newer)
    assert [member.name for member in roster.members] == ["n1", "n2", "n3", "n4"]
    assert not roster.excludes(me)


def test_a_removed_node_learns_it_from_whoever_refuses_it() -> None:
    roster = Roster(THREE.members, None, joining=False)
    roster.learn(THREE)
    gone = Identity("n2", instance_of("n2"), THREE.cluster)
    assert not roster.excludes(gone)
    assert roster.learn(after(THREE, Remove("n2")))
    assert roster.excludes(gone)


def test_a_node_that_waits_to_be_let_in_is_not_told_that_it_is_out() -> None:
    """It hears of the membership that names it before the one that names its disk."""
    roster = Roster((*THREE.members, N4), None, joining=True)
    roster.learn(after(THREE, Add(N4)))
    assert not roster.excludes(Identity("n4", "4" * 32, ""))
    inside = Identity("n4", "4" * 32, THREE.cluster)
    roster.joined(after(THREE, Add(N4), Bind("n4", "4" * 32)))
    assert not roster.excludes(inside)
    roster.learn(after(THREE, Add(N4), Bind("n4", "4" * 32), Remove("n4")))
    assert roster.excludes(inside)


def test_a_disk_that_was_in_a_cluster_is_not_taken_for_the_one_that_was_added() -> None:
    roster = Roster(THREE.members, None, joining=False)
    roster.learn(after(THREE, Add(N4)))
    me = Identity("n1", instance_of("n1"), THREE.cluster)
    assert judge(hello("n4", "4" * 32, ""), roster.standing(me)) is None
    refusal = judge(hello("n4", "4" * 32, THREE.cluster), roster.standing(me))
    assert refusal is not None
    assert refusal.code == "not_empty"


def test_an_uncommitted_removal_shuts_no_door() -> None:
    roster = Roster(THREE.members, None, joining=False)
    roster.learn(THREE)
    roster.effective = after(THREE, Remove("n2"))
    me = Identity("n1", instance_of("n1"), THREE.cluster)
    assert judge(hello("n2", instance_of("n2"), THREE.cluster), roster.standing(me)) is None
    roster.learn(roster.effective)
    assert judge(hello("n2", instance_of("n2"), THREE.cluster), roster.standing(me)) is not None


def test_new_addresses_of_a_member_are_noticed() -> None:
    roster = Roster(THREE.members, None, joining=False)
    roster.learn(THREE)
    moved = Member("n2", "elsewhere:1", "http://elsewhere:2")
    roster.called(replace(hello("n2", instance_of("n2"), THREE.cluster), me=moved))
    assert roster.shown("n2") == Move(moved)
    roster.effective = after(THREE, Move(moved))
    assert roster.shown("n2") is None
