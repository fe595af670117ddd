"""The client's cache: how old its answers are, what it asks of nodes, and that own writes are seen."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.api.limits import Limits
from raftkv.client import (
    Client,
    NotARaftkv,
    NotFound,
    OutcomeUnknown,
    SyncClient,
    Value,
    asynchronous,
)
from raftkv.client.cache import ENTRY_BYTES, Cache
from tests.contract.conftest import Node, start_node
from tests.unit.fake_node import Drop, FakeNode, Reply, Request

MEGABYTE = 1 << 20


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(asynchronous, "_clock", made)
    return made


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    """The real HTTP side over a real state machine."""
    made = await start_node(Limits())
    yield made
    await made.api.close()


def client_of(node: Node, **options: int) -> Client:
    return Client(f"http://127.0.0.1:{node.api.port}", cache_bytes_max=MEGABYTE, **options)


def answered(node: Node) -> int:
    return sum(count for times in node.api.metrics._requests.values() for count in times.statuses.values())


def value(revision: int = 7, data: bytes = b"v") -> Reply:
    return Reply(200, data, {"ETag": f'"{revision}"', "Content-Type": "text/plain"})


# --- asking a node -----------------------------------------------------------------------------------------


async def test_a_known_value_is_confirmed_and_its_bytes_do_not_travel_again() -> None:
    async with (
        FakeNode(value(7), Reply(304, b"", {"ETag": '"7"'}), value(8, b"w")) as node,
        Client(node.url, cache_bytes_max=MEGABYTE) as client,
    ):
        assert await client.get("k") == await client.get("k") == Value(b"v", "text/plain", 7)
        assert (await client.get("k")).value == b"w"
        asked = [request.headers.get("if-none-match") for request in node.requests]
        assert asked == [None, '"7"', '"7"']
        assert all("consistency" not in request.target for request in node.requests)


async def test_without_a_bound_a_read_is_linearizable_whatever_is_cached(node: Node) -> None:
    async with client_of(node) as client, client_of(node) as other:
        await other.put("k", b"1")
        assert (await client.get("k")).value == b"1"
        await other.put("k", b"2")
        assert (await client.get("k")).value == b"2"
        await other.delete("k")
        with pytest.raises(NotFound):
            await client.get("k")
        with pytest.raises(NotFound):
            await client.get("k", max_staleness_ms=60_000)


async def test_a_young_enough_value_is_answered_unasked_and_says_how_old_it_is(
    node: Node, clock: Clock
) -> None:
    async with client_of(node) as client, client_of(node) as other:
        await other.put("k", b"1")
        first = await client.get("k", max_staleness_ms=500)
        assert (first.value, first.age_ms) == (b"1", 0)
        await other.put("k", b"2")
        before = answered(node)
        clock.now += 0.4
        old = await client.get("k", max_staleness_ms=500)
        assert (old.value, round(old.age_ms)) == (b"1", 400)
        assert answered(node) == before
        clock.now += 0.2
        fresh = await client.get("k", max_staleness_ms=500)
        assert (fresh.value, fresh.age_ms) == (b"2", 0)
        clock.now += 0.4
        assert (await client.get("k", max_staleness_ms=500)).value == b"2"
        clock.now += 0.2
        confirmed = await client.get("k", max_staleness_ms=500)  # 304
        assert (confirmed.value, confirmed.age_ms) == (b"2", 0)


async def test_an_age_counts_from_the_request_and_not_from_the_answer(clock: Clock) -> None:
    def late(_: Request) -> Reply:
        clock.now += 3.0
        return value()

    async with FakeNode(late, value(9, b"w")) as node, Client(node.url, cache_bytes_max=MEGABYTE) as client:
        await client.get("k")
        assert (await client.get("k", max_staleness_ms=2_000)).value == b"w"
        assert len(node.requests) == 2


async def test_a_stale_answer_is_not_kept_and_what_is_kept_is_no_stale_answer(node: Node) -> None:
    async with client_of(node) as client, client_of(node) as other:
        await other.put("k", b"1")
        await client.get("k", stale=True)
        before = answered(node)
        await client.get("k", max_staleness_ms=60_000)
        assert answered(node) == before + 1
        await client.get("k", stale=True, max_staleness_ms=60_000)
        assert answered(node) == before + 2


async def test_a_revision_that_is_asked_for_is_not_answered_with_an_older_one(node: Node) -> None:
    async with client_of(node) as client, client_of(node) as other:
        first = await other.put("k", b"1")
        await client.get("k")
        second = await other.put("k", b"2")
        read = await client.get("k", min_revision=first.revision, max_staleness_ms=60_000)
        assert read.value == b"1"
        read = await client.get("k", min_revision=second.revision, max_staleness_ms=60_000)
        assert read.value == b"2"


async def test_a_304_that_nobody_asked_for_is_no_value() -> None:
    async with FakeNode(Reply(304, b"")) as node, Client(node.url, cache_bytes_max=MEGABYTE) as client:
        with pytest.raises(NotARaftkv):
            await client.get("k")


async def test_without_a_cache_nothing_is_kept(node: Node) -> None:
    async with Client(f"http://127.0.0.1:{node.api.port}") as client:
        await client.put("k", b"1")
        before = answered(node)
        for _ in range(2):
            read = await client.get("k", max_staleness_ms=60_000)
            assert (read.value, read.age_ms) == (b"1", 0)
        assert answered(node) == before + 2


# --- own writes --------------------------------------------------------------------------------------------

Writing = Callable[[Client], Awaitable[object]]


async def batch(client: Client) -> None:
    await client.batch([{"op": "put", "key": "k", "value": "2"}], lambda result: None)


WRITES: dict[str, Writing] = {
    "put": lambda client: client.put("k", b"2"),
    "append": lambda client: client.append("k", b""),
    "incr": lambda client: client.incr("k"),
    "txn": lambda client: client.txn(success=[{"put": {"key": "k", "value": "2"}}]),
    "batch": batch,
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
async def test_own_writes_are_seen_at_once(node: Node, write: Writing) -> None:
    async with client_of(node) as client:
        await client.put("k", b"1")
        first = await client.get("k")
        await write(client)
        second = await client.get("k", max_staleness_ms=60_000)
        assert second.revision == first.revision + 1


@pytest.mark.parametrize("delete", [lambda c: c.delete("k"), lambda c: c.delete_prefix("k")])
async def test_own_deletes_are_seen_at_once(node: Node, delete: Writing) -> None:
    async with client_of(node) as client:
        await client.put("k", b"1")
        await client.get("k")
        await delete(client)
        with pytest.raises(NotFound):
            await client.get("k", max_staleness_ms=60_000)


async def test_a_write_whose_outcome_is_unknown_leaves_nothing_behind() -> None:
    async with (
        FakeNode(value(7), Drop(), value(8, b"w")) as node,
        Client(node.url, cache_bytes_max=MEGABYTE, idempotent=False) as client,
    ):
        await client.get("k")
        with pytest.raises(OutcomeUnknown):
            await client.put("k", b"w")
        assert (await client.get("k", max_staleness_ms=60_000)).value == b"w"


async def test_a_read_that_a_write_overtook_is_not_kept(node: Node) -> None:
    """It may have been answered before the write, and the write before it came back."""
    async with client_of(node) as client:
        await client.put("k", b"1")
        cache = client._cache
        assert cache is not None
        with cache.reading("k") as read:
            await client.put("k", b"2")
            cache.keep(read, Value(b"1", "", 1))
        assert (await client.get("k", max_staleness_ms=60_000)).value == b"2"


async def test_a_write_of_one_key_leaves_the_others(node: Node) -> None:
    async with client_of(node) as client:
        for key in ("a", "b"):
            await client.put(key, b"1")
            await client.get(key)
        await client.put("a", b"2")
        before = answered(node)
        await client.get("b", max_staleness_ms=60_000)
        assert answered(node) == before


# --- the cache by itself -----------------------------------------------------------------------------------


def read_through(cache: Cache, key: str, found: Value) -> None:
    with cache.reading(key) as read:
        cache.keep(read, found)


def young(cache: Cache, key: str) -> bytes | None:
    found = cache.young(key, age_ms_max=1e9, min_revision=None)
    return None if found is None else found.value


def test_memory_is_bounded_and_the_least_used_goes_first() -> None:
    cache = Cache(3 * (ENTRY_BYTES + 4 + 1000), Clock())
    for number, key in enumerate("abc"):
        read_through(cache, key, Value(b"x" * 1000, "", number))
    assert young(cache, "a") is not None
    read_through(cache, "d", Value(b"x" * 1000, "", 9))
    assert [key for key in "abcd" if young(cache, key)] == ["a", "c", "d"]
    read_through(cache, "e", Value(b"x" * 100_000, "", 10))
    assert len(cache) == 0, "what is larger than all of it is not kept"


def test_an_answer_that_comes_late_does_not_replace_a_younger_one() -> None:
    clock = Clock()
    cache = Cache(MEGABYTE, clock)
    with cache.reading("k") as early:
        clock.now += 1
        with cache.reading("k") as late:
            cache.keep(late, Value(b"2", "", 2))
        cache.keep(early, Value(b"1", "", 1))
    assert young(cache, "k") == b"2"


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["send", "take", "answer", "lose", "write", "commit", "end", "other", "wait", "read"]
        ),
        st.integers(0, 3),
    ),
    max_size=60,
)


@given(STEPS)
def test_what_is_answered_unasked_was_current_within_its_age_and_after_all_own_writes(
    steps: list[tuple[str, int]],
) -> None:
    """Against the history of one key: reads that take a value anywhere between request and answer, own writes
    that happen anywhere between request and end or not at all, and writes of others."""
    clock = Clock()
    cache = Cache(MEGABYTE, clock)
    history: list[tuple[float, int]] = [(clock.now, 0)]  # (since, revision)
    reads: list[list[object]] = []  # [context, read, value taken]
    writes: list[list[object]] = []  # [context, done]
    own_at = 0  # the least revision that a read may show: the last own write that ended

    def happen() -> None:
        history.append((clock.now, history[-1][1] + 1))

    for what, which in steps:
        clock.now += 0.001
        if what == "send":
            context = cache.reading("k")
            reads.append([context, context.__enter__(), None])
        elif what == "take" and which < len(reads) and reads[which][2] is None:
            reads[which][2] = history[-1][1]
        elif what in ("answer", "lose") and which < len(reads):
            context, read, taken = reads.pop(which)
            if what == "answer" and taken is not None:
                cache.keep(read, Value(b"", "", taken))  # type: ignore[arg-type]
            context.__exit__(None, None, None)  # type: ignore[attr-defined]
        elif what == "write":
            context = cache.writing("k" if which else None)
            context.__enter__()
            writes.append([context, 0])
        elif what == "commit" and which < len(writes) and not writes[which][1]:
            happen()
            writes[which][1] = history[-1][1]
        elif what == "end" and which < len(writes):
            context, revision = writes.pop(which)
            context.__exit__(None, None, None)  # type: ignore[attr-defined]
            own_at = max(own_at, revision)  # type: ignore[call-overload]
        elif what == "other":
            happen()
        elif what == "wait":
            clock.now += which
        elif what == "read":
            found = cache.young("k", age_ms_max=1500, min_revision=None)
            if found is not None:
                assert found.revision >= own_at
                assert not writes
                gone_at = [since for since, revision in history if revision == found.revision + 1]
                assert found.age_ms <= 1500
                if gone_at:
                    assert clock.now - gone_at[0] <= found.age_ms / 1000 + 1e-9


def test_the_synchronous_client_has_it_too() -> None:
    with SyncClient("http://127.0.0.1:1", cache_bytes_max=MEGABYTE) as client:
        assert client._client._cache is not None
