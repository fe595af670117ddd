"""One member, whole but for its clock, its threads and its sockets. Sans-IO.

The engine owns the Raft core, the journal, the state machine and the local snapshots, and moves everything
that an input made possible, in one order, in `_settle`. It never blocks: what does is a job that `Ports.run`
takes to a worker thread. The asyncio node and the simulation are two `Ports` for the same engine.

The durability gate: a message that claims something durable waits here until the journal has reached the
position that the core named, then leaves in the order in which it was spoken. What claims nothing (a
leader's appends, echoes) leaves at once, in parallel with the leader's own sync, so a commit costs one wait
for a disk and not two, and that wait is shared by every command that arrived meanwhile.

Life of a write, in this file: `propose` queues it; `_settle` makes a batch when the journal is idle, sends it
and starts the sync; followers' answers and the end of the sync advance the commit; `_apply_entry` answers.
"""

from __future__ import annotations

import logging
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from raftkv.errors import Draining, Fatal, NoLeader, NotLeader, RaftkvError
from raftkv.journal.wal import Wal
from raftkv.kv.command import decode_entry
from raftkv.kv.machine import Machine
from raftkv.metrics import SHORT_BUCKETS, Histogram
from raftkv.model import Applied, Membership
from raftkv.raft.agreement import Agreement
from raftkv.raft.catchup import Catchup, ChunkSource
from raftkv.raft.compaction import Compaction, CompactionLimits
from raftkv.raft.core import Core, Timing
from raftkv.raft.messages import (
    Heartbeat,
    Message,
    ReadIndexReply,
    ReadIndexRequest,
    SnapshotFetch,
    SnapshotInstalled,
    SnapshotOffer,
    SnapshotPart,
    StateHash,
    TimeoutNow,
)
from raftkv.raft.proposals import REGULAR, Proposals, Ticket
from raftkv.raft.reads import Reads
from raftkv.snapshot.codec import Manifest
from raftkv.snapshot.store import Store

log = logging.getLogger("raftkv.raft")

# Applying holds the loop: after this many commands other work gets its turn, and applying goes on.
APPLY_COMMANDS_MAX = 2_000


class Ports(Protocol):
    """What the engine needs of the world."""

    def send(self, peer: str, message: Message) -> None:
        """Best effort, in order while the connection lives."""

    def run(self, lane: str, job: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """`job` on a worker thread; `done(result or BaseException)` back here. One lane runs in order."""

    def soon(self, callback: Callable[[], None]) -> None:
        """After everything that is ready to run now."""

    def fatal(self, error: Fatal) -> None:
        """Stop the process: nothing that this engine does counts any more."""


class Engine:
    """Inputs are the methods of the first section; each one settles all that it made possible."""

    def __init__(
        self,
        *,
        name: str,
        membership: Membership,
        wal: Wal,
        machine: Machine,
        snapshot: Manifest | None,
        store: Store,
        ports: Ports,
        clock: Callable[[], float],
        rng: random.Random,
        timing: Timing,
        compaction: CompactionLimits,
        waiting_commands_max: int = 20_000,
        waiting_bytes_max: int = 64 << 20,
        elsewhere: ChunkSource | None = None,
    ) -> None:
        self.name = name
        self.membership = membership
        self.wal = wal
        self.machine = machine
        self.timing = timing
        self.draining = False
        self.stopped = False
        self._ports = ports
        self._clock = clock
        self._gate: deque[tuple[int, str, Message]] = deque()
        self._syncing = False
        self._settling = False
        self._settle_is_due = False
        self._role_changed = False
        self._led_term = 0  # the newest term in which this node's no-op was applied
        self._transfer: tuple[str, float] | None = None  # (to, until)
        self._handed_over = 0  # the term in which the transfer's one TimeoutNow was sent
        self._applied_commands = 0
        self.campaigns = 0  # terms in which this node stood for election, since the start
        self._reported_term = 0
        self.applied_commands = 0  # since the start, as what follows
        self.apply_seconds = Histogram(SHORT_BUCKETS)  # of what was applied in one go
        self.on_applied: Callable[[], None] = lambda: None  # after entries were applied
        self.on_role: Callable[[], None] = lambda: None  # role, term or leader changed
        self.core = Core(
            name=name,
            voters=tuple(member.name for member in membership.members),
            log=wal,
            clock=clock,
            rng=rng,
            timing=timing,
            send=self._send,
            apply=self._apply_entry,
            offer_snapshot=self._offer_snapshot,
            on_role=self._on_role,
        )
        self.core.start_from(1 if snapshot is None else snapshot.index)
        machine.advance(self.core.last_applied)
        self.reads = Reads(self.core, clock, rng)
        self.proposals = Proposals(
            self.core, clock, commands_max=waiting_commands_max, bytes_max=waiting_bytes_max
        )
        self.compaction = Compaction(self, store, ports, snapshot, compaction, clock)
        self.agreement = Agreement(self, clock)
        self.catchup = Catchup(self, store, ports, clock, elsewhere)

    # --- inputs -----------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Call about every 20 ms: elections, heartbeats and retries are driven by it."""
        self._input(self._on_tick)

    def receive(self, peer: str, message: Message) -> None:
        """One decoded message of the authenticated member `peer`."""
        self._input(lambda: self._dispatch(peer, message))

    def peer_connected(self, peer: str) -> None:
        """Our connection to `peer` is up: what we send now arrives in order until it is lost."""
        self._input(lambda: self.core.peer_connected(peer))

    def peer_disconnected(self, peer: str) -> None:
        self._input(lambda: self.core.peer_disconnected(peer))

    def propose(
        self, command: bytes, done: Callable[[Applied | RaftkvError], None], timeout_s: float = math.inf
    ) -> Ticket:
        """`done` gets the result once the command is applied here, or why it never will be; after
        `timeout_s`, Overloaded where it was still queued, and CommitTimeout where it may yet happen.

        Raises NotLeader, NoLeader, Draining or Overloaded: then it was not taken at all. A caller that stops
        waiting asks `withdraw` whether the command may still happen.
        """
        self._refuse_unless_leading()
        ticket = self.proposals.add(command, done, timeout_s)
        self._settle_soon()
        return ticket

    def propose_all(
        self,
        commands: Sequence[bytes],
        done: Callable[[Sequence[Applied] | RaftkvError], None],
        timeout_s: float = math.inf,
    ) -> Ticket:
        """As `propose`, for several commands with one fate; `done` gets all their results, in order."""
        self._refuse_unless_leading()
        ticket = self.proposals.add_all(commands, done, timeout_s)
        self._settle_soon()
        return ticket

    def withdraw(self, ticket: Ticket) -> bool:
        return self.proposals.withdraw(ticket)

    def read_index(self, done: Callable[[RaftkvError | None], None], timeout_s: float = math.inf) -> None:
        """`done(None)` once a read of this node's state is linearizable, NotReady after `timeout_s`.

        Raises NoLeader, Overloaded, Draining.
        """
        if self.stopped:
            raise Draining(f"{self.name} is stopping")
        self.reads.add(done, timeout_s)
        self._settle_soon()

    def transfer_leadership(self, to: str | None = None) -> bool:
        """Hands leadership to `to`, or to the peer that holds most; False where there is nobody to take it.

        New writes are refused until the peer has caught up and campaigned, or an election timeout passed.
        """
        peers = [peer for peer in self.core.peers if peer in self.core.connected]
        if not self.core.is_leader or not peers or (to is not None and to not in peers):
            return False
        chosen = to or max(peers, key=lambda peer: self.core.progress[peer].match_index)
        self._transfer = (chosen, self._clock() + self.timing.election_timeout_s_max)
        self._handed_over = 0
        self._settle_soon()
        return True

    # --- inside -----------------------------------------------------------------------------------------

    def _input(self, act: Callable[[], None]) -> None:
        if self.stopped:
            return
        try:
            act()
        except Exception as error:  # noqa: BLE001 the edge: an engine that raised must not go on
            self.fail(error)
        else:
            self._settle()

    def fail(self, error: BaseException) -> None:
        """Stops for good: a node that can't be sure of its own data does not go on [10]."""
        if self.stopped:
            return
        self.stopped = True
        if not isinstance(error, Fatal):
            log.error("engine_failed node=%s", self.name, exc_info=error)
            error = Fatal(f"the consensus engine failed: {type(error).__name__}: {error}")
        self._ports.fatal(error)

    def _on_tick(self) -> None:
        self.core.doTick()
        self.catchup.tick()
        self.compaction.tick()
        self.proposals.expire()
        self.reads.expire()
        if self._transfer is not None and self._clock() >= self._transfer[1]:
            self._transfer = None

    def _dispatch(self, peer: str, message: Message) -> None:
        if peer not in self.core.peers:
            return
        match message:
            case ReadIndexRequest():
                self.reads.on_request(peer, message)
            case ReadIndexReply():
                self.reads.on_reply(peer, message)
            case SnapshotOffer():
                if self.core.accept_leader(peer, message.term, message.sequence):
                    self.catchup.on_offer(peer, message)
            case SnapshotFetch():
                self.catchup.on_fetch(peer, message)
            case SnapshotPart():
                self.catchup.on_part(peer, message)
            case StateHash():
                self.agreement.on_message(peer, message)
            case SnapshotInstalled():
                self.core.snapshot_acknowledged(peer, message.term, message.index)
            case _:
                self.core.receive(peer, message)

    def _settle_soon(self) -> None:
        if not self._settle_is_due:
            self._settle_is_due = True
            self._ports.soon(self._settle_now)

    def _settle_now(self) -> None:
        self._settle_is_due = False
        self._input(lambda: None)

    def _settle(self) -> None:
        """Everything that became possible, in one order; what it makes possible in turn follows by itself:
        a sync's end and a message are inputs, and a batch of applies asks for another round."""
        try:
            self._settle_role()
            self._apply_some()
            self._hand_over()
            if not self._syncing and self.leading and self._transfer is None:
                self.core.wants_broadcast |= self.proposals.flush()
            self.reads.pump()
            self.agreement.pump()
            if self.core.wants_broadcast:
                self.core.broadcast()
            elif self.core.wants_commit_told:
                self.core.tell_commit()
            self._start_sync()
            self.compaction.pump()
        except Exception as error:  # noqa: BLE001 the edge, as in _input
            self.fail(error)

    # --- roles ------------------------------------------------------------------------------------------

    def _on_role(self) -> None:
        self._role_changed = True
        if self.core.role == "candidate" and self.core.term != self._reported_term:
            self.campaigns += 1
        self._reported_term = self.core.term

    def _settle_role(self) -> None:
        if not self._role_changed:
            return
        self._role_changed = False
        core = self.core
        log.info(
            "role_changed node=%s term=%d role=%s leader=%s", self.name, core.term, core.role, core.leader
        )
        self.on_role()
        self.reads.role_changed()
        if not core.is_leader:
            self._transfer = None
            self.proposals.refuse_waiting(self._not_leading())

    @property
    def leading(self) -> bool:
        """Leader, and the no-op of its term is applied: its state covers all that was acknowledged."""
        return self.core.is_leader and self.core.last_applied >= self.core.noop_index

    def _refuse_unless_leading(self) -> None:
        if self.stopped or self.draining:
            raise Draining(f"{self.name} is stopping and takes no new writes")
        if not self.core.is_leader:
            raise self._not_leading()
        if self._transfer is not None:
            raise NoLeader(f"{self.name} is handing leadership to {self._transfer[0]}; try again at once")

    def _not_leading(self) -> RaftkvError:
        leader = self.core.leader
        for member in self.membership.members:
            if member.name == leader and leader != self.name:
                return NotLeader(
                    f"{leader} leads the cluster; {self.name} does not",
                    leader=leader,
                    leader_url=member.client_url,
                )
        return NoLeader("no leader is known here; an election takes about a second")

    def _hand_over(self) -> None:
        if self._transfer is None or not self.core.is_leader:
            return
        to, _ = self._transfer
        caught_up = self.core.progress[to].match_index == self.core.last_index
        if caught_up and self._handed_over != self.core.term:
            self._handed_over = self.core.term
            self._send(to, TimeoutNow(self.core.term), 0)

    # --- the gate ---------------------------------------------------------------------------------------

    def _send(self, peer: str, message: Message, position: int) -> None:
        if position <= self.wal.durable_position:
            self._ports.send(peer, message)
        else:
            self._gate.append((position, peer, message))

    def _start_sync(self) -> None:
        if self._syncing:
            return
        batch = self.wal.cut()
        if batch is None:
            return
        self._syncing = True

        def synced(result: Any) -> None:
            self._syncing = False
            if isinstance(result, BaseException):
                self.fail(result)
                return
            self._input(lambda: self._on_synced(batch))

        self._ports.run("journal", lambda: self.wal.write(batch), synced)

    def _on_synced(self, batch: Any) -> None:
        self.wal.synced(batch)
        while self._gate and self._gate[0][0] <= self.wal.durable_position:
            _, peer, message = self._gate.popleft()
            self._ports.send(peer, message)
        self.core.advance_commit()

    # --- applying ---------------------------------------------------------------------------------------

    def _apply_some(self) -> None:
        core = self.core
        self._applied_commands = 0
        before, began = core.last_applied, self._clock()
        while core.last_applied < core.commit_index:
            if self._applied_commands >= APPLY_COMMANDS_MAX:
                self._settle_soon()
                break
            core.apply_committed(1)
        if core.last_applied > before:
            self.apply_seconds.add(self._clock() - began)
            self.applied_commands += self._applied_commands
            self.on_applied()
        if self.leading and self._led_term != core.term:
            self._led_term = core.term
            self.proposals.lead(self.machine.log_time_ms)

    def _apply_entry(self, index: int, term: int, payload: bytes) -> None:
        results: list[Applied] = []
        if payload[:1] == REGULAR:
            log_time_ms, commands = decode_entry(payload[1:])
            apply = self.machine.apply
            results = [apply(index, log_time_ms, command) for command in commands]
            self._applied_commands += len(results)
        else:
            self.machine.advance(index)  # a no-op, or the configuration
        if index == self.agreement.expected_index:
            self.agreement.compare()
        self.proposals.applied(index, term, results)

    def replace_state(self, machine: Machine, manifest: Manifest) -> None:
        """A snapshot from the leader becomes our state; it is durable, and above what was committed here."""
        core = self.core
        index, term = manifest.index, manifest.term
        if core.term_at(index) == term:
            self.wal.compact(index, term)
        else:
            self.wal.reset(index, term, b"\x01")
        machine.advance(index)
        replaced, self.machine = self.machine, machine
        self._ports.run("snapshot", replaced.discard, lambda _: None)  # freeing a million keys holds a thread
        core.installed(index)
        self.agreement.state_replaced()
        self.on_applied()
        self.proposals.skipped_to(index)

    # --- snapshots --------------------------------------------------------------------------------------

    def _offer_snapshot(self, peer: str, sequence: int) -> None:
        """The core has no entries for `peer`: offer the snapshot, or only show that we live."""
        manifest = self.compaction.manifest_bytes
        if manifest is None:
            self._send(peer, Heartbeat(self.core.term, sequence), 0)
        else:
            self._send(peer, SnapshotOffer(self.core.term, sequence, manifest), 0)
