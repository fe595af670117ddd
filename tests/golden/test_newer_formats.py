"""Every format says its version, and what is newer is refused, with both versions and what to do."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from raftkv.errors import RaftkvError
from raftkv.journal import record
from raftkv.journal.recovery import recover
from raftkv.journal.wal import Wal
from raftkv.kv.command import decode_entry
from raftkv.raft import handshake, identity, opening
from raftkv.raft.handshake import HandshakeFailed, admit
from raftkv.snapshot import ranges
from raftkv.snapshot.codec import decode_manifest
from raftkv.snapshot.directory import DirectoryStore
from raftkv.snapshot.remote import open_remote
from tests.golden.test_published import PUBLISHED
from tests.sim.disk import MemoryDisk
from tests.unit.test_handshake import MEMBERSHIP, acceptor, standing
from tests.unit.test_journal_golden import GOLDEN as JOURNAL

HERE = Path(__file__).parent
START = "start the release that wrote it, or a newer one"


def greeting(_: Path) -> None:
    acceptor(standing("n2")).feed(b"RAFTKV\x02D" + b"d" * 32)


def refusal(refused: handshake.Refusal | None) -> None:
    assert refused is not None
    raise ValueError(refused.reason)


def hello(_: Path, **told: int) -> None:
    me = standing("n2")
    said = msgspec.structs.replace(standing("n1").hello(target="n2", release="0.9"), **told)
    refusal(admit(said, me.identity, None, me.initial_members))


def hello_to_level(_: Path) -> None:
    me = standing("n2", formed=True)
    said = standing("n1", formed=True).hello(target="n2", release="0.9")
    refusal(admit(said, me.identity, msgspec.structs.replace(MEMBERSHIP, level=2), ()))


def journal(files: dict[str, bytes]) -> None:
    recover(list(files), lambda name, size: files[name] if size < 0 else files[name][:size])


def golden_journal() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in JOURNAL.glob("*.journal")}


def segment(_: Path) -> None:
    files = golden_journal()
    name = max(files)
    data = bytearray(files[name])
    struct.pack_into("<I", data, 8, 2)
    struct.pack_into("<I", data, 60, zlib.crc32(data[:60]))
    journal({**files, name: bytes(data)})


def frame(_: Path) -> None:
    header = record.SegmentHeader(b"j" * 16, 1, 1, 0, True, 0)
    head = bytearray(record.encode_frame(header.seed, 1, 0, []))
    struct.pack_into("<H", head, 4, 2)
    body = zlib.crc32(head[:24], header.seed)
    struct.pack_into("<I", head, 24, body)
    struct.pack_into("<I", head, 28, zlib.crc32(head[24:28], body))
    journal({record.segment_name(1): record.encode_header(header) + bytes(head)})


def manifest(_: Path) -> None:
    text = next((HERE / "snapshot_1").glob("*.manifest")).read_bytes().partition(b"\n")[0]
    text = text.replace(b'"format":1', b'"format":9')
    decode_manifest(text + b"\n" + hashlib.sha256(text).hexdigest().encode() + b"\n")


def store(tmp_path: Path) -> None:
    shutil.copytree(PUBLISHED, tmp_path / "store")
    index = json.loads((tmp_path / "store" / "index").read_bytes())
    index["entries"]["format"] = "9"
    (tmp_path / "store" / "index").write_text(json.dumps(index))
    open_remote((tmp_path / "store").as_uri(), {}).list()


def log_range(_: Path) -> None:
    data = ranges.encode_range(
        cluster="c" * 32, first=7, base_term=2, previous="", times=[(7, 1)], entries=[(3, b"\x00")]
    )[:-32].replace(b'"format":1', b'"format":9')
    ranges.decode_range(data + hashlib.sha256(data).digest())


def log_entry(_: Path) -> None:
    decode_entry(b"\x02" + bytes(8))


def command(_: Path) -> None:
    unknown = msgspec.msgpack.encode(["zap", b"key"])
    decode_entry(b"\x01" + bytes(8) + struct.pack("<I", len(unknown)) + unknown)


def membership(tmp_path: Path) -> None:
    disk = MemoryDisk(random.Random(0))
    wal = Wal.open(disk)
    opening.found(wal, msgspec.structs.replace(MEMBERSHIP, level=2))
    wal.close()
    (tmp_path / "snapshots").mkdir()
    opening.open_state(disk, DirectoryStore.open(tmp_path / "snapshots"))


def identity_file(tmp_path: Path) -> None:
    identity.load_or_create(tmp_path, "n1")
    document = json.loads((tmp_path / identity.FILE).read_bytes()) | {"format": 2}
    (tmp_path / identity.FILE).write_text(json.dumps(document))
    identity.load_or_create(tmp_path, "n1")


NEWER: dict[str, tuple[Callable[[Path], None], str, str, str]] = {
    "the raft port's greeting": (greeting, "version 2", "this node 1", "upgrade this node"),
    "a member that speaks too much": (
        lambda path: hello(path, protocol=9, protocol_min=8),
        "8 to 9",
        "1 to 1",
        "upgrade n2",
    ),
    "a member that speaks too little": (
        lambda path: hello(path, protocol=0, protocol_min=0),
        "0 to 0",
        "1 to 1",
        "upgrade n1",
    ),
    "a member below the cluster's level": (hello_to_level, "level 2", "1 at most", "upgrade n1"),
    "a journal's segment": (segment, "version 2", "version 1", "start that release, or a later one"),
    "a journal's frame": (frame, "version 2", "version 1", "start that release, or a later one"),
    "a snapshot's manifest": (manifest, "format 9", "formats 1 and 2", START),
    "a published store": (store, "format 9", "format 1", START),
    "a range of the archived log": (log_range, "format 9", "format 1", START),
    "a log entry": (log_entry, "version 2", "version 1", START),
    "a command": (command, "'zap'", "this release", "start that one, or a newer one"),
    "a membership": (
        membership,
        "level 2",
        "1 at most",
        "start the release that ran here before, or a newer",
    ),
    "the identity": (identity_file, "format 2", "format 1", START),
}


@pytest.mark.parametrize("name", NEWER)
def test_what_is_newer_is_refused_with_both_versions_and_what_to_do(name: str, tmp_path: Path) -> None:
    read, theirs, ours, do = NEWER[name]
    with pytest.raises((ValueError, HandshakeFailed, RaftkvError)) as caught:
        read(tmp_path)
    for words in (theirs, ours, do):
        assert words in str(caught.value), f"{words!r} is not in: {caught.value}"
