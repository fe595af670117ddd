"""Bugs planted on purpose. Each must be found, or the simulation proves less than it says.

A mutant is a few words of production code replaced while a run lasts: the function's source is taken as it
stands, changed, compiled and put in its place. Where the words are no longer there, `planted` raises, so a
mutant can't quietly turn into a run of correct code. Nothing in `raftkv` knows of mutants.

Numbers in brackets are rows of docs/pysyncobj.md: what stock PySyncObj does.
"""

from __future__ import annotations
import __future__

import contextlib
import inspect
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from raftkv.journal import recovery, wal, writer
from raftkv.kv import machine
from raftkv.raft import catchup, compaction, core, engine, forming, handshake, opening, proposals, reads


@dataclass(frozen=True, slots=True)
class Edit:
    """In `owner.name`, a function, method or property, `old` becomes `new`."""

    owner: Any
    name: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    story: str
    edits: tuple[Edit, ...]
    nodes: int = 3
    members: bool = False  # it shows where members come and go
    seed: int = 0  # one that found it, where the first few don't: a hunt that must be quick starts there


def _mutant(
    name: str,
    story: str,
    *edits: tuple[Any, str, str, str],
    nodes: int = 3,
    members: bool = False,
    seed: int = 0,
) -> Mutant:
    return Mutant(name, story, tuple(Edit(*edit) for edit in edits), nodes, members, seed)


MUTANTS: tuple[Mutant, ...] = (
    # --- commit and the log ---
    _mutant(
        "commit-without-match",
        "a follower commits up to its own last index, not to what the message verified [1]",
        (
            core.Core,
            "_on_append_entries",
            "min(message.commit_index, verified)",
            "min(message.commit_index, self.last_index)",
        ),
        seed=76,
    ),
    _mutant(
        "told-commit-unverified",
        "a follower believes the leader's word on the commit index for whatever entry stands there [1]",
        (
            core.Core,
            "_on_commit",
            "and self.term_at(message.index) == message.index_term:",
            "and message.index <= self.last_index:",
        ),
        seed=176,
    ),
    _mutant(
        "snapshot-acks-whole-log",
        "a follower's installed snapshot counts for all of the leader's log [1]",
        (core.Core, "snapshot_acknowledged", "progress.matched(index)", "progress.matched(self.last_index)"),
    ),
    _mutant(
        "acknowledge-last-index",
        "a follower acknowledges its last index instead of what was verified [2]",
        (
            core.Core,
            "_on_append_entries",
            "message.sequence, True, verified)",
            "message.sequence, True, self.last_index)",
        ),
        seed=76,
    ),
    _mutant(
        "truncate-without-conflict",
        "any append drops all that follows it, conflict or not [2]",
        (
            core.Core,
            "_append_from",
            "for number, entry in enumerate(entries):",
            "if previous + len(entries) < self.last_index:\n"
            "        self.log.deleteEntriesFrom(previous + 1 - self.first_index)\n"
            "    for number, entry in enumerate(entries):",
        ),
        seed=184,
    ),
    _mutant(
        "skip-log-match",
        "a follower appends without asking whether the entry before is the leader's",
        (core.Core, "_mismatch", "if term == previous_term:", "if term is not None:"),
    ),
    _mutant(
        "old-term-commit",
        "a leader commits an older term's entry by counting (Raft figure 8)",
        (core.Core, "advance_commit", "and self.term_at(index) == self.term", ""),
    ),
    _mutant(
        "minority-commit",
        "half of the voters is taken for a majority",
        (
            core.Core,
            "advance_commit",
            "self._of_voters(durable, _matched)",
            "max(_matched(p) for p in self.progress.values())",
        ),
        nodes=5,
    ),
    # --- elections ---
    _mutant(
        "votes-counted-twice",
        "two answers of one voter are two votes [6]",
        (core.Core, "_on_vote_reply", "self._votes.add(peer)", "self._votes.add(object())"),
        nodes=5,
        seed=79,
    ),
    _mutant(
        "vote-twice",
        "a follower votes for whoever asks, again in the same term",
        (core.Core, "_on_request_vote", "and self._SyncObj__votedForNodeId in (None, peer)", ""),
    ),
    _mutant(
        "vote-for-shorter-log",
        "votes go to candidates whose log lacks entries",
        (
            core.Core,
            "_log_up_to_date",
            "return (last_term, last_index) >= (self.last_term, self.last_index)",
            "return True",
        ),
    ),
    _mutant(
        "stale-votes",
        "votes of an older term count",
        (core.Core, "_on_vote_reply", "and message.term == self.term", ""),
        seed=33,
    ),
    _mutant(
        "stale-acknowledgements",
        "acknowledgements of an older term count [6]",
        (core.Core, "_on_append_reply", "or message.term != self.term", ""),
        (core.Core, "_on_append_reply", "if message.match_index > self.last_index:", "if False:"),
        nodes=5,  # of three, who acknowledged and whom it was told are a majority: nobody else can be elected
        seed=336,
    ),
    _mutant(
        "stale-leader-obeyed",
        "appends of a deposed leader are taken [6]",
        (core.Core, "_follow", "if term < self.term:", "if False:"),
        seed=180,
    ),
    _mutant(
        "vote-forgotten",
        "a restart forgets whom it voted for",
        (
            engine.Engine,
            "__init__",
            "self.core.start_from(",
            "self.core._SyncObj__votedForNodeId = None\n    self.core.start_from(",
        ),
    ),
    _mutant(
        "term-forgotten",
        "a restart knows only the term of its last entry",
        (
            engine.Engine,
            "__init__",
            "self.core.start_from(",
            "self.core._SyncObj__raftCurrentTerm = self.core.last_term\n    self.core.start_from(",
        ),
    ),
    # --- durability ---
    _mutant(
        "acknowledge-before-sync",
        "a follower's acknowledgement does not wait for its disk [7]",
        (core.Core, "_on_append_entries", "True, verified), self.log.position)", "True, verified), 0)"),
    ),
    _mutant(
        "leader-counts-unsynced",
        "a leader counts its own log before it is on its disk [7]",
        (core.Core, "advance_commit", "durable = self.log.durable_index", "durable = self.last_index"),
    ),
    _mutant(
        "single-voter-unsynced",
        "a cluster of one answers before its sync",
        (core.Core, "advance_commit", "durable = self.log.durable_index", "durable = self.last_index"),
        nodes=1,
    ),
    _mutant(
        "vote-before-sync",
        "a vote leaves before it is on disk [7]",
        (core.Core, "_on_request_vote", "self.log.position if granted else 0", "0"),
    ),
    _mutant(
        "candidate-before-sync",
        "a candidate asks for votes before its own is on disk [7]",
        (core.Core, "campaign", "self.last_term), self.log.position)", "self.last_term), 0)"),
    ),
    _mutant(
        "gate-counts-indexes",
        "the gate opens when any sync ends, not when the one that it waits for does",
        (engine.Engine, "_on_synced", "self._gate[0][0] <= self.wal.durable_position", "True"),
    ),
    _mutant(
        "sync-left-out",
        "a group commit is written and not synced",
        (writer.Writer, "_sync", "file.sync()", "pass"),
    ),
    _mutant(
        "failed-sync-ignored",
        "a failed sync is taken for done",
        (writer.Writer, "_sync", "file.sync()", "with contextlib.suppress(OSError):\n        file.sync()"),
    ),
    _mutant(
        "directory-not-synced",
        "a new segment's name is not synced",
        (writer.Writer, "_publish", "self._disk.sync_directory()", "pass"),
    ),
    _mutant(
        "truncation-not-journaled",
        "a truncation happens in memory only",
        (wal.Wal, "deleteEntriesFrom", "self._stage(encode_truncate(index))", "self.position += 1"),
        seed=31,
    ),
    _mutant(
        "term-not-journaled",
        "a new term without a vote is not written",
        (wal.Wal, "setCurrentTerm", "self._stage(encode_hard_state(term, votedForNodeId))", "pass"),
    ),
    _mutant(
        "torn-tail-refused",
        "a torn tail is taken for damage, not cut",
        (
            recovery._Scan,
            "frames",
            "case Action.CUT:",
            "case Action.CUT:\n                raise damaged(self.name, at, reason)",
        ),
    ),
    # --- snapshots ---
    _mutant(
        "journal-cleared-at-start",
        "a start keeps of the journal only what the snapshot covers [3]",
        (opening, "judge", 'return "keep" if', 'return "reset" if'),
    ),
    _mutant(
        "older-suffix-kept",
        "a start keeps a log that ends below the snapshot [3]",
        (
            opening,
            "judge",
            'if log[-1][0] < index:\n        return "reset"',
            'if log[-1][0] < index:\n        return "keep"',
        ),
        seed=248,
    ),
    _mutant(
        "snapshot-after-compaction",
        "entries go before the snapshot that covers them is durable",
        (
            compaction.Compaction,
            "start",
            "self._step(None)",
            "self._drop_entries(index)\n    self._step(None)",
        ),
    ),
    _mutant(
        "older-snapshot-installed",
        "a snapshot is installed wherever it stands, and the log begins anew from it [4]",
        (catchup.Catchup, "on_offer", "if manifest.index <= core.commit_index:", "if False:"),
        (catchup.Catchup, "_loaded", "if fetch.manifest.index > core.commit_index:", "if True:"),
        (core.Core, "installed", "assert index > self.commit_index", "pass"),
        (engine.Engine, "replace_state", "if core.term_at(index) == term:", "if False:"),
        seed=51,
    ),
    _mutant(
        "offer-acknowledged",
        "an offered snapshot is acknowledged before it is installed [5]",
        (
            catchup.Catchup,
            "on_offer",
            "if manifest.index <= core.commit_index:",
            "core.send(peer, SnapshotInstalled(core.term, manifest.index), 0)\n"
            "    if manifest.index <= core.commit_index:",
        ),
    ),
    _mutant(
        "idempotency-lost",
        "a snapshot leaves the idempotency table out",
        (
            machine.Machine,
            "image",
            "for section, table in self._sections()]",
            "for section, table in self._sections()[:1]]",
        ),
    ),
    _mutant(
        "applied-twice",
        "a restart applies the snapshot's last entry again",
        (
            core.Core,
            "start_from",
            "self._SyncObj__raftLastApplied = max(index, 1)",
            "self._SyncObj__raftLastApplied = max(index - 1, 1)",
        ),
    ),
    # --- members that come and go ---
    _mutant(
        "two-changes-at-once",
        "a change of membership begins before the last one is committed [9]",
        (
            engine.Engine,
            "plan",
            "core.membership_index > core.commit_index",
            "False",
        ),
        members=True,
        seed=75,
    ),
    _mutant(
        "change-before-no-op",
        "a new leader changes the membership before an entry of its term is committed (the 2015 correction)",
        (engine.Engine, "plan", "not self.leading or core", "core"),
        nodes=4,
        members=True,
        seed=17,
    ),
    _mutant(
        "learner-votes",
        "the vote of a learner counts",
        (core.Core, "_read_membership", "membership.voters", "membership.names"),
        members=True,
    ),
    _mutant(
        "learner-acknowledges",
        "what a learner has on disk counts for a commit",
        (
            core.Core,
            "_of_voters",
            "return quorum_index(reached)",
            "reached += [of_peer(p) for n, p in self.progress.items() if n not in self.voters]\n"
            "    return sorted(reached, reverse=True)[len(self.voters) // 2]",
        ),
        members=True,
    ),
    _mutant(
        "amnesiac-votes",
        "a node with an empty disk goes on under its old name",
        (
            handshake,
            "_admit_formed",
            "if known == hello.instance:",
            "if True:",
        ),
        (
            handshake,
            "_admit_unformed",
            'in ("", own.instance)',
            "is not None",
        ),
        (
            forming.Forming,
            "_receive_found",
            "current.instance(me.name) != me.instance or",
            "",
        ),
        (
            forming.Forming,
            "_tell_founding",
            "or self._current.instance(name) != peer.instance",
            "",
        ),
        (core.Core, "is_voter", "and self.membership.instance(self.name) == self.instance", ""),
        members=True,
        seed=4,
    ),
    _mutant(
        "disk-of-old-votes",
        "a node that was added anew counts itself for the voter that its lagging log still names",
        (core.Core, "is_voter", "and self.membership.instance(self.name) == self.instance", ""),
        members=True,
        seed=353,
    ),
    _mutant(
        "truncated-membership-stays",
        "a membership counts on after its entry was truncated",
        (core.Core, "_truncate_from", "if self.membership_index >= index:", "if False:"),
        members=True,
        seed=7,
    ),
    _mutant(
        "membership-when-committed",
        "a follower takes a membership for its own only once it is applied, its leader at once",
        (
            core.Core,
            "_append_from",
            "self._add(fresh.payload, index + offset, fresh.term)",
            "self.log.add(fresh.payload, index + offset, fresh.term)",
        ),
        members=True,
    ),
    _mutant(
        "snapshot-forgets-members",
        "a snapshot carries the membership in effect, committed or not",
        (compaction.Compaction, "start", "engine.core.membership_at(index)", "engine.membership"),
        members=True,
    ),
    _mutant(
        "members-forgotten",
        "a restart knows only the membership of its snapshot",
        (opening, "configurations_of", "return (covered, *later)", "return (covered,)"),
        members=True,
    ),
    # --- reads and answers ---
    _mutant(
        "read-without-quorum",
        "a leader answers reads without asking whether it still leads",
        (
            core.Core,
            "confirmed_sequence",
            "return self._of_voters(",
            "return self.sequence\n    return self._of_voters(",
        ),
    ),
    _mutant(
        "read-before-no-op",
        "a new leader answers reads before it knows what is committed",
        (reads.Reads, "_start_round", "if core.last_applied < core.noop_index:", "if False:"),
        seed=184,
    ),
    _mutant(
        "read-before-apply",
        "a read does not wait until its index is applied",
        (reads.Reads, "_answer_applied", "and self._confirmed[0][0] <= self._core.last_applied", ""),
    ),
    _mutant(
        "proposed-refused",
        "a leader that steps down calls what is in its log not applied",
        (
            proposals.Proposals,
            "refuse_waiting",
            "waiting, self._waiting = self._waiting, deque()",
            "for _, tickets in self._proposed.values():\n"
            "        for ticket in tickets:\n"
            "            ticket.done(error)\n"
            "    self._proposed.clear()\n"
            "    waiting, self._waiting = self._waiting, deque()",
        ),
    ),
    _mutant(
        "index-answers-for-term",
        "whoever's entry is committed at an index, its first proposer is told that it was theirs",
        (proposals.Proposals, "applied", "if proposed_term == term:", "if len(tickets) <= len(results):"),
        (proposals.Proposals, "applied", "assert at == len(results)", "pass"),
        seed=69,
    ),
)


def find(name: str) -> Mutant:
    for mutant in MUTANTS:
        if mutant.name == name:
            return mutant
    raise KeyError(f"no mutant {name!r}; there are {', '.join(mutant.name for mutant in MUTANTS)}")


@contextlib.contextmanager
def planted(mutant: Mutant | None) -> Iterator[None]:
    """The mutant's code in place of the real one, for as long as this lasts."""
    with contextlib.ExitStack() as stack:
        for edit in mutant.edits if mutant is not None else ():
            stack.enter_context(mock.patch.object(edit.owner, edit.name, _edited(edit)))
        yield


def _function(edit: Edit) -> Any:
    found = inspect.getattr_static(edit.owner, edit.name)
    return found.fget if isinstance(found, property) else getattr(found, "__func__", found)


# Read at once: the files may change while a long hunt goes on.
_SOURCES = {
    (edit.owner, edit.name): textwrap.dedent(inspect.getsource(_function(edit)))
    for mutant in MUTANTS
    for edit in mutant.edits
}


def _edited(edit: Edit) -> Any:
    function = _function(edit)
    source: str = getattr(function, "mutated_source", _SOURCES[edit.owner, edit.name])
    if source.count(edit.old) != 1:
        raise LookupError(
            f"{edit.name} has {edit.old!r} {source.count(edit.old)} times: the mutant needs new words"
        )
    source = source.replace(edit.old, edit.new)
    namespace: dict[str, Any] = {}
    flags = __future__.annotations.compiler_flag
    code = compile(source, f"<mutant of {edit.name}>", "exec", flags=flags, dont_inherit=True)
    exec(code, {**sys.modules[function.__module__].__dict__, "contextlib": contextlib}, namespace)
    changed = namespace[edit.name]
    if not isinstance(changed, property):
        changed.mutated_source = source
    return changed
