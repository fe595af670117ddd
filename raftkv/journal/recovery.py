"""What a start makes of the segments that it finds. PURE: names and bytes in, a decision out.

Three facts carry it:

- One frame is on its way at a time, and each is synced before the next is written. So only the last frame
  of the last segment can be torn, and nothing but zeros lies behind it.
- Frames go into zeros that were preallocated (or at the end of the file), and a disk writes a sector of 512
  bytes whole or not at all. So a torn frame lacks whole sectors, or stops short; one that is all there and
  does not fit its checksum was changed later: it may have been acknowledged, and cutting it could lose an
  acknowledged write. (etcd's WAL tells the two apart alike: `isTornEntry` in server/storage/wal/decoder.go.)
- A segment gets its name only once its first frames are on disk, so those, and its header, are never torn.

A segment that is ANEW holds all that counted when it was written; what is older is superseded. Every start
writes one, so nothing is ever appended behind what a crash left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

from raftkv.errors import JournalDamaged
from raftkv.journal.record import (
    FRAME_HEAD_BYTES,
    FRAME_MAGIC,
    HEADER_BYTES,
    SECTOR_BYTES,
    Carry,
    CommitHint,
    Compact,
    Entry,
    FrameHead,
    HardState,
    LogEntry,
    Record,
    Reset,
    SegmentHeader,
    Truncate,
    Unreadable,
    body_of,
    decode_body,
    decode_frame_head,
    decode_header,
    parse_name,
    segment_name,
)


class What(Enum):
    """What lies where the next frame should begin."""

    FRAME = "a whole frame with the expected sequence"
    JUMP = "a whole frame with another sequence"
    NOTHING = "zeros to the end of the file"
    TORN = "a frame of which whole sectors, or its end, were never written"
    DAMAGE = "bytes that no interrupted write leaves behind"


class Where(Enum):
    SETTLED = "among the frames that were on disk before the segment got its name"
    SEALED = "behind those, in a segment that has a successor"
    TAIL = "behind those, in the last segment"


class Action(Enum):
    TAKE = "take the frame and look behind it"
    END = "the segment ends here"
    CUT = "leave the torn frame out: it was never acknowledged"
    REFUSE = "stop: something that may have been acknowledged can't be read"


DECISIONS: dict[tuple[What, Where], Action] = {
    (What.FRAME, Where.SETTLED): Action.TAKE,
    (What.FRAME, Where.SEALED): Action.TAKE,
    (What.FRAME, Where.TAIL): Action.TAKE,
    (What.JUMP, Where.SETTLED): Action.REFUSE,
    (What.JUMP, Where.SEALED): Action.REFUSE,
    (What.JUMP, Where.TAIL): Action.REFUSE,
    (What.NOTHING, Where.SETTLED): Action.REFUSE,
    (What.NOTHING, Where.SEALED): Action.END,  # the successor's first sequence says if this is all
    (What.NOTHING, Where.TAIL): Action.END,
    (What.TORN, Where.SETTLED): Action.REFUSE,
    (What.TORN, Where.SEALED): Action.REFUSE,
    (What.TORN, Where.TAIL): Action.CUT,
    (What.DAMAGE, Where.SETTLED): Action.REFUSE,
    (What.DAMAGE, Where.SEALED): Action.REFUSE,
    (What.DAMAGE, Where.TAIL): Action.REFUSE,
}


@dataclass(frozen=True, slots=True)
class TornTail:
    """A frame that a crash interrupted, and that was left out. Nobody was ever told that it was durable."""

    segment: str
    offset: int
    bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class FrameFound:
    """For whoever wants to see every frame (`journal inspect`)."""

    segment: str
    offset: int
    head: FrameHead
    records: tuple[Record, ...]


@dataclass(slots=True)
class Recovered:
    """All that the journal says. `entries` are in order of index, without a gap."""

    journal_id: bytes | None  # None: there is no journal yet
    term: int = 0
    voted_for: str | None = None
    commit_index: int = 0
    entries: list[LogEntry] = field(default_factory=list)
    next_sequence: int = 1
    next_number: int = 1
    segments: int = 0
    frames: int = 0
    torn: TornTail | None = None
    ours: tuple[str, ...] = ()  # every file of the journal, unfinished and superseded ones included


def recover(
    names: Sequence[str],
    read: Callable[[str, int], bytes],
    on_segment: Callable[[str, SegmentHeader, int], None] | None = None,
    on_frame: Callable[[FrameFound], None] | None = None,
) -> Recovered:
    """`read(name, size)` gives a file's first bytes, all of them for -1. Raises JournalDamaged with file,
    offset and what to do; whatever it returns is whole up to the last frame, or says where it was cut."""
    ours = sorted((*parsed, name) for name in names if (parsed := parse_name(name)))
    chain = _chain([number for number, finished, _ in ours if finished], read)
    result = Recovered(journal_id=chain[0].journal_id if chain else None)
    result.ours = tuple(name for _, _, name in ours)
    result.next_number = ours[-1][0] + 1 if ours else 1
    if not chain:
        return result
    replay = Replay()
    sequence = chain[0].first_sequence
    for header in chain:
        name = segment_name(header.number)
        if header.first_sequence != sequence:
            raise damaged(
                name,
                HEADER_BYTES,
                f"it begins with frame {header.first_sequence}, but the segment before it ends with "
                f"frame {sequence - 1}: frames are missing",
            )
        data = read(name, -1)
        if on_segment is not None:
            on_segment(name, header, len(data))
        scan = _Scan(name, data, header, last=header is chain[-1])
        for found in scan.frames():
            if on_frame is not None:
                on_frame(found)
            replay.frame(found, header)
        sequence = scan.sequence
        result.frames += sequence - header.first_sequence
        result.torn = scan.torn
    replay.finish(segment_name(chain[-1].number))
    result.segments = len(chain)
    result.next_sequence = sequence
    result.term, result.voted_for = replay.term, replay.voted_for
    result.entries = replay.entries
    result.commit_index = replay.clamped_commit_index()
    return result


def damaged(name: str, offset: int, reason: str, *, newer: bool = False) -> JournalDamaged:
    if newer:
        advice = "It was written by a newer release of raftkv: start that release, or a later one."
    else:
        advice = (
            "Nothing was changed on disk. The other members hold what was acknowledged: keep this directory "
            "aside, check the disk, give the member an empty data directory and re-admit it. Never delete "
            "single segments: that turns a known loss into a silent one."
        )
    return JournalDamaged(f"the journal is damaged: {name} at byte {offset}: {reason}. {advice}")


# --- which segments count ------------------------------------------------------------------------------


def _chain(numbers: Sequence[int], read: Callable[[str, int], bytes]) -> list[SegmentHeader]:
    """The headers of the segments that count, oldest first: back from the newest to one that is ANEW, or
    to the oldest there is (compaction deletes from that end)."""
    chain: list[SegmentHeader] = []
    for number in reversed(numbers):
        name = segment_name(number)
        try:
            header = decode_header(read(name, HEADER_BYTES))
        except Unreadable as error:
            raise damaged(name, 0, str(error), newer=error.newer) from error
        if header.number != number:
            raise damaged(name, 32, f"its header says that it is segment {header.number}")
        if chain and header.journal_id != chain[-1].journal_id:
            raise damaged(
                name,
                16,
                f"it belongs to journal {header.journal_id.hex()}, "
                f"the segment behind it to {chain[-1].journal_id.hex()}",
            )
        if chain and chain[-1].number != number + 1:
            raise damaged(segment_name(number + 1), 0, f"the segment is missing, and {name} is there")
        chain.append(header)
        if header.anew:
            break
    return chain[::-1]


# --- one segment: frame by frame -------------------------------------------------------------------------


class _Scan:
    """Walks a segment. After `frames` is exhausted, `sequence` is the next one and `torn` what was cut."""

    def __init__(self, name: str, data: bytes, header: SegmentHeader, *, last: bool) -> None:
        self.name = name
        self.header = header
        self.sequence = header.first_sequence
        self.torn: TornTail | None = None
        self._data = data
        self._last = last
        self._used = len(data.rstrip(b"\0"))

    def frames(self) -> Iterator[FrameFound]:
        if len(self._data) < self.header.preallocated_bytes:
            raise damaged(
                self.name,
                len(self._data),
                f"the file ends here, though it was made with {self.header.preallocated_bytes} bytes",
            )
        at = HEADER_BYTES
        while True:
            what, reason, head = self._look(at)
            match DECISIONS[what, self._where()]:
                case Action.TAKE:
                    assert head is not None
                    yield self._found(at, head)
                    at += head.frame_bytes
                    self.sequence += 1
                case Action.END:
                    return
                case Action.CUT:
                    self.torn = TornTail(self.name, at, self._used - at, reason)
                    return
                case Action.REFUSE:
                    raise damaged(self.name, at, f"{reason}, {self._where().value}")

    def _look(self, at: int) -> tuple[What, str, FrameHead | None]:
        try:
            return look(self._data, at, self._used, self.header.seed, self.sequence)
        except Unreadable as error:
            raise damaged(self.name, at, str(error), newer=error.newer) from error

    def _where(self) -> Where:
        if self.sequence <= self.header.settled_sequence:
            return Where.SETTLED
        return Where.TAIL if self._last else Where.SEALED

    def _found(self, at: int, head: FrameHead) -> FrameFound:
        start = at + FRAME_HEAD_BYTES
        body = memoryview(self._data)[start : start + head.body_bytes]
        try:
            return FrameFound(self.name, at, head, tuple(decode_body(body, head.record_count)))
        except Unreadable as error:
            raise damaged(self.name, at, str(error), newer=error.newer) from error


def look(data: bytes, at: int, used: int, seed: int, expected: int) -> tuple[What, str, FrameHead | None]:
    """What lies at `at`, in words, and the frame's head if it is whole. `used`: from there on all is zero.
    Raises Unreadable for a whole frame of another version."""
    if used <= at:
        return What.NOTHING, "only zeros follow", None
    head = decode_frame_head(data, at, seed)
    if head is None:
        return *_look_without_head(data, at, used, seed), None
    end = at + head.frame_bytes
    if head.sequence != expected:
        return What.JUMP, f"frame {head.sequence} stands where frame {expected} must be", head
    if body_of(data, at, head) is not None:
        return What.FRAME, "", head
    if used > end:
        return What.DAMAGE, f"frame {expected} does not fit its checksum and is not the last one", head
    if end > len(data) or used < end or _lacks_a_sector(data, at, end):
        return What.TORN, f"frame {expected} of {end - at} bytes was not written to its end", head
    return What.DAMAGE, f"frame {expected} is all there and does not fit its checksum", head


def _look_without_head(data: bytes, at: int, used: int, seed: int) -> tuple[What, str]:
    end = at + FRAME_HEAD_BYTES
    if used > end and not _lacks_a_sector(data, at, end):
        return What.DAMAGE, "a frame's head does not fit its checksum"
    if (behind := _find_frame(data, at + 1, seed)) is not None:
        return What.DAMAGE, f"a frame's head is missing, yet a whole frame follows at byte {behind}"
    return What.TORN, "a frame's head was not written"


def _lacks_a_sector(data: bytes, start: int, end: int) -> bool:
    """Whether a part of start..end that lies in one sector is all zeros: then that sector may be missing."""
    while start < end:
        stop = min(end, start - start % SECTOR_BYTES + SECTOR_BYTES)
        if data.count(0, start, stop) == stop - start:
            return True
        start = stop
    return False


def _find_frame(data: bytes, start: int, seed: int) -> int | None:
    at = data.find(FRAME_MAGIC, start)
    while at >= 0:
        head = decode_frame_head(data, at, seed)
        if head is not None and body_of(data, at, head) is not None:
            return at
        at = data.find(FRAME_MAGIC, at + 1)
    return None


# --- all segments: record by record ------------------------------------------------------------------------


class Replay:
    """The log and the hard state as the records make them, in order.

    Compaction deletes old segments whole, so the oldest one left may open (CARRY) with entries that are
    gone: `_present_from` is the first index whose entry was read. Later records must compact, truncate or
    reset all that is missing away, or else a segment that was needed is gone.
    """

    def __init__(self) -> None:
        self.term = 0
        self.voted_for: str | None = None
        self.commit_index = 0
        self.entries: list[LogEntry] = []  # from _present_from on
        self._base: LogEntry | None = None  # the log's first entry; None: the log is empty
        self._present_from = 0
        self._next_index = 0  # meaningful while there is a base
        self._blank = True  # no record yet

    def frame(self, found: FrameFound, header: SegmentHeader) -> None:
        opens = not header.anew and found.head.sequence == header.first_sequence
        for number, record in enumerate(found.records):
            try:
                if isinstance(record, Carry) != (opens and number == 0):
                    raise Unreadable(
                        "a state to carry over stands where none belongs, or lacks where one does"
                    )
                self.apply(record)
            except Unreadable as error:
                raise damaged(found.segment, found.offset, f"record {number}: {error}") from error
        if opens and not found.records:
            raise damaged(found.segment, found.offset, "the segment does not open with a state to carry over")

    def apply(self, record: Record) -> None:
        """Raises Unreadable where the record does not follow from those before it."""
        match record:
            case Entry(index, term, payload):
                self._append(payload, index, term)
            case HardState(term, voted_for):
                if term < self.term:
                    raise Unreadable(f"the term goes back from {self.term} to {term}")
                self.term, self.voted_for = term, voted_for
            case Truncate(index):
                self._truncate(index)
            case CommitHint(index):
                self.commit_index = index
            case Compact(index, term, payload):
                self._compact(payload, index, term)
            case Reset(index, term, payload):
                self._reset((payload, index, term))
            case Carry():
                self._carry(record)
        self._blank = False

    def finish(self, name: str) -> None:
        if self._base is None:
            return
        payload, index, term = self._base
        if self._present_from > index + 1:
            raise damaged(
                name,
                0,
                f"entries {index + 1} to {self._present_from - 1} are missing: "
                "a segment before this one is gone",
            )
        if self._present_from == index + 1:
            self.entries.insert(0, (payload, index, term))
            self._present_from = index

    def clamped_commit_index(self) -> int:
        """A hint may be of a log that was longer; what was compacted away was committed."""
        if self._base is None:
            return 0
        return max(self._base[1], min(self.commit_index, self._next_index - 1))

    def _append(self, payload: bytes, index: int, term: int) -> None:
        if self._base is None:
            self._reset((payload, index, term))
            return
        if index != self._next_index:
            raise Unreadable(f"entry {index} where entry {self._next_index} must be")
        last_term = self.entries[-1][2] if self.entries else self._base[2]
        if term < last_term:
            raise Unreadable(f"entry {index} has term {term}, the one before it {last_term}")
        self.entries.append((payload, index, term))
        self._next_index += 1

    def _truncate(self, index: int) -> None:
        if self._base is None or index >= self._next_index:
            raise Unreadable(f"a truncation from {index} of a log that ends before it")
        if index <= self._base[1]:
            self._base = None
            self.entries = []
            return
        del self.entries[max(0, index - self._present_from) :]
        self._present_from = min(self._present_from, index)
        self._next_index = index

    def _compact(self, payload: bytes, index: int, term: int) -> None:
        if self._base is None or not self._base[1] <= index < self._next_index:
            raise Unreadable(f"a compaction to {index}, which is not in the log")
        if index >= self._present_from:
            kept = self.entries[index - self._present_from]
            if kept[2] != term:
                raise Unreadable(f"a compaction to {index} of term {term}; the log has term {kept[2]}")
            del self.entries[: index - self._present_from]
            self._present_from = index
        self._base = (payload, index, term)

    def _reset(self, entry: LogEntry) -> None:
        self._base = entry
        self.entries = [entry]
        self._present_from = entry[1]
        self._next_index = entry[1] + 1

    def _carry(self, carry: Carry) -> None:
        if not self._blank:  # there was a segment before: they must agree
            ours = (self.term, self.voted_for, self._base and self._base[1:], self._base and self._next_index)
            theirs = (
                carry.term,
                carry.voted_for,
                carry.base and carry.base[1:],
                carry.base and carry.next_index,
            )
            if ours != theirs:
                raise Unreadable(f"the segments before end with {ours}, this one goes on from {theirs}")
            return
        self.term, self.voted_for, self.commit_index = carry.term, carry.voted_for, carry.commit_index
        self._base = carry.base
        self._next_index = carry.next_index
        self._present_from = carry.next_index
