"""What passes for a message: numbers that a log can hold, and nothing else of the right shape."""

from __future__ import annotations

import msgspec
import pytest

from raftkv.raft.messages import NUMBER_MAX, AppendEntries, Entry, ReadIndexReply, decode, encode
from tests.fuzz.targets import message_samples


@pytest.mark.parametrize("number", [-1, -(1 << 63), NUMBER_MAX + 1, (1 << 64) - 1, 1.5, "1", None])
def test_a_term_or_an_index_that_no_log_holds_is_no_message(number: object) -> None:
    good = msgspec.to_builtins(AppendEntries(1, 2, 3, 1, 3, (Entry(1, b"\x01"),)))
    for at in range(1, 6):
        with pytest.raises(ValueError, match="not a message"):
            decode(msgspec.msgpack.encode([*good[:at], number, *good[at + 1 :]]))
    with pytest.raises(ValueError, match="not a message"):
        decode(msgspec.msgpack.encode([*good[:6], [[number, b"\x01"]]]))


def test_a_read_index_may_be_refused() -> None:
    assert decode(encode(ReadIndexReply(4, 7, -1))).index == -1  # type: ignore[union-attr]


@pytest.mark.parametrize("sample", message_samples(), ids=lambda sample: msgspec.msgpack.decode(sample)[0])
def test_every_message_comes_back_as_it_was(sample: bytes) -> None:
    assert encode(decode(sample)) == sample
