"""Whom this node takes for members, beyond what its log says. PURE.

A log may lag: a node that was away for long meets a leader that it has never heard of, and must let it in to
learn of it. So members tell each other in the handshake of the newest membership that they know to be
committed; such a one is final, and (term, index) orders them. What is in effect in the own log counts as
well while it is newer, and not committed yet: it may be all that ever names a member that was just added.

Votes and acknowledgements are counted by the log's membership alone (`core.py`). This here only opens and
shuts doors.
"""

from __future__ import annotations

from raftkv.model import Identity, Member, Membership
from raftkv.raft import protocol
from raftkv.raft.handshake import Hello, Standing
from raftkv.raft.membership import Bind, Move


class Roster:
    """`joined`: the membership that let this node in, None for a founder. `initial`: those that it was
    started with."""

    def __init__(self, initial: tuple[Member, ...], joined: Membership | None, *, joining: bool) -> None:
        self.committed = joined
        self._effective: Membership | None = None
        self._initial = initial
        self._joined = joined
        self._joining = joining
        self._called: dict[str, Hello] = {}  # who dialed this node last, by name
        self._linked: dict[str, Hello] = {}  # whom this node has a connection to

    @property
    def effective(self) -> Membership | None:
        """The newest in this node's own log, committed or not; None before it has one."""
        return self._effective

    @effective.setter
    def effective(self, membership: Membership) -> None:
        """What a member has shown is forgotten once its disk counts no more: one that is added again under
        its old name would be given the disk that it lost."""
        before = self._effective or self.committed
        self._effective = membership
        for name, hello in list(self._called.items()):
            was = before is not None and before.instance(name) == hello.instance
            if was and membership.instance(name) != hello.instance:
                del self._called[name]

    # --- what is heard --------------------------------------------------------------------------------------

    def learn(self, membership: Membership | None) -> bool:
        """A membership is committed; True if it is news."""
        known = self.committed
        if membership is None or (known is not None and membership.version <= known.version):
            return False
        if known is not None and known.cluster != membership.cluster:
            return False
        self.committed = membership
        return True

    def joined(self, membership: Membership | None) -> None:
        """This node has just become a member by this membership."""
        self._joined = membership
        self.learn(membership)

    def called(self, hello: Hello) -> bool:
        """A peer has dialed this node, was admitted, and says so much of itself; True if it tells of a newer
        membership."""
        self._called[hello.name] = hello
        return self.learn(hello.membership)

    def linked(self, hello: Hello) -> bool:
        """This node's own connection to the peer stands."""
        self._linked[hello.name] = hello
        return self.learn(hello.membership)

    def unlinked(self, name: str) -> None:
        self._linked.pop(name, None)

    # --- what follows from it -------------------------------------------------------------------------------

    def standing(self, identity: Identity) -> Standing:
        committed = self.committed if identity.cluster else None
        return Standing(identity, committed, self._initial, self.effective, self._joining)

    @property
    def members(self) -> tuple[Member, ...]:
        """Whom to dial: the members now, and those that an uncommitted change adds or takes away."""
        if self.committed is None:
            return self._initial
        members = {member.name: member for member in self.committed.members}
        if self.effective is not None and self.effective.version > self.committed.version:
            members |= {member.name: member for member in self.effective.members}
        return tuple(members[name] for name in sorted(members))

    @property
    def reached(self) -> tuple[str, ...]:
        """Whom this node has a connection to, members or not."""
        return tuple(sorted(self._linked))

    def member(self, name: str) -> Member | None:
        return next((member for member in self.members if member.name == name), None)

    def excludes(self, identity: Identity) -> bool:
        """The cluster goes on without this disk: removed, or another one was added under its name. Said only
        by a membership later than the one that let it in."""
        committed = self.committed
        if not identity.cluster:
            return False  # it waits to be let in
        if committed is None or committed.instance(identity.name) == identity.instance:
            return False
        if committed.instance(identity.name) == "" and not identity.cluster:
            return False  # added, and about to be given its disk
        return committed.version > (self._joined.version if self._joined is not None else (0, 1))

    def spoken(self, own: str) -> int:
        """The highest protocol that every member speaks, `own` is this one's name; 0 while this node is not
        connected to all of them."""
        membership = self.effective
        if membership is None:
            return 0
        peers = [name for name in membership.names if name != own]
        if not all(name in self._linked for name in peers):
            return 0
        return min((protocol.PROTOCOL, *(self._linked[name].protocol for name in peers)))

    def shown(self, name: str) -> Bind | Move | None:
        """What `name` has shown of itself and the membership in effect does not say yet."""
        membership = self.effective or self.committed
        member = membership.member(name) if membership is not None else None
        if membership is None or member is None:
            return None
        instance = membership.instance(name)
        if instance == "":
            for hello in (self._linked.get(name), self._called.get(name)):
                if hello is not None and not hello.cluster:
                    return Bind(name, hello.instance)
            return None
        hello = self._called.get(name)
        if hello is None or hello.instance != instance or hello.me is None or hello.me == member:
            return None
        return Move(hello.me)
