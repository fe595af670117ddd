"""PySyncObj's Raft with what its release 0.3.17 gets wrong put right. Sans-IO.

A node that runs the stock class loses acknowledged writes without any crash, so this subclass decides what
the protocol decides, message by message, and leaves PySyncObj its state, its log handling and its life
cycle. All overrides of PySyncObj's name-mangled methods stand in this file; a test pins the upstream source
by hash, so that an upgrade is a decision. Numbers in brackets are rows of `docs/pysyncobj.md`.

Invariants:
- A message that claims something durable is handed to `send` with the journal position that must be on disk
  before it leaves: a candidate's own vote, a granted vote, an accepted append, an installed snapshot [7].
- A follower commits only what the message at hand verified against its leader's log [1]; it truncates
  only from the first entry whose term differs, and never at or below its commit index [2].
- The leader counts its own log only as far as its own disk has it [7]; only entries of its own term are
  committed by counting (Raft §5.4.2).
- Answers are bound to the term and to the sender they came from; a vote counts once a voter [6].
- The membership in effect is the newest in the log, committed or not (thesis §4.1) [9]: it says whose votes,
  acknowledgements and echoes count, and who gets the log. Messages are taken from whomever the transport
  admits: a leader may be newer than what this log says of members.

Sources: Raft (Ongaro, Ousterhout 2014); Ongaro's thesis §3.10 (transfer), §4 (membership), §6.4 (ReadIndex),
§9.6 (pre-vote);
PySyncObj 0.3.17 `syncobj.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pysyncobj import SyncObj, SyncObjConf
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from raftkv.model import Membership
from raftkv.raft.membership import MEMBERSHIP, decode_membership
from raftkv.raft.messages import (
    AppendEntries,
    AppendReply,
    Commit,
    Echo,
    Entry,
    Heartbeat,
    Message,
    PreVote,
    PreVoteReply,
    RequestVote,
    TimeoutNow,
    VoteReply,
)
from raftkv.raft.quorum import majority, quorum_index

FOLLOWER, CANDIDATE, LEADER = 0, 1, 2  # pysyncobj.syncobj._RAFT_STATE
NO_OP = b"\x01"  # pysyncobj.syncobj._COMMAND_TYPE

Role = Literal["follower", "candidate", "leader"]
_ROLES: tuple[Role, Role, Role] = ("follower", "candidate", "leader")

# One append_entries message carries at most this many bytes of entries (and at least one entry).
APPEND_BYTES_MAX = 1 << 20
# What may be on its way to one follower unacknowledged: enough to fill a 10 ms round trip at 400 MB/s,
# little enough that a stopped follower costs nothing.
IN_FLIGHT_BYTES_MAX = 4 << 20
IN_FLIGHT_MESSAGES_MAX = 64


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. An election starts after a random wait between the two timeouts without a leader."""

    election_timeout_s_min: float = 0.5
    election_timeout_s_max: float = 1.0
    heartbeat_s: float = 0.1


class Log(Protocol):
    """What the core asks of the journal; `raftkv.journal.wal.Wal` is one."""

    @property
    def position(self) -> int: ...
    @property
    def durable_index(self) -> int: ...
    def __len__(self) -> int: ...
    def __getitem__(self, item: Any) -> Any: ...
    def add(self, command: bytes, idx: int, term: int) -> None: ...
    def deleteEntriesFrom(self, entryFrom: int) -> None: ...
    def setRaftCommitIndex(self, raftCommitIndex: int) -> None: ...


@dataclass(slots=True)
class Progress:
    """What the leader knows of one peer in its own term."""

    next_index: int
    match_index: int = 0
    last_response: float = 0.0
    echoed: int = 0  # highest sequence that the peer's core accepted
    probe_sequence: int = 0  # refusals of messages before this one are old news
    in_flight: list[tuple[int, int]] | None = None  # (last index, bytes) of unanswered messages with entries
    in_flight_bytes: int = 0

    def reset(self, next_index: int, sequence: int) -> None:
        self.next_index = next_index
        self.probe_sequence = sequence
        self.in_flight = []
        self.in_flight_bytes = 0

    def sent(self, last_index: int, size: int) -> None:
        assert self.in_flight is not None
        self.next_index = last_index + 1
        self.in_flight.append((last_index, size))
        self.in_flight_bytes += size

    def matched(self, index: int) -> None:
        self.match_index = max(self.match_index, index)
        self.next_index = max(self.next_index, self.match_index + 1)
        flying = self.in_flight or []
        while flying and flying[0][0] <= self.match_index:
            self.in_flight_bytes -= flying.pop(0)[1]

    @property
    def window_open(self) -> bool:
        flying = self.in_flight or []
        return len(flying) < IN_FLIGHT_MESSAGES_MAX and self.in_flight_bytes < IN_FLIGHT_BYTES_MAX


class _JournalSlot:
    """A data descriptor with only `__set__`: the constructor's `createJournal` result is dropped and the
    journal that was passed in takes its place, before the constructor reads it."""

    def __set__(self, core: Core, _stock_journal: object) -> None:
        core.__dict__["_SyncObj__raftLog"] = core.log


class _NoTransport(Transport):  # type: ignore[misc]
    """PySyncObj asks its transport only whether it is ready; messages leave through `Core.send`."""

    def __init__(self) -> None:
        super().__init__(None, None, ())

    @property
    def ready(self) -> bool:
        return True

    def destroy(self) -> None:
        pass


class Core(SyncObj):  # type: ignore[misc]
    """One member's Raft state. Every input is a call; `send` and `apply` are the outputs.

    `send(peer, message, position)`: the message may leave once the journal is durable up to `position`.
    `apply(index, term, payload)` is called for each committed entry in order; what it raises stops the node.
    `offer_snapshot(peer, sequence)` is called where a peer needs entries that the log no longer has.
    `wants_broadcast` asks the owner to call `broadcast` once the input at hand has been dealt with, so that
    one message carries what several reasons asked for; `wants_commit_told`, where that is all there is to
    say, to call `tell_commit`.
    """

    _SyncObj__raftLog = _JournalSlot()

    def __init__(
        self,
        *,
        name: str,
        instance: str,
        configurations: Sequence[tuple[int, Membership]],
        log: Log,
        clock: Callable[[], float],
        rng: random.Random,
        timing: Timing,
        send: Callable[[str, Message, int], None],
        apply: Callable[[int, int, bytes], None],
        offer_snapshot: Callable[[str, int], None],
        on_role: Callable[[], None],
        on_membership: Callable[[], None],
    ) -> None:
        """`configurations`: (index, membership) of what the log holds of them, oldest first; the first one
        stands for all that came before."""
        self.name = name
        self.instance = instance
        self.log = log
        self.clock = clock
        self.rng = rng
        self.timing = timing
        self.send = send
        self.apply_entry = apply
        self.offer_snapshot = offer_snapshot
        self.on_role = on_role
        self.on_membership = on_membership
        self.configurations = list(configurations)
        self._read_membership()
        self.progress: dict[str, Progress] = {}
        self.connected: set[str] = set()
        self.sequence = 0
        self.wants_broadcast = False
        self.wants_commit_told = False
        self.noop_index = 0
        self.last_leader_contact = float("-inf")
        self._votes: set[str] = set()
        self._pre_votes: set[str] | None = None
        self._next_heartbeat = 0.0
        self._made_for: tuple[int, ...] | None = None
        self._made: tuple[AppendEntries, int]
        self._reported: tuple[int, str | None, int] | None = None
        conf = SyncObjConf(autoTick=False, commandsWaitLeader=False)
        super().__init__(Node(name), [], conf, transport=_NoTransport())
        self._restart_election_timer()

    # --- what others may see ---------------------------------------------------------------------------

    @property
    def term(self) -> int:
        return int(self._SyncObj__raftCurrentTerm)

    @property
    def role(self) -> Role:
        return _ROLES[self._SyncObj__raftState]

    @property
    def is_leader(self) -> bool:
        return bool(self._SyncObj__raftState == LEADER)

    @property
    def leader(self) -> str | None:
        node = self._SyncObj__raftLeader
        return None if node is None else str(node.id)

    @property
    def commit_index(self) -> int:
        return int(self._SyncObj__raftCommitIndex)

    @property
    def last_applied(self) -> int:
        return int(self._SyncObj__raftLastApplied)

    @property
    def first_index(self) -> int:
        """The index of the oldest entry that the log holds; entries after it can be sent."""
        return int(self.log[0][1])

    @property
    def last_index(self) -> int:
        return int(self.log[-1][1])

    @property
    def last_term(self) -> int:
        return int(self.log[-1][2])

    def term_at(self, index: int) -> int | None:
        """The term of the entry at `index`, None where the log does not hold it."""
        offset = index - self.first_index
        return int(self.log[offset][2]) if 0 <= offset < len(self.log) else None

    # --- membership -------------------------------------------------------------------------------------

    @property
    def membership(self) -> Membership:
        """The one in effect."""
        return self.configurations[-1][1]

    @property
    def membership_index(self) -> int:
        """The index of the entry that it came with."""
        return self.configurations[-1][0]

    @property
    def is_voter(self) -> bool:
        """With the very disk that the membership names: a log that is catching up may still hold one in which
        the disk before it, under the same name, had a vote."""
        return self.name in self.voters and self.membership.instance(self.name) == self.instance

    def membership_at(self, index: int) -> Membership:
        """What was in effect up to `index`, which is applied."""
        return next(membership for at, membership in reversed(self.configurations) if at <= index)

    def _read_membership(self) -> None:
        membership = self.membership
        self.peers: tuple[str, ...] = tuple(name for name in membership.names if name != self.name)
        self.voters = frozenset(membership.voters)

    def _membership_changed(self) -> None:
        self._read_membership()
        if self.is_leader:
            now = self.clock()
            known, self.progress = self.progress, {}
            for peer in self.peers:
                if peer not in known:
                    known[peer] = Progress(self.last_index + 1, last_response=now)
                    known[peer].reset(self.last_index + 1, self.sequence)
                self.progress[peer] = known[peer]
        self.on_membership()

    def _add(self, payload: bytes, index: int, term: int) -> None:
        self.log.add(payload, index, term)
        if payload[:1] == MEMBERSHIP:
            self.configurations.append((index, decode_membership(payload)))
            self._membership_changed()

    def _truncate_from(self, index: int) -> None:
        self.log.deleteEntriesFrom(index - self.first_index)
        if self.membership_index >= index:
            self.configurations = [each for each in self.configurations if each[0] < index]
            self._membership_changed()

    def _elected(self, votes: Collection[str]) -> bool:
        """Do these come from a majority of voters? Learners' and strangers' don't count."""
        return len(self.voters.intersection(votes)) >= majority(len(self.voters))

    def _of_voters(self, own: int, of_peer: Callable[[Progress], int]) -> int:
        """The highest number that a majority of voters has reached, ours among them if we are one."""
        reached = [
            own if name == self.name else of_peer(self.progress[name]) if name in self.progress else 0
            for name in self.voters
        ]
        return quorum_index(reached)

    # --- time -------------------------------------------------------------------------------------------

    def _onTick(self, timeToWait: float = 0.0) -> None:
        now = self.clock()
        if self.is_leader:
            self._step_down_without_quorum(now)
        elif now >= self._SyncObj__raftElectionDeadline:
            self._on_election_timeout()
        if self.is_leader:
            self.advance_commit()
            if now >= self._next_heartbeat:
                self.wants_broadcast = True

    def _step_down_without_quorum(self, now: float) -> None:
        """A leader that a majority has not answered for an election timeout leads nothing [14]."""
        oldest = now - self.timing.election_timeout_s_max
        heard = [peer for peer, progress in self.progress.items() if progress.last_response > oldest]
        if not self._elected([self.name, *heard]):
            self._become_follower(self.term, leader=None)

    def _SyncObj__generateRaftTimeout(self) -> float:
        return self.rng.uniform(self.timing.election_timeout_s_min, self.timing.election_timeout_s_max)

    def _restart_election_timer(self) -> None:
        self._SyncObj__raftElectionDeadline = self.clock() + self._SyncObj__generateRaftTimeout()

    # --- elections --------------------------------------------------------------------------------------

    def _on_election_timeout(self) -> None:
        if self.is_voter:
            self._start_pre_vote()
        else:  # a learner, or removed: it waits for a leader, and stands for nothing
            self._restart_election_timer()
            self._become_follower(self.term, leader=None)

    def _start_pre_vote(self) -> None:
        """Ask first, without touching term or vote: a member that can't win must not disturb (§9.6) [14]."""
        self._restart_election_timer()
        self._set_role(CANDIDATE, leader=None)
        self._pre_votes = {self.name}
        for peer in self.peers:
            self.send(peer, PreVote(self.term + 1, self.last_index, self.last_term), 0)
        self._campaign_if_pre_elected()

    def _campaign_if_pre_elected(self) -> None:
        if self._pre_votes is not None and self._elected(self._pre_votes):
            self.campaign()

    def campaign(self) -> None:
        """Stand for election in the next term. Its own vote must be durable before the request leaves [7]."""
        if not self.is_voter:
            return
        self._pre_votes = None
        self._restart_election_timer()
        self._SyncObj__setCurrentTerm(self.term + 1, self.name)
        self._set_role(CANDIDATE, leader=None)
        self._votes = {self.name}
        for peer in self.peers:
            self.send(peer, RequestVote(self.term, self.last_index, self.last_term), self.log.position)
        self._lead_if_elected()

    def _lead_if_elected(self) -> None:
        if self._elected(self._votes):
            self._SyncObj__onBecomeLeader()

    def _SyncObj__onBecomeLeader(self) -> None:
        now = self.clock()
        self.progress = {peer: Progress(self.last_index + 1, last_response=now) for peer in self.peers}
        for progress in self.progress.values():
            progress.reset(self.last_index + 1, self.sequence)
        self.noop_index = self.last_index + 1
        self.log.add(NO_OP, self.noop_index, self.term)
        self._set_role(LEADER, leader=self.name)
        self.wants_broadcast = True

    def _become_follower(self, term: int, leader: str | None) -> None:
        if term > self.term:
            self._SyncObj__setCurrentTerm(term, None)
        self._pre_votes = None
        if self.is_leader:
            self._restart_election_timer()
        self._set_role(FOLLOWER, leader)

    def _set_role(self, role: int, leader: str | None) -> None:
        self._SyncObj__raftLeader = None if leader is None else Node(leader)
        self._SyncObj__setState(role)
        if self._reported != (role, leader, self.term):
            self._reported = (role, leader, self.term)
            self.on_role()

    # --- messages ---------------------------------------------------------------------------------------

    def receive(self, peer: str, message: Message) -> None:
        """One message from `peer`, which the transport has authenticated and admitted as a member. Whose
        answers count is decided where they are counted [6]."""
        self._SyncObj__onMessageReceived(peer, message)

    def _SyncObj__onMessageReceived(self, peer: str, message: Message) -> None:
        match message:
            case AppendEntries():
                self._on_append_entries(peer, message)
            case AppendReply():
                self._on_append_reply(peer, message)
            case Echo():
                self._on_echo(peer, message)
            case Heartbeat():
                self.accept_leader(peer, message.term, message.sequence)
            case Commit():
                self._on_commit(peer, message)
            case PreVote():
                self._on_pre_vote(peer, message)
            case PreVoteReply():
                self._on_pre_vote_reply(peer, message)
            case RequestVote():
                self._on_request_vote(peer, message)
            case VoteReply():
                self._on_vote_reply(peer, message)
            case TimeoutNow():
                if message.term == self.term and self.leader == peer:
                    self.campaign()
            case _:
                raise AssertionError(f"not a message of the core: {message!r}")

    def _log_up_to_date(self, last_index: int, last_term: int) -> bool:
        """Raft §5.4.1: is a log that ends so at least as up to date as ours?"""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def _on_pre_vote(self, peer: str, message: PreVote) -> None:
        heard_lately = self.clock() - self.last_leader_contact < self.timing.election_timeout_s_min
        granted = (
            message.term > self.term
            and not self.is_leader
            and not heard_lately
            and self._log_up_to_date(message.last_log_index, message.last_log_term)
        )
        self.send(peer, PreVoteReply(message.term, granted, self.term), 0)

    def _on_pre_vote_reply(self, peer: str, message: PreVoteReply) -> None:
        if message.current_term > self.term:
            self._become_follower(message.current_term, leader=None)
        elif message.granted and self._pre_votes is not None and message.term == self.term + 1:
            self._pre_votes.add(peer)
            self._campaign_if_pre_elected()

    def _on_request_vote(self, peer: str, message: RequestVote) -> None:
        if message.term > self.term:
            self._become_follower(message.term, leader=None)
        granted = (
            message.term == self.term
            and self._SyncObj__votedForNodeId in (None, peer)
            and self._log_up_to_date(message.last_log_index, message.last_log_term)
        )
        if granted:
            self._SyncObj__setCurrentTerm(self.term, peer)
            self._restart_election_timer()
        self.send(peer, VoteReply(self.term, granted), self.log.position if granted else 0)

    def _on_vote_reply(self, peer: str, message: VoteReply) -> None:
        if message.term > self.term:
            self._become_follower(message.term, leader=None)
        elif message.granted and message.term == self.term and self._standing:
            self._votes.add(peer)
            self._lead_if_elected()

    @property
    def _standing(self) -> bool:
        """A candidate in its own term, not one that still asks for pre-votes."""
        voted_for = self.__dict__.get("_SyncObj__votedForNodeId")
        return self.role == "candidate" and self._pre_votes is None and voted_for == self.name

    def accept_leader(self, peer: str, term: int, sequence: int) -> bool:
        """Follow the leader of `term` if it is not stale, and echo; False: drop the message."""
        if not self._follow(peer, term, sequence):
            return False
        self.send(peer, Echo(term, sequence), 0)
        return True

    def _follow(self, peer: str, term: int, sequence: int) -> bool:
        if term < self.term:
            # Tell the sender of the newer term, or it would lead on until it hears it elsewhere.
            self.send(peer, AppendReply(self.term, sequence, False, self.last_index), 0)
            return False
        assert not (term == self.term and self.is_leader), f"two leaders in term {term}: {self.name}, {peer}"
        if term > self.term or self.leader != peer or self.role != "follower":
            self._become_follower(term, leader=peer)
        self._restart_election_timer()
        self.last_leader_contact = self.clock()
        return True

    def _on_commit(self, peer: str, message: Commit) -> None:
        if self._follow(peer, message.term, 0) and self.term_at(message.index) == message.index_term:
            self._commit(message.index)

    def _on_append_entries(self, peer: str, message: AppendEntries) -> None:
        if not self.accept_leader(peer, message.term, message.sequence):
            return
        previous, entries = self._beyond_commit(message)
        if previous == message.prev_log_index:
            hint = self._mismatch(previous, message.prev_log_term)
            if hint is not None:
                self.send(peer, AppendReply(self.term, message.sequence, False, hint), 0)
                return
        self._append_from(previous, entries)
        verified = previous + len(entries)
        self._commit(min(message.commit_index, verified))
        self.send(peer, AppendReply(self.term, message.sequence, True, verified), self.log.position)

    def _beyond_commit(self, message: AppendEntries) -> tuple[int, tuple[Entry, ...]]:
        """What of the message lies beyond our commit index: up to there every leader's log equals ours
        (leader completeness), and the entries may be compacted away here."""
        known = self.commit_index - message.prev_log_index
        if known <= 0:
            return message.prev_log_index, message.entries
        return self.commit_index, message.entries[known:]

    def _mismatch(self, previous: int, previous_term: int) -> int | None:
        """None where our log holds (previous, previous_term); else where the leader should probe next."""
        term = self.term_at(previous)
        if term == previous_term:
            return None
        if term is None:
            return self.last_index
        # Skip the whole conflicting term at once (Raft §5.3), but nothing committed can conflict.
        probe = previous
        while probe > self.commit_index and self.term_at(probe) == term:
            probe -= 1
        return probe

    def _append_from(self, previous: int, entries: tuple[Entry, ...]) -> None:
        for number, entry in enumerate(entries):
            index = previous + 1 + number
            term = self.term_at(index)
            if term == entry.term:
                continue
            if term is not None:
                assert index > self.commit_index, f"entry {index} is committed and conflicts"
                self._truncate_from(index)
            for offset, fresh in enumerate(entries[number:]):
                self._add(fresh.payload, index + offset, fresh.term)
            return

    def _on_append_reply(self, peer: str, message: AppendReply) -> None:
        if message.term > self.term:
            self._become_follower(message.term, leader=None)
            return
        if not self.is_leader or message.term != self.term:
            return
        progress = self.progress.get(peer)
        if progress is None:
            return  # it was removed meanwhile
        if message.success:
            if message.match_index > self.last_index:
                return  # no member that follows us can hold more than we have
            progress.matched(message.match_index)
            self.advance_commit()
        elif message.sequence >= progress.probe_sequence:
            hint = min(message.match_index + 1, progress.next_index - 1)
            self.sequence += 1
            progress.reset(max(progress.match_index + 1, hint, 1), self.sequence)
        else:
            return
        self._send_entries(peer, progress, at_least_one=not message.success)

    def _on_echo(self, peer: str, message: Echo) -> None:
        progress = self.progress.get(peer)
        if progress is None:
            return
        if self.is_leader and message.term == self.term and message.sequence <= self.sequence:
            progress.echoed = max(progress.echoed, message.sequence)
            progress.last_response = self.clock()

    def confirmed_sequence(self) -> int:
        """The highest sequence that a majority of voters, we among them, has accepted in our term."""
        return self._of_voters(self.sequence, _echoed)

    # --- replication ------------------------------------------------------------------------------------

    def append(self, payload: bytes) -> int:
        """Appends to our own log, as its leader; returns the index. `broadcast` sends it."""
        assert self.is_leader
        index = self.last_index + 1
        self._add(payload, index, self.term)
        return index

    def broadcast(self) -> None:
        """To every connected peer: the entries it lacks, as far as its window allows, or a heartbeat."""
        self.wants_broadcast = self.wants_commit_told = False
        self._next_heartbeat = self.clock() + self.timing.heartbeat_s
        self.sequence += 1
        for peer in self.peers:
            if peer in self.connected:
                self._send_entries(peer, self.progress[peer], at_least_one=True)

    def tell_commit(self) -> None:
        """To every connected peer: how far it may apply; for when there is nothing else to send."""
        self.wants_commit_told = False
        index = self.commit_index
        index_term = self.term_at(index)
        if not self.is_leader or index_term is None:
            return
        message = Commit(self.term, index, index_term)
        for peer in self.peers:
            if peer in self.connected:
                self.send(peer, message, 0)

    def ask_for_echoes(self) -> None:
        """A fresh sequence to every connected peer, for a majority to echo. Unless entries or a commit are
        due anyway, it names no place in the log: one short answer from each peer instead of two."""
        if self.wants_broadcast:
            self.broadcast()
            return
        self.sequence += 1
        message = Heartbeat(self.term, self.sequence)
        for peer in self.peers:
            if peer in self.connected:
                self.send(peer, message, 0)

    def _SyncObj__sendAppendEntries(self) -> None:
        self.broadcast()

    def _send_entries(self, peer: str, progress: Progress, at_least_one: bool = False) -> None:
        while at_least_one or (progress.next_index <= self.last_index and progress.window_open):
            previous_term = self.term_at(progress.next_index - 1)
            if previous_term is None:
                if at_least_one:
                    self.offer_snapshot(peer, self.sequence)
                return
            message, size = self._append_message(progress.next_index, previous_term, progress.window_open)
            self.send(peer, message, 0)
            if message.entries:
                progress.sent(message.prev_log_index + len(message.entries), size)
            at_least_one = False

    def _append_message(
        self, next_index: int, previous_term: int, with_entries: bool
    ) -> tuple[AppendEntries, int]:
        """And the bytes of its entries. Peers that stand at the same place get the same object, which the
        transport encodes once."""
        made_for = (self.term, self.sequence, self.commit_index, self.last_index, next_index, with_entries)
        if self._made_for != made_for:
            entries, size = self._entries_from(next_index) if with_entries else ((), 0)
            message = AppendEntries(
                self.term, self.sequence, next_index - 1, previous_term, self.commit_index, entries
            )
            self._made_for, self._made = made_for, (message, size)
        return self._made

    def _entries_from(self, index: int) -> tuple[tuple[Entry, ...], int]:
        chosen: list[Entry] = []
        size = 0
        offset = index - self.first_index
        while offset < len(self.log):
            payload, _, term = self.log[offset]
            if chosen and size + len(payload) > APPEND_BYTES_MAX:
                break
            chosen.append(Entry(term, payload))
            size += len(payload)
            offset += 1
        return tuple(chosen), size

    def advance_commit(self) -> None:
        """Commits what a durable majority holds and our own term covers (Raft §5.4.2) [7, 8]."""
        if not self.is_leader:
            return
        durable = self.log.durable_index
        # The leader is always among the majority: two quick followers don't commit what its own disk lacks.
        index = min(durable, self._of_voters(durable, _matched))
        if index > self.commit_index and self.term_at(index) == self.term:
            self._commit(index)
            self.wants_commit_told = True  # so that followers apply now, not at the next heartbeat [13]

    def _commit(self, index: int) -> None:
        if index > self.commit_index:
            self._SyncObj__raftCommitIndex = index
            self.log.setRaftCommitIndex(index)

    def apply_committed(self, entries_max: int) -> int:
        """Applies at most `entries_max` committed entries, in order; returns how many."""
        todo = min(self.commit_index - self.last_applied, entries_max)
        for _ in range(todo):
            index = self.last_applied + 1
            payload, _, term = self.log[index - self.first_index]
            self.apply_entry(index, term, payload)
            self._SyncObj__raftLastApplied = index
            if payload[:1] == MEMBERSHIP:
                self._forget_memberships_before(index)
        return todo

    # --- snapshots --------------------------------------------------------------------------------------

    def start_from(self, index: int) -> None:
        """At start: the state machine was loaded from a snapshot at `index`, which the log starts at or
        before; entry 1, the configuration, is applied by whoever formed the cluster. A persisted commit
        index beyond the log is not believed [8]: a majority will tell anew."""
        self._SyncObj__raftLastApplied = max(index, 1)
        self._SyncObj__raftCommitIndex = max(index, 1, min(self.commit_index, self.last_index))

    def _forget_memberships_before(self, index: int) -> None:
        """The one in effect at `index`, and what follows, is all that may be asked for."""
        covered = [each for each in self.configurations if each[0] <= index]
        self.configurations = covered[-1:] + self.configurations[len(covered) :]

    def installed(self, index: int, membership: Membership) -> None:
        """The state machine now stands at `index`, above what was committed here; the log was aligned [4].
        `membership` was in effect there; what the log holds of later ones counts on."""
        assert index > self.commit_index
        later = [each for each in self.configurations if index < each[0] <= self.last_index]
        self.configurations = [(index, membership), *later]
        self._membership_changed()
        self._SyncObj__raftLastApplied = index
        self._commit(index)

    def snapshot_acknowledged(self, peer: str, term: int, index: int) -> None:
        """A follower has the snapshot at `index` durably: exactly that much is matched [1]."""
        progress = self.progress.get(peer)
        if progress is None:
            return
        if self.is_leader and term == self.term and index <= self.last_index:
            progress.matched(index)
            self.sequence += 1
            progress.reset(progress.match_index + 1, self.sequence)
            self.advance_commit()
            self._send_entries(peer, progress, at_least_one=True)

    # --- connections ------------------------------------------------------------------------------------

    def peer_connected(self, peer: str) -> None:
        """A fresh connection: what was on its way over the old one may be lost, so resume at the match."""
        self.connected.add(peer)
        if peer not in self.peers:
            return
        if self.is_leader:
            progress = self.progress[peer]
            known = progress.match_index + 1 if progress.match_index else progress.next_index
            self.sequence += 1
            progress.reset(known, self.sequence)
            self._send_entries(peer, progress, at_least_one=True)
        elif self._pre_votes is not None:
            self.send(peer, PreVote(self.term + 1, self.last_index, self.last_term), 0)
        elif self._standing:
            self.send(peer, RequestVote(self.term, self.last_index, self.last_term), self.log.position)

    def peer_disconnected(self, peer: str) -> None:
        self.connected.discard(peer)

    # --- PySyncObj's own machinery that must not run -------------------------------------------------------

    def _SyncObj__loadDumpFile(self, clearJournal: bool) -> None:
        raise AssertionError("snapshots are loaded by the engine [3, 5]")

    def _SyncObj__tryLogCompaction(self) -> None:
        raise AssertionError("compaction is the engine's [3]")

    def _SyncObj__doApplyCommand(self, command: bytes) -> None:
        raise AssertionError("entries are applied by apply_committed; stock would unpickle them [10, 11]")

    def _SyncObj__changeCluster(self, request: Any) -> bool:
        raise AssertionError("membership changes through the log alone [9]")

    def _SyncObj__parseChangeClusterRequest(self, command: bytes) -> None:
        raise AssertionError("membership is the engine's; stock would unpickle it [9, 11]")

    def _applyCommand(self, command: bytes, callback: Any, commandType: Any = None) -> None:
        raise AssertionError("propose through the engine: stock queues without a leader [10, 14]")


def _matched(progress: Progress) -> int:
    return progress.match_index


def _echoed(progress: Progress) -> int:
    return progress.echoed
