"""The archived log in a bucket: one chain whoever writes, found again from marks, pruned behind snapshots."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.errors import SnapshotDamaged, SnapshotMissing
from raftkv.snapshot import ranges
from raftkv.snapshot.bucket import DirectoryBucket
from raftkv.snapshot.ranges import Entry, Ranges, Tail, decode_range, encode_range, object_name

CLUSTER = "c" * 32


def an_entry(index: int) -> Entry:
    return 1 + index // 50, b"\0entry %d" % index


def data_of(tail: Tail, last: int) -> bytes:
    first = tail.index + 1
    return encode_range(
        cluster=CLUSTER,
        first=first,
        base_term=tail.term,
        previous=tail.sha256,
        times=[(last, last * 1000)],
        entries=[an_entry(index) for index in range(first, last + 1)],
    )


def append(store: Ranges, tail: Tail, last: int) -> Tail:
    return store.append(tail, data_of(tail, last), last, an_entry(last)[0])


def fill(store: Ranges, count: int, tail: Tail | None = None, width: int = 2) -> Tail:
    tail = tail or store.begin(CLUSTER, 2, 0)
    for _ in range(count):
        tail = append(store, tail, tail.index + width)
    return tail


def walked(store: Ranges, index: int) -> list[Entry]:
    term = an_entry(index)[0] if index > 1 else 0
    return [
        entry
        for each in store.walk(CLUSTER, index, term)
        for at, entry in enumerate(each.entries, each.head.first)
        if at > index
    ]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ranges:
    monkeypatch.setattr(ranges, "MARK_EVERY", 4)
    return Ranges(DirectoryBucket(tmp_path / "bucket"))


def objects(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "bucket" / "objects").iterdir()}


@given(
    payloads=st.lists(st.binary(max_size=40), min_size=1, max_size=20),
    first=st.integers(2, 1 << 40),
    term=st.integers(0, 1 << 40),
)
def test_a_range_comes_back_as_it_went(payloads: list[bytes], first: int, term: int) -> None:
    entries = [(term, payload) for payload in payloads]
    last = first + len(entries) - 1
    data = encode_range(
        cluster=CLUSTER, first=first, base_term=term, previous="", times=[(last, 5)], entries=entries
    )
    found = decode_range(data)
    assert list(found.entries) == entries
    assert (found.head.first, found.head.last, found.term_at(first - 1)) == (first, last, term)
    assert found.time_ms(first) == found.time_ms(last) == 5


def test_any_flip_and_any_cut_is_refused() -> None:
    data = data_of(Tail(CLUSTER, 2, 1, 0, "", 0), 4)
    rng = random.Random(4)
    for _ in range(500):
        broken = bytearray(data)
        if rng.random() < 0.5:
            broken[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        else:
            del broken[rng.randrange(len(data)) :]
        with pytest.raises(SnapshotDamaged):
            decode_range(bytes(broken))


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 17])
def test_the_end_is_found_again_and_every_place_before_it(store: Ranges, count: int) -> None:
    tail = fill(store, count)
    found = store.tail(CLUSTER)
    if count == 0:
        assert found is None
        return
    assert found is not None
    assert (found.index, found.term, found.sha256) == (tail.index, tail.term, tail.sha256)
    for index in range(1, tail.index + 1):
        assert walked(store, index) == [an_entry(at) for at in range(index + 1, tail.index + 1)]
    assert fill(store, 3, found).index == tail.index + 6


def test_two_leaders_at_once_make_one_chain(store: Ranges) -> None:
    tail = fill(store, 3)
    one = append(store, tail, tail.index + 5)
    other = append(store, tail, tail.index + 9)
    assert other == one
    end = fill(store, 2, other)
    assert walked(store, 1) == [an_entry(at) for at in range(2, end.index + 1)]


def test_a_write_that_timed_out_and_was_done_is_done_once(store: Ranges) -> None:
    tail = fill(store, 1)
    assert append(store, tail, 9) == append(store, tail, 9)


def test_what_does_not_follow_is_refused(store: Ranges) -> None:
    tail = fill(store, 2)
    append(store, Tail(CLUSTER, tail.chain, tail.index, tail.term, "0" * 64, 0), 9)
    with pytest.raises(SnapshotDamaged, match="does not follow"):
        append(store, tail, 9)
    with pytest.raises(SnapshotDamaged, match="does not follow"):
        walked(store, 1)


def test_a_lost_range_before_the_last_mark_is_a_loss_and_not_the_end(store: Ranges, tmp_path: Path) -> None:
    tail = fill(store, 12)
    store._bucket.remove([object_name(CLUSTER, 6)])
    with pytest.raises(SnapshotDamaged, match="gone"):
        walked(store, 1)
    assert walked(store, tail.index - 1) == [an_entry(tail.index)]


def test_only_whole_stretches_behind_the_oldest_snapshot_go(store: Ranges, tmp_path: Path) -> None:
    tail = fill(store, 20)
    before = objects(tmp_path)
    for oldest in range(1, tail.index + 1):
        store.prune(CLUSTER, oldest)
        assert walked(store, oldest) == [an_entry(at) for at in range(oldest + 1, tail.index + 1)]
        assert store.tail(CLUSTER) == store.tail(CLUSTER)
    assert len(objects(tmp_path)) <= 8 < len(before)
    assert fill(store, 1, store.tail(CLUSTER)).index == tail.index + 2


def test_a_prune_that_was_cut_short_goes_on(
    store: Ranges, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tail = fill(store, 20)
    remove = store._bucket.remove
    for allowed in (1, 1, 2, 3):
        left = allowed

        def some(names: list[str]) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise SnapshotMissing("cut")
            remove(names)

        with monkeypatch.context() as patch:
            patch.setattr(store._bucket, "remove", some)
            with pytest.raises(SnapshotMissing, match="cut"):
                store.prune(CLUSTER, 30)
        assert walked(store, 30) == [an_entry(at) for at in range(31, tail.index + 1)]
    store.prune(CLUSTER, 30)
    (chain,) = store.chains(CLUSTER)
    first = chain.marks[0]
    assert 30 - 2 * 4 < first <= 31
    assert min(objects(tmp_path)) == object_name(CLUSTER, first)


def test_an_older_chain_goes_whole_once_it_is_behind(store: Ranges, tmp_path: Path) -> None:
    fill(store, 6)
    later = fill(store, 3, store.begin(CLUSTER, 101, an_entry(100)[0]))
    assert len(store.chains(CLUSTER)) == 2
    assert walked(store, 10) == [an_entry(11), an_entry(12), an_entry(13)]
    store.prune(CLUSTER, 12)
    assert len(store.chains(CLUSTER)) == 2
    store.prune(CLUSTER, 13)
    assert [chain.first for chain in store.chains(CLUSTER)] == [101]
    assert all(name >= object_name(CLUSTER, 101) for name in objects(tmp_path))
    assert walked(store, 102) == [an_entry(at) for at in range(103, later.index + 1)]


def test_a_damaged_range_does_not_stop_the_pruning_behind_it(store: Ranges, tmp_path: Path) -> None:
    tail = fill(store, 20)
    damaged = tmp_path / "bucket" / "objects" / object_name(CLUSTER, 10)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    store.prune(CLUSTER, 30)
    (chain,) = store.chains(CLUSTER)
    assert chain.marks[0] > 20
    assert object_name(CLUSTER, 10) not in objects(tmp_path)
    assert walked(store, 30) == [an_entry(at) for at in range(31, tail.index + 1)]
