"""Whom a node takes for members: what it may conclude from what peers have shown."""

from __future__ import annotations

import msgspec

from raftkv.model import Identity, Member, Membership
from raftkv.raft.handshake import Hello, judge
from raftkv.raft.membership import Add, Bind, Remove, changed
from raftkv.raft.roster import Roster

MEMBERS = tuple(Member(f"n{i}", f"10.0.0.{i}:8401", f"http://10.0.0.{i}:8400") for i in (1, 2, 3))
FOUNDING = Membership("c" * 32, MEMBERS, tuple((f"n{i}", str(i) * 32) for i in (1, 2, 3)))


def hello(name: str, instance: str, cluster: str = "") -> Hello:
    return Hello(1, "0", cluster, name, instance, "n1")


def roster() -> Roster:
    made = Roster(MEMBERS, None, joining=False)
    made.learn(FOUNDING)
    made.effective = FOUNDING
    return made


def test_a_learner_is_given_the_disk_that_it_shows() -> None:
    made = roster()
    made.effective = changed(
        FOUNDING, Add(Member("n4", "10.0.0.4:8401", "http://10.0.0.4:8400")), term=1, index=2
    )
    assert made.shown("n4") is None
    made.called(hello("n4", "4" * 32))
    assert made.shown("n4") == Bind("n4", "4" * 32)


def test_a_member_that_is_added_again_is_not_given_the_disk_that_it_lost() -> None:
    made = roster()
    made.called(hello("n2", "2" * 32))  # as it formed the cluster, when its disk was empty
    removed = changed(FOUNDING, Remove("n2"), term=1, index=2)
    added = changed(removed, Add(MEMBERS[1]), term=1, index=3)
    made.effective = removed
    made.effective = added
    assert made.shown("n2") is None
    made.called(hello("n2", "9" * 32))
    assert made.shown("n2") == Bind("n2", "9" * 32)


def test_it_is_not_either_by_a_node_that_hears_of_both_changes_at_once() -> None:
    made = roster()
    made.called(hello("n2", "2" * 32))
    removed = changed(FOUNDING, Remove("n2"), term=1, index=2)
    made.effective = changed(removed, Add(MEMBERS[1]), term=1, index=3)
    assert made.shown("n2") is None


def test_an_empty_disk_that_waits_for_its_place_is_not_excluded_and_the_lost_one_is() -> None:
    removed = changed(FOUNDING, Remove("n2"), term=1, index=2)
    made = Roster(MEMBERS, None, joining=True)
    made.learn(changed(removed, Add(MEMBERS[1]), term=1, index=3))
    assert not made.excludes(Identity("n2", "9" * 32, ""))
    assert made.excludes(Identity("n2", "2" * 32, FOUNDING.cluster))


def test_another_change_meanwhile_costs_a_learner_nothing() -> None:
    made = roster()
    learner = changed(FOUNDING, Add(Member("n4", "10.0.0.4:8401", "http://10.0.0.4:8400")), term=1, index=2)
    made.effective = learner
    made.called(hello("n4", "4" * 32))
    made.effective = changed(learner, Remove("n3"), term=1, index=3)
    assert made.shown("n4") == Bind("n4", "4" * 32)


def test_what_all_speak_is_known_only_while_all_are_connected() -> None:
    made = roster()
    assert made.spoken("n1") == 0
    for name in ("n2", "n3"):
        made.linked(hello(name, name[1] * 32, FOUNDING.cluster))
    assert made.spoken("n1") == 1
    made.unlinked("n3")
    assert made.spoken("n1") == 0


def test_a_removed_member_is_not_let_in_by_what_it_knew_as_it_called() -> None:
    made = roster()
    removed = changed(FOUNDING, Remove("n2"), term=1, index=2)
    made.effective = removed
    said = msgspec.structs.replace(hello("n2", "2" * 32, FOUNDING.cluster), membership=FOUNDING)
    me = Identity("n1", "1" * 32, FOUNDING.cluster)
    assert judge(said, made.standing(me)) is None, "its removal is not committed yet"
    made.learn(removed)
    refusal = judge(said, made.standing(me))
    assert refusal is not None
    assert refusal.code == "unknown_name"
