"""The service without HTTP: admission, idempotency keys on their way, freshness, ranges and their cursors."""

from __future__ import annotations

import asyncio
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.access.secret import COST
from raftkv.errors import (
    BadRequest,
    CommitTimeout,
    Draining,
    InFlight,
    NoLeader,
    NotLeader,
    NotReady,
    Overloaded,
    TooStale,
)
from raftkv.kv.command import Append, Condition, CreateToken, Delete, Put
from raftkv.kv.tokens import Grant, Token
from raftkv.model import Applied, IdempotencyMismatch, Item, Written
from raftkv.service import Folded, Freshness, KVService, Range, keyed
from tests.contract.local import LocalConsensus

PUT = Put(b"a", b"1")


def make(**bounds: int) -> tuple[LocalConsensus, KVService]:
    consensus = LocalConsensus()
    return consensus, KVService(consensus, name="n1", **bounds)


async def started(service: KVService, command: Put, size: int = 0) -> asyncio.Task[Applied]:
    before = service.writes_in_flight
    task = asyncio.create_task(service.write(command, timeout_s=5, size_bytes=size))
    while service.writes_in_flight == before and not task.done():  # noqa: ASYNC110  # until it has begun
        await asyncio.sleep(0)
    return task


async def test_writes_of_one_caller_are_proposed_in_its_order() -> None:
    consensus, service = make()
    commands = [Put(b"a", b"%d" % number) for number in range(50)]
    async with asyncio.TaskGroup() as group:
        for command in commands:
            group.create_task(service.write(command, timeout_s=5))
    assert consensus.proposed == commands


async def test_bytes_on_their_way_are_bounded() -> None:
    consensus, service = make(write_bytes_in_flight_max=100)
    consensus.hold()
    first = await started(service, PUT, 90)
    with pytest.raises(Overloaded, match="--write-bytes-in-flight-max"):
        await service.write(PUT, timeout_s=5, size_bytes=20)
    consensus.release()
    await first
    assert service.write_bytes_in_flight == 0
    await service.write(PUT, timeout_s=5, size_bytes=500)  # alone, even a larger one goes


async def test_one_key_is_on_its_way_once() -> None:
    consensus, service = make()
    consensus.hold()
    command = keyed(PUT, b"k")
    first = await started(service, command)
    with pytest.raises(InFlight):
        await service.write(command, timeout_s=5)
    other = await service.write(keyed(Put(b"a", b"2"), b"k"), timeout_s=5)
    assert isinstance(other.result, IdempotencyMismatch)
    consensus.release()
    assert (await first).replayed is False
    assert (await service.write(command, timeout_s=5)).replayed is True
    assert len(consensus.proposed) == 2


@pytest.mark.parametrize("error", [CommitTimeout("x"), NotReady("x"), ZeroDivisionError()])
async def test_a_key_is_free_again_however_its_write_ended(error: Exception) -> None:
    consensus, service = make()
    consensus.propose_error = error
    for _ in range(2):
        with pytest.raises(type(error)):
            await service.write(keyed(PUT, b"k"), timeout_s=5)
    assert service.writes_in_flight == 0


async def test_a_cancelled_write_gives_its_place_back() -> None:
    consensus, service = make()
    consensus.hold()
    task = await started(service, keyed(PUT, b"k"), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (service.writes_in_flight, service.write_bytes_in_flight) == (0, 0)
    consensus.release()
    await service.write(keyed(PUT, b"k"), timeout_s=5)


def write_all(service: KVService, commands: list[Put]) -> tuple[int, list[object]]:
    """How many were taken, and a list that gets their outcome."""
    outcomes: list[object] = []
    size = sum(len(command.value) for command in commands)
    return service.write_all_soon(commands, outcomes.append, timeout_s=5, size_bytes=size), outcomes


async def until_there(outcomes: list[object]) -> None:
    async with asyncio.timeout(20):
        while not outcomes:  # noqa: ASYNC110  # it comes by callback
            await asyncio.sleep(0)


async def test_many_writes_are_admitted_at_once_and_leave_at_once() -> None:
    consensus, service = make()
    commands = [keyed(Put(b"a", b"%d" % number), b"k%d" % number) for number in range(3)] + [PUT]
    consensus.hold()
    taken, outcomes = write_all(service, commands)
    assert (taken, service.writes_in_flight, service.write_bytes_in_flight) == (4, 4, 4)
    with pytest.raises(InFlight):
        await service.write(commands[1], timeout_s=5)
    consensus.release()
    await until_there(outcomes)
    assert outcomes == [[Applied(1 + n, Written(1 + n, created=n == 0)) for n in range(4)]]
    assert consensus.proposed == commands
    assert (service.writes_in_flight, service.write_bytes_in_flight) == (0, 0)
    assert (await service.write(commands[1], timeout_s=5)).replayed is True


async def test_of_many_writes_as_many_go_on_as_there_is_room_for() -> None:
    consensus, service = make(writes_in_flight_max=3)
    consensus.hold()
    taken, outcomes = write_all(service, [PUT] * 5)
    assert taken == 3
    with pytest.raises(Overloaded, match="--writes-in-flight-max"):
        write_all(service, [PUT] * 2)
    consensus.release()
    await until_there(outcomes)
    assert service.writes_in_flight == 0


async def test_of_many_writes_a_key_that_is_on_its_way_holds_up_what_follows() -> None:
    consensus, service = make()
    consensus.hold()
    first, second = keyed(PUT, b"k"), keyed(PUT, b"l")
    assert write_all(service, [first, second, first, PUT])[0] == 2
    assert write_all(service, [first, PUT])[0] == 0
    assert service.writes_in_flight == 2
    consensus.release()


@pytest.mark.parametrize("error", [CommitTimeout("x"), NotReady("x"), ZeroDivisionError()])
async def test_many_writes_that_are_not_taken_leave_nothing_behind(error: Exception) -> None:
    consensus, service = make()
    consensus.propose_error = error
    for _ in range(2):
        with pytest.raises(type(error)):
            write_all(service, [keyed(PUT, b"k"), PUT])
    assert (service.writes_in_flight, service.write_bytes_in_flight) == (0, 0)


async def test_who_leads_decides_who_takes_writes() -> None:
    consensus, service = make()
    consensus.follow("n2", "http://n2")
    with pytest.raises(NotLeader) as caught:
        await service.write(PUT, timeout_s=5)
    assert caught.value.leader_url == "http://n2"
    for leader, url in ((None, None), ("n2", None), ("n1", "http://n1")):
        consensus.follow(leader, url)
        with pytest.raises(NoLeader):
            await service.write(PUT, timeout_s=5)


async def test_a_draining_leader_takes_no_writes_and_answers_reads() -> None:
    consensus, service = make()
    service.drain()
    assert consensus.drained
    with pytest.raises(Draining):
        await service.write(PUT, timeout_s=5)
    await service.reach(Freshness(), timeout_s=5)
    with pytest.raises(Draining):
        await service.check_ready(timeout_s=5)


async def test_a_node_that_brings_the_first_token_is_ready_once_there_is_one() -> None:
    _, service = make(brings_token=True)
    with pytest.raises(NotReady, match=r"no token yet.*--bootstrap-token-file"):
        await service.check_ready(timeout_s=5)
    token = Token("ab", "bootstrap", (Grant("admin", b""),), b"salt", b"hash", COST, 0)
    await service.write(CreateToken(token, only_first=True), timeout_s=5)
    await service.check_ready(timeout_s=5)


async def test_freshness() -> None:
    consensus, service = make(reads_in_flight_max=1)
    await service.reach(Freshness("stale"), timeout_s=5)
    consensus.staleness = 100
    await service.reach(Freshness("stale", None, 100), timeout_s=5)
    with pytest.raises(TooStale):
        await service.reach(Freshness("stale", None, 99), timeout_s=5)
    waiting = asyncio.create_task(service.reach(Freshness("stale", 1), timeout_s=5))
    while not service.reads_in_flight:  # noqa: ASYNC110  # until it has begun
        await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="--reads-in-flight-max"):
        await service.reach(Freshness(), timeout_s=5)
    await service.write(PUT, timeout_s=5)
    await waiting
    assert service.reads_in_flight == 0


def test_the_fingerprint_is_the_meaning() -> None:
    def mark(command: Put | Append | Delete, extra: bytes = b"") -> bytes:
        made = keyed(command, b"k", extra).idempotency
        assert made is not None
        assert len(made.fingerprint) == 16
        return made.fingerprint

    different = [
        mark(Put(b"a", b"1")),
        mark(Put(b"a", b"2")),
        mark(Put(b"b", b"1")),
        mark(Put(b"a", b"1", "x/y")),
        mark(Put(b"a", b"1", condition=Condition(5))),
        mark(Put(b"a", b"1", condition=Condition(None, True))),
        mark(Put(b"a", b"1", return_previous=True)),
        mark(Put(b"a", b"1"), b"(5, 6)"),
        mark(Append(b"a", b"1", 100)),
        mark(Delete(b"a")),
    ]
    assert len(set(different)) == len(different)
    assert mark(Append(b"a", b"1", 100)) == mark(
        Append(b"a", b"1", 200)
    )  # a node's limit is not the client's


SMALL_KEYS = st.text("ab/", min_size=1, max_size=5).map(str.encode)


@given(
    st.sets(SMALL_KEYS, max_size=25),
    st.text("ab/", max_size=2).map(str.encode),
    st.text("ab/", max_size=3).map(str.encode),
    st.none() | st.text("ab/", min_size=1, max_size=3).map(str.encode),
    st.sampled_from([b"", b"/", b"a/"]),
    st.integers(1, 5),
)
def test_pages_put_together_are_the_range(
    stored: set[bytes], prefix: bytes, start: bytes, end: bytes | None, delimiter: bytes, limit: int
) -> None:
    consensus, service = make()
    for number, key in enumerate(sorted(stored)):
        consensus.machine.apply(number + 1, 0, Put(key, b"v"))
    wanted = Range(prefix, start, end, delimiter)

    expected: list[bytes] = []
    for key in sorted(stored):
        if key.startswith(prefix) and key >= start and (end is None or key < end):
            cut = key.find(delimiter, len(prefix)) if delimiter else -1
            row = key if cut < 0 else key[: cut + len(delimiter)]
            if not expected or expected[-1] != row:
                expected.append(row)

    found: list[bytes] = []
    cursor = None
    for _ in range(30):
        page = service.page(wanted, limit=limit, cursor=cursor)
        assert len(page.rows) <= limit
        found += [row.prefix if isinstance(row, Folded) else row.key for row in page.rows]
        cursor = page.cursor
        if cursor is None:
            break
        assert page.rows
    assert found == expected


@given(st.text(max_size=60))
def test_no_text_is_a_cursor(text: str) -> None:
    _, service = make()
    with pytest.raises(BadRequest, match="cursor"):
        service.page(Range(), limit=1, cursor=text)


async def test_an_export_is_closed_with_its_block() -> None:
    _consensus, service = make(exports_max=1)
    await service.write(PUT, timeout_s=5)
    with service.export(b"") as image:
        with pytest.raises(Overloaded), service.export(b""):
            pass
        result = (await service.write(Put(b"a", b"2"), timeout_s=5)).result
        assert isinstance(result, Written)
        items: list[Item] = list(image.next_page().items())
        assert [item.value for item in items] == [b"1"]
    with service.export(b""):
        pass


@pytest.mark.parametrize("consistency", ["linearizable", "stale"])
async def test_a_node_without_a_cluster_answers_no_read(
    consistency: Literal["linearizable", "stale"],
) -> None:
    """Its state is empty because it knows nothing yet: a 404 would be a guess."""
    consensus, service = make()
    consensus.formed = False
    with pytest.raises(NotReady, match="not formed"):
        await service.reach(Freshness(consistency), timeout_s=1)
