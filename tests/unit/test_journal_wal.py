"""The write-ahead log over a real directory: staging, group commit, positions, restarts."""

from __future__ import annotations

from pathlib import Path

import pytest

from raftkv.errors import JournalLocked
from raftkv.journal.disk import OsDisk
from raftkv.journal.wal import Wal

SEGMENT = 4096


def reopen(directory: Path) -> Wal:
    return Wal.open(OsDisk(directory), SEGMENT)


def commit(wal: Wal) -> None:
    while (batch := wal.cut()) is not None:
        wal.write(batch)
        wal.synced(batch)


def state(wal: Wal) -> tuple[object, ...]:
    return wal[:], wal.getCurrentTerm(), wal.getVotedForNodeId(), wal.getRaftCommitIndex()


def test_what_was_synced_is_there_after_a_restart(tmp_path: Path) -> None:
    wal = reopen(tmp_path / "journal")
    assert wal.recovery.created
    wal.setCurrentTerm(3, "n2")
    for index in range(1, 101):
        wal.add(b"payload %d" % index, index, 3)
        wal.setRaftCommitIndex(index)
        commit(wal)
    wal.deleteEntriesFrom(90)
    wal.add(b"again", 91, 4)
    wal.setCurrentTerm(4, None)
    commit(wal)
    before = state(wal)
    assert before[1:] == (4, None, 90)
    wal.close()
    again = reopen(tmp_path / "journal")
    assert state(again) == before
    assert not again.recovery.created
    assert again.durable_index == 91


def test_what_was_not_written_is_gone_after_a_restart(tmp_path: Path) -> None:
    wal = reopen(tmp_path)
    wal.add(b"one", 1, 0)
    commit(wal)
    wal.add(b"two", 2, 1)
    wal.setCurrentTerm(1, "n1")
    wal.close()
    again = reopen(tmp_path)
    assert (again[:], again.getCurrentTerm()) == ([(b"one", 1, 0)], 0)


def test_durability_is_counted_in_positions_not_in_indexes(tmp_path: Path) -> None:
    wal = reopen(tmp_path)
    for index in range(1, 6):
        wal.add(b"a", index, 1)
    first = wal.cut()
    assert first is not None
    wal.deleteEntriesFrom(2)
    wal.add(b"b", 3, 2)
    wal.write(first)
    wal.synced(first)
    assert wal.durable_position == 5
    assert wal.durable_index == 2, "entry 3 of the present log is not the one that was synced"
    assert wal.position_of_last_entry == wal.position == 7
    commit(wal)
    assert wal.durable_index == 3


def test_one_batch_is_on_its_way_at_a_time(tmp_path: Path) -> None:
    wal = reopen(tmp_path)
    wal.add(b"a", 1, 1)
    batch = wal.cut()
    assert batch is not None
    wal.add(b"b", 2, 1)
    assert wal.dirty
    assert wal.cut() is None
    wal.write(batch)
    wal.synced(batch)
    assert wal.cut() is not None


def test_a_commit_hint_alone_makes_nothing_dirty(tmp_path: Path) -> None:
    wal = reopen(tmp_path)
    wal.add(b"a", 1, 1)
    commit(wal)
    wal.setRaftCommitIndex(1)
    assert not wal.dirty
    assert wal.cut() is None


def test_compaction_keeps_the_entry_at_the_index_and_deletes_segments_behind_it(tmp_path: Path) -> None:
    wal = reopen(tmp_path)
    for index in range(1, 101):
        wal.add(b"x" * 500, index, 1)
        commit(wal)
    assert wal.segments > 10
    wal.compact(95, 1)
    commit(wal)
    assert wal.segments <= 3
    assert len(list(tmp_path.iterdir())) == wal.segments
    assert (wal[0][1], len(wal), wal.log_bytes) == (95, 6, 3000)
    wal.close()
    again = reopen(tmp_path)
    assert [index for _, index, _ in again[:]] == list(range(95, 101))


def test_reset_replaces_the_log(tmp_path: Path) -> None:
    wal = reopen(tmp_path)
    for index in range(1, 31):
        wal.add(b"x" * 500, index, 1)
        commit(wal)
    wal.reset(500, 7, b"snapshot")
    assert wal.durable_index == 499
    wal.add(b"y", 501, 7)
    commit(wal)
    assert wal.segments == 1
    wal.close()
    assert reopen(tmp_path)[:] == [(b"snapshot", 500, 7), (b"y", 501, 7)]


def fill(wal: Wal, first: int, last: int, term: int) -> None:
    for index in range(first, last + 1):
        wal.add(b"x" * 500, index, term)
        commit(wal)


def test_segments_of_a_log_that_was_truncated_away_are_deleted(tmp_path: Path) -> None:
    """Their indexes are above the compaction's, but nobody needs those entries."""
    wal = reopen(tmp_path)
    fill(wal, 1, 60, 1)
    wal.deleteEntriesFrom(9)
    wal.add(b"another", 10, 2)
    wal.compact(10, 2)
    commit(wal)
    assert wal.segments == 1


def test_entries_truncated_before_they_were_written_keep_no_segment(tmp_path: Path) -> None:
    wal = reopen(tmp_path)
    fill(wal, 1, 5, 1)
    for index in range(6, 60):
        wal.add(b"", index, 1)
    wal.deleteEntriesFrom(5)
    fill(wal, 6, 30, 2)
    wal.compact(30, 2)
    commit(wal)
    assert wal.segments == 1


def test_a_reset_to_a_lower_index_keeps_no_segment(tmp_path: Path) -> None:
    wal = reopen(tmp_path)
    fill(wal, 1, 60, 1)
    for index in range(61, 99):
        wal.add(b"", index, 1)
    wal.reset(10, 2, b"snapshot")
    fill(wal, 11, 40, 2)
    wal.compact(40, 2)
    commit(wal)
    assert wal.segments == 1


def test_the_commit_index_stays_within_the_log(tmp_path: Path) -> None:
    wal = reopen(tmp_path)
    assert wal.getRaftCommitIndex() == 1
    fill(wal, 1, 5, 1)
    wal.setRaftCommitIndex(99)
    assert wal.getRaftCommitIndex() == 5
    wal.deleteEntriesFrom(3)
    assert wal.getRaftCommitIndex() == 3
    wal.setRaftCommitIndex(1)
    wal.compact(2, 1)
    assert wal.getRaftCommitIndex() == 2, "what is compacted away was committed"
    wal.setRaftCommitIndex(99)
    commit(wal)
    wal.close()
    assert reopen(tmp_path).getRaftCommitIndex() == 3


def test_a_frame_larger_than_a_segment_gets_its_own(tmp_path: Path) -> None:
    wal = reopen(tmp_path)
    for index, payload in enumerate((b"first", b"small", b"z" * 3 * SEGMENT, b"y" * 1000), start=1):
        wal.add(payload, index, 1)
        commit(wal)
    assert wal.segments == 3
    assert 0 < max(path.stat().st_size for path in tmp_path.iterdir()) - 3 * SEGMENT < 1024
    before = wal[:]
    wal.close()
    assert reopen(tmp_path)[:] == before


def test_two_processes_cannot_share_a_directory(tmp_path: Path) -> None:
    wal = reopen(tmp_path)
    with pytest.raises(JournalLocked, match="another process"):
        reopen(tmp_path)
    wal.close()
    reopen(tmp_path).close()


def test_files_that_are_not_ours_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "1.journal").write_text("mine too")
    wal = reopen(tmp_path)
    wal.add(b"a", 1, 1)
    commit(wal)
    wal.close()
    reopen(tmp_path).close()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "1.journal").read_text() == "mine too"
