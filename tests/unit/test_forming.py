"""Forming: one cluster or none, whatever is lost, late, restarted or wiped meanwhile.

`World` runs whole nodes' worth of forming from one seed: connections that are first in, first out, whose
two ends learn of their beginning and end at different times, and whose bytes may wait at the receiver
after their sender has died; disks whose writes take time and may not happen before a crash.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from raftkv.errors import ConfigError
from raftkv.model import Identity, Member, Membership
from raftkv.raft.forming import (
    Action,
    Ask,
    Confirmed,
    Control,
    Formed,
    Forming,
    Found,
    Persist,
    Ready,
    Tell,
    decode_control,
    encode_control,
)
from raftkv.raft.handshake import Hello, Standing, admit


def members(count: int) -> tuple[Member, ...]:
    return tuple(Member(f"n{i}", f"10.0.0.{i}:8401", f"http://10.0.0.{i}:8400") for i in range(1, count + 1))


@dataclass(eq=False)
class Connection:
    """From one process to another, and what waits in it. `up`: the dialer has finished its handshake."""

    dialer: Process
    acceptor: Process
    dialer_hello: Hello
    acceptor_hello: Hello
    up: bool = False
    queue: deque[bytes] = field(default_factory=deque)


class Process:
    """One life of a node: gone with a restart, unlike its disk."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.alive = True
        self.writing: Membership | None = None
        self.formed: Membership | None = None
        self.accepted: dict[str, Connection] = {}
        self.dialed: dict[str, Connection] = {}
        disk = world.disks[name]
        self.forming = Forming(
            disk.identity,
            world.members,
            founding=disk.founding,
            draw=lambda: f"{world.random.getrandbits(128):032x}",
        )

    def standing(self, initial: tuple[Member, ...]) -> Standing:
        return Standing(self.forming.identity, self.forming.membership, initial)


@dataclass
class Disk:
    identity: Identity
    founding: Membership | None = None


class World:
    def __init__(self, seed: int, count: int) -> None:
        self.random = random.Random(seed)
        self.members = members(count)
        self.names = [member.name for member in self.members]
        self.refusals: set[tuple[str, str, str]] = set()
        self.restart_rate = self.random.choice((0.001, 0.005, 0.02))
        self.instances = 0
        self.disks = {name: self.empty_disk(name) for name in self.names}
        self.processes: dict[str, Process] = {}
        self.seen: dict[str, Membership] = {}  # cluster id → what some disk held
        for name in self.names:
            self.start(name)

    def empty_disk(self, name: str) -> Disk:
        self.instances += 1
        return Disk(Identity(name, f"{self.instances:032x}", ""))

    # --- what can happen ---

    def start(self, name: str) -> None:
        process = Process(self, name)
        self.processes[name] = process
        self.do(process, process.forming.start())

    def kill(self, name: str) -> None:
        """What it has sent may still be read by the others, what it was writing is lost."""
        old = self.processes[name]
        old.alive = False
        for connection in old.dialed.values():
            connection.up = False

    def restart(self, name: str) -> None:
        self.kill(name)
        self.start(name)

    def wipe(self, name: str) -> None:
        self.kill(name)
        self.disks[name] = self.empty_disk(name)
        self.start(name)

    def call(self, source: str, target: str) -> None:
        """The handshake as the acceptor sees it; the dialer comes to know of it in `finish`."""
        dialer, acceptor = self.processes[source], self.processes[target]
        if source in dialer.dialed or target in dialer.dialed:
            return
        mine, theirs = dialer.standing(self.members), acceptor.standing(self.members)
        hello, answer = mine.hello(target=target, release="0"), theirs.hello(target=source, release="0")
        refusal = admit(hello, theirs.identity, theirs.membership, self.members)
        if refusal is not None:
            self.refusals.add((source, refusal.code, hello.instance))
            return
        connection = Connection(dialer, acceptor, hello, answer)
        acceptor.accepted[source] = connection  # a newer one replaces the older, with all that it held
        dialer.dialed[target] = connection

    def finish(self, connection: Connection) -> None:
        dialer = connection.dialer
        if not dialer.alive or connection.up or dialer.dialed.get(connection.acceptor.name) is not connection:
            return
        mine = dialer.standing(self.members)
        if admit(connection.acceptor_hello, mine.identity, mine.membership, self.members) is not None:
            del dialer.dialed[connection.acceptor.name]
            return
        connection.up = True
        self.do(dialer, dialer.forming.peer_connected(connection.acceptor_hello))

    def hang_up(self, connection: Connection) -> None:
        """The dialer notices an end; what it sent may be read or not, as the acceptor's turn comes."""
        dialer = connection.dialer
        if dialer.alive and dialer.dialed.get(connection.acceptor.name) is connection:
            del dialer.dialed[connection.acceptor.name]
            if connection.up:
                connection.up = False
                dialer.forming.peer_disconnected(connection.acceptor.name)

    def heard(self, connection: Connection) -> bool:
        acceptor = connection.acceptor
        return acceptor.alive and acceptor.accepted.get(connection.dialer.name) is connection

    def deliver(self, connection: Connection) -> None:
        acceptor = connection.acceptor
        if not self.heard(connection) or not connection.queue:
            return
        control = decode_control(connection.queue.popleft())
        self.do(acceptor, acceptor.forming.receive(connection.dialer_hello, control))

    def finish_write(self, process: Process) -> None:
        if not process.alive or process.writing is None:
            return
        disk = self.disks[process.name]
        disk.founding = process.writing
        process.writing = None
        self.seen[disk.founding.cluster] = disk.founding
        self.do(process, process.forming.persisted())

    def do(self, process: Process, actions: tuple[Action, ...]) -> None:
        for action in actions:
            match action:
                case Tell():
                    connection = process.dialed.get(action.peer)
                    if connection is not None and connection.up:
                        connection.queue.append(encode_control(action.control))
                case Persist():
                    assert process.writing is None
                    process.writing = action.membership
                case Formed():
                    assert process.formed is None
                    assert self.disks[process.name].founding == action.membership
                    process.formed = action.membership
                    self.judge_again(process)

    def judge_again(self, process: Process) -> None:
        """A node that has formed drops whom it would no longer let in, as `Transport.set_members` does."""
        mine = process.standing(self.members)
        for name, connection in list(process.accepted.items()):
            if admit(connection.dialer_hello, mine.identity, mine.membership, self.members) is not None:
                del process.accepted[name]

    # --- runs ---

    def connections(self) -> list[Connection]:
        alive = self.processes.values()
        found = {id(c): c for p in alive for c in (*p.dialed.values(), *p.accepted.values())}
        return list(found.values())

    def step(self, *, faults: bool) -> None:
        choice = self.random.random()
        name = self.random.choice(self.names)
        connections = self.connections()
        connection = self.random.choice(connections) if connections else None
        if faults and choice < self.restart_rate:
            self.restart(name)
        elif choice < 0.35:
            other = self.random.choice([n for n in self.names if n != name])
            self.call(name, other)
        elif choice < 0.45:
            self.finish_write(self.processes[name])
        elif connection is not None:
            if (faults and choice < 0.48) or not self.heard(connection):
                self.hang_up(connection)
            elif choice < 0.6:
                self.finish(connection)
            else:
                self.deliver(connection)

    def run(self, steps: int, *, faults: bool) -> None:
        for _ in range(steps):
            self.step(faults=faults)
            self.check()

    def settle(self, done: Callable[[World], bool]) -> None:
        """Without faults from here on, for as many steps as it takes within a bound."""
        for _ in range(1500):
            if done(self):
                return
            self.run(10, faults=False)
        waits = {name: self.processes[name].forming.waiting_for(lambda _: "") for name in self.names}
        raise AssertionError(f"never settled: {waits}")

    def check(self) -> None:
        """Among the disks there are, one cluster at most, and one membership for it."""
        held = {disk.founding.cluster for disk in self.disks.values() if disk.founding is not None}
        assert len(held) <= 1, held
        memberships = {disk.founding for disk in self.disks.values() if disk.founding is not None}
        assert len(memberships) <= 1, memberships

    def unformed(self) -> set[str]:
        return {name for name in self.names if self.processes[name].formed is None}

    def shut_out(self) -> set[str]:
        """Who was told that the cluster knows another disk under its name, and has that disk still."""
        return {
            name
            for name, code, instance in self.refusals
            if code == "empty_disk" and instance == self.disks[name].identity.instance
        }


@pytest.mark.parametrize("count", [2, 3, 5])
def test_everyone_forms_the_same_cluster(count: int) -> None:
    for seed in range(10):
        world = World(seed, count)
        world.settle(lambda world: not world.unformed())
        assert len(world.seen) == 1


@pytest.mark.parametrize("count", [2, 3, 5])
def test_restarts_and_lost_connections_leave_nobody_behind(count: int) -> None:
    for seed in range(40):
        world = World(seed, count)
        world.run(800, faults=True)
        world.settle(lambda world: not world.unformed())
        assert len(world.seen) == 1


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_a_wiped_disk_never_founds_a_second_cluster(count: int) -> None:
    """Whoever lost a disk that the cluster knew is told so; all the others are one cluster."""
    shut_out = 0
    for seed in range(60):
        world = World(seed, count)
        world.run(world.random.randrange(500 * count), faults=True)
        world.wipe(world.random.choice(world.names))
        world.run(100 * count, faults=True)
        world.settle(lambda world: world.unformed() == world.shut_out())
        assert len(world.unformed()) <= 1, seed
        shut_out += len(world.unformed())
    assert 0 < shut_out < 60  # the seeds reach both ends


@pytest.mark.parametrize("count", [3, 4, 5])
def test_a_coordinator_wiped_just_after_founding_founds_nothing_new(count: int) -> None:
    """What it founded may have reached nobody (then it is forgotten), or someone: then it stands."""
    shut_out = 0
    for seed in range(100):
        world = World(seed, count)
        world.settle(lambda world: bool(world.seen))
        world.run(world.random.randrange(8 * count), faults=False)
        world.wipe("n1")
        world.settle(lambda world: world.unformed() == world.shut_out())
        assert world.unformed() <= {"n1"}, seed
        shut_out += len(world.unformed())
    assert 0 < shut_out < 100  # the seeds reach both ends


# --- step by step ---------------------------------------------------------------------------------------


def hello(name: str, *, instance: str = "", cluster: str = "") -> Hello:
    return Hello(1, "0", cluster, name, instance or name[-1] * 32, "?")


def forming(name: str, count: int = 3, founding: Membership | None = None) -> Forming:
    ids = iter(f"{i:032x}" for i in range(1000, 2000))
    return Forming(
        Identity(name, name[-1] * 32, ""), members(count), founding=founding, draw=lambda: next(ids)
    )


def asked(actions: tuple[Action, ...]) -> str:
    (action,) = actions
    assert isinstance(action, Tell)
    assert isinstance(action.control, Ask)
    return action.control.round


def formed_by_n1() -> tuple[Forming, Membership]:
    node = forming("n1")
    rounds = {name: asked(node.peer_connected(hello(name))) for name in ("n2", "n3")}
    assert node.receive(hello("n2"), Ready(rounds["n2"])) == ()
    (persist,) = node.receive(hello("n3"), Ready(rounds["n3"]))
    assert isinstance(persist, Persist)
    return node, persist.membership


def test_a_single_node_forms_at_once() -> None:
    node = forming("n1", count=1)
    (persist,) = node.start()
    assert isinstance(persist, Persist)
    assert node.persisted() == (Formed(persist.membership),)
    assert persist.membership.instances == (("n1", "1" * 32),)


def test_nothing_is_said_of_the_cluster_before_it_is_on_disk() -> None:
    node, membership = formed_by_n1()
    assert node.identity.cluster == ""
    assert node.membership is None
    assert node.peer_connected(hello("n2")) == ()
    actions = node.persisted()
    assert actions[0] == Formed(membership)
    assert {
        action.peer for action in actions if isinstance(action, Tell) and isinstance(action.control, Found)
    } == {
        "n2",
        "n3",
    }
    assert node.identity.cluster == membership.cluster


def test_the_coordinator_waits_for_every_member_not_for_a_majority() -> None:
    node = forming("n1", count=5)
    rounds = {name: asked(node.peer_connected(hello(name))) for name in ("n2", "n3", "n4", "n5")}
    for name in ("n2", "n3", "n4"):
        assert node.receive(hello(name), Ready(rounds[name])) == ()
    assert node.waiting_for(lambda _: "") == ("n5: has not connected back to this node yet",)


def test_a_ready_for_an_earlier_connection_does_not_count() -> None:
    node = forming("n1", count=2)
    earlier = asked(node.peer_connected(hello("n2")))
    node.peer_disconnected("n2")
    assert node.receive(hello("n2"), Ready(earlier)) == ()
    later = asked(node.peer_connected(hello("n2")))
    assert node.receive(hello("n2"), Ready(earlier)) == ()
    assert node.receive(hello("n2"), Ready(later)) != ()


def test_a_ready_of_another_disk_does_not_count() -> None:
    node = forming("n1", count=2)
    current = asked(node.peer_connected(hello("n2")))
    assert node.receive(hello("n2", instance="e" * 32), Ready(current)) == ()


def test_a_member_that_has_formed_is_not_founded_over() -> None:
    node = forming("n1")
    rounds = {"n2": asked(node.peer_connected(hello("n2")))}
    assert node.peer_connected(hello("n3", cluster="c" * 32)) == ()
    assert node.receive(hello("n2"), Ready(rounds["n2"])) == ()
    assert "n3: has formed a cluster already" in node.waiting_for(lambda _: "")[0]


def test_a_member_gives_no_ready_once_it_holds_a_membership() -> None:
    _, membership = formed_by_n1()
    node = forming("n2")
    node.peer_connected(hello("n1"))
    assert node.receive(hello("n1"), Found(membership)) == (Persist(membership),)
    assert node.receive(hello("n1"), Ask("r" * 32)) == ()


def test_ready_goes_only_to_the_disk_that_asked() -> None:
    node = forming("n2")
    node.peer_connected(hello("n1"))
    assert node.receive(hello("n1", instance="e" * 32), Ask("r" * 32)) == ()
    assert node.peer_connected(hello("n1", instance="e" * 32)) == (Tell("n1", Ready("r" * 32)),)


def test_only_the_coordinator_is_answered() -> None:
    node = forming("n3")
    node.peer_connected(hello("n2"))
    assert node.receive(hello("n2"), Ask("r" * 32)) == ()


@pytest.mark.parametrize(("receiver", "sender"), [("e" * 32, "1" * 32), ("2" * 32, "e" * 32)])
def test_a_membership_that_knows_other_disks_is_ignored(receiver: str, sender: str) -> None:
    _, membership = formed_by_n1()
    node = Forming(Identity("n2", receiver, ""), members(3), founding=None, draw=lambda: "0" * 32)
    assert node.receive(hello("n1", instance=sender), Found(membership)) == ()


def test_a_second_membership_never_replaces_the_first() -> None:
    _, first = formed_by_n1()
    second = Membership("d" * 32, first.members, first.instances)
    node = forming("n2")
    assert node.receive(hello("n1"), Found(first)) == (Persist(first),)
    assert node.receive(hello("n1"), Found(second)) == ()
    node.persisted()
    assert node.membership == first


def test_a_formed_node_tells_a_late_member_with_the_right_disk_only() -> None:
    _, membership = formed_by_n1()
    node = forming("n2", founding=membership)
    assert node.start() == (Formed(membership),)
    assert node.peer_connected(hello("n3")) == (Tell("n3", Found(membership)),)
    assert node.peer_connected(hello("n3", instance="e" * 32)) == ()
    assert node.peer_connected(hello("n1", cluster=membership.cluster)) == ()


def test_waiting_says_for_whom_and_why() -> None:
    node = forming("n2")
    node.peer_connected(hello("n1"))
    assert node.waiting_for(lambda name: f"can't connect to {name}") == ("n3: can't connect to n3",)
    node.peer_connected(hello("n3"))
    assert node.waiting_for(lambda _: "") == ("n1, which coordinates, to found the cluster",)
    _, membership = formed_by_n1()
    node.receive(hello("n1"), Found(membership))
    assert "disk" in node.waiting_for(lambda _: "")[0]
    node.persisted()
    assert node.waiting_for(lambda _: "") == ()


def test_a_node_outside_its_own_members_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="n9"):
        forming("n9")
    with pytest.raises(ConfigError, match="twice"):
        Forming(Identity("n1", "1" * 32, ""), members(2) + members(1), founding=None, draw=lambda: "0" * 32)


@pytest.mark.parametrize(
    "control",
    [
        Ask("r"),
        Ready("r"),
        Confirmed("c" * 32),
        Found(Membership("c" * 32, members(2), (("n1", "1"), ("n2", "2")))),
    ],
)
def test_control_messages_survive_the_wire(control: Control) -> None:
    assert decode_control(memoryview(encode_control(control))) == control


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x92\xa1z\xa1x",
        b"\x91\xa1a",
        b"\x92\xa1f\x80",
        b"\x92\xa1a\x01",
        b"\x92\xa1a\xa1\xff",
        b"\x93\xa1a\xa1a" + b"\x91" * 100_000,
    ],
)
def test_what_is_no_control_message_is_a_value_error(payload: bytes) -> None:
    with pytest.raises(ValueError, match="not a control message"):
        decode_control(payload)
