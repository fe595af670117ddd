"""Worlds in which members come and go: spare nodes join, are promoted, are removed, lose their disks.

The decisions are raftkv's own: `Roster` and `handshake.judge` open and shut the doors of the network,
`Forming` tells who was added, `Engine.steward` binds and promotes. What `raft/node.py` does with threads and
sockets around them, `MemberProcess` does here in virtual time.

A disk is lost only where the promise holds all the same: of voters at most one disk is lost at a time, and
those with theirs are a majority. Whoever was removed is given an empty disk, and may be added again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import msgspec

from raftkv.errors import Fatal, RaftkvError
from raftkv.model import Identity, Member, Membership
from raftkv.raft.forming import (
    Action,
    Control,
    Formed,
    Forming,
    Persist,
    Tell,
    decode_control,
    encode_control,
)
from raftkv.raft.handshake import Hello, Refusal, Standing, judge
from raftkv.raft.membership import Add, Change, Promote, Remove, decode_membership
from raftkv.raft.opening import found
from raftkv.raft.quorum import majority
from raftkv.raft.roster import Roster
from raftkv.snapshot.codec import Manifest
from tests.sim.client import Answer, Refused, Request
from tests.sim.disk import MemoryDisk
from tests.sim.invariants import Entry, Violation
from tests.sim.network import Doors
from tests.sim.node import (
    MEMBERSHIP_ENTRY,
    NodeHost,
    NodeProcess,
    Reference,
    instance_of,
    membership,
    small_bounds,
)
from tests.sim.scheduler import Owner
from tests.sim.world import Process, Result, World

STEWARD_S = 0.2
ADMINISTER_S = 10.0  # of a run; a change takes a few round trips, an added node a fetch of the state
REMOVED_S = 0.3  # until somebody gives a removed node an empty disk

# what an administrator does -> how often, among what a run has
ACTS = {"add": 6, "promote": 4, "remove": 4, "wipe": 4, "burst": 2, "hasty": 4}


class MemberHost(NodeHost):
    """A disk with an identity; `life` counts the disks that were lost before this one."""

    def __init__(self, world: MemberWorld, name: str) -> None:
        self.life = 0
        self.founding: Membership | None = None
        self.joined: Membership | None = None
        self.joining = name not in world.founders
        super().__init__(world, name)

    def _form(self) -> None:
        if not self.joining:
            super()._form()
            self.founding = membership(self._world.founders)

    def wipe(self) -> None:
        self.life += 1
        self.instance = instance_of(self._world, self.name, self.life)
        self.founding = self.joined = None
        self.joining = self.rng.random() < 0.7  # else it comes back as it was started first
        self.journal_disk = MemoryDisk(self.rng)
        self.snapshot_disk = MemoryDisk(self.rng)
        self.sync_failure_armed = False
        self._world.invariants.wiped(self.name)

    def start(self, owner: Owner) -> NodeProcess:
        assert isinstance(self._world, MemberWorld)
        try:
            return MemberProcess(self._world, owner, self)
        except RaftkvError as error:
            raise AssertionError(f"{self.name} refuses to start: {type(error).__name__}: {error}") from error


class MemberProcess(NodeProcess):
    """As `raft/node.py` has it: the engine runs once this disk is part of a cluster."""

    _world: MemberWorld
    _host: MemberHost

    def _begin(self) -> None:
        host, opened = self._host, self._opened
        if host.founding is None and opened.membership is not None:
            host.founding = opened.membership  # identity.reconcile
        self.formed = False
        self.hellos: dict[str, Hello] = {}  # of those to whom this node's own connection stands
        initial = tuple(_member(name) for name in self._world.founders)
        if self.name not in self._world.founders:
            initial = (*initial, _member(self.name))
        self.roster = Roster(initial, host.joined, joining=host.joining)
        self.roster.learn(opened.membership)
        self.forming = Forming(
            Identity(self.name, host.instance, ""),
            initial,
            founding=host.founding,
            draw=lambda: f"{self._rng.getrandbits(128):032x}",
            joining=host.joining,
        )
        self._act(self.forming.start())
        self._world.scheduler.after(STEWARD_S, self.owner, self._steward)

    # --- forming ------------------------------------------------------------------------------------------

    def _act(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Tell(peer, control):
                    own = self.standing.hello(target=peer, release="")
                    self._world.network.send(self.name, peer, (encode_control(control), own))
                case Persist():
                    self._persist(action)
                case Formed():
                    self._form()

    def _persist(self, action: Persist) -> None:
        host = self._host

        def persist() -> None:
            host.joined = action.joined
            found(self._wal, action.membership)
            host.founding = action.membership

        def persisted(result: Any) -> None:
            if isinstance(result, Fatal):
                self.fatal(result)
                return
            assert result is None, result
            self._act(self.forming.persisted())

        self.run("journal", persist, persisted)

    def _form(self) -> None:
        self.roster.joined(self._host.joined)
        self._start_engine()
        self.formed = True
        engine = self.engine
        engine.on_membership = self._on_membership
        engine.on_role = self._on_role
        publish = engine.compaction.published

        def published(manifest: Manifest) -> None:
            self._published(manifest)
            publish(manifest)

        engine.compaction.published = published  # type: ignore[method-assign]
        self._on_membership()
        self._world.joined(self)
        for peer in self.hellos:
            engine.peer_connected(peer)

    def _on_role(self) -> None:
        rng = self._world.hasty
        if rng is not None and self.is_leader and not self._world.settling:
            self._world.hasty = None
            self._world.scheduler.after(0.0, self.owner, self._world.change_hastily, self, rng)

    # --- doors --------------------------------------------------------------------------------------------

    @property
    def standing(self) -> Standing:
        return self.roster.standing(self.forming.identity)

    @property
    def dials(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.roster.members)

    def log(self) -> list[Entry]:
        """And what is in effect is what this log says."""
        log = super().log()
        covered = self.engine.core.configurations[0][0]
        newest = next((i for p, i, _ in reversed(log) if p[:1] == MEMBERSHIP_ENTRY and i > covered), covered)
        if self.engine.core.membership_index != newest:
            raise Violation(
                "membership",
                f"{self.name} goes by the membership of entry {self.engine.core.membership_index}, the "
                f"newest in its log is of {newest}",
            )
        return log

    def _published(self, manifest: Manifest) -> None:
        expected = self._world.membership_at(manifest.index)
        if manifest.membership != expected:
            raise Violation(
                "membership",
                f"{self.name} has {manifest.membership} in its snapshot {manifest.id}, not {expected}",
            )

    def judge(self, hello: Hello) -> Refusal | None:
        return judge(hello, self.standing)

    def _on_membership(self) -> None:
        if self.formed:
            self.roster.effective = self.engine.membership
            self.roster.learn(self.engine.committed_membership)
        self._world.network.judge_again(self.name, self._stays)
        if self.roster.committed is not None:
            self._act(self.forming.membership_committed(self.roster.committed))
        if self.formed and self.roster.excludes(self.forming.identity):
            self._world.scheduler.after(0.0, None, self._world.exclude, self)

    def _stays(self, dialed: bool, peer: str, hello: Hello) -> bool:
        return (not dialed or peer in self.dials) and self.judge(hello) is None

    def called(self, hello: Hello) -> None:
        if self.roster.called(hello):
            self._on_membership()

    def refused(self, hello: Hello) -> None:
        if self.formed and self.roster.learn(hello.membership):
            self._on_membership()

    def peer_connected(self, peer: str) -> None:
        hello = self.hellos[peer]
        if self.roster.linked(hello):
            self._on_membership()
        self._act(self.forming.peer_connected(hello))
        if self.formed:
            self.engine.peer_connected(peer)

    def peer_disconnected(self, peer: str) -> None:
        self.hellos.pop(peer, None)
        self.roster.unlinked(peer)
        self.forming.peer_disconnected(peer)
        if self.formed:
            self.engine.peer_disconnected(peer)

    def receive(self, peer: str, message: Any) -> None:
        if isinstance(message, tuple):
            encoded, hello = message
            control: Control = decode_control(encoded)
            self._act(self.forming.receive(hello, control))
        elif self.formed:
            super().receive(peer, message)

    def _steward(self) -> None:
        if self.formed:
            self.engine.steward(self.roster.shown)
        self._world.scheduler.after(STEWARD_S, self.owner, self._steward)

    # --- what needs a cluster -------------------------------------------------------------------------------

    @property
    def term(self) -> int:
        return super().term if self.formed else 0

    @property
    def is_leader(self) -> bool:
        return self.formed and super().is_leader

    def _tick(self) -> None:
        if self.formed:
            super()._tick()
        else:
            self._world.scheduler.after(self._host.tick_s, self.owner, self._tick)

    def submit(self, request: Request, answer: Answer) -> None:
        if self.formed:
            super().submit(request, answer)
        else:
            answer(Refused())

    def campaign(self) -> None:
        if self.formed:
            super().campaign()

    def transfer_leadership(self, to: str | None) -> None:
        if self.formed:
            super().transfer_leadership(to)

    def take_snapshot(self) -> None:
        if self.formed:
            super().take_snapshot()

    def change(self, change: Change) -> None:
        """As the API does it: a leader that is to go hands over first."""
        if not self.formed:
            return
        if not self._world.is_prudent(self.engine.membership, change):
            return
        if isinstance(change, Remove) and change.name == self.name:
            self.engine.transfer_leadership()
            return
        try:
            self.engine.change_membership(change, lambda _: None)
        except RaftkvError as error:
            self._world.log("refused", self.name, type(error).__name__, change)
        else:
            self._world.counts[type(change).__name__.lower()] += 1


class MemberWorld(World):
    def __init__(self, seed: int, nodes: int, spares: int, transcript: Callable[[str], None] | None) -> None:
        self.committed = membership(tuple(f"n{number}" for number in range(1, nodes + 1)))
        self._history = [(1, self.committed)]
        self.hasty: random.Random | None = None  # whoever is elected next changes something at once
        reference = Reference()

        def apply(index: int, payload: bytes) -> Hashable:
            if payload[:1] == MEMBERSHIP_ENTRY and index > 1:
                self.committed = decode_membership(payload)
                self._history.append((index, self.committed))
                self.invariants.voters = self.committed.voters
                self.counts["memberships"] += 1
            return reference.apply(index, payload)

        super().__init__(
            seed,
            nodes,
            MemberHost,  # type: ignore[arg-type]
            reference=apply,
            duration_s=ADMINISTER_S,
            transcript=transcript,
            spares=spares,
        )
        self._schedule()

    def doors(self) -> Doors:
        def doors(dialer: MemberProcess, acceptor: MemberProcess) -> tuple[Hello, Hello] | None:
            if acceptor.name not in dialer.dials:
                return None
            own = dialer.standing.hello(target=acceptor.name, release="")
            other = acceptor.standing.hello(target=dialer.name, release="")
            if acceptor.judge(own) is not None:
                self.scheduler.after(0.0, dialer.owner, dialer.refused, other)
                return None
            if dialer.judge(other) is not None:
                return None
            dialer.hellos[acceptor.name] = other
            self.scheduler.after(0.0, acceptor.owner, acceptor.called, own)
            return own, other

        return doors

    def membership_at(self, index: int) -> Membership:
        return next(membership for at, membership in reversed(self._history) if at <= index)

    def joined(self, process: MemberProcess) -> None:
        if self.processes[process.name] is process:  # else it is starting, and will be looked at
            self.invariants.process_started(process)

    def exclude(self, process: MemberProcess) -> None:
        """It learned that the cluster goes on without its disk, and stops."""
        if self.processes[process.name] is not process:
            return
        self.log("excluded", process.name)
        self.counts["excluded"] += 1
        self._lose_disk(process.name)

    def _lose_disk(self, name: str) -> None:
        process = self.processes[name]
        if process is not None:
            self._end(process, power_cut=True)
            self.network.process_ended(process, power_cut=True)
        host = self.hosts[name]
        assert isinstance(host, MemberHost)
        host.wipe()
        if not self.settling:
            self.scheduler.after(REMOVED_S, None, self.start, name)

    def expected(self) -> list[Process] | None:
        """The members whose disks the newest membership names, all of them there and part of it."""
        members = [name for name in self.committed.names if self._has_its_disk(self.committed, name)]
        processes = [self.processes[name] for name in members]
        there = [process for process in processes if process is not None and process.formed]
        return there if len(there) == len(members) else None

    def _has_its_disk(self, membership: Membership, name: str) -> bool:
        host = self.hosts[name]
        assert isinstance(host, MemberHost)
        return membership.instance(name) == host.instance

    # --- the administrator ----------------------------------------------------------------------------------

    def _schedule(self) -> None:
        rng = self.rng("administrator")
        acts = rng.sample(list(ACTS), rng.randint(2, len(ACTS)))
        acts = acts if "add" in acts else [*acts, "add"]
        gap_s = rng.choice((0.2, 0.4, 0.8))
        at = rng.uniform(1.0, 2.0)
        while at < ADMINISTER_S - 1.0:
            act = rng.choices(acts, [ACTS[each] for each in acts])[0]
            self.scheduler.after(at, None, self._administer, act, random.Random(rng.getrandbits(32)))
            at += rng.expovariate(1 / gap_s)

    def _administer(self, act: str, rng: random.Random) -> None:
        if act == "wipe":
            self._wipe(rng)
        elif act == "hasty":
            self.hasty = rng
        elif act == "burst":
            for each in ("remove", "add", "add"):
                self._propose(each, rng)
        else:
            self._propose(act, rng)

    def change_hastily(self, process: MemberProcess, rng: random.Random) -> None:
        """And its word gets to some only."""
        now = process.engine.membership
        learners = [name for name in now.learners if now.instance(name)]
        change = (
            Promote(rng.choice(learners))
            if learners and rng.random() < 0.6
            else Remove(rng.choice(now.names))
        )
        process.change(change)
        others = [name for name in self.names if name != process.name]
        self._apart([process.name, *rng.sample(others, rng.randint(0, 2))], rng.uniform(0.5, 2.5))

    def _propose(self, act: str, rng: random.Random) -> None:
        leader = self._leader()
        if leader is None:
            return
        process = self.processes[leader]
        assert isinstance(process, MemberProcess)
        now = process.engine.membership
        change: Change | None = None
        if act == "add":
            outside = [name for name in self.names if now.member(name) is None]
            if outside:
                change = Add(_member(rng.choice(outside)), promote=rng.random() < 0.7)
        elif act == "promote":
            change = Promote(rng.choice(now.learners)) if now.learners else None
        else:
            lost = [name for name in now.names if not self._has_its_disk(now, name) and now.instance(name)]
            change = Remove(rng.choice(lost or now.names))
        if change is not None:
            self.scheduler.after(0.0, process.owner, process.change, change)

    def _wipe(self, rng: random.Random) -> None:
        name = rng.choice(self.names)
        host = self.hosts[name]
        assert isinstance(host, MemberHost)
        if host.founding is None or not all(self._may_lose(each, name) for each in self._memberships()):
            return
        self.log("wipe", name)
        self.counts["wipe"] += 1
        self._lose_disk(name)

    def _memberships(self) -> list[Membership]:
        """Those that may be in effect anywhere, now or once somebody starts."""
        found = [self.committed]
        for process in self.processes.values():
            if isinstance(process, MemberProcess) and process.formed:
                found += [membership for _, membership in process.engine.core.configurations]
        for disk in (*self.invariants.durable.values(), *self.invariants.on_disk.values()):
            entries = () if disk is None else disk.entries
            found += [decode_membership(p) for p, i, _ in entries if p[:1] == MEMBERSHIP_ENTRY and i > 1]
        return [membership for membership in found if membership.version >= self.committed.version]

    def is_prudent(self, before: Membership, change: Change) -> bool:
        """Nobody changes the voters while a disk is lost that the rest would need: the leader may not have
        noticed yet, and then it is two failures at once."""
        if not isinstance(change, Remove | Promote):
            return True
        others = [name for name in before.voters if name != change.name]
        voters = [*others, change.name] if isinstance(change, Promote) else others
        whole = [name for name in voters if self._has_its_disk(before, name)]
        return len(whole) >= majority(len(voters))

    def _may_lose(self, membership: Membership, name: str) -> bool:
        """A learner may be promoted just now: then it is one of the voters that were lost."""
        voters = membership.voters
        if membership.member(name) is None or not self._has_its_disk(membership, name):
            return True
        whole = [each for each in voters if self._has_its_disk(membership, each)]
        if name not in voters:
            return len(whole) == len(voters) >= majority(len(voters) + 1)
        return len(whole) == len(voters) and len(whole) - 1 >= majority(len(voters))


def _member(name: str) -> Member:
    return Member(name, f"{name}:1", f"http://{name}:2")


def run_members(seed: int, nodes: int, transcript: Callable[[str], None] | None = None) -> Result:
    with small_bounds(random.Random(f"{seed} bounds")):
        world = MemberWorld(seed, nodes, 2, transcript)
        world.invariants.formed(MEMBERSHIP_ENTRY + msgspec.json.encode(membership(world.founders)))
        return world.run()
