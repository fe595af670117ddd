"""ReadIndex: linearizable reads without a log entry (thesis §6.4). Sans-IO.

A read waits for a *round*: the leader notes its commit index, sends a message with a fresh sequence, and a
majority echoes that sequence or a later one in the same term; so nobody else led when the read arrived. Then
it waits until this node has applied that index. One round serves every read that arrived before it
started; a follower asks its leader for the index, one question at a time for all its reads.

Invariants: the commit index is read after the last read of the round arrived and before any echo of the
round's message; a leader starts no round before its term's no-op is applied (only then does its commit index
cover what earlier terms acknowledged).
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from raftkv.errors import NoLeader, NotReady, Overloaded, RaftkvError
from raftkv.raft.core import Core
from raftkv.raft.messages import ReadIndexReply, ReadIndexRequest

# Reads that wait at once: each is a closure of some 200 bytes, so the bound is about memory, 20 MB.
READS_MAX = 100_000

EXPIRE_S = 0.05  # how late a caller may learn that its deadline has passed

Done = Callable[[RaftkvError | None], None]
# (deadline on the engine's clock, the timeout that it came from, whom to tell). A tuple: it is made for
# every read, and is measurably cheaper than an object.
Waiting = tuple[float, float, Done]
IndexDone = Callable[[int], None]


@dataclass(slots=True)
class _Round:
    """Reads that share one confirmation. `sequence` is the leader's; `request` a follower's number."""

    index: int
    sequence: int
    term: int
    started: float
    reads: list[Waiting] = field(default_factory=list)
    questions: list[IndexDone] = field(default_factory=list)  # followers' reads: they want the index only


class Reads:
    """All reads of one node that have not reached their linearization point here yet."""

    def __init__(self, core: Core, clock: Callable[[], float], rng: random.Random) -> None:
        self._core = core
        self._clock = clock
        self._new: list[Waiting] = []
        self._questions: list[IndexDone] = []
        self._round: _Round | None = None
        self._confirmed: deque[tuple[int, list[Waiting]]] = deque()
        # A random base: an answer to the question of an earlier life of this process must not match [10].
        self._request = rng.getrandbits(48)
        self._waiting = 0
        self.rounds = 0  # of confirmation, or questions to the leader, since the start
        self._look_at = float("-inf")  # when deadlines are due for another look

    def add(self, done: Done, timeout_s: float = math.inf) -> None:
        """`done(None)` once an answer from this node's state is linearizable; otherwise the refusal."""
        if self._core.leader is None:
            raise NoLeader("no leader is known here; an election takes about a second")
        if self._waiting >= READS_MAX:
            raise Overloaded(f"{READS_MAX} reads wait for confirmation already")
        self._waiting += 1
        self._new.append((self._clock() + timeout_s, timeout_s, done))

    def expire(self) -> None:
        """Refuses the reads whose time is up."""
        now = self._clock()
        if now < self._look_at:
            return
        self._look_at = now + EXPIRE_S
        current = [] if self._round is None else [self._round.reads]
        for reads in [self._new, *current, *(confirmed for _, confirmed in self._confirmed)]:
            late = [read for read in reads if read[0] <= now]
            if late:
                reads[:] = [read for read in reads if read[0] > now]
                self._waiting -= len(late)
                for _, timeout_s, done in late:
                    done(
                        NotReady(
                            f"the read could not be confirmed by a majority within {timeout_s:g} s; "
                            "consistency=stale answers from this node alone"
                        )
                    )

    def on_request(self, peer: str, message: ReadIndexRequest) -> None:
        """A follower asks for a read index."""
        core = self._core

        def answer(index: int) -> None:
            core.send(peer, ReadIndexReply(core.term, message.request, index), 0)

        if not core.is_leader or message.term != core.term:
            answer(-1)
        else:
            self._questions.append(answer)

    def on_reply(self, peer: str, message: ReadIndexReply) -> None:
        """The leader's answer. Its term is checked by the number: a question is asked in one term only."""
        current = self._round
        if current is None or current.sequence != message.request or peer != self._core.leader:
            return
        if message.term != current.term or message.index < 0:
            self._round = None
            self._fail(current.reads, NotReady(f"{peer} could not confirm that it leads; try again"))
            return
        self._round = None
        self._confirmed.append((message.index, current.reads))

    def role_changed(self) -> None:
        """A round of another role or term confirms nothing: its reads start over, or are refused."""
        current, self._round = self._round, None
        if current is not None:
            self._new[:0] = current.reads
            self._questions[:0] = current.questions
        if not self._core.is_leader:
            questions, self._questions = self._questions, []
            for answer in questions:
                answer(-1)
        if self._core.leader is None:
            reads, self._new = self._new, []
            self._fail(reads, NoLeader("the leader was lost while the read waited for it"))

    def pump(self) -> None:
        """Moves every read as far as it can go now; after each input of the engine."""
        if self._core.is_leader:
            self._confirm_round()
            self._start_round()
            self._confirm_round()
        elif self._core.leader is not None:
            self._ask_leader()
        self._answer_applied()

    def _start_round(self) -> None:
        core = self._core
        if self._round is not None or not (self._new or self._questions):
            return
        if core.last_applied < core.noop_index:
            return
        core.ask_for_echoes()
        self.rounds += 1
        self._round = _Round(
            core.commit_index, core.sequence, core.term, self._clock(), self._new, self._questions
        )
        self._new, self._questions = [], []

    def _confirm_round(self) -> None:
        current = self._round
        if current is None or self._core.confirmed_sequence() < current.sequence:
            return
        self._round = None
        for answer in current.questions:
            answer(current.index)
        self._confirmed.append((current.index, current.reads))

    def _ask_leader(self) -> None:
        core = self._core
        current = self._round
        if current is not None:
            # The question or its answer went down with a connection; ask anew under a new number.
            if self._clock() - current.started < core.timing.election_timeout_s_min:
                return
            self._new[:0] = current.reads
            self._round = None
        if self._new:
            self._request += 1
            self.rounds += 1
            self._round = _Round(0, self._request, core.term, self._clock(), self._new)
            self._new = []
            assert core.leader is not None
            core.send(core.leader, ReadIndexRequest(core.term, self._request), 0)

    def _answer_applied(self) -> None:
        while self._confirmed and self._confirmed[0][0] <= self._core.last_applied:
            _, reads = self._confirmed.popleft()
            self._waiting -= len(reads)
            for _, _, done in reads:
                done(None)

    def _fail(self, reads: list[Waiting], error: RaftkvError) -> None:
        self._waiting -= len(reads)
        for _, _, done in reads:
            done(error)
