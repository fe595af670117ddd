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

from raftkv.errors import (
    ChangeInFlight,
    Draining,
    Fatal,
    NoLeader,
    NotCaughtUp,
    NotLeader,
    RaftkvError,
)
from raftkv.journal.wal import Wal
from raftkv.kv.command import decode_entry
from raftkv.kv.machine import Machine
from raftkv.metrics import SHORT_BUCKETS, Histogram
from raftkv.model import Applied, Member, Membership, Reconfigured
from raftkv.raft.agreement import Agreement
from raftkv.raft.catchup import Catchup, ChunkSource
from raftkv.raft.compaction import Compaction, CompactionLimits
from raftkv.raft.core import Core, Timing
from raftkv.raft.membership import (
    MEMBERSHIP,
    Bind,
    Change,
    Move,
    Promote,
    Raise,
    changed,
    check_quorum,
    encode_membership,
)
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
# A learner may lack this many committed entries and be promoted all the same: a few batches, which are on
# their way to it at any moment under load.
CAUGHT_UP_ENTRIES = 100


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
        instance: str,
        configurations: Sequence[tuple[int, Membership]],
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
        self._membership_changed = False
        self._membership_said = (0, False)
        self._catch_up_to: dict[str, tuple[int, float]] = {}  # learner -> (index, since when it is aimed at)
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
        self.member_of: Callable[[str], Member | None] = lambda name: self.membership.member(name)
        self.on_membership: Callable[[], None] = lambda: None  # another one is in effect, or committed
        self.core = Core(
            name=name,
            instance=instance,
            configurations=configurations,
            log=wal,
            clock=clock,
            rng=rng,
            timing=timing,
            send=self._send,
            apply=self._apply_entry,
            offer_snapshot=self._offer_snapshot,
            on_role=self._on_role,
            on_membership=self._on_membership,
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
        """Hands leadership to `to`, or to who holds most of those that answer; False where there is nobody to
        take it.

        New writes are refused until the peer has caught up and campaigned, or an election timeout passed.
        """
        voters = self.core.voters
        peers = [peer for peer in self.core.peers if peer in self.core.connected and peer in voters]
        if not self.core.is_leader or not peers or (to is not None and to not in peers):
            return False
        there = self.reachable
        chosen = to or max(peers, key=lambda peer: (peer in there, self.core.progress[peer].match_index))
        self._transfer = (chosen, self._clock() + self.timing.election_timeout_s_max)
        self._handed_over = 0
        self._settle_soon()
        return True

    # --- membership ---------------------------------------------------------------------------------------

    @property
    def membership(self) -> Membership:
        """The one in effect, which may not be committed yet."""
        return self.core.membership

    @property
    def committed_membership(self) -> Membership:
        """The newest that is known here to be committed."""
        return self.core.membership_at(max(self.core.commit_index, self.core.configurations[0][0]))

    @property
    def level(self) -> int:
        """Of the protocol: what every member can read; see `protocol.py`."""
        return self.committed_membership.level

    @property
    def reachable(self) -> frozenset[str]:
        """Of a leader: the members that answered it within an election timeout, itself among them."""
        oldest = self._clock() - self.timing.election_timeout_s_max
        heard = (peer for peer, progress in self.core.progress.items() if progress.last_response > oldest)
        return frozenset((self.name, *heard))

    def plan(self, change: Change) -> Membership:
        """What the change would make of the membership. Raises as `change_membership` does."""
        self._refuse_unless_leading()
        core = self.core
        if not self.leading or core.membership_index > core.commit_index:
            raise ChangeInFlight(
                "the last change of membership is not committed yet; one at a time, so try again shortly"
            )
        after = changed(core.membership, change, term=core.term, index=core.last_index + 1)
        check_quorum(core.membership, after, self.reachable)
        if isinstance(change, Promote):
            self._check_caught_up(change.name)
        return after

    def change_membership(
        self, change: Change, done: Callable[[Applied | RaftkvError], None], timeout_s: float = math.inf
    ) -> Membership:
        """Appends the change, which is in effect from then on; `done` gets Applied once it is committed, or
        why not, as in `propose`. A leader does not remove itself: it hands over first.

        Raises NotLeader, NoLeader, Draining, ChangeInFlight, QuorumAtRisk, NotCaughtUp, NoSuchMember,
        MemberExists, BadRequest: then nothing was changed.
        """
        after = self.plan(change)
        if self.name not in after.voters:
            raise NoLeader(f"{self.name} leads, and hands over before it is removed; try again at once")
        self.proposals.append_alone(encode_membership(after), done, timeout_s)
        log.info("membership_proposed node=%s change=%s index=%d", self.name, change, after.index)
        self.core.wants_broadcast = True
        self._settle_soon()
        return after

    def _check_caught_up(self, name: str) -> None:
        core = self.core
        progress = core.progress[name]
        if name not in self.reachable or core.commit_index - progress.match_index > CAUGHT_UP_ENTRIES:
            raise NotCaughtUp(
                f"{name} has the log up to {progress.match_index} of {core.commit_index}"
                f"{'' if name in self.reachable else ', and does not answer'}: as a voter it would hold "
                "commits back. Try again when it has caught up, or add it with auto_promote"
            )

    def steward(self, shown: Callable[[str], Bind | Move | None], *, spoken: int = 0) -> None:
        """What a leader does for members, a few times a second: it gives a learner the disk that it showed,
        takes note of a member's new addresses (both as `shown(name)` has them), promotes a learner that is to
        be a voter once it has caught up, and raises the cluster's level to what all have `spoken`."""
        core = self.core
        if not self.leading or core.membership_index > core.commit_index or self._transfer is not None:
            return
        membership = core.membership
        if spoken > membership.level and self._change_quietly(Raise(spoken)):
            return
        for name in membership.names:
            change: Change | None = shown(name)
            if change is None and name in membership.promoting and self._has_kept_up(name):
                change = Promote(name)
            if change is not None and self._change_quietly(change):
                return

    def _change_quietly(self, change: Change) -> bool:
        """False where it can't be now: nobody asked for it, so nobody is told."""
        try:
            self.change_membership(change, lambda _: None)
        except RaftkvError as error:
            log.debug("membership_deferred node=%s change=%s reason=%s", self.name, change, error)
            return False
        return True

    def _has_kept_up(self, name: str) -> bool:
        """It reached what was committed when it was last looked at, within an election timeout: so it would
        hold no commit back for longer than that (thesis §4.2.1)."""
        core = self.core
        now = self._clock()
        index, since = self._catch_up_to.get(name, (core.commit_index, now))
        if core.progress[name].match_index < index:
            self._catch_up_to[name] = (index, since)
            return False
        self._catch_up_to[name] = (core.commit_index, now)
        return index > 1 and now - since <= self.timing.election_timeout_s_min and name in self.reachable

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
            self._settle_membership()
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
            self.proposals.refuse_waiting(self.not_leading())

    def _on_membership(self) -> None:
        self._membership_changed = True

    def _settle_membership(self) -> None:
        if not self._membership_changed:
            return
        self._membership_changed = False
        membership = self.membership
        if self._transfer is not None and self._transfer[0] not in self.core.voters:
            self._transfer = None
        self._catch_up_to = {k: v for k, v in self._catch_up_to.items() if k in membership.learners}
        index = self.core.membership_index
        committed = index <= self.core.commit_index
        if (index, committed) != self._membership_said:  # older ones are applied one by one meanwhile
            self._membership_said = (index, committed)
            log.info(
                "membership_changed node=%s index=%d committed=%s voters=%s learners=%s",
                self.name,
                index,
                committed,
                ",".join(membership.voters),
                ",".join(membership.learners) or "none",
            )
        self.on_membership()

    @property
    def leading(self) -> bool:
        """Leader, and the no-op of its term is applied: its state covers all that was acknowledged."""
        return self.core.is_leader and self.core.last_applied >= self.core.noop_index

    def _refuse_unless_leading(self) -> None:
        if self.stopped or self.draining:
            raise Draining(f"{self.name} is stopping and takes no new writes")
        if not self.core.is_leader:
            raise self.not_leading()
        if self._transfer is not None:
            raise NoLeader(f"{self.name} is handing leadership to {self._transfer[0]}; try again at once")

    def not_leading(self) -> RaftkvError:
        leader = self.core.leader
        member = self.member_of(leader) if leader is not None and leader != self.name else None
        if member is not None:
            return NotLeader(
                f"{leader} leads the cluster; {self.name} does not",
                leader=member.name,
                leader_url=member.client_url,
            )
        return NoLeader("no leader is known here; an election takes about a second")

    def _hand_over(self) -> None:
        if self._transfer is None or not self.core.is_leader:
            return
        to, _ = self._transfer
        if to not in self.core.progress:
            return
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
            self.machine.advance(index)  # a no-op, or a membership
            if payload[:1] == MEMBERSHIP:
                self._membership_changed = True  # it is committed now
                results = [Applied(index, Reconfigured(self.core.membership_at(index)))]
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
        core.installed(index, manifest.membership)
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
