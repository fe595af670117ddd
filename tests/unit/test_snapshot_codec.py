"""The snapshot format: what is written reads back, and nothing else reads at all."""

from __future__ import annotations

import hashlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.errors import SnapshotDamaged
from raftkv.kv.image import Page, Section
from raftkv.snapshot.codec import (
    Chunk,
    Manifest,
    check_chunk,
    chunk_name,
    compress,
    decode_manifest,
    decode_pages,
    decompress,
    encode_manifest,
    encode_page,
    is_snapshot_id,
    manifest_name,
    number_of_chunk,
    snapshot_id,
    snapshot_of_file,
)
from tests.unit.snapshot_samples import CLUSTER, MEMBERSHIP

ID = snapshot_id(index=4711, term=3, revision=4502, time_ms=1_767_323_045_678, cluster=CLUSTER)


def a_chunk(number: int, raw: bytes) -> tuple[Chunk, bytes]:
    data = compress(raw)
    return Chunk(chunk_name(ID, number), len(data), len(raw), hashlib.sha256(data).hexdigest()), data


def a_manifest() -> Manifest:
    chunks = (a_chunk(0, b"one")[0], a_chunk(1, b"two")[0])
    return Manifest(
        id=ID,
        cluster=CLUSTER,
        index=4711,
        term=3,
        revision=4502,
        time_ms=1_767_323_045_678,
        log_time_ms=99,
        sequence=7,
        membership=MEMBERSHIP,
        keys=2,
        data_bytes=6,
        idempotency_records=1,
        bytes=sum(chunk.bytes for chunk in chunks),
        raw_bytes=6,
        sha256=hashlib.sha256(b"onetwo").hexdigest(),
        chunks=chunks,
    )


def signed(text: bytes) -> bytes:
    return text + b"\n" + hashlib.sha256(text).hexdigest().encode() + b"\n"


def test_the_id_says_what_it_is_of() -> None:
    assert ID == "0000000000004711-00000003-r4502-20260102T030405.678Z-1f0c2a77"
    assert is_snapshot_id(ID)
    assert snapshot_of_file(manifest_name(ID)) == ID
    assert snapshot_of_file(manifest_name(ID) + ".tmp") == ID
    assert snapshot_of_file(chunk_name(ID, 12)) == ID
    assert number_of_chunk(chunk_name(ID, 12)) == 12
    assert number_of_chunk(manifest_name(ID)) is None


@pytest.mark.parametrize(
    "name",
    [
        "",
        "identity.json",
        ID,
        f"{ID}.chunk",
        f"{ID}.1.chunk",
        f"{ID}.manifest~",
        f"{ID}.manifest\n",
        f"x{ID}.manifest",
        f"../{ID}.manifest",
    ],
)
def test_other_files_are_not_ours(name: str) -> None:
    assert snapshot_of_file(name) is None


@pytest.mark.parametrize("text", ["", "../" + ID, ID + "/..", ID + "\n", ID.replace("-r", "-"), "x" * 60])
def test_other_ids_are_none(text: str) -> None:
    assert not is_snapshot_id(text)


@given(st.lists(st.integers(0, 10**15), min_size=2))
def test_ids_sort_by_index(indexes: list[int]) -> None:
    ids = [snapshot_id(index=i, term=1, revision=i // 2, time_ms=0, cluster=CLUSTER) for i in indexes]
    assert sorted(ids) == [name for _, name in sorted(zip(indexes, ids, strict=True))]


def test_manifest_round_trip() -> None:
    assert decode_manifest(encode_manifest(a_manifest())) == a_manifest()


def test_a_manifest_with_any_bit_turned_or_any_end_cut_is_refused() -> None:
    data = encode_manifest(a_manifest())
    for at in range(len(data)):
        turned = data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]
        for bad in (turned, data[:at]):
            with pytest.raises(SnapshotDamaged):
                decode_manifest(bad)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 3}, "format 3"),
        ({"id": "../../etc"}, "not a snapshot's"),
        ({"index": "x"}, "not one of a snapshot"),
        ({"bytes": 1}, "add up"),
        ({"chunks": [{"name": "../x", "bytes": 1, "raw_bytes": 1, "sha256": ""}]}, "calls chunk 0"),
        ({"chunks": [{"name": chunk_name(ID, 0), "bytes": 1, "raw_bytes": 1 << 40, "sha256": ""}]}, "size"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused_by_name(change: dict[str, object], words: str) -> None:
    fields = json.loads(encode_manifest(a_manifest()).partition(b"\n")[0]) | change
    with pytest.raises(SnapshotDamaged, match=words):
        decode_manifest(signed(json.dumps(fields).encode()))


def test_a_newer_manifest_may_say_more() -> None:
    fields = json.loads(encode_manifest(a_manifest()).partition(b"\n")[0]) | {"laters_word": "ff"}
    assert decode_manifest(signed(msgspec.json.encode(fields))) == a_manifest()


Pairs = st.dictionaries(st.binary(max_size=9), st.binary(min_size=1, max_size=30), min_size=1, max_size=9)
Pages = st.lists(st.tuples(st.sampled_from(Section), Pairs), max_size=5)


@given(Pages)
def test_pages_round_trip_and_no_torn_prefix_reads(
    sections: list[tuple[Section, dict[bytes, bytes]]],
) -> None:
    pages = [Page(section, list(pairs), list(pairs.values())) for section, pairs in sections]
    encoded = [encode_page(page) for page in pages]
    raw = b"".join(encoded)
    assert list(decode_pages(raw)) == pages
    whole = {sum(map(len, encoded[:count])) for count in range(len(encoded) + 1)}
    for cut in set(range(len(raw))) - whole:
        with pytest.raises(ValueError, match=r"page|cut"):
            list(decode_pages(raw[:cut]))


@given(st.binary(max_size=60))
def test_random_bytes_are_pages_or_a_value_error(raw: bytes) -> None:
    try:
        pages = list(decode_pages(raw))
    except ValueError:
        return
    assert b"".join(map(encode_page, pages)) == raw


def test_a_chunk_with_any_byte_changed_is_refused() -> None:
    chunk, data = a_chunk(0, b"some raw bytes " * 9)
    assert decompress(chunk, data) == b"some raw bytes " * 9
    for at in range(len(data)):
        for bad in (data[:at] + bytes((data[at] ^ 0x40,)) + data[at + 1 :], data[:at], data + b"x"):
            with pytest.raises(SnapshotDamaged, match=chunk.name):
                decompress(chunk, bad)
            with pytest.raises(SnapshotDamaged, match=chunk.name):
                check_chunk(chunk, bad)


def test_a_chunk_can_not_unpack_to_more_than_its_manifest_says() -> None:
    data = compress(bytes(1 << 20))
    bomb = Chunk(chunk_name(ID, 0), len(data), 10, hashlib.sha256(data).hexdigest())
    with pytest.raises(SnapshotDamaged, match="would not unpack to 10 bytes"):
        decompress(bomb, data)
    noise = b"not zstd at all"
    with pytest.raises(SnapshotDamaged):
        decompress(Chunk(chunk_name(ID, 0), len(noise), 10, hashlib.sha256(noise).hexdigest()), noise)
