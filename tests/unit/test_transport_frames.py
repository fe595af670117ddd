"""Frames: what was sealed comes out, whole and in order, and nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkv.raft.frames import HEADER_BYTES, FrameError, Opener, Sealer

KEY = b"k" * 32
FRAME_BYTES_MAX = 1000

payloads = st.lists(st.binary(min_size=1, max_size=300), max_size=8)


def sealed(items: list[bytes], key: bytes = KEY) -> list[bytes]:
    sealer = Sealer(key)
    return [sealer.seal(item) + item for item in items]


def opener(key: bytes = KEY) -> Opener:
    return Opener(key, frame_bytes_max=FRAME_BYTES_MAX)


def opened(
    stream: bytes, *, piece_bytes: int = 1 << 20, by: Opener | None = None
) -> tuple[list[bytes], bool]:
    """The payloads that came out, and whether the stream was refused."""
    by = by or opener()
    out: list[bytes] = []
    try:
        for start in range(0, len(stream), piece_bytes):
            out.extend(bytes(payload) for payload in by.feed(stream[start : start + piece_bytes]))
    except FrameError:
        return out, True
    return out, False


@settings(max_examples=100, deadline=None)
@given(items=payloads, piece_bytes=st.integers(1, 700))
def test_frames_come_out_however_the_stream_is_cut(items: list[bytes], piece_bytes: int) -> None:
    assert opened(b"".join(sealed(items)), piece_bytes=piece_bytes) == (items, False)


@settings(max_examples=50, deadline=None)
@given(items=payloads, cut=st.integers(0, 3000))
def test_a_torn_stream_gives_its_whole_frames_only(items: list[bytes], cut: int) -> None:
    frames = sealed(items)
    stream = b"".join(frames)[:cut]
    whole = sum(1 for i in range(len(frames)) if len(b"".join(frames[: i + 1])) <= cut)
    assert opened(stream) == (items[:whole], False)


def test_no_bit_can_be_changed() -> None:
    items = [b"first", b"second", b"third"]
    stream = b"".join(sealed(items))
    for bit in range(len(stream) * 8):
        changed = bytearray(stream)
        changed[bit // 8] ^= 1 << bit % 8
        out, _ = opened(bytes(changed), piece_bytes=1)
        assert out == items[: len(out)], f"bit {bit}"
        assert len(out) < len(items), f"bit {bit}"


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 0, 1), (0, 2), (0, 1, 1), (2, 1, 0)])
def test_frames_can_not_be_moved_repeated_or_dropped(order: tuple[int, ...]) -> None:
    items = [b"same", b"same", b"other"] if order == (1, 0, 2) else [b"zero", b"one", b"two"]
    frames = sealed(items)
    out, refused = opened(b"".join(frames[i] for i in order))
    assert refused
    assert out == items[: len(out)]


def test_frames_of_another_connection_are_refused() -> None:
    assert opened(b"".join(sealed([b"x"], key=b"j" * 32))) == ([], True)


def test_a_length_out_of_bounds_is_refused_at_its_fourth_byte() -> None:
    for length in (0, FRAME_BYTES_MAX + 1, 0xFFFFFFFF):
        by = opener()
        header = length.to_bytes(4, "little")
        assert list(by.feed(header[:3])) == []
        with pytest.raises(FrameError, match="are allowed"):
            list(by.feed(header[3:]))


def test_the_largest_frame_passes() -> None:
    item = b"x" * FRAME_BYTES_MAX
    assert opened(b"".join(sealed([item])), piece_bytes=7) == ([item], False)


def test_nothing_but_one_frame_is_ever_kept() -> None:
    by = opener()
    stream = b"".join(sealed([b"y" * FRAME_BYTES_MAX] * 3))
    for start in range(0, len(stream), 13):
        list(by.feed(stream[start : start + 13]))
        assert by.buffered_bytes < HEADER_BYTES + FRAME_BYTES_MAX


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200), piece_bytes=st.integers(1, 50))
def test_random_bytes_give_no_frame(data: bytes, piece_bytes: int) -> None:
    assert opened(data, piece_bytes=piece_bytes)[0] == []
