"""The journal's encodings: round trips, and no bytes that make the reader do anything but refuse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.journal.record import (
    FRAME_HEAD_BYTES,
    FRAME_OVERHEAD_BYTES,
    HEADER_BYTES,
    Carry,
    CommitHint,
    Compact,
    Entry,
    HardState,
    Record,
    Reset,
    SegmentHeader,
    Truncate,
    Unreadable,
    body_of,
    decode_body,
    decode_frame_head,
    decode_header,
    encode,
    encode_frame,
    encode_header,
    parse_name,
    segment_name,
    unfinished_name,
)

numbers = st.integers(0, 2**64 - 1)
indexes = st.integers(1, 2**64 - 1)
payloads = st.binary(max_size=100)
votes = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
records: st.SearchStrategy[Record] = st.one_of(
    st.builds(Entry, indexes, numbers, payloads),
    st.builds(Compact, indexes, numbers, payloads),
    st.builds(Reset, indexes, numbers, payloads),
    st.builds(HardState, numbers, votes),
    st.builds(Truncate, numbers),
    st.builds(CommitHint, numbers),
    st.builds(Carry, numbers, votes, numbers, numbers, st.none() | st.tuples(payloads, indexes, numbers)),
)


@given(st.lists(records, max_size=8), numbers, st.integers(0, 2**32 - 1))
def test_frames_round_trip(written: list[Record], sequence: int, seed: int) -> None:
    data = b"before" + encode_frame(seed, sequence, len(written), [encode(r) for r in written]) + b"behind"
    head = decode_frame_head(data, 6, seed)
    assert head is not None
    assert (head.sequence, head.record_count, head.frame_bytes) == (sequence, len(written), len(data) - 12)
    body = body_of(data, 6, head)
    assert body is not None
    assert list(decode_body(body, head.record_count)) == written


@given(st.lists(records, min_size=1, max_size=3))
def test_no_prefix_of_a_frame_is_a_frame(written: list[Record]) -> None:
    data = encode_frame(7, 1, len(written), [encode(r) for r in written])
    for size in range(len(data)):
        for torn in (data[:size], data[:size].ljust(len(data), b"\0")):
            head = decode_frame_head(torn, 0, 7)
            assert head is None or body_of(torn, 0, head) is None


def test_a_frame_of_another_place_does_not_fit() -> None:
    data = encode_frame(7, 1, 1, [encode(Truncate(1))])
    assert decode_frame_head(data, 0, 8) is None


def test_a_body_under_another_head_does_not_fit() -> None:
    """The body's checksum starts from the head, so that neither can be swapped for another's."""
    one, two = (encode_frame(7, sequence, 1, [encode(Truncate(1))]) for sequence in (1, 2))
    mixed = one[:FRAME_HEAD_BYTES] + two[FRAME_HEAD_BYTES:]
    assert mixed == one
    swapped = two[:24] + one[24:28] + two[28:]
    assert decode_frame_head(swapped, 0, 7) is None


@given(
    st.builds(
        SegmentHeader,
        st.binary(min_size=16, max_size=16),
        numbers,
        numbers,
        numbers,
        st.booleans(),
        st.integers(0, 2**32 - 1).map(lambda sectors: sectors * 512),
    )
)
def test_headers_round_trip(header: SegmentHeader) -> None:
    data = encode_header(header)
    assert len(data) == HEADER_BYTES
    assert decode_header(data + b"frames") == header


@given(st.binary(max_size=200), st.integers(0, 5))
def test_any_body_is_read_or_unreadable(body: bytes, count: int) -> None:
    try:
        found = list(decode_body(memoryview(body), count))
    except Unreadable:
        return
    assert b"".join(encode(r) for r in found) == body, "what is read means one thing only"


@pytest.mark.parametrize("kind", range(1, 8))
def test_a_record_longer_than_its_frame_is_refused(kind: int) -> None:
    """A length is compared with what is there before anything is made from it."""
    with pytest.raises(Unreadable, match="longer than what is left"):
        list(decode_body(memoryview(bytes([kind]) + b"\xff\xff\xff\xff" + b"x" * 20), 1))


def test_a_frame_that_says_it_is_huge_is_not_believed() -> None:
    data = encode_frame(7, 1, 1, [b"x" * 100])
    head = decode_frame_head(data, 0, 7)
    assert head is not None
    assert body_of(data[:-1], 0, head) is None
    assert len(data) == 100 + FRAME_OVERHEAD_BYTES


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (segment_name(1), (1, True)),
        (unfinished_name(12), (12, False)),
        ("1.journal", None),
        ("0000000000000001.journal.new.new", None),
        ("0000000000000001.journal\n", None),
        ("x0000000000000001.journal", None),
        ("٠٠٠٠٠٠٠٠٠٠٠٠٠٠٠١.journal", None),
    ],
)
def test_only_our_own_names_are_ours(name: str, expected: tuple[int, bool] | None) -> None:
    assert parse_name(name) == expected
