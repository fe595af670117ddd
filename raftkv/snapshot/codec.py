"""What a snapshot is made of, byte by byte. PURE.

A snapshot is a manifest and numbered chunks:

    <id>.manifest        manifest = JSON | "\\n" | sha256 of that JSON in hex | "\\n"
    <id>.00000.chunk     chunk    = zstd of raw
    <id>.00001.chunk     raw      = page+            (all numbers little endian)

    page = section u8            which table: `kv.image.Section`; TOKENS in format 2 only
         | count u32             pairs in the page, at least 1
         | key lengths           u32 × count
         | record lengths        u32 × count
         | keys                  ascending within a section, over all its pages
         | records               what they are: `kv.record` for items, `kv.idempotency` and `kv.tokens` for
                                 the rest

Sections come in the order ITEMS, PLAIN, CLIENTS, OUTCOMES, QUEUE, TOKENS. A snapshot without tokens is of
format 1, so that a release that knows no tokens reads it; one with tokens is of format 2, which it refuses.

The manifest has the sha256 of every chunk as stored, and of the whole: of all raw bytes in order. Two
replicas at the same index make the same raw bytes, so that hash can be compared between them.

    id = index (16 digits) - term (8 digits) - r revision - time (UTC, ms) - first 8 characters of the cluster
         0000000000004711-00000003-r4502-20260102T030405.678Z-1f0c2a77

Ids sort by index, then term. Lengths are columns rather than heads of each record, so that a page is made
and read by a few calls over lists and not by one call a record.
"""

from __future__ import annotations

import hashlib
import re
import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import accumulate, pairwise
from typing import Final

import msgspec
import zstandard

from raftkv.errors import SnapshotDamaged
from raftkv.kv.image import MachineState, Page, Section
from raftkv.model import Membership

FORMAT: Final = 1
FORMAT_WITH_TOKENS: Final = 2
CHUNK_RAW_BYTES: Final = 4 << 20  # a chunk is closed when it has reached this
CHUNK_RAW_BYTES_MAX: Final = 1 << 30  # what a reader takes: one page may hold one value of any legal size
_COMPRESSION_LEVEL: Final = 1  # the worker shares the machine with the loop

_PAGE_HEAD = struct.Struct("<BI")
_SECTIONS = frozenset(Section)
_ID = re.compile(
    r"[0-9]{16,20}-[0-9]{8,20}-r[0-9]{1,20}-[0-9]{8}T[0-9]{6}\.[0-9]{3}Z-[0-9A-Za-z_]{0,8}", re.ASCII
)
_STATE_HASH = re.compile(r"([0-9a-f]{32})?", re.ASCII)
_FILE = re.compile(rf"({_ID.pattern})\.(?:[0-9]{{5,}}\.chunk|manifest|manifest\.tmp)", re.ASCII)


class Chunk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    bytes: int
    raw_bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`index` and `term` are the last entry's that the snapshot covers. `bytes` is what is stored;
    `data_bytes` counts keys and values. Unknown fields are ignored, so that a newer release may add some."""

    id: str
    cluster: str
    index: int
    term: int
    revision: int
    time_ms: int  # Unix time of the maker's clock; for people only
    log_time_ms: int
    sequence: int  # of the idempotency table
    membership: Membership
    keys: int
    data_bytes: int
    idempotency_records: int
    bytes: int
    raw_bytes: int
    sha256: str
    chunks: tuple[Chunk, ...]
    format: int = FORMAT
    state_hash: str = ""  # in hex; see `kv.history`. Empty: the maker did not know it

    @property
    def state(self) -> MachineState:
        state_hash = bytes.fromhex(self.state_hash)
        return MachineState(self.index, self.revision, self.log_time_ms, self.sequence, state_hash)


_encode_json = msgspec.json.Encoder().encode
_decode_json = msgspec.json.Decoder(Manifest).decode
_decode_format = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


# --- names ---------------------------------------------------------------------------------------------


def snapshot_id(*, index: int, term: int, revision: int, time_ms: int, cluster: str) -> str:
    time = datetime.fromtimestamp(time_ms // 1000, UTC).strftime("%Y%m%dT%H%M%S")
    name = f"{index:016d}-{term:08d}-r{revision}-{time}.{time_ms % 1000:03d}Z-{cluster[:8]}"
    assert _ID.fullmatch(name), name
    return name


def is_snapshot_id(text: str) -> bool:
    """True for what `snapshot_id` makes. Ids that come from outside become file names: ask this first."""
    return _ID.fullmatch(text) is not None


def index_of(snapshot: str) -> int:
    """The log index in a snapshot's id."""
    return int(snapshot.partition("-")[0])


def index_and_revision(snapshot: str) -> tuple[int, int]:
    """What an id says, for those who need no more than that. `is_snapshot_id` first."""
    index, _, revision, *_ = snapshot.split("-")
    return int(index), int(revision.removeprefix("r"))


def manifest_name(snapshot: str) -> str:
    return f"{snapshot}.manifest"


def chunk_name(snapshot: str, number: int) -> str:
    return f"{snapshot}.{number:05d}.chunk"


def snapshot_of_file(name: str) -> str | None:
    """The id of the snapshot whose file this is, finished or not; None for a file that is not ours."""
    match = _FILE.fullmatch(name)
    return match[1] if match else None


def number_of_chunk(name: str) -> int | None:
    """The chunk's number in a name that `snapshot_of_file` knows; None for a manifest's."""
    return int(name.split(".")[-2]) if name.endswith(".chunk") else None


# --- manifest ------------------------------------------------------------------------------------------


def encode_manifest(manifest: Manifest) -> bytes:
    text = _encode_json(manifest)
    return text + b"\n" + hashlib.sha256(text).hexdigest().encode() + b"\n"


def decode_manifest(data: bytes) -> Manifest:
    """Raises SnapshotDamaged for anything but a whole manifest of this format that agrees with itself."""
    text, _, digest = data.partition(b"\n")
    if digest != hashlib.sha256(text).hexdigest().encode() + b"\n":
        raise SnapshotDamaged("the manifest doesn't match the checksum at its end")
    try:
        written = msgspec.json.decode(_decode_format(text)["format"], type=int)
        if written not in (FORMAT, FORMAT_WITH_TOKENS):
            raise SnapshotDamaged(
                f"the manifest is of format {written}, this release reads formats {FORMAT} and "
                f"{FORMAT_WITH_TOKENS}: "
                "start the release that wrote it, or a newer one"
            )
        manifest = _decode_json(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError) as error:
        raise SnapshotDamaged(f"the manifest is not one of a snapshot: {error}") from error
    _check(manifest)
    return manifest


def _check(manifest: Manifest) -> None:
    if not is_snapshot_id(manifest.id):
        raise SnapshotDamaged(f"the manifest's id {manifest.id!r} is not a snapshot's")
    if not _STATE_HASH.fullmatch(manifest.state_hash):
        raise SnapshotDamaged(f"the manifest's state hash {manifest.state_hash!r} is not one")
    for number, chunk in enumerate(manifest.chunks):
        if chunk.name != chunk_name(manifest.id, number):
            raise SnapshotDamaged(f"the manifest calls chunk {number} {chunk.name!r}")
        if not (0 < chunk.bytes <= CHUNK_RAW_BYTES_MAX and 0 < chunk.raw_bytes <= CHUNK_RAW_BYTES_MAX):
            raise SnapshotDamaged(f"the manifest gives chunk {number} an impossible size")
    if manifest.bytes != sum(chunk.bytes for chunk in manifest.chunks):
        raise SnapshotDamaged("the manifest's chunks don't add up to its size")


# --- chunks --------------------------------------------------------------------------------------------


def compress(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=_COMPRESSION_LEVEL, write_content_size=True).compress(raw)


def decompress(chunk: Chunk, data: bytes) -> bytes:
    """The chunk's raw bytes. Raises SnapshotDamaged where `data` is not what the manifest describes."""
    check_chunk(chunk, data)
    try:
        if zstandard.frame_content_size(data) != chunk.raw_bytes:
            raise SnapshotDamaged(f"chunk {chunk.name} would not unpack to {chunk.raw_bytes} bytes")
        return zstandard.ZstdDecompressor().decompress(data)
    except zstandard.ZstdError as error:
        raise SnapshotDamaged(f"chunk {chunk.name} can't be unpacked: {error}") from error


def check_chunk(chunk: Chunk, data: bytes) -> None:
    """Raises SnapshotDamaged where the stored bytes are not those of the manifest."""
    if len(data) != chunk.bytes:
        raise SnapshotDamaged(f"chunk {chunk.name} has {len(data)} bytes, its manifest says {chunk.bytes}")
    digest = hashlib.sha256(data).hexdigest()
    if digest != chunk.sha256:
        raise SnapshotDamaged(f"chunk {chunk.name} has sha256 {digest}, its manifest says {chunk.sha256}")


# --- pages ---------------------------------------------------------------------------------------------


def encode_page(page: Page) -> bytes:
    return b"".join(
        (
            _PAGE_HEAD.pack(page.section, len(page.keys)),
            _lengths(page.keys),
            _lengths(page.records),
            *page.keys,
            *page.records,
        )
    )


def decode_pages(raw: bytes) -> Iterator[Page]:
    """The pages of a chunk. Raises ValueError at the first that can't be one."""
    at = 0
    while at < len(raw):
        if len(raw) - at < _PAGE_HEAD.size:
            raise ValueError(f"a page's head is cut at byte {at}")
        section, count = _PAGE_HEAD.unpack_from(raw, at)
        if section not in _SECTIONS:
            raise ValueError(
                f"a page at byte {at} is of section {section}, which this release does not know: a newer "
                "release wrote it, or it is damaged"
            )
        at += _PAGE_HEAD.size
        if count < 1 or count > (len(raw) - at) // 8:
            raise ValueError(f"a page at byte {at} claims {count} records")
        keys, at_records = _slices(raw, at, at + 8 * count, count)
        records, at = _slices(raw, at + 4 * count, at_records, count)
        yield Page(Section(section), keys, records)


def _lengths(parts: Sequence[bytes]) -> bytes:
    lengths = array("I", map(len, parts))
    if sys.byteorder == "big":
        lengths.byteswap()
    return lengths.tobytes()


def _slices(raw: bytes, lengths_at: int, data_at: int, count: int) -> tuple[list[bytes], int]:
    lengths = array("I", raw[lengths_at : lengths_at + 4 * count])
    if sys.byteorder == "big":
        lengths.byteswap()
    bounds = list(accumulate(lengths, initial=data_at))
    if bounds[-1] > len(raw):
        raise ValueError(f"the page's data at byte {data_at} is cut")
    return [raw[begin:end] for begin, end in pairwise(bounds)], bounds[-1]
