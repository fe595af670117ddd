"""What fuzzing has found: each input broke its reader once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest

from raftkv.errors import SnapshotDamaged
from raftkv.kv.command import Put, decode_entry, encode, encode_entry
from raftkv.kv.image import MachineState, Page, Section
from raftkv.kv.machine import Machine
from raftkv.snapshot import ranges, remote
from raftkv.snapshot.codec import decode_manifest
from tests.unit.snapshot_samples import CLUSTER

MANIFEST = next((Path(__file__).parents[1] / "golden" / "snapshot_1").glob("*.manifest")).read_bytes()
NOT_UTF8, DEEP = b'"\x82"', b"[" * 5000


def checked(text: bytes) -> bytes:
    return text + b"\n" + hashlib.sha256(text).hexdigest().encode() + b"\n"


@pytest.mark.parametrize("inside", [NOT_UTF8, DEEP])
def test_a_manifest_with_a_right_checksum_around_nonsense_is_damaged(inside: bytes) -> None:
    text = MANIFEST.partition(b"\n")[0]
    with pytest.raises(SnapshotDamaged):
        decode_manifest(checked(text.replace(b'"1f0c2a77', inside, 1)))
    with pytest.raises(SnapshotDamaged):
        decode_manifest(checked(text[:-1] + b',"added":' + inside))


@pytest.mark.parametrize("inside", [NOT_UTF8, DEEP])
def test_an_entry_of_a_store_s_index_with_a_right_checksum_around_nonsense_is_damaged(inside: bytes) -> None:
    text = b'{"cluster":' + inside
    key = ranges.chain_key(CLUSTER, 7)
    with pytest.raises(SnapshotDamaged):
        ranges._decode_chain(key, text + b"\n" + ranges._digest(key, text))
    with pytest.raises(SnapshotDamaged):
        remote.decode_attempt("a/1", text + b"\n" + remote._digest("a/1", text))


def test_a_command_with_a_field_nested_without_end_is_refused() -> None:
    put = msgspec.msgpack.decode(encode(Put(b"a", b"1")))
    deep = msgspec.msgpack.encode([*put, None])[:-1] + b"\x91" * 5000 + b"\xc0"
    with pytest.raises(ValueError, match="unreadable command"):
        decode_entry(encode_entry(0, [deep]))


def test_a_queue_of_outcomes_that_names_none_is_refused() -> None:
    for name in (b"cnobody", b"nobody"):
        pages = [Page(Section.QUEUE, [bytes(16) + (b"c" if name[:1] == b"c" else b"p")], [name])]
        with pytest.raises(ValueError, match="queue of outcomes"):
            Machine.load(MachineState(9, 99, 0, 0), pages)
