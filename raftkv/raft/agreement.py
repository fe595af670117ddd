"""Whether the members' states are the same, asked while they run. Sans-IO.

Once a second the leader tells its followers the hash of its state (`kv.history`) at the index that it has
just applied. On a link in order that comes before the word that lets them apply as far, so each compares
its own hash when it gets there; one that is already past it waits for the next.

A difference means that `apply` was not the same function on both, or that memory changed by itself. Which of
the two is wrong can't be told from two hashes, so nothing is stopped: it is an alarm, in the log, in the
status and in the metrics, and it stays until a snapshot of the leader's replaces the state.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from raftkv.raft.messages import StateHash
from raftkv.raft.status import Divergence

if TYPE_CHECKING:
    from raftkv.raft.engine import Engine

log = logging.getLogger("raftkv.raft")

TELL_S = 1.0


class Agreement:
    """`checks` and `mismatches` count since the start."""

    def __init__(self, engine: Engine, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock
        self._tell_at = float("-inf")
        self._told_index = 0
        self._expected: tuple[str, StateHash] | None = None
        self.expected_index = 0  # 0: none
        self.checked_index = 0
        self.checks = 0
        self.mismatches = 0
        self.divergence: Divergence | None = None

    def pump(self) -> None:
        """On the leader, before it lets the followers apply as far as itself."""
        core, machine = self._engine.core, self._engine.machine
        if not self._engine.leading or core.last_applied == self._told_index or self._clock() < self._tell_at:
            return
        self._tell_at = self._clock() + TELL_S
        self._told_index = core.last_applied
        if machine.state_hash:
            message = StateHash(core.term, core.last_applied, machine.state_hash)
            for peer in core.peers:
                core.send(peer, message, 0)

    def on_message(self, peer: str, message: StateHash) -> None:
        core = self._engine.core
        if message.term != core.term or core.leader != peer or message.index < core.last_applied:
            return
        if self.expected_index <= core.last_applied:
            self._expected, self.expected_index = (peer, message), message.index
        if message.index == core.last_applied:
            self.compare()

    def compare(self) -> None:
        """The machine has applied `expected_index`, and nothing beyond it."""
        assert self._expected is not None
        peer, message = self._expected
        self._expected, self.expected_index = None, 0
        own = self._engine.machine.state_hash
        if not own:
            return
        self.checks += 1
        self.checked_index = message.index
        if own == message.hash:
            return
        self.mismatches += 1
        if self.divergence is None:
            self.divergence = Divergence(message.index, own.hex(), message.hash.hex(), peer)
            log.error(
                "state_diverged node=%s index=%d hash=%s leader=%s leaders_hash=%s: the replicas are not the "
                "same any more. Compare `raftkv kv export` of all members; then let the one that is wrong "
                "start with an empty data directory",
                self._engine.name,
                message.index,
                own.hex(),
                peer,
                message.hash.hex(),
            )

    def state_replaced(self) -> None:
        """The state is a snapshot of the leader's now."""
        self._expected, self.expected_index = None, 0
        self.divergence = None
