"""What must hold after every event, kept incrementally: an event that changed nothing costs a few
comparisons.

The checker knows more than any node: every entry that was ever in a log, every entry that was ever
committed, and what each node's disk would give back after a power cut. From that it holds, with Raft's
own names:

- election safety: one leader a term;
- log matching: (index, term) names one payload, and one entry before it;
- leader completeness: who leads in a later term holds all that was committed in earlier ones;
- state-machine safety: an index has one committed entry for ever, on every node and across restarts, and
  a node applies just that, in order, once: its state's fingerprint is that of a reference replica;
- applied <= committed <= durable on a majority, the leader that committed among them, at that moment;
- what a leader believes of a peer's disk is so;
- a node's log loses nothing that it knew as committed; its term and commit index never go back in one
  life;
- what leaves a node after a promise was kept: `spoke_of_term`, `spoke_of_log` look at the disk.

Recovery is checked too: what a node reads back at its start is what its last finished sync wrote, or what
the sync that was on its way wrote, and nothing else.

Sources: Raft (Ongaro, Ousterhout 2014), figure 3 and §5; docs of `raftkv.raft.engine` on the gate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from raftkv.raft.quorum import majority

Entry = tuple[bytes, int, int]  # PySyncObj's order: (payload, index, term)


class Violation(BaseException):
    """Something that must never be so was so. `kind` is stable, the message is for people.

    Not an Exception: the engine's edge, which catches those, must not take it for a failure of its own.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class View(Protocol):
    """What is looked at in one life of a process."""

    name: str
    term: int
    is_leader: bool
    commit_index: int
    last_applied: int
    log_version: int  # changes whenever the log does

    @property
    def voters(self) -> Sequence[str]:
        """By the membership in effect here."""

    def log(self) -> Sequence[Entry]: ...
    def fingerprint(self) -> object: ...
    def matches(self) -> Sequence[tuple[str, int]]:
        """Of a leader: how far it believes each peer's disk to agree with its log."""


@dataclass(frozen=True, slots=True)
class Durable:
    """What a node's disk would give back now."""

    term: int
    voted_for: str | None
    entries: Sequence[Entry]

    def holds(self, index: int, term: int) -> bool:
        if not self.entries:
            return False  # of a node that is part of no cluster yet
        first = self.entries[0][1]
        if index <= first:  # behind a snapshot, whose index was committed when it was taken
            return index < first or self.entries[0][2] == term
        return index - first < len(self.entries) and self.entries[index - first][2] == term


@dataclass(slots=True)
class _Seen:
    """What was last seen of one life of a process."""

    term: int = 0
    is_leader: bool = False
    commit_index: int = 0
    last_applied: int = 0
    log_version: int = -1
    log: Sequence[Entry] = ()
    matches: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Committed:
    term: int
    payload: bytes
    in_term: int  # the term in which it was first seen committed
    by: str


@dataclass(slots=True)
class Invariants:
    names: tuple[str, ...]
    apply_reference: Callable[[int, bytes], object]  # (index, payload) -> fingerprint after it
    durable: dict[str, Durable] = field(default_factory=dict)
    on_disk: dict[str, Durable | None] = field(default_factory=dict)  # the sync on its way, if there is one
    leaders: dict[int, str] = field(default_factory=dict)
    committed: list[_Committed] = field(default_factory=list)
    fingerprints: list[object] = field(default_factory=list)
    _entries: dict[tuple[int, int], tuple[bytes, int | None]] = field(default_factory=dict)
    _seen: dict[str, _Seen] = field(default_factory=dict)
    _votes: dict[tuple[str, int, int], str] = field(default_factory=dict)  # (name, life of its disk, term)
    _lost: dict[str, Durable] = field(default_factory=dict)  # what a wiped disk had: it may have said so
    _lives: dict[str, int] = field(default_factory=dict)  # how many disks a name has lost
    voters: Sequence[str] = ()  # by the newest membership that is committed; names, if there are no others

    def formed(self, payload: bytes) -> None:
        """Entry 1, of term 0, is on every disk before any member starts."""
        self.committed.append(_Committed(0, payload, 0, "everybody"))
        self.fingerprints.append(self.apply_reference(1, payload))
        self._entries[1, 0] = (payload, None)

    def wiped(self, name: str) -> None:
        """The disk of `name` is gone; what comes next under this name knows nothing."""
        self._lives[name] = self._lives.get(name, 0) + 1
        lost = self.durable.pop(name, None)
        if lost is not None:
            self._lost[name] = lost
        self.on_disk.pop(name, None)
        self._seen.pop(name, None)

    @property
    def last_committed(self) -> int:
        return len(self.committed)

    # --- after every event ----------------------------------------------------------------------------

    def process_started(self, view: View) -> None:
        durable = self.durable.get(view.name)
        if durable is not None and view.term < durable.term:
            raise Violation(
                "term went back", f"{view.name} starts in term {view.term}, was in {durable.term}"
            )
        self._seen[view.name] = _Seen()
        self.observe(view)

    def observe(self, view: View) -> None:
        seen = self._seen[view.name]
        version = view.log_version
        if version != seen.log_version:
            self._observe_log(view, seen)
            seen.log_version = version
        term = view.term
        if term != seen.term:
            if term < seen.term:
                raise Violation("term went back", f"{view.name} from term {seen.term} to {term}")
            seen.term = term
            seen.is_leader = False
            seen.matches = {}
        commit_index = view.commit_index
        if commit_index != seen.commit_index:
            self._observe_commit(view, seen, commit_index)
        is_leader = view.is_leader
        if is_leader != seen.is_leader:
            seen.is_leader = is_leader
            if is_leader:
                self._observe_leader(view, seen)
        if is_leader:
            for peer, index in view.matches():
                if index != seen.matches.get(peer, 0):
                    self._observe_match(view, seen, peer, index)
        last_applied = view.last_applied
        if last_applied != seen.last_applied:
            self._observe_applied(view, seen, last_applied)

    def _observe_log(self, view: View, seen: _Seen) -> None:
        before, log = seen.log, list(view.log())
        seen.log = log
        if not log:
            raise Violation("log", f"{view.name} has an empty log")
        if before and before[0] == log[0] and len(log) >= len(before) and log[len(before) - 1] == before[-1]:
            start = len(before)  # grown, or as it was: log matching says that the beginning is the same
        else:
            start = 0
            self._check_nothing_committed_is_gone(view, seen, before, log)
        for at in range(start, len(log)):
            self._check_entry(view, log, at)

    def _check_entry(self, view: View, log: Sequence[Entry], at: int) -> None:
        payload, index, term = log[at]
        before = log[at - 1] if at > 0 else None
        if before is not None and (index != before[1] + 1 or term < before[2]):
            raise Violation(
                "log",
                f"{view.name}: entry {index} of term {term} follows entry {before[1]} of term {before[2]}",
            )
        previous_term = None if before is None else before[2]
        if at == 0 and index > 1:
            return  # stands for a snapshot's (index, term) only: its payload is never read
        known = self._entries.get((index, term))
        if known is None:
            self._entries[index, term] = (payload, previous_term)
            return
        if known[0] != payload:
            raise Violation(
                "log matching", f"{view.name}: entry {index} of term {term} differs from the first seen"
            )
        if known[1] != previous_term:
            raise Violation(
                "log matching",
                f"{view.name}: entry {index} of term {term} follows one of term {previous_term},"
                f" elsewhere one of term {known[1]}",
            )

    def _check_nothing_committed_is_gone(
        self, view: View, seen: _Seen, before: Sequence[Entry], log: Sequence[Entry]
    ) -> None:
        first, last = log[0][1], log[-1][1]
        for _, index, term in before:
            if index > seen.commit_index or index < first:
                continue
            if index > last or log[index - first][2] != term:
                raise Violation(
                    "committed entry lost",
                    f"{view.name} dropped entry {index} of term {term}, committed here",
                )
        if first > max(seen.commit_index, self.last_committed):
            raise Violation("log", f"{view.name} dropped its log up to {first}, beyond all that is committed")

    def _observe_commit(self, view: View, seen: _Seen, commit_index: int) -> None:
        if commit_index < seen.commit_index:
            raise Violation("commit went back", f"{view.name} from {seen.commit_index} to {commit_index}")
        log = seen.log
        first, last = log[0][1], log[-1][1]
        if commit_index > last:
            raise Violation("commit", f"{view.name} committed {commit_index}, its log ends at {last}")
        for index in range(max(seen.commit_index + 1, first), commit_index + 1):
            self._check_committed(view, log[index - first], standing_for_snapshot=index == first)
        if view.is_leader and seen.is_leader and log[commit_index - first][2] != view.term:
            raise Violation(
                "commit rule",
                f"{view.name} leads in term {view.term} and commits entry {commit_index} by counting,"
                f" of term {log[commit_index - first][2]}",
            )
        if first > self.last_committed:
            raise Violation("commit", f"{view.name} starts at {first}; committed is {self.last_committed}")
        seen.commit_index = commit_index

    def _check_committed(self, view: View, entry: Entry, *, standing_for_snapshot: bool) -> None:
        payload, index, term = entry
        if index <= self.last_committed:
            known = self.committed[index - 1]
            if known.term != term or (known.payload != payload and not standing_for_snapshot):
                raise Violation(
                    "state-machine safety",
                    f"{view.name} commits entry {index} of term {term};"
                    f" {known.by} committed that of term {known.term}",
                )
            return
        if index > self.last_committed + 1:
            raise Violation("commit", f"{view.name} commits {index} after {self.last_committed}")
        voters = view.voters
        holders = self._holders(voters, index, term)
        if len(holders) < majority(len(voters)):
            raise Violation(
                "durability",
                f"{view.name} commits entry {index} of term {term}, durable on {holders or 'nobody'}",
            )
        if view.is_leader and view.name not in holders:
            raise Violation(
                "durability",
                f"{view.name} leads and commits entry {index}, which its own disk does not hold yet",
            )
        self.committed.append(_Committed(term, payload, view.term, view.name))
        self.fingerprints.append(self.apply_reference(index, payload))

    def _holders(self, names: Sequence[str], index: int, term: int) -> list[str]:
        """A disk that was wiped since counts: what it acknowledged was so, and its loss is the fault."""
        return [
            name
            for name in names
            if any(disks[name].holds(index, term) for disks in (self.durable, self._lost) if name in disks)
        ]

    def _observe_leader(self, view: View, seen: _Seen) -> None:
        term = view.term
        leader = self.leaders.setdefault(term, view.name)
        if leader != view.name:
            raise Violation("election safety", f"{leader} and {view.name} both lead in term {term}")
        voters = view.voters
        votes = {name for (name, _, of), to in self._votes.items() if of == term and to == leader}
        votes.add(leader)  # where it is the only voter, it tells nobody
        if self._votes and len(votes.intersection(voters)) < majority(len(voters)):
            raise Violation("election safety", f"{leader} leads in term {term} with the votes of {votes}")
        log = seen.log
        first, last = log[0][1], log[-1][1]
        for index in range(self.last_committed, first, -1):
            entry = self.committed[index - 1]
            if entry.in_term < term and (index > last or log[index - first][2] != entry.term):
                raise Violation(
                    "leader completeness",
                    f"{view.name} leads in term {term} without entry {index} of term {entry.term},"
                    f" committed by {entry.by} in term {entry.in_term}",
                )

    def _observe_match(self, view: View, seen: _Seen, peer: str, index: int) -> None:
        seen.matches[peer] = index
        durable = self.durable.get(peer)
        if durable is None or durable.term > view.term:
            return  # it follows somebody else by now; what it acknowledged before was so when it was said
        first, last = seen.log[0][1], seen.log[-1][1]
        # `_holders`: what a disk acknowledged before it was wiped may be long on its way.
        if index > last or (index >= first and not self._holders([peer], index, seen.log[index - first][2])):
            raise Violation(
                "match",
                f"{view.name} leads in term {view.term} and believes that {peer} agrees up to {index}",
            )

    def _observe_applied(self, view: View, seen: _Seen, last_applied: int) -> None:
        if last_applied < seen.last_applied:
            raise Violation("applied went back", f"{view.name} from {seen.last_applied} to {last_applied}")
        if last_applied > seen.commit_index or last_applied > self.last_committed:
            raise Violation(
                "applied", f"{view.name} applied {last_applied}, committed is {seen.commit_index}"
            )
        seen.last_applied = last_applied
        found, expected = view.fingerprint(), self.fingerprints[last_applied - 1]
        if found != expected:
            raise Violation(
                "state-machine safety",
                f"{view.name} at index {last_applied} is {found}, should be {expected}",
            )

    # --- disks ----------------------------------------------------------------------------------------

    def sync_started(self, name: str, state: Durable) -> None:
        self.on_disk[name] = state

    def sync_finished(self, name: str) -> None:
        state = self.on_disk.pop(name)
        assert state is not None
        before, self.durable[name] = self.durable[name], state
        self._check_still_durable(name, before, state)

    def recovered(self, name: str, state: Durable) -> None:
        """What the journal gave back at a start, synced by now."""
        possible = [self.durable.get(name), self.on_disk.pop(name, None)]
        if possible[0] is not None and state not in possible:
            raise Violation("recovery", f"{name} {_difference(possible[0], state)}")
        self.durable[name] = state

    def _check_still_durable(self, name: str, before: Durable, now: Durable) -> None:
        """A disk may lose what was committed only while a majority of others has it."""
        if not before.entries:
            return  # the cluster is being formed
        index = min(self.last_committed, before.entries[-1][1])
        term = self.committed[index - 1].term
        if now.holds(index, term) or not before.holds(index, term):
            return
        voters = self.voters or self.names
        holders = self._holders(voters, index, term)
        if len(holders) < majority(len(voters)):
            raise Violation(
                "durability", f"{name} drops entry {index} of term {term}, committed; it is left on {holders}"
            )

    # --- what leaves a node -----------------------------------------------------------------------------

    def spoke_of_term(self, name: str, term: int, voted_for: str | None) -> None:
        """`name` said something that holds only if it never forgets `term` (and its vote)."""
        durable = self.durable[name]
        if durable.term < term:
            raise Violation("gate", f"{name} speaks in term {term}; its disk knows term {durable.term}")
        if voted_for is None:
            return
        if durable.term == term and durable.voted_for != voted_for:
            raise Violation(
                "gate", f"{name} votes for {voted_for} in term {term}; on disk: {durable.voted_for}"
            )
        earlier = self._votes.setdefault((name, self._lives.get(name, 0), term), voted_for)
        if earlier != voted_for:
            raise Violation("two votes", f"{name} votes for {voted_for} in term {term} after {earlier}")

    def spoke_of_log(self, name: str, leader: str, term: int, index: int) -> None:
        """`name` told the leader of `term` that its disk holds the leader's log up to `index`."""
        durable = self.durable[name]
        if durable.term > term:
            # One sync wrote the entry and, after it, what a newer leader put in its place. Then this is as
            # an acknowledgement that left before that and was long on its way: every vote since saw the
            # entry, since votes go by the log in memory, and waited for the same disk.
            return
        if index > durable.entries[-1][1]:
            raise Violation("gate", f"{name} acknowledges {index}; its disk ends at {durable.entries[-1][1]}")
        seen = self._seen.get(leader)
        if seen is None or seen.term != term or self.leaders.get(term) != leader or not seen.log:
            return
        first, last = seen.log[0][1], seen.log[-1][1]
        if first <= index <= last and not durable.holds(index, seen.log[index - first][2]):
            raise Violation(
                "gate", f"{name} acknowledges {index} to {leader}, whose entry differs from its own"
            )


def _difference(expected: Durable, found: Durable) -> str:
    return (
        f"recovered term {found.term}, vote {found.voted_for}, entries {_span(found.entries)};"
        f" synced were term {expected.term}, vote {expected.voted_for}, entries {_span(expected.entries)}"
    )


def _span(entries: Sequence[Entry]) -> str:
    return f"{entries[0][1:]}…{entries[-1][1:]}" if entries else "none"
