"""Recovery over every class of damage: small journals, every byte, every sector, every segment.

The property throughout: a start either refuses, or finds exactly the state at the end, or (for the tail
alone) the state before the last frame. Never anything else.
"""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.errors import JournalDamaged
from raftkv.journal import record
from raftkv.journal.record import (
    HEADER_BYTES,
    SECTOR_BYTES,
    Carry,
    CommitHint,
    Compact,
    Entry,
    HardState,
    Record,
    Reset,
    SegmentHeader,
    Truncate,
    encode,
    encode_frame,
    encode_header,
    segment_name,
)
from raftkv.journal.recovery import DECISIONS, FrameFound, Recovered, What, Where, recover
from raftkv.journal.wal import Wal
from tests.sim.disk import MemoryDisk

Files = dict[str, bytes]
JOURNAL_ID = b"journal-identity"


def recovered(files: Files, on_frame: Callable[[FrameFound], None] | None = None) -> Recovered:
    return recover(list(files), lambda name, size: files[name][: size if size >= 0 else None], None, on_frame)


def state(files: Files) -> tuple[object, ...]:
    found = recovered(files)
    return found.entries, found.term, found.voted_for, found.commit_index


def journal(
    commits: list[list[bytes]], *, preallocates: bool = True, segment_bytes_max: int = 1024
) -> list[Files]:
    """The files after each group commit of these payloads."""
    disk = MemoryDisk(random.Random(0), preallocates=preallocates)
    wal = Wal.open(disk, segment_bytes_max, clock=lambda: 0.0, draw_id=lambda size: JOURNAL_ID)
    history = []
    index = 0
    for payloads in commits:
        wal.setCurrentTerm(index + 1, "n1")
        for payload in payloads:
            index += 1
            wal.add(payload, index, wal.getCurrentTerm())
        wal.setRaftCommitIndex(index)
        batch = wal.cut()
        assert batch is not None
        wal.write(batch)
        wal.synced(batch)
        history.append({name: disk.read(name) for name in disk.names()})
    return history


COMMITS = [[b"a" * 20, b"b" * 200], [b"c" * 300], [b"d" * 300], [b"e" * 200, b"f" * 200], [b"g"], [b"h" * 60]]
TERMS = [1, 1, 3, 4, 5, 5, 7, 8]


def frames_of(files: Files) -> list[FrameFound]:
    found: list[FrameFound] = []
    recovered(files, found.append)
    return found


def end_of(frame: FrameFound) -> int:
    return frame.offset + frame.head.frame_bytes


def with_change(files: Files, name: str, at: int, data: bytes) -> Files:
    content = files[name]
    return {**files, name: content[:at] + data + content[at + len(data) :]}


def outcome(files: Files) -> tuple[object, ...] | None:
    """The state that a start finds; None where it refuses."""
    try:
        return state(files)
    except JournalDamaged as refusal:
        message = str(refusal)
    assert ".journal at byte " in message
    return None


def test_the_decision_table_is_complete() -> None:
    assert set(DECISIONS) == set(itertools.product(What, Where))


def test_the_documented_table_is_the_one_that_decides() -> None:
    text = (Path(__file__).parents[2] / "docs" / "journal-format.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in text.splitlines()]
    documented = {
        (What[row[0]], where): row[1 + number]
        for row in rows
        if len(row) == 4 and row[0] in What.__members__
        for number, where in enumerate((Where.SETTLED, Where.SEALED, Where.TAIL))
    }
    assert documented == {case: action.name for case, action in DECISIONS.items()}


def test_the_journals_of_these_tests_have_what_they_are_about() -> None:
    files = journal(COMMITS)[-1]
    assert len(files) == 3
    assert len([f for f in frames_of(files) if f.segment == max(files)]) > 1
    assert state(files)[0] == [
        (p, i, t) for i, (p, t) in enumerate(zip(itertools.chain(*COMMITS), TERMS, strict=True), 1)
    ]


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_a_flip_anywhere_but_in_the_tail_is_refused(mask: int) -> None:
    files = journal(COMMITS)[-1]
    whole = state(files)
    last = max(files)
    tail_start = frames_of(files)[-1].offset
    tail_end = end_of(frames_of(files)[-1])
    for name, content in files.items():
        for at in range(len(content)):
            found = outcome(with_change(files, name, at, bytes([content[at] ^ mask])))
            if name == last and at >= tail_end:
                assert found == whole, f"{name} byte {at}: only zeros were changed"
            else:
                where = "tail" if name == last and at >= tail_start else "body"
                assert found is None, f"{name} byte {at} ({where}): {found}"


def test_a_flip_in_a_tail_that_could_be_torn_never_gives_another_entry() -> None:
    """A payload of zeros looks like sectors that were never written: then the frame may be cut, no more."""
    history = journal([[b"a"], [bytes(900)]], segment_bytes_max=2048)
    before, whole = state(history[0]), state(history[1])
    files = history[1]
    name = max(files)
    results = set()
    for at in range(end_of(frames_of(history[0])[-1]), end_of(frames_of(files)[-1])):
        found = outcome(with_change(files, name, at, bytes([files[name][at] ^ 0xFF])))
        assert found in (None, before), f"byte {at}"
        assert found != whole
        results.add(found is None)
    assert False in results


def test_a_shorter_file_is_refused_where_the_file_system_preallocates() -> None:
    files = journal(COMMITS)[-1]
    for name, content in files.items():
        for size in range(len(content)):
            assert outcome({**files, name: content[:size]}) is None, f"{name} cut to {size}"


def test_a_shorter_last_segment_is_a_torn_tail_where_it_does_not() -> None:
    history = journal(COMMITS, preallocates=False)
    files = history[-1]
    states = [state(earlier) for earlier in history]
    last = max(files)
    ends = {end_of(frame): frame for frame in frames_of(files) if frame.segment == last}
    settled = min(ends)
    for name, content in files.items():
        for size in range(len(content)):
            found = outcome({**files, name: content[:size]})
            if name != last or size < settled:
                assert found is None, f"{name} cut to {size}"
            else:
                assert found == states[len(states) - 1 - sum(end > size for end in ends)], f"cut to {size}"


@pytest.mark.parametrize("preallocates", [True, False])
def test_a_tail_written_up_to_any_byte_is_cut(preallocates: bool) -> None:
    history = journal(
        [[b"a" * 400], [b"b" * 1500, b"c" * 30]], segment_bytes_max=4096, preallocates=preallocates
    )
    files, name = history[1], max(history[1])
    start, end = end_of(frames_of(history[0])[-1]), end_of(frames_of(files)[-1])
    for at in range(start, end):
        torn = with_change(files, name, at, bytes(end - at)) if preallocates else {name: files[name][:at]}
        result = recovered(torn)
        assert state(torn) == state(history[0]), f"written up to {at}"
        if at > start:
            assert result.torn is not None
            assert (result.torn.segment, result.torn.offset) == (name, start)


@pytest.mark.parametrize("filler", [b"x", b"\0", b"RKVF"])
@pytest.mark.parametrize("lead", range(0, 560, 40))
def test_a_tail_of_which_any_sectors_are_missing_is_cut(filler: bytes, lead: int) -> None:
    """Every subset of its sectors, with the frame's start at many places within one."""
    history = journal([[b"a" * lead], [filler * (1400 // len(filler))]], segment_bytes_max=4096)
    files, name = history[1], max(history[1])
    start, end = end_of(frames_of(history[0])[-1]), end_of(frames_of(files)[-1])
    cuts = [start, *range(start - start % SECTOR_BYTES + SECTOR_BYTES, end, SECTOR_BYTES), end]
    parts = list(itertools.pairwise(cuts))
    for written in itertools.product((True, False), repeat=len(parts)):
        torn = dict(files)
        for (part_start, part_end), kept in zip(parts, written, strict=True):
            if not kept:
                torn = with_change(torn, name, part_start, bytes(part_end - part_start))
        unchanged = torn == files
        assert state(torn) == state(history[1] if unchanged else history[0]), written


def test_a_whole_frame_behind_a_torn_one_is_damage() -> None:
    """One frame is on its way at a time: an acknowledged one lies behind."""
    files = journal([[b"a"], [b"b" * 1200], [b"c" * 10]], segment_bytes_max=4096)[-1]
    name = max(files)
    damaged, behind = frames_of(files)[-2:]
    for size in (1, 32, 600, damaged.head.frame_bytes):
        with pytest.raises(JournalDamaged, match=f"{name} at byte {damaged.offset}"):
            recovered(with_change(files, name, damaged.offset, bytes(size)))
    with pytest.raises(JournalDamaged, match="is not the last one"):
        recovered(with_change(files, name, damaged.offset + 40, bytes(1150)))
    with pytest.raises(JournalDamaged, match=f"a whole frame follows at byte {behind.offset}"):
        recovered(with_change(files, name, damaged.offset, bytes(damaged.head.frame_bytes)))


def test_a_missing_segment_is_refused() -> None:
    files = journal(COMMITS)[-1]
    first, middle, last = sorted(files)
    with pytest.raises(JournalDamaged, match="entries 2 to 3 are missing: a segment before this one is gone"):
        recovered({middle: files[middle], last: files[last]})
    with pytest.raises(
        JournalDamaged, match=f"{middle} at byte 0: the segment is missing, and {first} is there"
    ):
        recovered({first: files[first], last: files[last]})


def test_a_segment_under_another_name_is_refused() -> None:
    files = journal(COMMITS)[-1]
    names = sorted(files)
    with pytest.raises(JournalDamaged, match="says that it is segment 2"):
        recovered({**files, names[-1]: files[names[1]]})


def test_a_segment_of_another_journal_is_refused() -> None:
    files = journal(COMMITS)[-1]
    foreign = files[segment_name(3)]
    header = record.decode_header(foreign)
    fixed = encode_header(
        SegmentHeader(
            b"another-journal!",
            3,
            header.first_sequence,
            header.settled_sequence,
            False,
            header.preallocated_bytes,
        )
    )
    with pytest.raises(JournalDamaged, match="belongs to journal"):
        recovered(with_change(files, segment_name(3), 0, fixed))


def test_what_an_anew_segment_supersedes_is_not_even_read() -> None:
    files = journal([[b"a" * 50]])[-1]
    number = 9
    anew = made([(HardState(4, None), Reset(7, 3, b"seven"))], number=number, first=20)
    result = recovered({**files, "0000000000000003.journal": b"rubbish", segment_name(number): anew})
    assert (result.entries, result.term, result.next_number) == ([(b"seven", 7, 3)], 4, number + 1)
    assert len(result.ours) == 3


def test_unfinished_segments_and_files_that_are_not_ours_are_not_read() -> None:
    files = journal([[b"a" * 50]])[-1]
    others = {
        "0000000000000007.journal.new": b"?",
        "notes.journal": b"?",
        "lost+found": b"",
        "7.journal": b"",
    }
    result = recovered({**files, **others})
    assert result.entries == recovered(files).entries
    assert set(result.ours) == {*files, "0000000000000007.journal.new"}
    assert result.next_number == 8


# --- what a frame may say ----------------------------------------------------------------------------------


def made(
    frames: list[tuple[Record, ...]],
    *,
    number: int = 1,
    first: int = 1,
    anew: bool = True,
    settled: int = 0,
    sequences: list[int] | None = None,
) -> bytes:
    header = SegmentHeader(JOURNAL_ID, number, first, settled, anew, 0)
    parts = [encode_header(header)]
    for sequence, records in zip(sequences or itertools.count(first), frames, strict=False):
        parts.append(encode_frame(header.seed, sequence, len(records), [encode(r) for r in records]))
    return b"".join(parts)


REFUSED: dict[str, tuple[list[tuple[Record, ...]], str]] = {
    "a gap": ([(Entry(1, 1, b""), Entry(3, 1, b""))], "entry 3 where entry 2 must be"),
    "twice": ([(Entry(1, 1, b""),), (Entry(1, 1, b""),)], "entry 1 where entry 2 must be"),
    "an older term": ([(Entry(1, 5, b""), Entry(2, 4, b""))], "entry 2 has term 4, the one before it 5"),
    "a term that goes back": ([(HardState(5, None),), (HardState(4, "n1"),)], "goes back from 5 to 4"),
    "truncation of nothing": ([(Truncate(1),)], "a truncation from 1 of a log that ends before it"),
    "truncation behind": ([(Entry(1, 1, b""), Truncate(2))], "a truncation from 2 of a log"),
    "compaction ahead": ([(Entry(1, 1, b""), Compact(2, 1, b""))], "a compaction to 2, which is not in"),
    "compaction of another": (
        [(Entry(1, 1, b""), Entry(2, 2, b""), Compact(2, 3, b""))],
        "the log has term 2",
    ),
    "a carry in the middle": ([(Entry(1, 1, b""), Carry(0, None, 0, 2, (b"", 1, 1)))], "to carry over"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_records_that_do_not_follow_are_refused(name: str) -> None:
    frames, reason = REFUSED[name]
    with pytest.raises(JournalDamaged, match=reason):
        recovered({segment_name(1): made(frames)})


def test_a_jump_in_the_sequence_is_refused() -> None:
    data = made([(Entry(1, 1, b""),), (Entry(2, 1, b""),)], sequences=[1, 3])
    with pytest.raises(JournalDamaged, match="frame 3 stands where frame 2 must be"):
        recovered({segment_name(1): data})


def test_a_segment_that_begins_too_late_is_refused() -> None:
    one = made([(Entry(1, 1, b""),)])
    two = made([(Carry(0, None, 0, 2, (b"", 1, 1)),)], number=2, first=3, anew=False)
    with pytest.raises(
        JournalDamaged, match="begins with frame 3, but the segment before it ends with frame 1"
    ):
        recovered({segment_name(1): one, segment_name(2): two})


@pytest.mark.parametrize(
    "carry",
    [
        Carry(6, None, 0, 3, (b"one", 1, 1)),
        Carry(5, "n2", 0, 3, (b"one", 1, 1)),
        Carry(5, None, 0, 4, (b"one", 1, 1)),
        Carry(5, None, 0, 3, (b"one", 2, 1)),
        Carry(5, None, 0, 3, None),
    ],
)
def test_a_carried_state_must_agree_with_the_segments_before(carry: Carry) -> None:
    one = made([(HardState(5, None), Entry(1, 1, b"one"), Entry(2, 1, b"two"))])

    def joined(carried: Carry) -> Files:
        two = made([(carried, Entry(3, 5, b"three"))], number=2, first=2, anew=False)
        return {segment_name(1): one, segment_name(2): two}

    assert len(recovered(joined(Carry(5, None, 1, 3, (b"one", 1, 1)))).entries) == 3
    with pytest.raises(JournalDamaged, match="the segments before end with"):
        recovered(joined(carry))


def test_a_segment_without_a_carried_state_is_refused() -> None:
    with pytest.raises(JournalDamaged, match="to carry over"):
        recovered({segment_name(2): made([(Entry(1, 1, b""),)], number=2, anew=False)})


def test_a_deleted_segment_may_have_held_only_what_is_compacted_away() -> None:
    carry = Carry(5, "n1", 3, 10, (b"one", 1, 1))

    def after(*records: Record) -> Recovered:
        return recovered({segment_name(2): made([(carry, *records)], number=2, first=9, anew=False)})

    with pytest.raises(JournalDamaged, match="entries 2 to 9 are missing"):
        after(Entry(10, 5, b""))
    with pytest.raises(JournalDamaged, match="entries 9 to 9 are missing"):
        after(Entry(10, 5, b""), Compact(8, 5, b"eight"))
    assert after(Entry(10, 5, b""), Compact(9, 5, b"nine")).entries == [(b"nine", 9, 5), (b"", 10, 5)]
    assert after(Entry(10, 5, b""), Compact(10, 5, b"")).entries == [(b"", 10, 5)]
    assert after(Truncate(5), Compact(4, 5, b"four")).entries == [(b"four", 4, 5)]
    assert after(Truncate(2)).entries == [(b"one", 1, 1)]
    assert after(Truncate(1)).entries == []
    assert after(Reset(50, 6, b"fifty"), Entry(51, 6, b"")).entries == [(b"fifty", 50, 6), (b"", 51, 6)]


def test_a_commit_hint_is_clamped_to_the_log() -> None:
    entries = (Entry(5, 1, b""), Entry(6, 1, b""))
    assert recovered({segment_name(1): made([(*entries, CommitHint(99))])}).commit_index == 6
    assert recovered({segment_name(1): made([(*entries, CommitHint(1))])}).commit_index == 5
    assert recovered({segment_name(1): made([(CommitHint(99),)])}).commit_index == 0


def test_damage_among_settled_frames_is_never_taken_for_a_torn_tail() -> None:
    data = made([(Entry(1, 1, b"x" * 2000),), (Entry(2, 1, b"y"),)], settled=2)
    name = segment_name(1)
    assert len(recovered({name: data}).entries) == 2
    for size in range(HEADER_BYTES, len(data), 7):
        with pytest.raises(JournalDamaged):
            recovered({name: data[:size]})
        with pytest.raises(JournalDamaged):
            recovered({name: data[:size] + bytes(len(data) - size)})


def restamped(data: bytes, at: int, value: bytes, size: int) -> bytes:
    """A header with other bytes at `at`, and its checksum right again."""
    fixed = data[:at] + value + data[at + len(value) : size - 4]
    return fixed + zlib.crc32(fixed).to_bytes(4, "little") + data[size:]


def test_a_newer_release_is_refused_by_name() -> None:
    data = made([(Entry(1, 1, b""),)])
    for at, value in ((8, b"\2"), (12, b"\3")):
        with pytest.raises(JournalDamaged, match="newer release"):
            recovered({segment_name(1): restamped(data, at, value, HEADER_BYTES)})


def test_an_unknown_kind_of_record_is_refused_as_newer() -> None:
    header = SegmentHeader(JOURNAL_ID, 1, 1, 0, True, 0)
    data = encode_header(header) + encode_frame(header.seed, 1, 1, [b"\x63" + (0).to_bytes(4, "little")])
    with pytest.raises(JournalDamaged, match=r"unknown kind 99.*newer release"):
        recovered({segment_name(1): data})


# --- anything at all -------------------------------------------------------------------------------------


def damaged_copies(files: Files, rng: random.Random) -> Iterator[Files]:
    for _ in range(400):
        copy = dict(files)
        for _ in range(rng.randint(1, 3)):
            name = rng.choice(sorted(copy))
            size = len(copy[name])
            at = rng.randrange(size)
            data = rng.choice(
                (bytes(rng.randint(1, 600)), rng.randbytes(rng.randint(1, 40)), copy[name][:at])
            )
            copy = with_change(copy, name, at, data[: size - at])
        yield copy


def test_any_damage_gives_a_state_that_once_was_or_a_refusal() -> None:
    """Zeros over the whole tail, several frames of it, look like a journal that never had them."""
    history = journal(COMMITS)
    states = [state(files) for files in history]
    for copy in damaged_copies(history[-1], random.Random(1)):
        assert outcome(copy) in (None, *states)


@given(st.binary(max_size=300))
def test_any_bytes_as_a_segment_are_refused_or_read(data: bytes) -> None:
    outcome({segment_name(1): data})
    outcome({segment_name(1): made([(Entry(1, 1, b"a"),)]) + data})
