"""Changes of membership, as pure arithmetic: what a change makes of a membership, and what it costs.

One member at a time enters or leaves the voters (thesis §4.1), so any majority before a change and any after
it have a voter in common. Who is new comes as a learner, which gets the log and counts in no quorum, and is
promoted once it has caught up (§4.2.1). A member is its name and its disk: `Add` leaves the disk open, and
`Bind` names it, once the node that calls itself so has shown an empty one. A node whose disk is not the one
that was bound is refused by all others before it can say anything (`handshake.admit`); to go on under its
name it is removed and added.

A membership is in effect on a node as soon as it stands in its log (§4.1), and out of effect when it is
truncated. The next change begins only when the last one is committed, and only in a term of which the
leader has committed an entry (the correction of 2015 to §4.1): `engine.change_membership` holds both.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from raftkv.errors import BadRequest, MemberExists, NoSuchMember, NotCaughtUp, QuorumAtRisk
from raftkv.model import Member, Membership
from raftkv.raft.quorum import majority

MEMBERS_MAX = 9  # quorums above five voters only cost latency; nine leaves room for learners


@dataclass(frozen=True, slots=True)
class Add:
    """As a learner, whose disk is not known yet; `promote` once it has caught up."""

    member: Member
    promote: bool = False


@dataclass(frozen=True, slots=True)
class Bind:
    """The learner's disk is this one."""

    name: str
    instance: str


@dataclass(frozen=True, slots=True)
class Promote:
    """The learner becomes a voter."""

    name: str


@dataclass(frozen=True, slots=True)
class Remove:
    name: str


@dataclass(frozen=True, slots=True)
class Move:
    """The member is to be found at other addresses; its name is its identity."""

    member: Member


@dataclass(frozen=True, slots=True)
class Raise:
    """Every member speaks this level of the protocol; see `protocol.py`."""

    level: int


Change = Add | Bind | Promote | Remove | Move | Raise


def changed(before: Membership, change: Change, *, term: int, index: int) -> Membership:
    """What the entry (term, index) is to carry.

    Raises MemberExists, NoSuchMember, BadRequest where the change makes no sense for this membership.
    """
    match change:
        case Add():
            after = _added(before, change)
        case Bind():
            assert before.instance(change.name) == ""
            instances = {**dict(before.instances), change.name: change.instance}
            after = replace(before, instances=tuple(sorted(instances.items())))
        case Promote():
            _check_learner(before, change.name)
            after = _without_mark(before, change.name)
        case Remove():
            after = _removed(before, change.name)
        case Move():
            _check_known(before, change.member.name)
            _check_addresses(before, change.member)
            others = [member for member in before.members if member.name != change.member.name]
            after = replace(before, members=_in_order([*others, change.member]))
        case Raise():
            assert change.level > before.level
            after = replace(before, level=change.level)
    return replace(after, term=term, index=index)


def _added(before: Membership, change: Add) -> Membership:
    member = change.member
    if before.member(member.name) is not None:
        raise MemberExists(
            f"{member.name} is a member of this cluster already. If its disk is lost, remove it, then add it"
        )
    if len(before.members) >= MEMBERS_MAX:
        raise BadRequest(f"the cluster has {len(before.members)} members; at most {MEMBERS_MAX} are allowed")
    _check_addresses(before, member)
    return replace(
        before,
        members=_in_order([*before.members, member]),
        instances=tuple(sorted([*before.instances, (member.name, "")])),
        learners=tuple(sorted([*before.learners, member.name])),
        promoting=tuple(sorted([*before.promoting, member.name])) if change.promote else before.promoting,
    )


def _removed(before: Membership, name: str) -> Membership:
    _check_known(before, name)
    if before.voters == (name,):
        raise QuorumAtRisk(f"{name} is the only voter: without it there is no cluster")
    return replace(
        _without_mark(before, name),
        members=tuple(member for member in before.members if member.name != name),
        instances=tuple(pair for pair in before.instances if pair[0] != name),
    )


def _without_mark(before: Membership, name: str) -> Membership:
    return replace(
        before,
        learners=tuple(each for each in before.learners if each != name),
        promoting=tuple(each for each in before.promoting if each != name),
    )


def _check_known(membership: Membership, name: str) -> None:
    if membership.member(name) is None:
        raise NoSuchMember(f"the cluster has no member {name}; it has {', '.join(membership.names)}")


def _check_learner(membership: Membership, name: str) -> None:
    _check_known(membership, name)
    if name not in membership.learners:
        raise BadRequest(f"{name} is a voter already; only a learner can be promoted")
    if membership.instance(name) == "":
        raise NotCaughtUp(f"{name} has not joined yet: start it with --join")


def _check_addresses(membership: Membership, member: Member) -> None:
    for other in membership.members:
        if other.name != member.name and member.peer == other.peer:
            raise BadRequest(f"peer: {member.peer} is the raft address of {other.name}")
        if other.name != member.name and member.client_url == other.client_url:
            raise BadRequest(f"client_url: {member.client_url} is the URL of {other.name}")


def _in_order(members: Collection[Member]) -> tuple[Member, ...]:
    return tuple(sorted(members, key=lambda member: member.name))


# --- what a change costs ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Quorum:
    """Of one membership: `quorum` of `voters` must answer; `tolerance` more than are gone now may go."""

    voters: tuple[str, ...]
    learners: tuple[str, ...]
    quorum: int
    reachable: int
    tolerance: int


def quorum_of(membership: Membership, reachable: Collection[str]) -> Quorum:
    """`reachable`: the names that answer, the leader's own among them. A negative tolerance: no quorum."""
    voters = membership.voters
    there = sum(name in reachable for name in voters)
    quorum = majority(len(voters))
    return Quorum(voters, membership.learners, quorum, there, there - quorum)


def check_quorum(before: Membership, after: Membership, reachable: Collection[str]) -> None:
    """Raises QuorumAtRisk where too few of the voters after the change answer now to commit anything."""
    quorum = quorum_of(after, reachable)
    if after.voters == before.voters or quorum.tolerance >= 0:
        return
    silent = [name for name in after.voters if name not in reachable]
    raise QuorumAtRisk(
        f"after this change {quorum.quorum} of the voters {', '.join(after.voters)} must answer, and "
        f"{', '.join(silent)} do not now: the cluster would stand still. Bring them back, or remove them"
    )


# --- as bytes ----------------------------------------------------------------------------------------------

MEMBERSHIP = b"\x02"  # pysyncobj.syncobj._COMMAND_TYPE


def encode_membership(membership: Membership) -> bytes:
    """A log entry's payload: the type byte, then JSON."""
    return MEMBERSHIP + msgspec.json.encode(membership)


def decode_membership(payload: bytes) -> Membership:
    """Raises ValueError for bytes that are no membership of this release."""
    try:
        return msgspec.json.decode(payload[1:], type=Membership)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not a membership: {error}") from error
