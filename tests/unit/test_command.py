"""The encoding of log entries: what goes in comes out, and damage never passes for a command."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.kv.command import Command, Get, Put, decode_entry, encode, encode_entry
from tests.unit.test_machine_model import AnyCommand

LogTimes = st.integers(0, 2**64 - 1)


@given(LogTimes, st.lists(AnyCommand, max_size=5))
def test_entries_round_trip(log_time_ms: int, commands: list[Command]) -> None:
    payload = encode_entry(log_time_ms, map(encode, commands))
    assert decode_entry(payload) == (log_time_ms, commands)


@given(LogTimes, st.lists(AnyCommand, max_size=3))
def test_a_torn_entry_is_refused_or_ends_between_commands(log_time_ms: int, commands: list[Command]) -> None:
    encoded = [encode(command) for command in commands]
    payload = encode_entry(log_time_ms, encoded)
    whole = {len(encode_entry(0, encoded[:count])): count for count in range(len(encoded) + 1)}
    for cut in range(len(payload)):
        if cut in whole:
            assert decode_entry(payload[:cut]) == (log_time_ms, commands[: whole[cut]])
        else:
            with pytest.raises(ValueError, match="log entry"):
                decode_entry(payload[:cut])


@given(st.binary(max_size=40))
def test_random_bytes_decode_or_raise_value_error(payload: bytes) -> None:
    try:
        log_time_ms, commands = decode_entry(payload)
    except ValueError:
        return
    assert decode_entry(encode_entry(log_time_ms, map(encode, commands))) == (log_time_ms, commands)


def test_an_entry_of_another_version_is_named() -> None:
    payload = encode_entry(1, [encode(Put(b"a", b"1"))])
    with pytest.raises(ValueError, match="version 2; this release reads version 1"):
        decode_entry(b"\x02" + payload[1:])


@pytest.mark.parametrize(
    "bad",
    [
        msgspec.msgpack.encode(Get(b"only in a transaction")),
        msgspec.msgpack.encode(["z", b"no such command"]),
        msgspec.msgpack.encode(["p", b"key"]),
        msgspec.msgpack.encode(["p", "text, not bytes", 7]),
        msgspec.msgpack.encode({"t": "p"}),
        b"",
    ],
)
def test_what_is_no_command_is_refused(bad: bytes) -> None:
    with pytest.raises(ValueError, match="unreadable command at byte"):
        decode_entry(encode_entry(1, [bad]))


def test_a_command_of_a_newer_release_is_named() -> None:
    newer = msgspec.msgpack.encode(["lease", 1, 2])
    with pytest.raises(ValueError, match="does not know its kind 'lease'; where a newer release wrote it"):
        decode_entry(encode_entry(1, [encode(Put(b"a", b"1")), newer]))
