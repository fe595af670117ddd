"""The half of the journal that blocks: segments on disk, written by one worker thread at a time.

Order is everything here:
- a segment is made under an unfinished name, filled with its first frames, synced, renamed, and the
  directory synced, before anything in it counts;
- a frame is written and synced before the next one is;
- segments are deleted oldest first, one at a time, the directory synced after each, so that what is left
  is always a run without a gap.

A failed call is never retried: the kernel may have dropped the pages and report the next sync as good
("Can Applications Recover from fsync Failures?", USENIX ATC 2020). The journal is of no use after it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from raftkv.errors import DiskFull, JournalFailed
from raftkv.journal.disk import Disk, File
from raftkv.journal.record import (
    FRAME_OVERHEAD_BYTES,
    HEADER_BYTES,
    SECTOR_BYTES,
    SegmentHeader,
    encode_frame,
    encode_header,
    segment_name,
    unfinished_name,
)

GROUP_BYTES_MAX = 1 << 31  # half of what a frame's length can say: room for a carried state besides


@dataclass(frozen=True, slots=True)
class Group:
    """Encoded records that become one frame."""

    parts: Sequence[bytes]
    record_count: int

    @property
    def frame_bytes(self) -> int:
        return FRAME_OVERHEAD_BYTES + sum(map(len, self.parts))


@dataclass(slots=True)
class Segment:
    number: int
    bytes: int
    needed_index: int  # the highest index of an entry in it that the log may still need


class Writer:
    def __init__(
        self,
        disk: Disk,
        *,
        journal_id: bytes,
        number: int,
        sequence: int,
        segment_bytes_max: int,
        clock: Callable[[], float],
    ) -> None:
        self.segments: list[Segment] = []  # oldest first; the last one is written to
        self.sync_count = 0
        self.sync_seconds_last = 0.0
        self._disk = disk
        self._journal_id = journal_id
        self._number = number
        self._sequence = sequence
        self._segment_bytes_max = segment_bytes_max
        self._clock = clock
        self._file: File | None = None
        self._seed = 0
        self._offset = 0
        self._limit = 0
        self._failure: JournalFailed | None = None

    @property
    def disk_bytes(self) -> int:
        return sum(segment.bytes for segment in self.segments)

    def begin(self, groups: Sequence[Group], last_index: int) -> None:
        """A segment that starts the journal anew with all of `groups`; older ones are then superseded."""
        self._publish(groups, anew=True)
        self.segments[-1].needed_index = last_index

    def append(self, group: Group, carry: Callable[[], bytes]) -> None:
        """One group commit, on disk when this returns. `carry` encodes the state before it, which a new
        segment opens with."""
        size = group.frame_bytes
        if size > GROUP_BYTES_MAX:
            raise self._fail(JournalFailed(f"a group commit of {size} bytes is more than a frame can hold"))
        if self._offset + size > self._limit:
            self._publish([Group((carry(), *group.parts), group.record_count + 1)], anew=False)
            return
        with self._failing("writing a frame", size):
            assert self._file is not None
            frame = encode_frame(self._seed, self._sequence, group.record_count, group.parts)
            self._file.write(self._offset, frame)
            self._sync(self._file)
        self._offset += size
        self._sequence += 1

    def cut_below(self, index: int) -> None:
        """A truncation from `index` is on disk: nobody needs what earlier frames hold at or above it."""
        for segment in self.segments:
            segment.needed_index = min(segment.needed_index, index - 1)

    def needs(self, index: int) -> None:
        """The frame just written holds entries up to `index`."""
        self.segments[-1].needed_index = max(self.segments[-1].needed_index, index)

    def can_delete(self, compacted_index: int) -> bool:
        return len(self.segments) > 1 and self.segments[0].needed_index <= compacted_index

    def delete_oldest(self) -> None:
        name = segment_name(self.segments[0].number)
        with self._failing(f"deleting {name}", 0):
            self._disk.unlink(name)
            self._disk.sync_directory()
        del self.segments[0]

    def remove(self, names: Sequence[str]) -> None:
        """Files that nothing depends on, in any order."""
        with self._failing("deleting superseded segments", 0):
            for name in names:
                self._disk.unlink(name)
            if names:
                self._disk.sync_directory()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _publish(self, groups: Sequence[Group], *, anew: bool) -> None:
        content = HEADER_BYTES + sum(group.frame_bytes for group in groups)
        size = -(-max(self._segment_bytes_max, content) // SECTOR_BYTES) * SECTOR_BYTES
        name = segment_name(self._number)
        with self._failing(f"making {name}", size):
            file = self._disk.create(unfinished_name(self._number))
            self.close()
            self._file = file
            preallocated = file.preallocate(size)
            self._fill(file, groups, anew=anew, preallocated_bytes=size if preallocated else 0)
            self._sync(file)
            self._disk.rename(unfinished_name(self._number), name)
            self._disk.sync_directory()
        self.segments.append(Segment(self._number, size if preallocated else content, 0))
        self._limit = size
        self._number += 1

    def _fill(self, file: File, groups: Sequence[Group], *, anew: bool, preallocated_bytes: int) -> None:
        settled = self._sequence + len(groups) - 1
        header = SegmentHeader(
            self._journal_id, self._number, self._sequence, settled, anew, preallocated_bytes
        )
        self._seed = header.seed
        file.write(0, encode_header(header))
        self._offset = HEADER_BYTES
        for group in groups:
            file.write(
                self._offset, encode_frame(self._seed, self._sequence, group.record_count, group.parts)
            )
            self._offset += group.frame_bytes
            self._sequence += 1

    def _sync(self, file: File) -> None:
        started = self._clock()
        file.sync()
        self.sync_seconds_last = self._clock() - started
        self.sync_count += 1

    @contextmanager
    def _failing(self, doing: str, wanted_bytes: int) -> Iterator[None]:
        if self._failure is not None:
            raise JournalFailed(f"the journal failed before and takes nothing more: {self._failure}")
        try:
            yield
        except OSError as error:
            raise self._fail(journal_failure(error, self._disk.directory, doing, wanted_bytes)) from error

    def _fail(self, failure: JournalFailed) -> JournalFailed:
        self._failure = failure
        return failure


def journal_failure(error: OSError, directory: str, doing: str, wanted_bytes: int) -> JournalFailed:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(
            f"no room left in {directory}: {doing} wanted {wanted_bytes} bytes ({error.strerror}). Free some "
            "space and start the node again; nothing that was acknowledged is lost."
        )
    return JournalFailed(
        f"{doing} in {directory} failed: {error}. It is not retried, since what the disk holds is unknown "
        "after this. Check the disk, then start the node again: it recovers what is there."
    )
