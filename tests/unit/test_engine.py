"""The engine by hand: the gate, batches, reads, catch-up. Three engines on a bench without time or threads.

What only many schedules can show is the simulation's (tests/sim); here each rule has its one situation.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from raftkv.errors import (
    CommitTimeout,
    Draining,
    Fatal,
    NoLeader,
    NotLeader,
    NotReady,
    Overloaded,
    RaftkvError,
)
from raftkv.journal.wal import Wal
from raftkv.kv.command import Put, encode
from raftkv.kv.machine import Machine
from raftkv.model import Applied, Member, Membership, Written
from raftkv.raft import proposals
from raftkv.raft.compaction import CompactionLimits
from raftkv.raft.core import Timing
from raftkv.raft.engine import Engine
from raftkv.raft.messages import (
    AppendEntries,
    AppendReply,
    Entry,
    Heartbeat,
    Message,
    ReadIndexReply,
    SnapshotOffer,
    SnapshotPart,
)
from raftkv.raft.opening import found
from raftkv.snapshot.directory import DirectoryStore
from tests.sim.disk import MemoryDisk
from tests.unit.core_bench import Clock

NAMES = ("n1", "n2", "n3")
MEMBERSHIP = Membership(
    "c" * 32,
    tuple(Member(name, f"{name}:1", f"http://{name}:2") for name in NAMES),
    tuple((name, "1" * 32) for name in NAMES),
)


class Node:
    """One engine with its ports: jobs wait in `jobs` until the bench runs them, messages in `outbox`."""

    def __init__(self, bench: Trio, name: str) -> None:
        self.bench = bench
        self.name = name
        self.outbox: deque[tuple[str, Message]] = deque()
        self.jobs: deque[tuple[str, Callable[[], Any], Callable[[Any], None]]] = deque()
        self.later: deque[Callable[[], None]] = deque()
        self.fatals: list[Fatal] = []
        self.held_lanes: set[str] = set()
        wal = Wal.open(MemoryDisk(random.Random(1)))
        found(wal, MEMBERSHIP)
        self.store = DirectoryStore(MemoryDisk(random.Random(2)), clock=bench.clock)
        self.engine = Engine(
            name=name,
            instance="1" * 32,
            configurations=[(1, MEMBERSHIP)],
            wal=wal,
            machine=Machine(),
            snapshot=None,
            store=self.store,
            ports=self,
            clock=bench.clock,
            rng=random.Random(name),
            timing=Timing(),
            compaction=bench.compaction,
            waiting_commands_max=10,
            elsewhere=bench.shared,
        )

    def send(self, peer: str, message: Message) -> None:
        self.outbox.append((peer, message))

    def run(self, lane: str, job: Callable[[], Any], done: Callable[[Any], None]) -> None:
        self.jobs.append((lane, job, done))

    def soon(self, callback: Callable[[], None]) -> None:
        self.later.append(callback)

    def fatal(self, error: Fatal) -> None:
        self.fatals.append(error)

    def work(self) -> bool:
        """Everything that is due here but for held lanes; True if there was anything."""
        worked = False
        while self.later:
            self.later.popleft()()
            worked = True
        for job in [job for job in self.jobs if job[0] not in self.held_lanes]:
            self.jobs.remove(job)
            _, act, done = job
            try:
                result = act()
            except Exception as error:  # noqa: BLE001 as the real door hands it over
                result = error
            done(result)
            worked = True
        return worked

    def put(self, key: bytes) -> list[Any]:
        """A proposal; the list gets its outcome."""
        outcome: list[Any] = []
        self.engine.propose(encode(Put(key, b"v")), outcome.append)
        return outcome

    def read(self) -> list[RaftkvError | None]:
        outcome: list[RaftkvError | None] = []
        self.engine.read_index(outcome.append)
        return outcome


class SharedStore:
    """What a store that the cluster shares answers; `chunks` by (snapshot, number)."""

    def __init__(self) -> None:
        self.chunks: dict[tuple[str, int], bytes] = {}
        self.asked: list[tuple[str, int]] = []

    def read_chunk(self, snapshot: str, number: int) -> bytes:
        self.asked.append((snapshot, number))
        return self.chunks[snapshot, number]

    def publish(self, node: Node) -> None:
        manifest = node.engine.compaction.manifest
        assert manifest is not None
        for number in range(len(manifest.chunks)):
            self.chunks[manifest.id, number] = node.store.read_chunk(manifest.id, number)


class Trio:
    def __init__(self, compaction: CompactionLimits | None = None, shared: SharedStore | None = None) -> None:
        self.clock = Clock()
        self.shared = shared
        self.compaction = compaction or CompactionLimits()
        self.cut: set[str] = set()
        self.seen: list[tuple[str, str, Message]] = []
        self.nodes = {name: Node(self, name) for name in NAMES}
        for node in self.nodes.values():
            for peer in node.engine.core.peers:
                node.engine.peer_connected(peer)

    def settle(self) -> None:
        """Delivers messages and runs jobs until nothing moves."""
        for _ in range(10_000):
            worked = False
            for node in self.nodes.values():
                worked |= node.work()
                while node.outbox:
                    peer, message = node.outbox.popleft()
                    self.seen.append((node.name, peer, message))
                    if not {node.name, peer} & self.cut:
                        self.nodes[peer].engine.receive(node.name, message)
                    worked = True
            if not worked:
                return
        raise AssertionError("the three never came to rest")

    def wait(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now += 0.02
            for node in self.nodes.values():
                node.engine.tick()
            self.settle()

    def elect(self) -> Node:
        for _ in range(200):
            self.wait(0.02)
            leaders = [node for node in self.nodes.values() if node.engine.leading]
            if leaders:
                return leaders[0]
        raise AssertionError("nobody was elected in 4 s of virtual time")

    def follower_of(self, leader: Node) -> Node:
        return next(node for node in self.nodes.values() if node is not leader)


@pytest.fixture
def trio() -> Trio:
    return Trio()


def applied(outcome: list[Any]) -> Applied:
    [result] = outcome
    assert isinstance(result, Applied), result
    return result


def test_write_is_answered_and_reaches_all(trio: Trio) -> None:
    leader = trio.elect()
    outcome = leader.put(b"a")
    trio.settle()
    assert applied(outcome).result == Written(1, created=True)
    trio.settle()
    assert [node.engine.machine.revision for node in trio.nodes.values()] == [1, 1, 1]


def test_write_waits_for_a_majority_of_disks(trio: Trio) -> None:
    """Row 7: acknowledgements are held by each follower until its own sync, the commit by the leader's."""
    leader = trio.elect()
    followers = [node for node in trio.nodes.values() if node is not leader]
    for node in trio.nodes.values():
        node.held_lanes = {"journal"}
    outcome = leader.put(b"a")
    trio.settle()
    assert outcome == []
    followers[0].held_lanes = set()
    trio.settle()
    assert outcome == [], "the leader's own disk has not got it"
    leader.held_lanes = set()
    trio.settle()
    assert applied(outcome).result == Written(1, created=True)


def test_commands_that_arrive_during_a_sync_share_one_entry(trio: Trio) -> None:
    leader = trio.elect()
    leader.held_lanes = {"journal"}
    first = leader.put(b"first")
    trio.settle()
    rest = [leader.put(b"%d" % number) for number in range(9)]
    trio.settle()
    last_index = leader.engine.core.last_index
    leader.held_lanes = set()
    trio.settle()
    assert leader.engine.core.last_index == last_index + 1
    assert len({applied(outcome).index for outcome in rest}) == 1
    assert applied(first).index == last_index


def test_several_commands_with_one_fate_share_an_entry_with_others(trio: Trio) -> None:
    leader = trio.elect()
    before = leader.put(b"before")
    several: list[Any] = []
    leader.engine.propose_all([encode(Put(b"%d" % number, b"v")) for number in range(3)], several.append)
    after = leader.put(b"after")
    trio.settle()
    (results,) = several
    assert [each.result for each in results] == [Written(2 + number, created=True) for number in range(3)]
    assert {each.index for each in results} == {applied(before).index} == {applied(after).index}
    assert applied(after).result == Written(5, created=True)


def test_several_commands_count_as_many_in_the_queue_and_in_a_batch(
    trio: Trio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposals, "BATCH_COMMANDS_MAX", 4)
    leader = trio.elect()
    outcomes: list[Any] = []
    commands = [encode(Put(b"%d" % number, b"v")) for number in range(5)]
    leader.engine.propose_all(commands[:3], outcomes.append)
    leader.engine.propose_all(commands[:3], outcomes.append)
    leader.engine.propose_all(commands, outcomes.append)
    assert leader.engine.proposals.outstanding == 11
    with pytest.raises(Overloaded, match="11 writes"):
        leader.put(b"one too many")
    trio.settle()
    assert [len(results) for results in outcomes] == [3, 3, 5]
    assert len({results[0].index for results in outcomes}) == 3, "each was an entry of its own"
    assert leader.engine.proposals.outstanding == 0


def test_queue_is_bounded(trio: Trio) -> None:
    leader = trio.elect()
    for number in range(10):
        leader.put(b"%d" % number)
    with pytest.raises(Overloaded, match="at most 10"):
        leader.put(b"one too many")


def test_withdrawn_command_never_happens(trio: Trio) -> None:
    leader = trio.elect()
    outcome: list[Any] = []
    ticket = leader.engine.propose(encode(Put(b"a", b"v")), outcome.append)
    assert leader.engine.withdraw(ticket)
    trio.settle()
    assert outcome == []
    assert leader.engine.machine.keys == 0
    ticket = leader.engine.propose(encode(Put(b"a", b"v")), outcome.append)
    trio.settle()
    assert not leader.engine.withdraw(ticket)


def test_a_queued_command_whose_time_is_up_never_happens(trio: Trio) -> None:
    leader = trio.elect()
    leader.held_lanes.add("journal")
    leader.put(b"first")
    trio.settle()  # it is on its way to the disk, so what follows is queued
    outcome: list[Any] = []
    leader.engine.propose(encode(Put(b"a", b"v")), outcome.append, 0.2)
    trio.clock.now += 0.1
    leader.engine.tick()
    assert outcome == []
    trio.clock.now += 0.11
    leader.engine.tick()
    assert [type(error) for error in outcome] == [Overloaded]
    leader.held_lanes.clear()
    trio.settle()
    assert len(outcome) == 1
    assert leader.engine.machine.get(b"a") is None
    assert leader.engine.machine.get(b"first") is not None


def test_several_commands_are_withdrawn_and_expire_as_one(trio: Trio) -> None:
    leader = trio.elect()
    outcomes: list[Any] = []
    commands = [encode(Put(b"%d" % number, b"v")) for number in range(3)]
    ticket = leader.engine.propose_all(commands, outcomes.append)
    assert leader.engine.withdraw(ticket)
    trio.settle()
    assert (outcomes, leader.engine.machine.keys) == ([], 0)
    leader.held_lanes.add("journal")
    leader.engine.propose_all(commands, outcomes.append, 0.2)
    trio.settle()
    trio.clock.now += 0.21
    leader.engine.tick()
    assert [type(outcome) for outcome in outcomes] == [CommitTimeout]
    leader.held_lanes.clear()
    trio.settle()
    assert (len(outcomes), leader.engine.machine.keys) == (1, 3)


def test_a_command_in_the_log_whose_time_is_up_is_told_once_that_it_may_happen(trio: Trio) -> None:
    leader = trio.elect()
    leader.held_lanes.add("journal")
    outcome: list[Any] = []
    leader.engine.propose(encode(Put(b"a", b"v")), outcome.append, 0.2)
    trio.settle()
    trio.clock.now += 0.21
    leader.engine.tick()
    assert [type(error) for error in outcome] == [CommitTimeout]
    leader.held_lanes.clear()
    trio.settle()
    assert len(outcome) == 1
    assert leader.engine.machine.get(b"a") is not None


def test_a_read_that_nobody_confirms_in_time_is_refused_once(trio: Trio) -> None:
    leader = trio.elect()
    trio.cut.update(peer for peer in NAMES if peer != leader.name)
    outcome: list[RaftkvError | None] = []
    leader.engine.read_index(outcome.append, 0.2)
    later: list[RaftkvError | None] = []
    leader.engine.read_index(later.append, 0.9)
    trio.settle()
    trio.clock.now += 0.21
    leader.engine.tick()
    assert [type(error) for error in outcome] == [NotReady]
    assert later == []
    trio.cut.clear()
    leader.engine.tick()
    trio.settle()
    assert len(outcome) == 1


def test_follower_refuses_writes_and_names_the_leader(trio: Trio) -> None:
    leader = trio.elect()
    with pytest.raises(NotLeader) as raised:
        trio.follower_of(leader).put(b"a")
    assert raised.value.leader_url == f"http://{leader.name}:2"


def test_no_leader_refuses_at_once(trio: Trio) -> None:
    """Row 14: stock queues writes for a leader to come."""
    with pytest.raises(NoLeader):
        trio.nodes["n1"].put(b"a")
    with pytest.raises(NoLeader):
        trio.nodes["n1"].read()


def test_overwritten_entry_is_answered_as_not_applied(trio: Trio) -> None:
    """The cut-off leader's write is refused when another entry was committed in its place, not before."""
    old = trio.elect()
    trio.cut = {old.name}
    lost = old.put(b"lost")
    trio.settle()
    trio.wait(3)
    new = next(node for node in trio.nodes.values() if node.engine.leading and node is not old)
    kept = new.put(b"kept")
    trio.settle()
    assert lost == []
    trio.cut = set()
    trio.wait(1)
    [refusal] = lost
    assert isinstance(refusal, NoLeader)
    assert refusal.outcome == "not_applied"
    assert applied(kept).result == Written(1, created=True)
    assert old.engine.machine.get(b"lost") is None


# --- reads ---------------------------------------------------------------------------------------------


def test_read_on_every_node_sees_the_last_write(trio: Trio) -> None:
    leader = trio.elect()
    leader.put(b"a")
    trio.settle()
    for node in trio.nodes.values():
        outcome = node.read()
        trio.settle()
        assert outcome == [None]
        assert node.engine.machine.get(b"a") is not None


def test_cut_off_leader_confirms_no_read(trio: Trio) -> None:
    old = trio.elect()
    trio.cut = {old.name}
    outcome = old.read()
    trio.settle()
    assert outcome == []
    trio.wait(1.1)
    [refusal] = outcome
    assert isinstance(refusal, NoLeader)


def test_one_round_serves_all_reads_that_came_before_it(trio: Trio) -> None:
    leader = trio.elect()
    trio.seen.clear()
    outcomes = [leader.read() for _ in range(50)]
    trio.settle()
    assert outcomes == [[None]] * 50
    rounds = {m.sequence for who, _, m in trio.seen if who == leader.name and isinstance(m, Heartbeat)}
    assert len(rounds) == 1
    assert not any(isinstance(m, AppendEntries | AppendReply) for _, _, m in trio.seen)


def test_read_waits_for_its_index_to_be_applied(trio: Trio) -> None:
    leader = trio.elect()
    follower = trio.follower_of(leader)
    outcome = follower.read()
    follower.work()
    [(_, question)] = [(to, m) for to, m in follower.outbox if to == leader.name]
    follower.outbox.clear()
    term, request = question.term, question.request  # type: ignore[union-attr]
    beyond = follower.engine.core.last_applied + 1
    follower.engine.receive(leader.name, ReadIndexReply(term, request, beyond))
    assert outcome == []
    leader.put(b"a")
    trio.settle()
    assert outcome == [None]


def test_answer_to_an_earlier_question_confirms_nothing(trio: Trio) -> None:
    """Row 10: numbers start at random, so that a late answer to the process before this one matches none."""
    leader = trio.elect()
    follower = trio.follower_of(leader)
    outcome = follower.read()
    follower.work()
    follower.outbox.clear()
    for request in range(1, 100):
        follower.engine.receive(leader.name, ReadIndexReply(leader.engine.core.term, request, 1))
    assert outcome == []


# --- stopping ---------------------------------------------------------------------------------------------


def test_entry_that_can_not_be_applied_stops_the_node(trio: Trio) -> None:
    """Row 10: not retried for ever with its callers in the dark."""
    leader = trio.elect()
    follower = trio.follower_of(leader)
    core = follower.engine.core
    message = AppendEntries(
        core.term,
        10**6,
        core.last_index,
        core.last_term,
        core.last_index + 1,
        (Entry(core.term, b"\x00\x09"),),
    )
    follower.engine.receive(leader.name, message)
    [fatal] = follower.fatals
    assert "shorter than its head" in str(fatal)
    sent = len(follower.outbox)
    follower.engine.tick()
    follower.engine.receive(leader.name, message)
    assert len(follower.outbox) == sent, "a stopped engine says nothing more"


def test_failed_sync_stops_the_node_before_anything_leaves(trio: Trio) -> None:
    leader = trio.elect()
    follower = trio.follower_of(leader)
    follower.held_lanes = {"journal"}
    leader.put(b"a")
    trio.settle()
    [(_, _, done)] = [job for job in follower.jobs if job[0] == "journal"]
    follower.outbox.clear()
    done(OSError(5, "Input/output error"))
    assert len(follower.fatals) == 1
    assert not [m for _, m in follower.outbox if isinstance(m, AppendReply)]


def test_leadership_is_not_handed_to_who_does_not_answer(trio: Trio) -> None:
    leader = trio.elect()
    silent, other = (node for node in trio.nodes.values() if node is not leader)
    trio.cut = {silent.name}
    trio.wait(1.5)
    assert leader.engine.leading
    assert leader.engine.transfer_leadership()
    trio.wait(0.1)
    assert other.engine.core.is_leader


def test_draining_leader_takes_nothing_new_and_hands_over(trio: Trio) -> None:
    leader = trio.elect()
    taken = leader.put(b"a")
    leader.engine.draining = True
    with pytest.raises(Draining):
        leader.put(b"b")
    trio.settle()
    assert applied(taken)
    term = leader.engine.core.term
    assert leader.engine.transfer_leadership()
    trio.settle()
    assert not leader.engine.core.is_leader
    [new] = [node for node in trio.nodes.values() if node.engine.leading]
    assert new.engine.core.term == term + 1, "at once: nobody waited for a timeout"


# --- snapshots ----------------------------------------------------------------------------------------------


def grown_past_a_follower(shared: SharedStore | None = None) -> tuple[Trio, Node, Node]:
    """A leader whose log no longer reaches back to where a cut-off follower stands."""
    trio = Trio(CompactionLimits(log_entries_max=10), shared)
    leader = trio.elect()
    behind = trio.follower_of(leader)
    trio.cut = {behind.name}
    for number in range(40):
        leader.put(b"%d" % number)
        trio.wait(0.02)
    assert leader.engine.core.first_index > behind.engine.core.last_index
    return trio, leader, behind


def test_log_stays_bounded_behind_snapshots() -> None:
    _, leader, _ = grown_past_a_follower()
    assert len(leader.engine.wal) <= 12
    assert leader.engine.compaction.manifest is not None


def test_far_behind_follower_takes_the_snapshot() -> None:
    trio, leader, behind = grown_past_a_follower()
    trio.cut = set()
    trio.wait(1)
    assert behind.engine.machine.keys == 40
    assert any(isinstance(m, SnapshotOffer) for _, to, m in trio.seen if to == behind.name)
    outcome = leader.put(b"after")
    trio.settle()
    assert applied(outcome)
    assert behind.engine.machine.keys == 41


def test_damaged_part_is_refused_and_fetched_again() -> None:
    """Row 5: what does not match its manifest is neither installed nor acknowledged."""
    trio, _, behind = grown_past_a_follower()
    genuine = behind.engine.receive
    damaged = 0

    def receive(peer: str, message: Message) -> None:
        nonlocal damaged
        if isinstance(message, SnapshotPart) and damaged < 2:
            damaged += 1
            message = SnapshotPart(message.snapshot, message.chunk, message.offset, bytes(len(message.data)))
        genuine(peer, message)

    behind.engine.receive = receive  # type: ignore[method-assign]
    trio.cut = set()
    trio.wait(0.5)
    assert damaged == 1
    assert behind.engine.machine.keys == 0
    trio.wait(3)
    assert damaged == 2
    assert behind.engine.machine.keys == 40


def test_snapshot_at_or_below_commit_is_not_installed() -> None:
    """Row 4: stock installs it, and its state moves backwards."""
    trio, leader, behind = grown_past_a_follower()
    old = leader.engine.compaction.manifest_bytes
    assert old is not None
    trio.cut = set()
    for number in range(20):
        leader.put(b"more %d" % number)
        trio.wait(0.02)
    trio.wait(1)
    machine, applied_index = behind.engine.machine, behind.engine.core.last_applied
    behind.engine.receive(leader.name, SnapshotOffer(leader.engine.core.term, 10**6, old))
    trio.wait(1)
    assert behind.engine.machine is machine
    assert behind.engine.core.last_applied >= applied_index


def parts_for(trio: Trio, node: Node) -> list[SnapshotPart]:
    return [m for _, to, m in trio.seen if to == node.name and isinstance(m, SnapshotPart)]


def test_snapshot_comes_from_the_shared_store_where_it_is_there() -> None:
    shared = SharedStore()
    trio, leader, behind = grown_past_a_follower(shared)
    shared.publish(leader)
    trio.cut = set()
    trio.wait(1)
    assert behind.engine.machine.keys == 40
    assert shared.asked
    assert parts_for(trio, behind) == [], "the leader was spared"


@pytest.mark.parametrize("spoil", ["away", "damaged"])
def test_leader_sends_what_the_shared_store_does_not_give(spoil: str) -> None:
    shared = SharedStore()
    trio, leader, behind = grown_past_a_follower(shared)
    if spoil == "damaged":
        shared.publish(leader)
        shared.chunks = {name: bytes(len(data)) for name, data in shared.chunks.items()}
    trio.cut = set()
    trio.wait(2.5)
    assert len(shared.asked) == 1
    assert parts_for(trio, behind)
    assert behind.engine.machine.keys == 40


def test_a_snapshot_is_made_a_little_at_a_tick(trio: Trio, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two ticks only so many records are read, so that a large state holds nobody up."""
    monkeypatch.setattr("raftkv.raft.compaction.PAGE_RECORDS", 2)
    monkeypatch.setattr("raftkv.raft.compaction.RECORDS_A_TICK", 4)
    leader = trio.elect()
    for number in range(30):
        leader.put(b"%d" % number)
        trio.settle()
    made: list[Any] = []
    leader.engine.compaction.request(made.append)
    for _ in range(6):
        trio.wait(0.02)
        assert made == []
    trio.wait(0.1)
    assert made[0].keys == 30
