"""Everything that reads bytes which this process did not make, and what each may do with any bytes at all.

A target takes one input. It passes where its reader returns, or raises one of the errors that it documents;
where a value came out, it must be one that is written as it was read. Formats that are guarded by a checksum
or a MAC have two targets: the bytes as they come, and the inside of a guard that is right, since no random
change ever gets past it. Whoever runs a target watches time and memory: `tests/fuzz/watch.py`.
"""

from __future__ import annotations

import hashlib
import random
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec
import zstandard

from raftkv.api.bodies import Line, parse_line, parse_lines, parse_transaction
from raftkv.api.limits import Limits
from raftkv.errors import ConfigError, Fatal, JournalDamaged, RaftkvError, SnapshotDamaged
from raftkv.journal import record
from raftkv.journal.recovery import recover
from raftkv.kv.command import decode_entry, encode, encode_entry
from raftkv.kv.image import MachineState, Page, Section
from raftkv.kv.machine import Machine
from raftkv.model import Member
from raftkv.raft import forming, handshake, identity, membership, messages
from raftkv.raft.frames import FrameError, Opener, Sealer
from raftkv.raft.handshake import Acceptor, Answer, Dialer, Established, HandshakeFailed, Refused, Send
from raftkv.snapshot import codec, ranges, remote
from raftkv.snapshot.codec import Chunk
from tests.fuzz import http
from tests.golden.test_state_formats import (
    COMMANDS,
    LOG_TIME_MS,
    TOKEN_COMMANDS,
    a_machine,
    a_machine_with_tokens,
)
from tests.unit.snapshot_samples import CLUSTER, MEMBERSHIP, dump, pages_of
from tests.unit.test_handshake import acceptor, dialer, standing

GOLDEN = Path(__file__).parents[1] / "golden"
FRAME_BYTES_MAX = 1 << 20
UNPACKED_BYTES_MAX = 1 << 22  # what the samples' heads say; a lie about it must not cost more


@dataclass(frozen=True, slots=True)
class Target:
    """`run` raises for a finding. An input of n bytes may allocate `bytes_fixed + bytes_each * n`."""

    name: str
    run: Callable[[bytes], None]
    samples: Callable[[], Sequence[bytes]]
    share: float = 1.0  # of all inputs: less for the slow ones
    bytes_each: int = 100  # Python's objects are large: an empty one of ours, read from three bytes, has 64
    bytes_fixed: int = 1 << 20


WITH_LEARNER = msgspec.structs.replace(
    MEMBERSHIP,
    members=(*MEMBERSHIP.members, Member("n2", "127.0.0.1:8411", "http://127.0.0.1:8410")),
    instances=(*MEMBERSHIP.instances, ("n2", "")),
    learners=("n2",),
    promoting=("n2",),
    term=3,
    index=7,
)


# --- the raft port ---------------------------------------------------------------------------------------


def _pieces(data: bytes) -> Iterator[bytes]:
    """The input as a network brings it: in pieces, whose sizes its first byte draws."""
    if not data:
        return
    rng, at = random.Random(data[0]), 1
    while at < len(data):
        size = rng.choice((1, 3, 20, 40, 1000, 10_000))
        yield data[at : at + size]
        at += size


def run_acceptor(data: bytes) -> None:
    with suppress(HandshakeFailed):
        end = acceptor(standing("n2"), nonce=b"f" * 32)
        for piece in _pieces(data):
            assert not any(isinstance(event, Established) for event in end.feed(piece)), (
                "let in without the secret"
            )


def run_dialer(data: bytes) -> None:
    with suppress(HandshakeFailed):
        end = dialer(standing("n1"), nonce=b"f" * 32)
        for piece in _pieces(data):
            assert not any(isinstance(event, Established) for event in end.feed(piece)), (
                "let in without the secret"
            )


def handshake_samples() -> list[bytes]:
    """What either end hears of a handshake that works, and with a byte before it that cuts it."""
    one, other = dialer(standing("n1")), acceptor(standing("n2"))
    to_other = [one.greeting]
    to_one = [event.data for event in other.feed(one.greeting) if isinstance(event, Send)]
    to_other += [event.data for event in one.feed(to_one[0]) if isinstance(event, Send)]
    to_one += [event.data for event in other.feed(to_other[1]) if isinstance(event, Send)]
    return [b"\0" + b"".join(each) for each in (to_other, to_one)]


class _Statements:
    """Statements under the right MAC, whatever they say: a member whose build is another."""

    def __init__(self) -> None:
        self._one, self._other = dialer(standing("n1")), acceptor(standing("n2"))

    def to_acceptor(self, payload: bytes) -> None:
        (greeting,) = (
            event.data for event in self._other.feed(self._one.greeting) if isinstance(event, Send)
        )
        self._one.feed(greeting)
        self._feed(self._other, self._one._keys, "hello", b"", payload)

    def to_dialer(self, payload: bytes) -> None:
        (greeting,) = (
            event.data for event in self._other.feed(self._one.greeting) if isinstance(event, Send)
        )
        self._one.feed(greeting)
        self._feed(self._one, self._one._keys, "answer", self._one._statement, payload)

    def _feed(self, end: Acceptor | Dialer, keys: object, key: str, before: bytes, payload: bytes) -> None:
        payload = payload[: handshake.STATEMENT_BYTES_MAX]
        with suppress(HandshakeFailed):
            events = end.feed(handshake._statement(getattr(keys, key), before, payload))
            assert any(isinstance(event, Established | Refused) for event in events)


def run_hello(data: bytes) -> None:
    _Statements().to_acceptor(data)


def run_answer(data: bytes) -> None:
    _Statements().to_dialer(data)


def hello_samples() -> list[bytes]:
    told = [
        standing(name, formed=formed).hello(target="n2", release="0")
        for name in ("n1", "n3")
        for formed in (0, 1)
    ]
    return [msgspec.msgpack.encode(each) for each in told] + [msgspec.msgpack.encode(Answer(told[0]))]


def run_frames(data: bytes) -> None:
    """Bytes behind a handshake: none is a frame, unless it was sealed for this place."""
    opener = Opener(b"k" * 32, frame_bytes_max=FRAME_BYTES_MAX)
    with suppress(FrameError):
        for piece in _pieces(data):
            for payload in opener.feed(piece):
                assert bytes(payload) in FRAME_PAYLOADS, "a frame that nobody sealed"
            assert opener.buffered_bytes <= FRAME_BYTES_MAX + 64


FRAME_PAYLOADS = [b"\x01" + b"x" * n for n in (1, 30, 3000)]


def frame_samples() -> list[bytes]:
    sealer = Sealer(b"k" * 32)
    frames = [sealer.seal(payload) + payload for payload in FRAME_PAYLOADS]
    return [b"\0" + frames[0], b"\1" + b"".join(frames[:2]), b"\2" + b"".join(frames)]


def run_message(data: bytes) -> None:
    with suppress(ValueError):
        message = messages.decode(data)
        assert messages.decode(messages.encode(message)) == message


def message_samples() -> list[bytes]:
    entries = (messages.Entry(3, b"\x00first"), messages.Entry(4, b"\x01"))
    made: list[messages.Message] = [
        messages.PreVote(3, 9, 2),
        messages.PreVoteReply(3, True, 2),
        messages.RequestVote(4, 9, 2),
        messages.VoteReply(4, False),
        messages.AppendEntries(4, 17, 9, 2, 8, entries),
        messages.AppendReply(4, 17, True, 11),
        messages.Commit(4, 11, 4),
        messages.Heartbeat(4, 18),
        messages.Echo(4, 18),
        messages.SnapshotOffer(4, 19, b"{}\n" + b"0" * 64 + b"\n"),
        messages.SnapshotFetch("0000000000004711-00000003-r4502-20260102T030405.678Z-1f0c2a77", 3, 1 << 20),
        messages.SnapshotPart("s", 3, 1 << 20, b"bytes"),
        messages.SnapshotInstalled(4, 4711),
        messages.ReadIndexRequest(4, 2**40),
        messages.ReadIndexReply(4, 2**40, -1),
        messages.TimeoutNow(4),
        messages.StateHash(4, 11, b"h" * 16),
    ]
    return [messages.encode(each) for each in made]


def run_control(data: bytes) -> None:
    with suppress(ValueError):
        control = forming.decode_control(data)
        assert forming.decode_control(forming.encode_control(control)) == control


def control_samples() -> list[bytes]:
    made = (
        forming.Ask("a" * 32),
        forming.Ready("a" * 32),
        forming.Found(MEMBERSHIP),
        forming.Found(MEMBERSHIP, WITH_LEARNER),
        forming.Confirmed("a" * 32),
    )
    return [forming.encode_control(each) for each in made]


# --- the journal -----------------------------------------------------------------------------------------

_NAMES = sorted(path.name for path in (GOLDEN / "journal").glob("*.journal"))


@cache
def _segments() -> dict[str, bytes]:
    return {name: (GOLDEN / "journal" / name).read_bytes() for name in _NAMES}


def _recover(files: dict[str, bytes]) -> None:
    with suppress(JournalDamaged):
        recovered = recover(list(files), lambda name, size: files[name] if size < 0 else files[name][:size])
        indexes = [index for _, index, _ in recovered.entries]
        assert indexes == list(range(indexes[0], indexes[0] + len(indexes))) if indexes else True
        terms = [term for _, _, term in recovered.entries]
        assert terms == sorted(terms)


def run_segment(data: bytes) -> None:
    """The last segment of a journal as it comes; the one before is whole."""
    _recover({**_segments(), _NAMES[-1]: data})


def run_records(data: bytes) -> None:
    """Frames whose checksums are right around records that say anything. The first byte is their number."""
    header = record.SegmentHeader(b"j" * 16, 1, 1, 0, True, 0)
    body, frames = data[1:], bytearray(record.encode_header(header))
    bodies = [body[: len(body) // 2], body[len(body) // 2 :]] if data[:1] >= b"\x80" else [body]
    for number, part in enumerate(bodies, 1):
        frames += record.encode_frame(header.seed, number, _count(part), [part])
    _recover({record.segment_name(1): bytes(frames)})


def _count(body: bytes) -> int:
    count = at = 0
    while at + 5 <= len(body):
        (length,) = struct.unpack_from("<I", body, at + 1)
        at, count = at + 5 + length, count + 1
    return count


def record_samples() -> list[bytes]:
    parts = [
        record.encode_hard_state(3, "n2"),
        record.encode(record.Reset(100, 2, b"\x01")),
        record.encode(record.Entry(101, 3, b"\x00first")),
        record.encode(record.Entry(102, 3, b"\x00second")),
        record.encode(record.Entry(103, 4, b"")),
        record.encode_truncate(102),
        record.encode(record.Entry(102, 5, b"\x00other")),
        record.encode_commit_hint(102),
        record.encode(record.Compact(101, 3, b"\x00first")),
        record.encode(record.Carry(5, "größe", 102, 103, (b"\x00first", 101, 3))),
        record.encode(record.Carry(5, None, 0, 0, None)),
    ]
    return [b"\0" + b"".join(parts[:upto]) for upto in range(1, len(parts) + 1)] + [
        b"\xff" + b"".join(parts[:9])
    ]


def run_header(data: bytes) -> None:
    """A header whose checksum is right."""
    fixed = data[:60].ljust(60, b"\0")
    with suppress(record.Unreadable):
        header = record.decode_header(fixed + struct.pack("<I", zlib.crc32(fixed)))
        assert record.decode_header(record.encode_header(header)) == header


# --- snapshots -------------------------------------------------------------------------------------------

_SNAPSHOT = GOLDEN / "snapshot_1"


@cache
def _manifest() -> bytes:
    return next(_SNAPSHOT.glob("*.manifest")).read_bytes()


def run_manifest(data: bytes) -> None:
    with suppress(SnapshotDamaged):
        manifest = codec.decode_manifest(data)
        assert codec.decode_manifest(codec.encode_manifest(manifest)) == manifest


def run_manifest_text(data: bytes) -> None:
    text = data.replace(b"\n", b" ")
    run_manifest(text + b"\n" + hashlib.sha256(text).hexdigest().encode() + b"\n")


def run_chunk(data: bytes) -> None:
    """A chunk that fits its manifest's hash, and is none: a store's own fault, or someone's work in it."""
    chunk = Chunk("c", len(data), UNPACKED_BYTES_MAX, hashlib.sha256(data).hexdigest())
    with suppress(SnapshotDamaged):
        assert len(codec.decompress(chunk, data)) == UNPACKED_BYTES_MAX


def chunk_samples() -> list[bytes]:
    packed = [codec.compress(raw) for raw in (bytes(UNPACKED_BYTES_MAX), dump(a_machine()), b"")]
    return [*packed, zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 16))]


def run_pages(data: bytes) -> None:
    """What was unpacked, and the machine that it makes: whatever loads can be read and dumped."""
    with suppress(ValueError):
        pages = list(codec.decode_pages(data))
        assert b"".join(map(codec.encode_page, pages)) == data
        machine = Machine.load(MachineState(9, 99, 0, 0), pages)
        assert _records(pages_of(machine)) == _records(pages)


def _records(pages: Sequence[Page]) -> list[tuple[Section, bytes, bytes]]:
    return [(page.section, *pair) for page in pages for pair in zip(page.keys, page.records, strict=True)]


def page_samples() -> list[bytes]:
    return [dump(a_machine()), dump(a_machine_with_tokens())]


def run_range(data: bytes) -> None:
    with suppress(SnapshotDamaged):
        found = ranges.decode_range(data)
        assert found.head.last - found.head.first + 1 == len(found.entries)
        for index in range(found.head.first, found.head.last + 1):
            found.time_ms(index)


def run_range_inside(data: bytes) -> None:
    """Head and body under the right hash. The first two bytes are where the one ends."""
    split = struct.unpack("<H", data[:2].ljust(2, b"\0"))[0]
    inside = data[2:]
    text = struct.pack("<I", split) + inside
    run_range(text + hashlib.sha256(text).digest())


def range_samples() -> list[bytes]:
    entries = [(3, b"\x00first"), (3, b""), (4, b"\x01" * 300)]
    data = ranges.encode_range(
        cluster=CLUSTER, first=7, base_term=2, previous="", times=[(8, 1000), (9, 2000)], entries=entries
    )
    return [data]


def range_inside_samples() -> list[bytes]:
    return [data[:2] + data[4:-32] for data in range_samples()]


def run_chain(data: bytes) -> None:
    key = ranges.chain_key(CLUSTER, 7)
    text = data.replace(b"\n", b" ")
    with suppress(SnapshotDamaged):
        ranges._decode_chain(key, text + b"\n" + ranges._digest(key, text))


def run_attempt(data: bytes) -> None:
    key = "s/" + _snapshot_id()
    text = data.replace(b"\n", b" ")
    with suppress(SnapshotDamaged):
        remote.decode_attempt(key, text + b"\n" + remote._digest(key, text))


def _snapshot_id() -> str:
    return next(_SNAPSHOT.glob("*.manifest")).name.removesuffix(".manifest")


def attempt_samples() -> list[bytes]:
    name = _snapshot_id()
    made = remote.Attempt(name, name, CLUSTER, 3, "n1", 1_000, 1, "0" * 64, {"0": 2}, 5, True)
    return [msgspec.json.encode(made)]


# --- the log ---------------------------------------------------------------------------------------------


def run_entry(data: bytes) -> None:
    """An entry's payload. What can be read can be applied: `apply` never raises on a decoded command."""
    try:
        log_time_ms, commands = decode_entry(data)
    except ValueError:
        return
    machine = a_machine()
    for index, command in enumerate(commands, machine.applied_index + 1):
        machine.apply(index, log_time_ms, command)
        assert decode_entry(encode_entry(log_time_ms, [encode(command)])) == (log_time_ms, [command])
    dump(machine)


def entry_samples() -> list[bytes]:
    each = [encode_entry(LOG_TIME_MS, [encode(command)]) for command in [*COMMANDS, *TOKEN_COMMANDS]]
    return [*each, (GOLDEN / "log_entry_1.bin").read_bytes(), encode_entry(0, [])]


def run_membership(data: bytes) -> None:
    """An entry that changes the members."""
    with suppress(ValueError):
        found = membership.decode_membership(data)
        assert membership.decode_membership(membership.encode_membership(found)) == found


def membership_samples() -> list[bytes]:
    return [membership.encode_membership(each) for each in (MEMBERSHIP, WITH_LEARNER)]


# --- files and bodies ------------------------------------------------------------------------------------


@cache
def _directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(
        prefix="raftkv-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None
    )


def run_identity(data: bytes) -> None:
    path = Path(_directory().name) / identity.FILE
    path.write_bytes(data)
    with suppress(Fatal, ConfigError):
        identity.load_or_create(path.parent, "n1")


def run_identity_inside(data: bytes) -> None:
    """With the checksum that belongs to it."""
    with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        file = msgspec.json.decode(data, type=identity._File)
        data = msgspec.json.encode(msgspec.structs.replace(file, sha256=identity._digest(file)))
    run_identity(data)


@cache
def identity_samples() -> tuple[bytes, ...]:
    with tempfile.TemporaryDirectory() as directory:
        stored = identity.load_or_create(Path(directory), "n1", draw=lambda: "ab" * 16)
        first = (Path(directory) / identity.FILE).read_bytes()
        identity.settle(Path(directory), stored, MEMBERSHIP)
        return first, (Path(directory) / identity.FILE).read_bytes()


LIMITS = Limits()


def run_transaction(data: bytes) -> None:
    with suppress(RaftkvError):
        parse_transaction(data, LIMITS)


def transaction_samples() -> list[bytes]:
    return [
        b'{"compare": [{"key": "a", "target": "value", "op": "==", "value": "1"}, '
        b'{"key": "b", "target": "exists", "op": "!=", "value": false}, '
        b'{"key": "c", "target": "mod_revision", "op": "<", "value": 7}], '
        b'"success": [{"put": {"key": "a", "value": "x"}}, {"delete": {"key": "b"}}, {"get": {"key": "c"}}], '
        b'"failure": [{"append": {"key": "a", "base64": "aGk="}}, {"incr": {"key": "n", "by": -3}}, '
        b'{"put": {"key": "j", "json": {"a": [1, 2.5, null]}}}]}'
    ]


def run_batch_line(data: bytes) -> None:
    """One line alone, and lines together, which are taken in another way and must come out the same."""
    lines = data.split(b"\n")
    each: list[Line | str] = []
    for line in lines:
        try:
            each.append(parse_line(line, LIMITS))
        except RaftkvError as error:
            each.append(str(error))
    assert [made if isinstance(made, Line) else str(made) for made in parse_lines(lines, LIMITS)] == each


def batch_line_samples() -> list[bytes]:
    return [
        b'{"op": "put", "key": "a", "value": "x", "content_type": "text/plain", "if_revision": 3}',
        b'{"op": "delete", "key": "a"}',
        b'{"op": "append", "key": "a", "base64": "aGk=", "idempotency_key": "c/1"}',
        b'{"op": "incr", "key": "n", "by": -3}',
        b'{"op": "put", "key": "a", "json": {"a": [1, 2.5, null]}}',
        b'{"op":"put","key":"a","value":"x"}\n{"op":"put","key":"b","base64":"aGk=","prev":true}\n{"op":"get","key":"a"}',
    ]


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("handshake_acceptor", run_acceptor, handshake_samples),
        Target("handshake_dialer", run_dialer, handshake_samples),
        Target("handshake_hello", run_hello, hello_samples),
        Target("handshake_answer", run_answer, hello_samples),
        Target("frames", run_frames, frame_samples),
        Target("messages", run_message, message_samples, 2.0),
        Target("control", run_control, control_samples),
        Target("journal_segment", run_segment, lambda: list(_segments().values()), 2.0),
        Target("journal_records", run_records, record_samples, 2.0),
        Target("journal_header", run_header, lambda: [data[:64] for data in _segments().values()]),
        Target("snapshot_manifest", run_manifest, lambda: [_manifest()]),
        Target("snapshot_manifest_text", run_manifest_text, lambda: [_manifest().partition(b"\n")[0]], 2.0),
        Target("snapshot_chunk", run_chunk, chunk_samples, 0.5, bytes_fixed=3 * UNPACKED_BYTES_MAX),
        Target("snapshot_pages", run_pages, page_samples, 2.0),
        Target("log_range", run_range, range_samples),
        Target("log_range_inside", run_range_inside, range_inside_samples),
        Target("log_chain", run_chain, lambda: [msgspec.json.encode(ranges.Chain(CLUSTER, 7, (7, 99, 300)))]),
        Target("store_attempt", run_attempt, attempt_samples),
        Target("log_entry", run_entry, entry_samples, 2.0),
        Target("membership", run_membership, membership_samples),
        Target("identity", run_identity, identity_samples, 0.5),
        Target("identity_inside", run_identity_inside, identity_samples, 0.5),
        Target("http", http.run, http.samples, 1.5, bytes_fixed=4 << 20),
        Target("transaction", run_transaction, transaction_samples),
        Target("batch_line", run_batch_line, batch_line_samples),
    )
}
