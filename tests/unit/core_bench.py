"""A bench for one Raft core, or a few: virtual time, a log in memory, messages delivered by hand.

`Bench` is our core; `StockNode` is PySyncObj's class as released, on a transport that records. The tests of
`test_core_against_stock.py` put the same situation to both.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from pysyncobj import SyncObj, SyncObjConf
from pysyncobj import syncobj as stock_module
from pysyncobj.journal import MemoryJournal
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from raftkv.model import Member, Membership
from raftkv.raft.core import Core, Timing
from raftkv.raft.messages import Message


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class MemoryLog(MemoryJournal):  # type: ignore[misc]
    """PySyncObj's journal in memory, with the positions that the core's gate goes by.

    `sync()` makes all that was staged durable; `automatic` does so at once.
    """

    def __init__(self, *, automatic: bool = True) -> None:
        super().__init__()
        self.automatic = automatic
        self.position = 0
        self.durable_position = 0
        self._durable_index = 0
        self.commit_hint = 1
        super().add(b"\x02{}", 1, 0)
        self._durable_index = 1

    def _staged(self) -> None:
        self.position += 1
        if self.automatic:
            self.sync()

    def sync(self) -> None:
        self.durable_position = self.position
        self._durable_index = self[-1][1]

    @property
    def durable_index(self) -> int:
        return self._durable_index

    def add(self, command: bytes, idx: int, term: int) -> None:
        super().add(command, idx, term)
        self._staged()

    def deleteEntriesFrom(self, entryFrom: int) -> None:
        super().deleteEntriesFrom(entryFrom)
        self._durable_index = min(self._durable_index, self[-1][1])
        self._staged()

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:
        super().setCurrentTerm(term, votedForNodeId)
        self._staged()

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:
        self.commit_hint = raftCommitIndex

    def getRaftCommitIndex(self) -> int:
        return self.commit_hint


def instance_of(name: str) -> str:
    return name.rjust(32, "0")


def membership_of(voters: tuple[str, ...], learners: tuple[str, ...] = ()) -> Membership:
    names = tuple(sorted(voters + learners))
    members = tuple(Member(name, f"{name}:1", f"http://{name}:2") for name in names)
    return Membership("c" * 32, members, tuple((name, instance_of(name)) for name in names), learners)


class Bench:
    """One core named `name`; `sent` holds (peer, message, position) in order."""

    def __init__(
        self,
        name: str = "n1",
        voters: tuple[str, ...] = ("n1", "n2", "n3"),
        *,
        learners: tuple[str, ...] = (),
        log: MemoryLog | None = None,
        clock: Clock | None = None,
        seed: int = 1,
    ) -> None:
        self.clock = clock or Clock()
        self.log = log or MemoryLog()
        self.sent: list[tuple[str, Message, int]] = []
        self.applied: list[tuple[int, int, bytes]] = []
        self.offered: list[str] = []
        self.core = Core(
            name=name,
            instance=instance_of(name),
            configurations=[(1, membership_of(voters, learners))],
            log=self.log,
            clock=self.clock,
            rng=random.Random(seed),
            timing=Timing(),
            send=lambda peer, message, position: self.sent.append((peer, message, position)),
            apply=lambda index, term, payload: self.applied.append((index, term, payload)),
            offer_snapshot=lambda peer, sequence: self.offered.append(peer),
            on_role=lambda: None,
            on_membership=lambda: None,
        )
        self.core.start_from(1)
        for peer in self.core.peers:
            self.core.peer_connected(peer)

    def wait(self, seconds: float) -> None:
        """Lets virtual time pass, ticking every 20 ms."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now += 0.02
            self.tick()

    def tick(self) -> None:
        self.core.doTick()
        self.settle()

    def settle(self) -> None:
        self.core.apply_committed(1000)
        if self.core.wants_broadcast:
            self.core.broadcast()
        elif self.core.wants_commit_told:
            self.core.tell_commit()

    def receive(self, peer: str, message: Message) -> list[Message]:
        """What it sends to `peer` in answer."""
        before = len(self.sent)
        self.core.receive(peer, message)
        self.settle()
        return [m for to, m, _ in self.sent[before:] if to == peer]

    def lead(self, voter: str = "n2") -> None:
        """Makes it leader with the vote of one peer."""
        from raftkv.raft.messages import PreVoteReply, VoteReply

        self.wait(1.1)
        term = self.core.term + 1
        self.core.receive(voter, PreVoteReply(term, True, self.core.term))
        self.core.receive(voter, VoteReply(term, True))
        self.settle()
        assert self.core.is_leader


class RecordingTransport(Transport):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(None, None, ())
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.on_send: Callable[[str, dict[str, Any]], None] | None = None

    @property
    def ready(self) -> bool:
        return True

    def send(self, node: Node, message: dict[str, Any]) -> None:
        self.sent.append((node.id, message))

    def addNode(self, node: Node) -> None:
        pass

    def dropNode(self, node: Node) -> None:
        pass

    def destroy(self) -> None:
        pass


class StockNode:
    """PySyncObj's own class, driven by hand, in virtual time (`monkeypatch` undoes the clock)."""

    def __init__(
        self, monkeypatch: Any, name: str = "n1", peers: tuple[str, ...] = ("n2", "n3"), **conf: Any
    ) -> None:
        self.clock = Clock()
        monkeypatch.setattr(stock_module, "monotonicTime", self.clock)
        self.transport = RecordingTransport()
        conf = {"autoTick": False, "commandsWaitLeader": False, "useFork": False} | conf
        self.node = SyncObj(
            Node(name), [Node(p) for p in peers], SyncObjConf(**conf), transport=self.transport
        )
        for peer in peers:
            self.transport._onNodeConnected(Node(peer))

    def get(self, attribute: str) -> Any:
        return getattr(self.node, "_SyncObj__" + attribute)

    @property
    def log(self) -> list[tuple[bytes, int, int]]:
        return list(self.get("raftLog")[:])

    def receive(self, peer: str, message: dict[str, Any]) -> None:
        self.transport._onMessageReceived(Node(peer), message)

    def tick(self) -> None:
        self.node.doTick(0)

    def lead(self, voters: tuple[str, ...] = ("n2",)) -> None:
        self.clock.now += 2.0
        self.tick()
        for voter in voters:
            self.receive(voter, {"type": "response_vote", "term": self.node.raftCurrentTerm})
        assert self.node._isLeader()
