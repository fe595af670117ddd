"""How the journal looks on disk: segments, frames, records. PURE: bytes in, values out, and back.

All numbers are little endian; all checksums are CRC-32 (zlib's). A journal is a directory of segments,
`NNNNNNNNNNNNNNNN.journal`, numbered in decimal without a gap. A segment is a header, then frames one behind
the other, then the zeros it was preallocated with.

    segment header, 64 bytes
     0  8  magic               b"raftkvJ\\n"
     8  4  version             1
    12  4  flags               bit 0 ANEW: the journal starts here, older segments are superseded
    16 16  journal id          drawn once for a directory; another id is a foreign segment
    32  8  segment number      the one in the file's name
    40  8  first sequence      of the first frame in here
    48  8  settled sequence    frames up to this one were on disk before the file got its name
    56  4  preallocated        in units of 512 bytes; the file is never shorter. 0: it grows as written
    60  4  checksum            of bytes 0..59. Later versions keep this layout up to here.

    frame: one group commit
     0  4  magic               b"RKVF"
     4  2  version             1
     6  2  reserved            0
     8  8  sequence            one more than the frame before, across segments
    16  4  body length         n
    20  4  record count
    24  4  body checksum       seeded with the head's first 24 bytes, the journal id and segment number
    28  4  head checksum       of bytes 0..27, seeded with the journal id and the segment number
    32  n  body                records
  32+n  4  end mark            b"\\nRKV": its last byte is not zero, so a write that stopped short shows

    record: kind u8 | length u32 (of what follows) | fields
     1 ENTRY      index u64 | term u64 | payload
     2 HARD_STATE term u64 | voted u8 (0: for nobody) | candidate's name, UTF-8
     3 TRUNCATE   index u64                          drops the entries at and behind it
     4 COMMIT     index u64                          a hint: known to be committed when this was written
     5 COMPACT    index u64 | term u64 | payload     drops the entries before this one, which stays
     6 RESET      index u64 | term u64 | payload     the log is this one entry
     7 CARRY      term u64 | commit u64 | next index u64 | base index u64 | base term u64 |
                  voted u8 | name length u16 | name | base payload
                  The state at the end of the segment before, first in every segment that is not ANEW, so
                  that older ones can be deleted. Base index 0: the log was empty.

Invariant: a length read from a file is compared with the bytes that are there before anything is sliced
or allocated from it. Reading never raises anything but `Unreadable`.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

VERSION = 1
SEGMENT_MAGIC = b"raftkvJ\n"
FRAME_MAGIC = b"RKVF"
FRAME_END = b"\nRKV"
FLAG_ANEW = 1
SECTOR_BYTES = 512  # what a disk writes whole or not at all

_SEGMENT_HEADER = struct.Struct("<8sII16sQQQI")
_CHECKSUM = struct.Struct("<I")
_FRAME_START = struct.Struct("<4sHHQII")
_FRAME_CHECKSUMS = struct.Struct("<II")
_RECORD_HEAD = struct.Struct("<BI")
_WITH_PAYLOAD = struct.Struct("<BIQQ")
_INDEX_TERM = struct.Struct("<QQ")
_INDEX = struct.Struct("<Q")
_HARD_STATE = struct.Struct("<QB")
_CARRY = struct.Struct("<QQQQQBH")

HEADER_BYTES = _SEGMENT_HEADER.size + _CHECKSUM.size
FRAME_HEAD_BYTES = _FRAME_START.size + _FRAME_CHECKSUMS.size
FRAME_OVERHEAD_BYTES = FRAME_HEAD_BYTES + len(FRAME_END)
FRAME_BODY_BYTES_MAX = (1 << 32) - 1  # what its length field can say

KIND_ENTRY, KIND_HARD_STATE, KIND_TRUNCATE, KIND_COMMIT, KIND_COMPACT, KIND_RESET, KIND_CARRY = range(1, 8)

LogEntry = tuple[bytes, int, int]  # (payload, index, term): the order in which PySyncObj keeps them


class Unreadable(ValueError):
    """The bytes are not what this release writes; the message says how. `newer`: a later format version."""

    def __init__(self, message: str, *, newer: bool = False) -> None:
        super().__init__(message)
        self.newer = newer


# --- segments --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    journal_id: bytes
    number: int
    first_sequence: int
    settled_sequence: int
    anew: bool
    preallocated_bytes: int

    @property
    def seed(self) -> int:
        """What the checksums of this segment's frames start from: a frame of another place never fits."""
        return zlib.crc32(self.journal_id + _INDEX.pack(self.number))


_SEGMENT_NAME = re.compile(r"([0-9]{16})\.journal(\.new)?\Z", re.ASCII)


def segment_name(number: int) -> str:
    return f"{number:016d}.journal"


def unfinished_name(number: int) -> str:
    """A segment's name until its first bytes are on disk."""
    return segment_name(number) + ".new"


def parse_name(name: str) -> tuple[int, bool] | None:
    """`(number, finished)`; None for a file that is not the journal's."""
    match = _SEGMENT_NAME.match(name)
    return (int(match[1]), match[2] is None) if match else None


def encode_header(header: SegmentHeader) -> bytes:
    units, rest = divmod(header.preallocated_bytes, SECTOR_BYTES)
    assert rest == 0
    fixed = _SEGMENT_HEADER.pack(
        SEGMENT_MAGIC,
        VERSION,
        FLAG_ANEW if header.anew else 0,
        header.journal_id,
        header.number,
        header.first_sequence,
        header.settled_sequence,
        units,
    )
    return fixed + _CHECKSUM.pack(zlib.crc32(fixed))


def decode_header(data: bytes) -> SegmentHeader:
    """From a segment's first `HEADER_BYTES`. Raises Unreadable."""
    if len(data) < HEADER_BYTES:
        raise Unreadable(f"the file has {len(data)} bytes, its header alone needs {HEADER_BYTES}")
    magic, version, flags, journal_id, number, first, settled, units = _SEGMENT_HEADER.unpack_from(data)
    if magic != SEGMENT_MAGIC:
        raise Unreadable("this is not a journal segment: its first bytes are wrong")
    (checksum,) = _CHECKSUM.unpack_from(data, _SEGMENT_HEADER.size)
    if checksum != zlib.crc32(data[: _SEGMENT_HEADER.size]):
        raise Unreadable("the header's checksum is wrong")
    if version != VERSION or flags & ~FLAG_ANEW:
        raise Unreadable(
            f"segment version {version} flags {flags:#x}; this release reads version {VERSION}", newer=True
        )
    return SegmentHeader(journal_id, number, first, settled, bool(flags & FLAG_ANEW), units * SECTOR_BYTES)


# --- frames ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FrameHead:
    sequence: int
    body_bytes: int
    record_count: int
    body_checksum: int
    body_seed: int

    @property
    def frame_bytes(self) -> int:
        return self.body_bytes + FRAME_OVERHEAD_BYTES


def encode_frame(seed: int, sequence: int, record_count: int, parts: Sequence[bytes]) -> bytes:
    """One frame around the encoded records in `parts` (cut anywhere: only their sum counts)."""
    body_bytes = sum(map(len, parts))
    if body_bytes > FRAME_BODY_BYTES_MAX:
        raise ValueError(f"a frame of {body_bytes} bytes; it can hold {FRAME_BODY_BYTES_MAX}")
    start = _FRAME_START.pack(FRAME_MAGIC, VERSION, 0, sequence, body_bytes, record_count)
    checksum = zlib.crc32(start, seed)
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    packed = _CHECKSUM.pack(checksum)
    head = start + packed + _CHECKSUM.pack(zlib.crc32(packed, zlib.crc32(start, seed)))
    return b"".join((head, *parts, FRAME_END))


def decode_frame_head(data: bytes, at: int, seed: int) -> FrameHead | None:
    """The head at `at`, whole and with its checksum right; None where there is no such head.
    Raises Unreadable(newer) for a good head of another version."""
    if at + FRAME_HEAD_BYTES > len(data) or not data.startswith(FRAME_MAGIC, at):
        return None
    _, version, reserved, sequence, body_bytes, count = _FRAME_START.unpack_from(data, at)
    body_checksum, head_checksum = _FRAME_CHECKSUMS.unpack_from(data, at + _FRAME_START.size)
    body_seed = zlib.crc32(data[at : at + _FRAME_START.size], seed)
    if head_checksum != zlib.crc32(_CHECKSUM.pack(body_checksum), body_seed):
        return None
    if version != VERSION or reserved:
        raise Unreadable(f"frame version {version}; this release reads version {VERSION}", newer=True)
    return FrameHead(sequence, body_bytes, count, body_checksum, body_seed)


def body_of(data: bytes, at: int, head: FrameHead) -> memoryview | None:
    """The body of the frame at `at`, or None: it does not fit its checksum, or is not all there."""
    start = at + FRAME_HEAD_BYTES
    end = start + head.body_bytes
    if end + len(FRAME_END) > len(data) or not data.startswith(FRAME_END, end):
        return None
    body = memoryview(data)[start:end]
    return body if zlib.crc32(body, head.body_seed) == head.body_checksum else None


# --- records ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    index: int
    term: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class HardState:
    term: int
    voted_for: str | None


@dataclass(frozen=True, slots=True)
class Truncate:
    index: int


@dataclass(frozen=True, slots=True)
class CommitHint:
    index: int


@dataclass(frozen=True, slots=True)
class Compact:
    index: int
    term: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Reset:
    index: int
    term: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Carry:
    """The state between two segments. `base` is the log's first entry; None: the log is empty."""

    term: int
    voted_for: str | None
    commit_index: int
    next_index: int
    base: LogEntry | None


Record = Entry | HardState | Truncate | CommitHint | Compact | Reset | Carry


def payload_head(kind: int, index: int, term: int, payload_bytes: int) -> bytes:
    """What stands before the payload of an ENTRY, COMPACT or RESET, so that the payload is not copied."""
    return _WITH_PAYLOAD.pack(kind, _INDEX_TERM.size + payload_bytes, index, term)


def encode_hard_state(term: int, voted_for: str | None) -> bytes:
    name = b"" if voted_for is None else voted_for.encode()
    fields = _HARD_STATE.pack(term, voted_for is not None) + name
    return _RECORD_HEAD.pack(KIND_HARD_STATE, len(fields)) + fields


def encode_truncate(index: int) -> bytes:
    return _RECORD_HEAD.pack(KIND_TRUNCATE, _INDEX.size) + _INDEX.pack(index)


def encode_commit_hint(index: int) -> bytes:
    return _RECORD_HEAD.pack(KIND_COMMIT, _INDEX.size) + _INDEX.pack(index)


def encode_carry(carry: Carry) -> bytes:
    payload, base_index, base_term = carry.base or (b"", 0, 0)
    name = b"" if carry.voted_for is None else carry.voted_for.encode()
    fields = _CARRY.pack(
        carry.term,
        carry.commit_index,
        carry.next_index,
        base_index,
        base_term,
        carry.voted_for is not None,
        len(name),
    )
    size = len(fields) + len(name) + len(payload)
    return b"".join((_RECORD_HEAD.pack(KIND_CARRY, size), fields, name, payload))


def encode(record: Record) -> bytes:
    """Any record, whole."""
    match record:
        case Entry(index, term, payload):
            return payload_head(KIND_ENTRY, index, term, len(payload)) + payload
        case Compact(index, term, payload):
            return payload_head(KIND_COMPACT, index, term, len(payload)) + payload
        case Reset(index, term, payload):
            return payload_head(KIND_RESET, index, term, len(payload)) + payload
        case HardState(term, voted_for):
            return encode_hard_state(term, voted_for)
        case Truncate(index):
            return encode_truncate(index)
        case CommitHint(index):
            return encode_commit_hint(index)
        case Carry():
            return encode_carry(record)


def decode_body(body: memoryview, record_count: int) -> Iterator[Record]:
    """The records of one frame, in order. Raises Unreadable: the checksum was right, so this is a bug or a
    newer release, never a torn write."""
    at = 0
    count = 0
    while at < len(body):
        if at + _RECORD_HEAD.size > len(body):
            raise Unreadable(f"the frame's body ends inside record {count}")
        kind, length = _RECORD_HEAD.unpack_from(body, at)
        at += _RECORD_HEAD.size
        if at + length > len(body):
            raise Unreadable(f"record {count} of {length} bytes is longer than what is left of its frame")
        yield _decode_record(kind, body[at : at + length])
        at += length
        count += 1
    if count != record_count:
        raise Unreadable(f"the frame says {record_count} records and holds {count}")


def _decode_record(kind: int, fields: memoryview) -> Record:
    try:
        match kind:  # as drawn above
            case 1:
                return Entry(*_decode_log_entry(fields))
            case 2:
                return _decode_hard_state(fields)
            case 3:
                return Truncate(*_INDEX.unpack(fields))
            case 4:
                return CommitHint(*_INDEX.unpack(fields))
            case 5:
                return Compact(*_decode_log_entry(fields))
            case 6:
                return Reset(*_decode_log_entry(fields))
            case 7:
                return _decode_carry(fields)
    except (struct.error, UnicodeDecodeError) as error:
        raise Unreadable(f"a record of kind {kind} with {len(fields)} bytes is malformed: {error}") from error
    raise Unreadable(f"a record of unknown kind {kind}", newer=True)


def _decode_log_entry(fields: memoryview) -> tuple[int, int, bytes]:
    index, term = _INDEX_TERM.unpack_from(fields)
    return index, term, bytes(fields[_INDEX_TERM.size :])


def _decode_hard_state(fields: memoryview) -> HardState:
    term, voted = _HARD_STATE.unpack_from(fields)
    name = str(fields[_HARD_STATE.size :], "utf-8")
    if voted > 1 or (name and not voted):
        raise Unreadable("a hard state with a malformed vote")
    return HardState(term, name if voted else None)


def _decode_carry(fields: memoryview) -> Carry:
    term, commit, next_index, base_index, base_term, voted, name_bytes = _CARRY.unpack_from(fields)
    name_end = _CARRY.size + name_bytes
    if name_end > len(fields) or voted > 1 or (name_bytes and not voted):
        raise Unreadable("a carried state with a malformed vote")
    voted_for = str(fields[_CARRY.size : name_end], "utf-8") if voted else None
    base = (bytes(fields[name_end:]), base_index, base_term) if base_index else None
    if base is None and (base_term or name_end < len(fields)):
        raise Unreadable("a carried state of an empty log with a first entry")
    return Carry(term, voted_for, commit, next_index, base)
