"""Each thing that PySyncObj 0.3.17 gets wrong, put to the stock class and to ours.

The stock half of a test asserts the fault: it proves that the situation is the right one, and it will fail,
and so tell us, when an upgrade mends it. Numbers are the rows of docs/pysyncobj.md.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pysyncobj
import pysyncobj.journal
import pysyncobj.syncobj
import pysyncobj.tcp_connection
import pysyncobj.transport
import pytest
from pysyncobj.journal import FileJournal
from pysyncobj.node import Node

from raftkv.raft.core import Timing
from raftkv.raft.messages import (
    AppendEntries,
    AppendReply,
    Commit,
    Echo,
    Entry,
    Heartbeat,
    PreVote,
    PreVoteReply,
    RequestVote,
    TimeoutNow,
    VoteReply,
)
from tests.unit.core_bench import Bench, MemoryLog, StockNode

X, Y, Z = b"\x00x", b"\x00y", b"\x00z"


def append(
    term: int, previous: tuple[int, int], *entries: tuple[int, bytes], commit: int = 1
) -> AppendEntries:
    return AppendEntries(term, 1, *previous, commit, tuple(Entry(t, p) for t, p in entries))


def stock_append(
    term: int, previous: tuple[int, int], *entries: tuple[bytes, int, int], commit: int = 1
) -> dict[str, Any]:
    return {
        "type": "append_entries",
        "term": term,
        "commit_index": commit,
        "prevLogIdx": previous[0],
        "prevLogTerm": previous[1],
        "entries": list(entries),
    }


def test_upstream_source_is_the_one_that_was_audited() -> None:
    """An upgrade must be read line by line before this hash changes: our overrides go by its names."""
    assert pysyncobj.syncobj.VERSION == "0.3.17"
    source = Path(inspect.getfile(pysyncobj.syncobj)).read_bytes()
    assert (
        hashlib.sha256(source).hexdigest()
        == "e8bdf06797085d734df86e24ab4802fe87893dff77268565ec036f7ad4a1cfe4"
    )


# --- 1: commit without a log match -----------------------------------------------------------------


def test_keepalive_without_position_commits_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 1: an old leader's own tail must not be committed by a new leader's keep-alive."""
    stock = StockNode(monkeypatch)
    stock.receive("n2", stock_append(1, (1, 0), (X, 2, 1)))
    keepalive = {"type": "append_entries", "term": 2, "commit_index": 2, "serialized": None}
    stock.receive("n3", keepalive)
    assert stock.node.raftCommitIndex == 2, "stock commits an entry that the new leader may not have"

    ours = Bench()
    ours.receive("n2", append(1, (1, 0), (1, X)))
    ours.receive("n3", Heartbeat(2, 1))
    assert ours.core.leader == "n3"
    assert ours.core.commit_index == 1


def test_heartbeat_commits_only_up_to_what_it_verified() -> None:
    """Row 1, our own message: the tail beyond prev_log_index is not covered by the leader's commit."""
    ours = Bench()
    ours.receive("n2", append(1, (1, 0), (1, X), (1, Y)))
    ours.receive("n3", append(2, (2, 1), commit=3))
    assert ours.core.commit_index == 2


# --- 2: truncation ---------------------------------------------------------------------------------


def test_resent_range_does_not_shorten_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 2: the leader has counted the later entries; a repeated message must not remove them."""
    stock = StockNode(monkeypatch)
    stock.receive("n2", stock_append(1, (1, 0), (X, 2, 1), (Y, 3, 1), (Z, 4, 1)))
    stock.receive("n2", stock_append(1, (1, 0), (X, 2, 1)))
    assert [index for _, index, _ in stock.log] == [1, 2], "stock drops 3 and 4, which it had acknowledged"

    ours = Bench()
    ours.receive("n2", append(1, (1, 0), (1, X), (1, Y), (1, Z)))
    answers = ours.receive("n2", append(1, (1, 0), (1, X)))
    assert ours.core.last_index == 4
    assert AppendReply(1, 1, True, 2) in answers, (
        "it acknowledges what this message verified, not its whole log"
    )


def test_conflict_truncates_from_the_first_differing_term() -> None:
    ours = Bench()
    ours.receive("n2", append(1, (1, 0), (1, X), (1, Y), (1, Z)))
    ours.receive("n3", append(2, (1, 0), (1, X), (2, Z)))
    assert [(e[0], e[2]) for e in ours.log[1:]] == [(X, 1), (Z, 2)]


def test_committed_entries_are_never_truncated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 2: below commit, a message can only repeat what is there; its entries are not even compared."""
    stock = StockNode(monkeypatch)
    stock.receive("n2", stock_append(1, (1, 0), (X, 2, 1), (Y, 3, 1), commit=3))
    stock.receive("n2", stock_append(1, (1, 0)))
    assert stock.log[-1][1] == 1, "stock forgets two committed entries"

    ours = Bench()
    ours.receive("n2", append(1, (1, 0), (1, X), (1, Y), commit=3))
    answers = ours.receive("n2", append(1, (1, 0)))
    assert ours.core.last_index == 3
    assert AppendReply(1, 1, True, 3) in answers


def test_mismatch_is_refused_with_a_place_to_probe() -> None:
    ours = Bench()
    ours.receive("n2", append(1, (1, 0), (1, X), (1, Y)))
    assert AppendReply(3, 1, False, 3) in ours.receive("n3", append(3, (9, 2)))
    assert AppendReply(3, 1, False, 1) in ours.receive("n3", append(3, (3, 2))), "skips its whole term 1"
    assert ours.core.last_index == 3


# --- 6: who answers, and when ----------------------------------------------------------------------


def test_acknowledgement_of_another_term_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 6: an answer to an earlier term's message must not commit this term's entries."""
    stock = StockNode(monkeypatch)
    stock.lead()
    late = {"type": "next_node_idx", "next_node_idx": 3, "reset": False, "success": True}
    stock.receive("n2", late)
    stock.tick()
    assert stock.node.raftCommitIndex == 2, "stock can't tell which term the answer belongs to"

    ours = Bench()
    ours.lead()
    ours.receive("n2", AppendReply(0, 1, True, 2))
    assert ours.core.commit_index == 1
    ours.receive("n2", AppendReply(1, 1, True, 2))
    assert ours.core.commit_index == 2


def test_acknowledgement_beyond_the_leaders_log_is_dropped() -> None:
    ours = Bench()
    ours.lead()
    ours.receive("n2", AppendReply(1, 1, True, 7))
    assert ours.core.commit_index == 1


def test_a_voter_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 6: in a cluster of five, one peer's vote that arrives twice is not a majority."""
    five = ("n2", "n3", "n4", "n5")
    stock = StockNode(monkeypatch, peers=five)
    stock.clock.now += 2
    stock.tick()
    for _ in range(2):
        stock.receive("n2", {"type": "response_vote", "term": 1})
    assert stock.node._isLeader(), "stock counts messages, not voters"

    ours = Bench(voters=("n1", *five))
    ours.core.campaign()
    for _ in range(3):
        ours.receive("n2", VoteReply(1, True))
    assert ours.core.role == "candidate"
    ours.receive("n3", VoteReply(1, True))
    assert ours.core.is_leader


@pytest.mark.parametrize("name", ["stranger", "learner"])
def test_answers_of_strangers_and_learners_do_not_count(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 6: stock counts the votes of any node that connected as read-only. Who may speak at all is the
    transport's to say (`handshake.judge`): a leader may be newer than what this node's log says."""
    stock = StockNode(monkeypatch)
    stock.clock.now += 2.0
    stock.tick()
    stock.receive(name, {"type": "response_vote", "term": stock.node.raftCurrentTerm})
    assert stock.node._isLeader()

    ours = Bench(learners=("learner",))
    ours.wait(1.1)
    ours.receive(name, PreVoteReply(1, True, 0))
    assert not any(isinstance(message, RequestVote) for _, message, _ in ours.sent)
    ours.receive("n2", PreVoteReply(1, True, 0))
    ours.receive(name, VoteReply(1, True))
    assert ours.core.role == "candidate"
    ours.receive("n2", VoteReply(1, True))
    assert ours.core.is_leader
    ours.receive(name, AppendReply(1, 9, True, 2))
    ours.receive(name, Echo(1, ours.core.sequence))
    assert ours.core.commit_index == 1
    assert ours.core.confirmed_sequence() == 0
    ours.receive("n2", AppendReply(1, 9, True, 2))
    assert ours.core.commit_index == 2


def test_one_vote_a_term() -> None:
    ours = Bench()
    assert ours.receive("n2", RequestVote(4, 1, 0)) == [VoteReply(4, True)]
    assert ours.receive("n3", RequestVote(4, 1, 0)) == [VoteReply(4, False)]
    assert ours.receive("n2", RequestVote(4, 1, 0)) == [VoteReply(4, True)], (
        "a repeated request, the same vote"
    )


def test_no_vote_for_a_log_that_is_behind() -> None:
    ours = Bench()
    ours.receive("n2", append(3, (1, 0), (3, X)))
    assert ours.receive("n3", RequestVote(4, 9, 2)) == [VoteReply(4, False)]
    assert ours.receive("n3", RequestVote(5, 2, 3)) == [VoteReply(5, True)]


# --- 7: durability ---------------------------------------------------------------------------------


def test_acknowledgements_and_votes_wait_for_the_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Row 7: stock acknowledges entries of which no byte was ever synced."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    monkeypatch.setattr(os, "fdatasync", synced.append)
    stock = StockNode(monkeypatch, journalFile=str(tmp_path / "journal"))
    stock.receive("n2", stock_append(1, (1, 0), (X, 2, 1)))
    assert stock.transport.sent[-1][1]["success"]
    assert synced == [], "stock never calls fsync"
    stock.node.destroy()

    ours = Bench(log=MemoryLog(automatic=False))
    ours.log.sync()
    ours.receive("n2", append(1, (1, 0), (1, X)))
    [(position, _)] = [(p, m) for _, m, p in ours.sent if isinstance(m, AppendReply)]
    assert position == ours.log.position > ours.log.durable_position
    ours.receive("n3", RequestVote(2, 5, 1))
    [position] = [p for _, m, p in ours.sent if isinstance(m, VoteReply)]
    assert position == ours.log.position > ours.log.durable_position


def test_own_vote_is_durable_before_the_request_leaves() -> None:
    ours = Bench(log=MemoryLog(automatic=False))
    ours.core.campaign()
    positions = [p for _, m, p in ours.sent if isinstance(m, RequestVote)]
    assert positions == [ours.log.position] * 2
    assert ours.log.position > ours.log.durable_position


def test_leader_counts_itself_only_after_its_own_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 7: one follower's acknowledgement and a leader that never synced are no majority of disks."""
    stock = StockNode(monkeypatch)
    stock.lead()
    stock.receive("n2", {"type": "next_node_idx", "next_node_idx": 3, "reset": False, "success": True})
    stock.tick()
    assert stock.node.raftCommitIndex == 2

    ours = Bench(log=MemoryLog(automatic=False))
    ours.lead()
    ours.receive("n2", AppendReply(1, 1, True, 2))
    assert ours.core.commit_index == 1
    ours.log.sync()
    ours.tick()
    assert ours.core.commit_index == 2


def test_the_leaders_own_disk_is_among_the_majority() -> None:
    """Two followers would be a majority; the promise is stronger, so that the node which answered can
    always show what it acknowledged."""
    ours = Bench(log=MemoryLog(automatic=False))
    ours.lead()
    ours.receive("n2", AppendReply(1, 1, True, 2))
    ours.receive("n3", AppendReply(1, 1, True, 2))
    assert ours.core.commit_index == 1
    ours.log.sync()
    ours.tick()
    assert ours.core.commit_index == 2


def test_single_voter_commits_only_what_its_disk_has(monkeypatch: pytest.MonkeyPatch) -> None:
    stock = StockNode(monkeypatch, peers=())
    stock.clock.now += 2
    stock.tick()
    stock.tick()
    assert stock.node.raftCommitIndex == 2

    ours = Bench(voters=("n1",), log=MemoryLog(automatic=False))
    ours.wait(1.1)
    assert ours.core.is_leader
    assert ours.core.commit_index == 1
    ours.log.sync()
    ours.tick()
    assert ours.core.commit_index == 2


# --- 8: persisted commit index ---------------------------------------------------------------------


# Stock opens its .meta file and leaves it to the collector; its warning is not about us.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_commit_index_beyond_the_log_is_not_believed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Row 8: with a commit index ahead of its journal, an isolated stock leader acknowledges alone."""
    path = str(tmp_path / "journal")
    journal = FileJournal(path)
    journal.add(b"\x01", 1, 0)
    journal.setRaftCommitIndex(50)
    journal.onOneSecondTimer()
    journal._destroy()
    del journal
    stock = StockNode(monkeypatch, journalFile=path)
    stock.lead()
    assert stock.node.raftCommitIndex == 50, "whatever it appends next counts as committed at once"
    stock.node.destroy()

    log = MemoryLog()
    log.commit_hint = 50
    ours = Bench(log=log)
    assert ours.core.commit_index == 1


# --- 9: membership -----------------------------------------------------------------------------------


def test_membership_is_not_changed_behind_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 9: stock means to allow one change in flight, and takes three at once."""
    stock = StockNode(monkeypatch, dynamicMembershipChange=True)
    stock.lead()
    stock.receive("n2", {"type": "next_node_idx", "next_node_idx": 3, "reset": False, "success": True})
    stock.tick()
    for name in ("n4", "n5", "n6"):
        stock.node.addNodeToCluster(Node(name))
    stock.tick()
    assert {"n4", "n5", "n6"} <= {node.id for node in stock.node.otherNodes}

    ours = Bench()
    ours.lead()
    with pytest.raises(AssertionError, match="membership"):
        ours.core._SyncObj__changeCluster(["add", "n4", Node("n4")])
    assert ours.core.peers == ("n2", "n3")  # it changes by log entries alone: tests/unit/test_membership.py


# --- 10, 11: applying, unpickling ------------------------------------------------------------------


def test_raising_apply_stops_instead_of_repeating(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 10: stock tries the same entry at every tick for ever, and tells nobody."""
    stock = StockNode(monkeypatch)
    stock.receive("n2", stock_append(1, (1, 0), (b"\x00not a pickle", 2, 1), commit=2))
    for _ in range(3):
        with pytest.raises(KeyError):  # the pure Python unpickler's way to say so
            stock.tick()
    assert stock.node.raftLastApplied == 1

    ours = Bench()

    def fail(index: int, term: int, payload: bytes) -> None:
        raise ValueError("an entry of a newer release")

    ours.core.apply_entry = fail
    with pytest.raises(ValueError, match="newer release"):  # Engine.fail then stops the node: see test_engine
        ours.receive("n2", append(1, (1, 0), (1, X), commit=2))


def test_no_frame_is_unpickled(tmp_path: Path) -> None:
    """Row 11: stock unpickles whatever reaches its port. No module of ours imports pickle (see
    test_architecture), and PySyncObj's own methods that would are cut off."""
    assert "pickle.loads" in inspect.getsource(pysyncobj.tcp_connection) or re.search(
        r"loads\(", inspect.getsource(pysyncobj.tcp_connection)
    )
    ours = Bench()
    for name in ("doApplyCommand", "parseChangeClusterRequest"):
        with pytest.raises(AssertionError, match="unpickle"):
            getattr(ours.core, "_SyncObj__" + name)(b"\x02" + pickle.dumps(["add", "n9"]))


# --- 12: chunking ----------------------------------------------------------------------------------


def test_entries_near_a_multiple_of_64_kib_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 12: stock cuts a large entry into chunks and marks the wrong one as the last."""
    payload = b"\x00" + b"v" * (2 * 65536 - 2)
    stock = StockNode(monkeypatch)
    stock.lead()
    stock.node._applyCommand(payload[1:], None, 0)
    stock.tick()
    stock.clock.now += 1
    stock.transport.sent.clear()
    stock.tick()
    follower = StockNode(monkeypatch, "n2", ("n1", "n3"))
    chunks = [m for to, m in stock.transport.sent if to == "n2" and "transmission" in m]
    assert [chunk["transmission"] for chunk in chunks] == ["start", "finish", "finish"]
    follower.receive("n1", chunks[0])
    with pytest.raises((pickle.UnpicklingError, EOFError, IndexError)):
        follower.receive("n1", chunks[1])

    leader = Bench()
    leader.lead()
    for size in (65536, 131072, 196608, 1 << 20):
        for slack in (-2, -1, 0, 1):
            leader.core.append(b"\x00" + b"v" * (size + slack))
    last = leader.core.last_index
    ours = Bench("n2")
    sequence = 0
    while ours.core.last_index < last:
        sequence += 1
        before = ours.core.last_index
        leader.receive("n2", AppendReply(1, leader.core.sequence, True, before))
        for to, message, _ in leader.sent:
            if to == "n2" and isinstance(message, AppendEntries):
                ours.receive("n1", message)
        leader.sent.clear()
        assert ours.core.last_index > before
        assert sequence < 100
    assert list(ours.log[2:]) == list(leader.log[2:])


# --- 13: latency -----------------------------------------------------------------------------------


def test_entries_and_commits_are_sent_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 13: stock waits up to a heartbeat to send, and as long again to tell the commit."""
    stock = StockNode(monkeypatch)
    stock.lead()
    stock.tick()
    stock.transport.sent.clear()
    stock.node._applyCommand(b"x", None, 0)
    stock.tick()
    stock.tick()
    assert [m for _, m in stock.transport.sent if m.get("entries")] == []

    ours = Bench()
    ours.lead()
    ours.receive("n2", AppendReply(1, ours.core.sequence, True, 2))
    ours.sent.clear()
    index = ours.core.append(X)
    ours.core.broadcast()
    assert [m.entries for _, m, _ in ours.sent if isinstance(m, AppendEntries)] == [(Entry(1, X),)] * 2
    ours.sent.clear()
    ours.receive("n2", AppendReply(1, ours.core.sequence, True, index))
    assert [m for _, m, _ in ours.sent] == [Commit(1, index, 1)] * 2


def test_a_commit_counts_only_where_the_log_has_that_very_entry() -> None:
    """Row 1 again: a divergent tail is not committed by a message that did not verify it."""
    ours = Bench()
    ours.receive("n2", AppendEntries(1, 1, 1, 0, 1, (Entry(1, X), Entry(1, X))))
    assert ours.receive("n2", Commit(1, 3, 2)) == []
    assert ours.receive("n2", Commit(1, 4, 1)) == []
    assert ours.core.commit_index == 1
    assert ours.receive("n2", Commit(1, 2, 1)) == []
    assert ours.core.commit_index == 2
    assert ours.receive("n2", Commit(1, 1, 0)) == []
    assert ours.core.commit_index == 2


def test_a_deposed_leaders_commit_is_refused() -> None:
    ours = Bench()
    ours.receive("n2", AppendEntries(1, 1, 1, 0, 1, (Entry(1, X),)))
    ours.receive("n3", Heartbeat(2, 1))
    [refusal] = ours.receive("n2", Commit(1, 2, 1))
    assert isinstance(refusal, AppendReply)
    assert (refusal.term, refusal.success) == (2, False)
    assert ours.core.commit_index == 1


def test_a_silent_follower_is_not_sent_more_than_the_window() -> None:
    ours = Bench()
    ours.lead()
    for _ in range(40):
        ours.core.append(b"\x00" + b"v" * (1 << 19))
        ours.core.broadcast()
    to_n3 = [m for to, m, _ in ours.sent if to == "n3" and isinstance(m, AppendEntries)]
    assert sum(len(e.payload) for m in to_n3 for e in m.entries) <= 6 << 20


# --- 14: elections and leadership ------------------------------------------------------------------


def test_leader_without_majority_steps_down_within_an_election_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Row 14: stock leads on for 30 s."""
    stock = StockNode(monkeypatch)
    stock.lead()
    stock.clock.now += 20
    stock.tick()
    assert stock.node._isLeader()

    ours = Bench()
    ours.lead()
    ours.wait(Timing().election_timeout_s_max + 0.04)
    assert not ours.core.is_leader


def test_leader_with_one_live_follower_of_two_stays() -> None:
    ours = Bench()
    ours.lead()
    for _ in range(100):
        ours.wait(0.1)
        ours.receive("n3", Echo(1, ours.core.sequence))
    assert ours.core.is_leader


def test_isolated_member_does_not_raise_its_term(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 14: without pre-vote it would depose the leader when it comes back."""
    stock = StockNode(monkeypatch)
    for _ in range(5):
        stock.clock.now += 2
        stock.tick()
    assert stock.node.raftCurrentTerm == 5

    ours = Bench()
    ours.wait(30)
    assert ours.core.term == 0
    assert {m for _, m, _ in ours.sent} == {PreVote(1, 1, 0)}


def test_no_pre_vote_while_the_leader_is_heard() -> None:
    ours = Bench()
    ours.receive("n2", append(1, (1, 0)))
    assert ours.receive("n3", PreVote(2, 9, 9)) == [PreVoteReply(2, False, 1)]
    ours.wait(0.51)
    assert ours.receive("n3", PreVote(2, 9, 9)) == [PreVoteReply(2, True, 1)]
    assert ours.core.term == 1, "a pre-vote changes nothing"


def test_transfer_campaigns_at_once_and_only_for_the_leader() -> None:
    ours = Bench()
    ours.receive("n2", append(1, (1, 0)))
    ours.receive("n3", TimeoutNow(1))
    assert ours.core.term == 1
    ours.receive("n2", TimeoutNow(1))
    assert ours.core.term == 2
    assert ours.core.role == "candidate"


# --- the paper's rules that stock has right: they must stay so -------------------------------------


def test_entries_of_an_older_term_are_not_committed_by_counting() -> None:
    """Raft §5.4.2, figure 8."""
    ours = Bench()
    ours.receive("n2", append(1, (1, 0), (1, X)))
    ours.lead("n3")
    assert ours.core.last_index == 3
    ours.receive("n2", AppendReply(2, ours.core.sequence, True, 2))
    assert ours.core.commit_index == 1
    ours.receive("n2", AppendReply(2, ours.core.sequence, True, 3))
    assert ours.core.commit_index == 3


def test_stale_leader_learns_the_newer_term() -> None:
    ours = Bench()
    ours.lead()
    ours.receive("n3", RequestVote(5, 9, 9))
    assert not ours.core.is_leader
    assert AppendReply(5, 1, False, ours.core.last_index) in ours.receive("n2", append(1, (1, 0)))
