"""The ordered table against a plain dict, and what it promises about memory and order."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.kv import table as table_module
from raftkv.kv.table import Table, TableView

SIZES = ("BLOCK_KEYS_MAX", "_BLOCK_KEYS_HALF", "_BLOCK_KEYS_LOW", "_BLOCK_KEYS_LOADED")
REAL_SIZES = {name: getattr(table_module, name) for name in SIZES}
SMALL_SIZES = dict(zip(SIZES, (8, 4, 2, 6), strict=True))


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> Iterator[None]:
    """Blocks of 8 keys split and merge within a few steps; the rules are those of blocks of 340."""
    with pytest.MonkeyPatch.context() as patch:
        for name, size in SMALL_SIZES.items():
            patch.setattr(table_module, name, size)
        yield


def pairs(table: Table, start: bytes = b"", end: bytes | None = None) -> dict[bytes, bytes]:
    keys, values, rest = table.read(start, end, 1_000_000)
    assert rest is None
    assert keys == sorted(keys)
    return dict(zip(keys, values, strict=True))


def check_structure(table: Table) -> None:
    lows, blocks = table._lows, table._blocks
    assert lows[0] == b""
    assert lows == sorted(set(lows))
    assert len(lows) == len(blocks)
    for low, high, block in zip(lows, [*lows[1:], None], blocks, strict=True):
        assert len(block) <= table_module.BLOCK_KEYS_MAX
        assert block or len(blocks) == 1
        assert all(low <= key and (high is None or key < high) for key in block)
        assert not gc.is_tracked(block)
    assert table.count == sum(map(len, blocks))
    assert table.bytes == sum(len(k) + len(v) for block in blocks for k, v in block.items())


Keys = st.binary(min_size=1, max_size=2) | st.integers(0, 60).map(lambda n: b"%03d" % n)
Values = st.binary(min_size=1, max_size=3)
Bounds = st.none() | st.binary(max_size=2)
Steps = st.lists(
    st.tuples(st.just("set"), Keys, Values)
    | st.tuples(st.just("delete"), Keys)
    | st.tuples(st.just("delete range"), Keys, Keys)
    | st.tuples(st.just("delete first"), Keys, Bounds, st.integers(0, 40))
    | st.tuples(st.just("view"), Keys | st.just(b""), Bounds)
    | st.tuples(st.just("read"), st.integers(0, 3), st.integers(1, 9), st.none() | st.integers(0, 20))
    | st.tuples(st.just("close"), st.integers(0, 3)),
    max_size=80,
)


@given(st.lists(st.tuples(Keys, Values), max_size=60), Steps)
def test_table_and_its_views_agree_with_a_dict(
    filled: list[tuple[bytes, bytes]], steps: list[tuple[object, ...]]
) -> None:
    table = Table()
    model: dict[bytes, bytes] = {}
    views: list[tuple[TableView, dict[bytes, bytes]]] = []
    for key, value in filled:
        table.set(key, value)
        model[key] = value
    for step in steps:
        match step:
            case ("set", bytes(key), bytes(value)):
                table.set(key, value)
                model[key] = value
            case ("delete", bytes(key)):
                assert table.delete(key) == model.pop(key, None)
            case ("delete range", bytes(low), bytes(high)):
                for key in pairs(table, low, high):
                    assert table.delete(key) == model.pop(key)
            case ("delete first", bytes(low), high, int(count)):
                assert high is None or isinstance(high, bytes)
                doomed = sorted(k for k in model if k >= low and (high is None or k < high))[:count]
                assert table.delete_first(low, high, count) == len(doomed)
                for key in doomed:
                    del model[key]
            case ("view", bytes(start), end):
                assert end is None or isinstance(end, bytes)
                seen = {k: v for k, v in model.items() if k >= start and (end is None or k < end)}
                views.append((table.view(start, end), seen))
            case ("read", int(which), int(count), bytes_max) if which < len(views):
                assert bytes_max is None or isinstance(bytes_max, int)
                read_some(*views[which], count, bytes_max)
            case ("close", int(which)) if which < len(views):
                views.pop(which)[0].close()
        check_structure(table)
        assert all(table.get(key) == model.get(key) for key in {*model, b"absent"})
    assert pairs(table) == model
    for view, left in views:
        while left:
            read_some(view, left, 5, None)
        assert view.read(5) == ([], [])
        assert view.kept == 0
    assert not table._views or any(not left for _, left in views)


def read_some(view: TableView, left: dict[bytes, bytes], count: int, bytes_max: int | None) -> None:
    """The view's next page is the head of what is left of the range as it was when the view was taken."""
    keys, values = view.read(count, bytes_max)
    expected = sorted(left)[:count]
    if bytes_max is not None:
        size = 0
        for at, key in enumerate(expected):
            size += len(key) + len(left[key])
            if size >= bytes_max:
                del expected[at + 1 :]
                break
    assert keys == expected
    assert values == [left.pop(key) for key in keys]


@given(st.dictionaries(Keys, Values, max_size=60), Bounds, Bounds, st.integers(1, 10), st.integers(0, 30))
def test_paging_visits_each_pair_once_in_order(
    model: dict[bytes, bytes], start: bytes | None, end: bytes | None, count: int, bytes_max: int
) -> None:
    table = Table()
    for key, value in model.items():
        table.set(key, value)
    expected = sorted(k for k in model if k >= (start or b"") and (end is None or k < end))
    at: bytes | None = start or b""
    seen: list[bytes] = []
    for _ in range(len(model) + 2):
        if at is None:
            break
        keys, values, at = table.read(at, end, count, bytes_max)
        assert values == [model[key] for key in keys]
        assert len(keys) <= count
        seen += keys
    assert at is None
    assert seen == expected


@given(st.dictionaries(Keys, Values, max_size=60), st.integers(1, 20), st.lists(Keys, max_size=30))
def test_extend_loads_what_set_would(model: dict[bytes, bytes], part: int, more: list[bytes]) -> None:
    table = Table()
    keys = sorted(model)
    for begin in range(0, len(keys), part):
        some = keys[begin : begin + part]
        table.extend(some, [model[key] for key in some])
        check_structure(table)
    for key in more:
        table.set(key, b"new")
        check_structure(table)
    assert pairs(table) == {**model, **dict.fromkeys(more, b"new")}


@pytest.mark.parametrize(
    ("keys", "values"),
    [([b"c"], [b"1"]), ([b"b"], [b"1"]), ([b"d", b"d"], [b"1", b"1"]), ([b"e", b"d"], [b"1", b"1"])],
)
def test_extend_refuses_broken_order(keys: list[bytes], values: list[bytes]) -> None:
    table = Table()
    table.extend([b"a", b"c"], [b"1", b"1"])
    with pytest.raises(ValueError, match="order"):
        table.extend(keys, values)


@pytest.mark.parametrize(("keys", "values"), [([b"d"], [b""]), ([b"d", b"e"], [b"1"])])
def test_extend_refuses_empty_values(keys: list[bytes], values: list[bytes]) -> None:
    with pytest.raises(ValueError, match="empty or missing"):
        Table().extend(keys, values)


def test_first_is_the_oldest_of_ascending_keys() -> None:
    table = Table()
    added = removed = 0
    for turn in range(300):
        for _ in range(turn % 7):
            table.set(added.to_bytes(8), b"x")
            added += 1
        for _ in range(turn % 5):
            if removed < added:
                first = table.first()
                assert first == (removed.to_bytes(8), b"x")
                table.delete(first[0])
                removed += 1
    assert removed > 100
    while removed < added:
        assert table.first() == (removed.to_bytes(8), b"x")
        table.delete(removed.to_bytes(8))
        removed += 1
    assert table.first() is None


def test_many_keys_leave_the_collector_next_to_nothing() -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, size in REAL_SIZES.items():
            patch.setattr(table_module, name, size)
        rng = random.Random(1)
        table = Table()
        keys = [rng.randbytes(8) for _ in range(50_000)]
        for key in keys:
            table.set(key, key)
        check_structure(table)
        assert len(table._blocks) < 50_000 / 170
        rng.shuffle(keys)
        for key in keys[:45_000]:
            table.delete(key)
        check_structure(table)
        assert len(table._blocks) < 5_000 / 170 * 3  # deletions join blocks
        assert pairs(table) == {key: key for key in keys[45_000:]}
        assert [each for each in gc.get_referents(table._blocks, table._lows) if gc.is_tracked(each)] == []


def test_a_view_keeps_only_what_it_has_yet_to_pass() -> None:
    table = Table()
    for n in range(100):
        table.set(b"%02d" % n, b"old")
    view = table.view(b"20", b"80")
    for n in range(100):
        table.set(b"%02d" % n, b"new")
    assert view.kept == 60
    view.read(30)
    assert view.kept <= 30 + table_module.BLOCK_KEYS_MAX
    table.delete(b"30")
    assert view.kept <= 30 + table_module.BLOCK_KEYS_MAX
    view.close()
    view.close()
    assert view.kept == 0
    assert view.read(5) == ([], [])
    table.set(b"50", b"newer")
    assert view.kept == 0


def test_a_page_costs_a_page_also_where_everything_was_deleted_behind_the_view() -> None:
    table = Table()
    for n in range(2_000):
        table.set(b"%04d" % n, b"old")
    view = table.view()
    assert table.delete_first(b"", None, 5_000) == 2_000
    for n in range(2_000):
        block, _, upper = table._segment(0, b"%04d" % n, None, view._kept)
        assert len(block) <= 2 * table_module.BLOCK_KEYS_MAX
        assert upper is None or upper > b"%04d" % n
    assert len(view.read(10)[0]) == 10
    assert len(view.read(5_000)[0]) == 1_990


def test_clear_leaves_an_empty_table() -> None:
    table = Table()
    for n in range(50):
        table.set(b"%d" % n, b"x")
    table.clear()
    check_structure(table)
    assert (table.count, table.bytes, pairs(table)) == (0, 0, {})
