"""The write-ahead log: the Raft log and hard state in memory, and their way to the disk.

`Wal` lives on the loop thread, all but `write`. It speaks PySyncObj's journal (the mixedCase methods; log
entries are `(payload, index, term)`) and group commit:

    staged on the loop ──cut()──> Batch ──write() on a worker──> disk ──synced() on the loop──> durable

Invariants:
- Durability is counted in *positions*, which grow by one with every staged record and never go back. Raft
  indexes are no measure of it: a truncation and the appends behind it use them again.
- One batch is on its way at a time, and it is one frame.
- What `synced` reported is there after any crash. What was staged and not synced may be there or not, but
  then as a prefix of what was staged, whole batches at a time.
- After a failed `write` there is no further batch: the one that failed stays on its way for ever.

What a start reads back may sit in the page cache only, or differ from what the disk holds if a sync failed
before. So every start writes all that it keeps into a new segment and syncs it, before anything else. The
alternative, trusting a mark that the last stop was clean, would save a copy of a log that snapshots keep
short, at the price of a second way to start.
"""

from __future__ import annotations

import os
import time
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import overload

from raftkv.journal.disk import Disk
from raftkv.journal.record import (
    KIND_COMPACT,
    KIND_ENTRY,
    KIND_RESET,
    Carry,
    LogEntry,
    encode_carry,
    encode_commit_hint,
    encode_hard_state,
    encode_truncate,
    payload_head,
)
from raftkv.journal.recovery import Recovered, TornTail, recover
from raftkv.journal.writer import Group, Writer, journal_failure

SEGMENT_BYTES_MAX = 16 * 1024 * 1024
IMAGE_FRAME_BYTES = 1024 * 1024  # how a start groups what it writes anew: small enough to encode at once
RELEASED_AT_ONCE = 1000  # entries freed before other threads get their turn: some 50 µs


@dataclass(frozen=True, slots=True)
class Recovery:
    """What the start found. `created`: there was no journal. `torn`: what a crash had left unfinished."""

    created: bool
    segments: int
    frames: int
    entries: int
    torn: TornTail | None
    removed: tuple[str, ...]
    rewritten_bytes: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What `cut` took, for `write`. Opaque but for `position`, which is durable once it is synced."""

    position: int
    group: Group | None  # None: only segments to delete
    before: Carry
    cut_below: int | None  # the lowest index that a truncation in here started from
    last_index: int  # of the entries in here; 0: none
    first_index: int  # where the log starts once this is durable
    released: list[list[LogEntry]]  # dropped from memory; freed on the worker, a few at a time


class Wal:
    """See the module. Make one with `Wal.open`."""

    @classmethod
    def open(
        cls,
        disk: Disk,
        segment_bytes_max: int = SEGMENT_BYTES_MAX,
        *,
        clock: Callable[[], float] = time.perf_counter,
        draw_id: Callable[[int], bytes] = os.urandom,
        on_sync: Callable[[float, int], None] | None = None,
    ) -> Wal:
        """Locks the directory, recovers, and makes durable what it found. Blocks.

        `on_sync(seconds, bytes)` is called on the loop for every group commit. Raises JournalLocked,
        JournalDamaged, JournalFailed, DiskFull.
        """
        with ExitStack() as on_failure:
            on_failure.callback(disk.close)
            disk.lock()
            recovered = read_all(disk)
            writer = Writer(
                disk,
                journal_id=recovered.journal_id or draw_id(16),
                number=recovered.next_number,
                sequence=recovered.next_sequence,
                segment_bytes_max=segment_bytes_max,
                clock=clock,
            )
            writer.remove([name for name in recovered.ours if name.endswith(".new")])
            writer.begin(list(_image(recovered)), recovered.entries[-1][1] if recovered.entries else 0)
            writer.remove([name for name in recovered.ours if not name.endswith(".new")])
            on_failure.pop_all()
        return cls(disk, writer, recovered, on_sync)

    def __init__(
        self,
        disk: Disk,
        writer: Writer,
        recovered: Recovered,
        on_sync: Callable[[float, int], None] | None,
    ) -> None:
        self.recovery = Recovery(
            created=recovered.journal_id is None,
            segments=recovered.segments,
            frames=recovered.frames,
            entries=len(recovered.entries),
            torn=recovered.torn,
            removed=recovered.ours,
            rewritten_bytes=writer.disk_bytes,
        )
        self.position = 0
        self.durable_position = 0
        self.on_sync = on_sync
        self._disk = disk
        self._writer = writer
        self._term = recovered.term
        self._voted_for = recovered.voted_for
        self._commit_index = self._commit_index_written = recovered.commit_index
        self._log = recovered.entries
        self._positions = array("Q", bytes(8 * len(self._log)))  # where each entry of _log was staged
        self._ends = array("Q")  # bytes of all entries ever, up to the end of each one of _log
        self._bytes_before = 0  # the same at the start of _log
        for payload, _, _ in self._log:
            self._ends.append(self._total_bytes + len(payload))
        self._parts: list[bytes] = []
        self._record_count = 0
        self._cut_below: int | None = None
        self._staged_index = 0
        self._released: list[list[LogEntry]] = []
        self._before = self._carry()
        self._on_its_way: Batch | None = None
        self._durable_first_index = self._log[0][1] if self._log else 0
        self._note_figures()

    # --- PySyncObj's journal ---------------------------------------------------------------------------

    def add(self, command: bytes, idx: int, term: int) -> None:
        log = self._log
        if log:
            assert idx == log[-1][1] + 1, (idx, log[-1][1])
            assert term >= log[-1][2], (term, log[-1][2])
        self._stage(payload_head(KIND_ENTRY, idx, term, len(command)), command)
        self._keep((command, idx, term))

    def clear(self) -> None:
        self.deleteEntriesFrom(0)

    def deleteEntriesFrom(self, entryFrom: int) -> None:
        """Truncates: list position `entryFrom` is the first entry to go."""
        assert entryFrom >= 0
        if entryFrom >= len(self._log):
            return
        index = self._log[entryFrom][1]
        self._stage(encode_truncate(index))
        self._forget_from(index)
        self._released.append(self._log[entryFrom:])
        del self._log[entryFrom:], self._positions[entryFrom:], self._ends[entryFrom:]
        self._commit_index = min(self._commit_index, index - 1)

    def deleteEntriesTo(self, entryTo: int) -> None:
        """Compacts: list position `entryTo` becomes the first entry."""
        assert entryTo >= 0
        if entryTo >= len(self._log):
            self.clear()
        else:
            self.compact(self._log[entryTo][1], self._log[entryTo][2])

    @overload
    def __getitem__(self, item: int) -> LogEntry: ...

    @overload
    def __getitem__(self, item: slice) -> list[LogEntry]: ...

    def __getitem__(self, item: int | slice) -> LogEntry | list[LogEntry]:
        return self._log[item]

    def __len__(self) -> int:
        return len(self._log)

    def _destroy(self) -> None:
        self.close()

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:
        """A hint: it goes to disk with the next batch, and is no reason for one."""
        self._commit_index = raftCommitIndex

    def getRaftCommitIndex(self) -> int:
        """Never past the log's last entry, nor before its first; 1 for an empty log, as PySyncObj has it."""
        return max(1, self._commit_hint())

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:
        assert term >= self._term, (term, self._term)
        if (term, votedForNodeId) != (self._term, self._voted_for):
            self._stage(encode_hard_state(term, votedForNodeId))
            self._term, self._voted_for = term, votedForNodeId

    def getCurrentTerm(self) -> int:
        return self._term

    def getVotedForNodeId(self) -> str | None:
        return self._voted_for

    def onOneSecondTimer(self) -> None:
        """Nothing: syncs are driven by `dirty`."""

    # --- snapshots -------------------------------------------------------------------------------------

    def compact(self, index: int, term: int) -> None:
        """Drops the entries before `index`, which stays as the log's first. Call it only when a snapshot at
        `index` or behind it is durable: segments that are wholly behind go with later batches."""
        at = index - self._log[0][1]
        assert 0 <= at < len(self._log), (index, self._log[0][1], len(self._log))
        payload, _, own_term = self._log[at]
        assert own_term == term, (index, own_term, term)
        if at == 0:
            return
        self._stage(payload_head(KIND_COMPACT, index, term, len(payload)), payload)
        self._bytes_before = self._ends[at - 1]
        # What stays is copied: far less, after a snapshot, than what goes, which the worker frees.
        self._released.append(self._log)
        self._log, self._positions, self._ends = self._log[at:], self._positions[at:], self._ends[at:]

    def reset(self, index: int, term: int, payload: bytes) -> None:
        """The whole log becomes the one entry at a snapshot's index."""
        self._stage(payload_head(KIND_RESET, index, term, len(payload)), payload)
        self._forget_from(1)
        self._released.append(self._log)
        self._bytes_before = self._total_bytes
        self._log, self._positions, self._ends = [], array("Q"), array("Q")
        self._keep((payload, index, term))

    # --- group commit ------------------------------------------------------------------------------------

    @property
    def dirty(self) -> bool:
        """Whether `cut` has something to take once no batch is on its way."""
        return self._record_count > 0 or (self._on_its_way is None and self._deletable)

    def cut(self) -> Batch | None:
        """Everything that is staged, as one frame. None if there is nothing, or a batch is on its way."""
        if self._on_its_way is not None or not self.dirty:
            return None
        group = self._cut_group() if self._record_count else None
        batch = Batch(
            self.position,
            group,
            self._before,
            self._cut_below,
            self._staged_index,
            self._log[0][1] if self._log else 0,
            self._released,
        )
        self._parts, self._record_count, self._released = [], 0, []
        self._cut_below, self._staged_index = None, 0
        self._before = self._carry()
        self._on_its_way = batch
        return batch

    def write(self, batch: Batch) -> None:
        """On a worker thread: the batch is on disk when this returns. Raises JournalFailed or DiskFull; the
        process must then stop, for this journal takes nothing more."""
        writer = self._writer
        if writer.can_delete(self._durable_first_index):
            writer.delete_oldest()
        if batch.group is not None:
            writer.append(batch.group, lambda: encode_carry(batch.before))
        if batch.cut_below is not None:
            writer.cut_below(batch.cut_below)
        writer.needs(batch.last_index)
        for entries in batch.released:
            while entries:
                del entries[-RELEASED_AT_ONCE:]

    def synced(self, batch: Batch) -> None:
        """Back on the loop, after `write` returned."""
        assert batch is self._on_its_way
        self._on_its_way = None
        self.durable_position = batch.position
        self._durable_first_index = batch.first_index
        self._note_figures()
        if batch.group is not None and self.on_sync is not None:
            self.on_sync(self._writer.sync_seconds_last, batch.group.frame_bytes)

    # --- what is durable ---------------------------------------------------------------------------------

    @property
    def durable_index(self) -> int:
        """The highest index up to which all entries of the present log are durable. Before the first entry
        is, the index before it; 0 for an empty log. O(log n), right across truncations."""
        if not self._log:
            return 0
        return self._log[0][1] - 1 + bisect_right(self._positions, self.durable_position)

    @property
    def position_of_last_entry(self) -> int:
        """The log's last entry is durable once `durable_position` has reached this. 0 for an empty log."""
        return self._positions[-1] if self._log else 0

    def position_of(self, index: int) -> int:
        """The same for any entry of the present log."""
        return self._positions[index - self._log[0][1]]

    @property
    def log_bytes(self) -> int:
        """Bytes of the payloads in the present log."""
        return self._total_bytes - self._bytes_before

    def close(self) -> None:
        """Releases the directory. Not while a batch is being written. What is staged is dropped: nobody was
        told that it is durable."""
        self._writer.close()
        self._disk.close()

    # --- inside --------------------------------------------------------------------------------------------

    @property
    def _total_bytes(self) -> int:
        return self._ends[-1] if self._ends else self._bytes_before

    def _stage(self, *parts: bytes) -> None:
        self._parts += parts
        self._record_count += 1
        self.position += 1

    def _keep(self, entry: LogEntry) -> None:
        self._ends.append(self._total_bytes + len(entry[0]))
        self._log.append(entry)
        self._positions.append(self.position)
        self._staged_index = max(self._staged_index, entry[1])

    def _forget_from(self, index: int) -> None:
        """Entries at and behind `index` that are staged or on disk are needed no more."""
        self._cut_below = index if self._cut_below is None else min(self._cut_below, index)
        self._staged_index = min(self._staged_index, index - 1)

    def _commit_hint(self) -> int:
        if not self._log:
            return 0
        return max(self._log[0][1], min(self._commit_index, self._log[-1][1]))

    def _carry(self) -> Carry:
        base = self._log[0] if self._log else None
        next_index = self._log[-1][1] + 1 if self._log else 0
        return Carry(self._term, self._voted_for, self._commit_index_written, next_index, base)

    def _cut_group(self) -> Group:
        hint = self._commit_hint()
        if hint != self._commit_index_written:
            self._parts.append(encode_commit_hint(hint))
            self._record_count += 1
            self._commit_index_written = hint
        return Group(self._parts, self._record_count)

    def _note_figures(self) -> None:
        """What the worker owns while it writes, copied for the loop when it does not."""
        writer = self._writer
        self._deletable = writer.can_delete(self._durable_first_index)
        self.segments = len(writer.segments)
        self.disk_bytes = writer.disk_bytes
        self.sync_count = writer.sync_count
        self.sync_seconds_last = writer.sync_seconds_last


def read_all(disk: Disk) -> Recovered:
    """What the journal holds, and nothing written. Raises JournalDamaged, JournalFailed."""
    try:
        return recover(disk.names(), disk.read)
    except OSError as error:
        raise journal_failure(error, disk.directory, "reading the journal", 0) from error


def _image(recovered: Recovered) -> Iterator[Group]:
    """All that a start keeps, as frames of about `IMAGE_FRAME_BYTES`."""
    parts = [
        encode_hard_state(recovered.term, recovered.voted_for),
        encode_commit_hint(recovered.commit_index),
    ]
    count, size = 2, 0
    for number, (payload, index, term) in enumerate(recovered.entries):
        kind = KIND_ENTRY if number else KIND_RESET
        parts += (payload_head(kind, index, term, len(payload)), payload)
        count += 1
        size += len(payload)
        if size >= IMAGE_FRAME_BYTES:
            yield Group(parts, count)
            parts, count, size = [], 0, 0
    if parts:
        yield Group(parts, count)
