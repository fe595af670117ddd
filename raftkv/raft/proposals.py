"""Writes on their way: from a command handed in, through a batch in the log, to its result. Sans-IO.

All commands that arrived while the last batch was being synced form the next one, so one fsync and one
message to each follower serve them all. A command that is still waiting for its batch can be withdrawn; one
that is in the log can't, and its fate is followed: `Applied` when its entry is applied here, refused as
not applied when another leader's entry was *committed* in its place (truncation alone proves nothing, since
another member may still hold the entry and be elected).

Deadlines are looked at together, every `EXPIRE_S`: a timer a command would cost more than the command.

Log time: the leader stamps each batch with milliseconds that only its monotonic clock advances, starting
from the newest stamp in its log, so it never goes back across leaders.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from raftkv.errors import CommitTimeout, LeaderChanged, NoLeader, Overloaded, RaftkvError
from raftkv.kv.command import encode_entry
from raftkv.metrics import COUNT_BUCKETS, Histogram
from raftkv.model import Applied
from raftkv.raft.core import Core

REGULAR = b"\x00"  # pysyncobj.syncobj._COMMAND_TYPE

# One batch: small enough that applying it holds the loop for about 10 ms at most, large enough that the
# cost of an entry (some 50 µs on each node) vanishes. A single larger command still goes, alone.
BATCH_COMMANDS_MAX = 2_000
BATCH_BYTES_MAX = 1 << 20

EXPIRE_S = 0.05  # how late a caller may learn that its deadline has passed; 10,000 that wait cost 1% at that

Done = Callable[[Applied | RaftkvError], None]
AllDone = Callable[[Sequence[Applied] | RaftkvError], None]


class Ticket(msgspec.Struct, eq=False):
    """One command on its way, or several that share one fate: they are proposed in one entry, in their order.
    `commands` is emptied once they stand in the log. A struct rather than a dataclass: one is made for every
    write, and costs a quarter."""

    commands: Sequence[bytes]
    size: int  # bytes of all commands
    done: Callable[[Any], None]  # a `Done`; an `AllDone` where there are `several`
    deadline: float  # on the engine's clock
    timeout_s: float
    count: int = 1
    several: bool = False
    state: str = "waiting"  # then "proposed" or "withdrawn"


class Proposals:
    """The leader's queue, and the batches of ours whose entries have not been applied yet."""

    def __init__(self, core: Core, clock: Callable[[], float], *, commands_max: int, bytes_max: int) -> None:
        self._core = core
        self._clock = clock
        self._commands_max = commands_max
        self._bytes_max = bytes_max
        self._waiting: deque[Ticket] = deque()
        self._waiting_commands = 0
        self._waiting_bytes = 0
        self._proposed: dict[int, tuple[int, list[Ticket]]] = {}  # index -> (term, tickets)
        self._look_at = float("-inf")  # when deadlines are due for another look
        self._log_time_ms = 0
        self._log_time_base = (0.0, 0)  # (clock, log time) when this node began to lead
        self.batch_commands = Histogram(COUNT_BUCKETS)

    @property
    def outstanding(self) -> int:
        """Commands neither answered nor withdrawn."""
        proposed = (ticket.count for _, tickets in self._proposed.values() for ticket in tickets)
        return self._waiting_commands + sum(proposed)

    def add(self, command: bytes, done: Done, timeout_s: float = math.inf) -> Ticket:
        """Queues a command for the next batch; only on a leader. Raises Overloaded at the bound."""
        ticket = Ticket((command,), len(command), done, self._clock() + timeout_s, timeout_s)
        self._queue(ticket)
        return ticket

    def add_all(self, commands: Sequence[bytes], done: AllDone, timeout_s: float = math.inf) -> Ticket:
        """As `add`, for several commands, of which there are less than a batch may have: `done` gets all
        their results, in order, or what befell all of them."""
        size = sum(map(len, commands))
        deadline = self._clock() + timeout_s
        ticket = Ticket(commands, size, done, deadline, timeout_s, len(commands), True)
        self._queue(ticket)
        return ticket

    def _queue(self, ticket: Ticket) -> None:
        if self._waiting_commands >= self._commands_max or self._waiting_bytes >= self._bytes_max:
            raise Overloaded(
                f"{self._waiting_commands} writes of {self._waiting_bytes} bytes wait already "
                f"(at most {self._commands_max} and {self._bytes_max} bytes); try again shortly"
            )
        self._waiting.append(ticket)
        self._waiting_commands += ticket.count
        self._waiting_bytes += ticket.size

    def withdraw(self, ticket: Ticket) -> bool:
        """True: it will never be proposed, so it is certain not to happen. False: it may."""
        if ticket.state == "waiting":
            ticket.state = "withdrawn"
        return ticket.state == "withdrawn"

    def expire(self) -> None:
        """Tells those whose time is up: what was still queued is withdrawn, so it is certain not to happen;
        what stands in the log may yet."""
        now = self._clock()
        if now < self._look_at:
            return
        self._look_at = now + EXPIRE_S
        for ticket in [each for each in self._waiting if each.deadline <= now]:
            if ticket.state == "waiting":
                ticket.state = "withdrawn"
                ticket.done(
                    Overloaded(f"the write was still queued after {ticket.timeout_s:g} s and was withdrawn")
                )
        for _, tickets in self._proposed.values():
            for ticket in tickets:
                if ticket.deadline <= now:
                    done, ticket.done, ticket.deadline = ticket.done, _nobody, math.inf
                    done(
                        CommitTimeout(
                            f"the write was not committed within {ticket.timeout_s:g} s; it may yet be: ask "
                            "again under its idempotency key, or read the key"
                        )
                    )

    def lead(self, log_time_ms: int) -> None:
        """This node's no-op is applied: it leads, and `log_time_ms` is the newest stamp in its log."""
        self._log_time_base = (self._clock(), log_time_ms)
        self._log_time_ms = log_time_ms

    def flush(self) -> bool:
        """Appends one batch of what waits to the leader's log; True if there was any."""
        if not self._waiting:
            return False
        tickets, commands = self._take_batch()
        if not tickets:
            return False
        payload = REGULAR + encode_entry(self._now_ms(), commands)
        index = self._core.append(payload)
        self.batch_commands.add(len(tickets))
        self._proposed[index] = (self._core.term, tickets)
        return True

    def append_alone(self, payload: bytes, done: Done, timeout_s: float = math.inf) -> None:
        """Appends an entry that is no batch of commands; `done` learns how it went as a command would."""
        index = self._core.append(payload)
        ticket = Ticket((), 0, done, self._clock() + timeout_s, timeout_s, state="proposed")
        self._proposed[index] = (self._core.term, [ticket])

    def _take_batch(self) -> tuple[list[Ticket], list[bytes]]:
        tickets: list[Ticket] = []
        commands: list[bytes] = []
        waiting = self._waiting
        count = size = 0
        while waiting:
            ticket = waiting[0]
            whole = count + ticket.count > BATCH_COMMANDS_MAX or size + ticket.size > BATCH_BYTES_MAX
            if whole and tickets:
                break
            waiting.popleft()
            self._waiting_commands -= ticket.count
            self._waiting_bytes -= ticket.size
            if ticket.state == "withdrawn":
                continue
            count += ticket.count
            size += ticket.size
            tickets.append(ticket)
            commands += ticket.commands
            ticket.commands = ()
            ticket.state = "proposed"
        return tickets, commands

    def _now_ms(self) -> int:
        began, base = self._log_time_base
        self._log_time_ms = max(self._log_time_ms, base + int((self._clock() - began) * 1000))
        return self._log_time_ms

    def applied(self, index: int, term: int, results: Sequence[Applied]) -> None:
        """The entry (index, term) was applied here: whoever waits for this index learns how it went."""
        proposed = self._proposed.pop(index, None)
        if proposed is None:
            return
        proposed_term, tickets = proposed
        if proposed_term == term:
            at = 0
            for ticket in tickets:
                if ticket.several:
                    ticket.done(results[at : at + ticket.count])
                else:
                    ticket.done(results[at])
                at += ticket.count
            assert at == len(results)
        else:
            refusal = NoLeader(f"another leader's entry was committed at index {index} instead")
            for ticket in tickets:
                ticket.done(refusal)

    def skipped_to(self, index: int) -> None:
        """A snapshot took the state past entries up to `index`: their commands' fate can't be told."""
        for at in [at for at in self._proposed if at <= index]:
            _, tickets = self._proposed.pop(at)
            unknown = LeaderChanged("the node caught up through a snapshot while the write was on its way")
            for ticket in tickets:
                ticket.done(unknown)

    def refuse_waiting(self, error: RaftkvError) -> None:
        """What waits was never in the log: refused, and certain not to happen."""
        waiting, self._waiting = self._waiting, deque()
        self._waiting_commands = self._waiting_bytes = 0
        for ticket in waiting:
            if ticket.state == "waiting":
                ticket.state = "withdrawn"
                ticket.done(error)


def _nobody(_: object) -> None:
    """Whoever waited was told that the outcome is unknown."""
