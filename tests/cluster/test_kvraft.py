"""A battery against real nodes, over HTTP: clients that append, put and get, and never give up, while links
are bad, the cluster is cut in two, and nodes die.

The scenarios are those of the kvraft lab of MIT's course 6.824, written anew for this store. Every write
carries an idempotency key and is sent again until it is answered, so in the end each one must have taken
effect exactly once, and each client's appends stand in the order that it sent them. Every history must be
linearizable.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from cluster import history, network
from cluster.history import Record, Recorder
from cluster.local import LocalCluster, find_base_port
from cluster.nemesis import endpoints
from cluster.network import HUB_ADDRESS, Network, both_ways
from cluster.plain_http import Address
from cluster.workload import Client
from tests.cluster.unreliable import unreliable_endpoints

WHY_NO_PARTITIONS = network.unavailable()
needs_partitions = pytest.mark.skipif(WHY_NO_PARTITIONS is not None, reason=str(WHY_NO_PARTITIONS))

WORK_SECONDS = 4.0
CALM_SECONDS = 0.5
OPERATIONS_MIN = 50  # fewer prove little
PATIENCE_SECONDS = 30.0  # a client that waits longer for one operation has found a cluster that hangs
SHORT_WAIT_SECONDS = 1.5  # longer than an election: what had a majority would have been done


class World:
    """A ready cluster, clients of it, and what they recorded."""

    def __init__(
        self, cluster: LocalCluster, links: Network | None, proxies: dict[str, Address] | None, random: Random
    ) -> None:
        self.cluster = cluster
        self.links = links
        self.random = random
        self.recorder = Recorder(time.monotonic)
        self._direct = endpoints(cluster)
        self._proxies = proxies or self._direct
        self._clients: list[Client] = []

    def client(self, name: str, *, entries: Sequence[str] | None = None, direct: bool = False) -> Client:
        client = Client(
            name,
            self._direct if direct else self._proxies,
            self.recorder,
            self.random,
            advertised={address: node for node, address in self._direct.items()},
            entries=entries,
            attempt_timeout_s=1.0,
            give_up_s=PATIENCE_SECONDS,
        )
        self._clients.append(client)
        return client

    def close(self) -> None:
        for client in self._clients:
            client.close()

    async def leader(self) -> str:
        return await asyncio.to_thread(self.cluster.wait_leader)

    async def ready(self) -> None:
        await asyncio.to_thread(self.cluster.wait_ready)

    async def work(self, clients: int, until: asyncio.Event) -> None:
        """Each client works on a key of its own and on two that all share."""

        async def one(client: Client) -> None:
            while not until.is_set():
                own = f"append/{client.name}"
                await client.append(own, client.token())
                await client.append("append/shared", client.token())
                await client.put("register/shared", client.token())
                await client.get(self.random.choice((own, "append/shared", "register/shared")))

        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(one(self.client(f"c{number}")))

    async def check(self) -> list[Record]:
        """Reads every key on every node, and judges the whole history."""
        keys = sorted(history.by_key(self.recorder.records()))
        for name in self.cluster.names:
            reader = self.client(f"reader-{name}", direct=True)
            for key in keys:
                await reader.get(key, node=name)
        records = self.recorder.records()
        failed = [record for record in records if record.outcome != "ok"]
        assert failed == [], "every operation is answered in the end"
        violations = await asyncio.to_thread(history.judge, records)
        assert [(each.rule, each.key, each.evidence) for each in violations] == []
        return records


@asynccontextmanager
async def world(
    directory: Path, *, nodes: int = 3, unreliable: bool = False, extra_args: Sequence[str] = ()
) -> AsyncIterator[World]:
    """In namespaces where there can be any, else on loopback: then without partitions."""
    random = Random(str(directory.name))
    names = [f"n{number}" for number in range(1, nodes + 1)]
    async with AsyncExitStack() as stack:
        links: Network | None = None
        if WHY_NO_PARTITIONS is None:
            links = stack.enter_context(Network(names))
            stack.enter_context(links.entered())
        cluster = stack.enter_context(
            LocalCluster(
                directory,
                nodes=nodes,
                base_port=8400 if links else find_base_port(nodes),
                hosts=links.addresses if links else None,
                command_prefix={name: links.command_prefix(name) for name in names} if links else None,
                extra_args=extra_args,
            )
        )
        proxies = None
        if unreliable:
            host = HUB_ADDRESS if links else "127.0.0.1"
            proxies = await stack.enter_async_context(unreliable_endpoints(endpoints(cluster), host, random))
        made = World(cluster, links, proxies, random)
        stack.callback(made.close)
        cluster.start_all()
        await made.ready()
        yield made


# --- the battery: load, with everything that a scenario adds to it ------------------------------------------


@dataclass(frozen=True)
class Scenario:
    name: str
    clients: int
    nodes: int = 3
    unreliable: bool = False
    partitions: bool = False
    restarts: bool = False
    snapshots: bool = False


BATTERY = [
    Scenario("one-client", 1),
    Scenario("many-clients", 5),
    Scenario("unreliable-links-many-clients", 5, unreliable=True),
    Scenario("partitions-one-client", 1, partitions=True),
    Scenario("partitions-many-clients-five-nodes", 5, nodes=5, partitions=True),
    Scenario("restarts-of-all-one-client", 1, restarts=True),
    Scenario("restarts-of-all-many-clients", 5, restarts=True),
    Scenario("unreliable-links-and-restarts", 5, unreliable=True, restarts=True),
    Scenario("partitions-and-restarts", 5, partitions=True, restarts=True),
    Scenario("all-together", 5, unreliable=True, partitions=True, restarts=True),
    Scenario("snapshots-and-restarts", 5, restarts=True, snapshots=True),
    Scenario(
        "snapshots-and-all-together", 5, unreliable=True, partitions=True, restarts=True, snapshots=True
    ),
]
SNAPSHOT_OFTEN = ("--snapshot-entries-max", "50")


@pytest.mark.parametrize("scenario", BATTERY, ids=lambda scenario: scenario.name)
async def test_every_append_exactly_once_and_the_history_linearizable(
    scenario: Scenario, tmp_path: Path
) -> None:
    if scenario.partitions and WHY_NO_PARTITIONS is not None:
        pytest.skip(WHY_NO_PARTITIONS)
    extra_args = SNAPSHOT_OFTEN if scenario.snapshots else ()
    async with world(
        tmp_path, nodes=scenario.nodes, unreliable=scenario.unreliable, extra_args=extra_args
    ) as made:
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(made.work(scenario.clients, stop))
            await _trouble(made, scenario)
            stop.set()
        records = await made.check()
        assert len(records) >= OPERATIONS_MIN
        if scenario.snapshots:
            for name in made.cluster.names:
                status = await asyncio.to_thread(made.cluster.status, name)
                assert status is not None
                assert status["journal"]["first_index"] > 1, f"{name} never compacted its journal"


async def _trouble(made: World, scenario: Scenario) -> None:
    """For the scenario's time; then everything is whole, and runs for a moment more."""
    end = time.monotonic() + WORK_SECONDS
    while time.monotonic() < end:
        if scenario.partitions:
            await _partition_for_a_while(made)
        else:
            await asyncio.sleep(1.0)
        if scenario.restarts:
            made.cluster.kill_all()
            await asyncio.sleep(made.random.uniform(0, 0.5))
            made.cluster.start_all()
            await asyncio.sleep(2.0)  # some rounds get going again, others die while they elect
    if made.links is not None:
        made.links.heal()
    await made.ready()
    await asyncio.sleep(CALM_SECONDS)


async def _partition_for_a_while(made: World) -> None:
    assert made.links is not None
    for _ in range(3):
        side = [name for name in made.cluster.names if made.random.random() < 0.5]
        made.links.cut(both_ways(side, [name for name in made.cluster.names if name not in side]))
        await asyncio.sleep(made.random.uniform(0.3, 1.5))


# --- one partition, step by step ----------------------------------------------------------------------------


@needs_partitions
async def test_progress_in_the_majority_and_none_in_the_minority(tmp_path: Path) -> None:
    async with world(tmp_path, nodes=5) as made:
        assert made.links is not None
        leader = await made.leader()
        others = [name for name in made.cluster.names if name != leader]
        minority, majority = [leader, others[0]], others[1:]
        anyone = made.client("anyone")
        await anyone.append("append/a", anyone.token())

        made.links.cut(both_ways(minority, majority))
        lonely = made.client("lonely", entries=minority)
        reader = made.client("reader", entries=minority)
        stuck_write = asyncio.create_task(lonely.append("append/a", lonely.token()))
        stuck_read = asyncio.create_task(reader.get("append/a"))
        happy = made.client("happy", entries=majority)
        for _ in range(5):
            assert (await happy.append("append/a", happy.token())).outcome == "ok"
        assert (await happy.get("append/a")).outcome == "ok"
        done, _ = await asyncio.wait((stuck_write, stuck_read), timeout=SHORT_WAIT_SECONDS)
        assert done == set(), "the minority answered"

        made.links.heal()
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert (await stuck_write).outcome == "ok"
            assert (await stuck_read).outcome == "ok"
        await made.check()


@needs_partitions
async def test_a_leader_cut_off_gives_way_and_its_tail_is_not_acknowledged(tmp_path: Path) -> None:
    """The old leader takes a write that it can't commit; what the others commit meanwhile stands."""
    async with world(tmp_path) as made:
        assert made.links is not None
        leader = await made.leader()
        others = [name for name in made.cluster.names if name != leader]
        before = made.client("before")
        await before.append("append/a", before.token())
        made.links.cut(both_ways([leader], others))
        lonely = made.client("lonely", entries=[leader])
        stuck = asyncio.create_task(lonely.append("append/a", lonely.token()))
        happy = made.client("happy", entries=others)
        for _ in range(3):
            await happy.append("append/a", happy.token())
        await until(lambda: _role_is_not(made, leader, "leader"))
        assert not stuck.done()
        made.links.heal()
        assert (await stuck).outcome == "ok"
        await made.check()


@needs_partitions
@pytest.mark.parametrize("way", ["deaf", "mute"])
async def test_a_one_way_cut_of_the_leader_does_not_stop_the_cluster(way: str, tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        assert made.links is not None
        leader = await made.leader()
        others = [name for name in made.cluster.names if name != leader]
        made.links.cut({(other, leader) if way == "deaf" else (leader, other) for other in others})
        client = made.client("client", entries=others)
        for _ in range(5):
            await client.append("append/a", client.token())
        made.links.heal()
        await made.check()


async def _role_is_not(made: World, name: str, role: str) -> bool:
    status = await asyncio.to_thread(made.cluster.status, name)
    return status is not None and status["role"] != role


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        await asyncio.sleep(0.05)


# --- snapshots ----------------------------------------------------------------------------------------------

LOG_BYTES_MAX = 8 << 20  # half a segment of the journal, which is preallocated whole
VALUE_BYTES = 32 << 10
SNAPSHOT_BY_SIZE = ("--snapshot-log-bytes-max", str(LOG_BYTES_MAX))


async def _write_much(made: World, total_bytes: int, watch: Callable[[], None]) -> None:
    """Large values over a few keys: the journal grows, the state does not."""
    count = total_bytes // VALUE_BYTES

    async def one(client: Client, times: int) -> None:
        for _ in range(times):
            token = client.token()
            await client.put(f"register/{client.name}", token * (VALUE_BYTES // len(token)))
            watch()

    async with asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(one(made.client(f"w{number}"), count // 8))


def _journal_bytes(made: World, name: str) -> int:
    """What it takes on the disk, preallocated or not."""
    journal = made.cluster.node_dir(name) / "journal"
    total = 0
    for path in journal.rglob("*"):
        try:
            total += path.stat().st_blocks * 512
        except FileNotFoundError:
            continue  # a segment that was just dropped
    return total


async def test_the_journal_stays_under_eight_times_the_snapshot_threshold(tmp_path: Path) -> None:
    async with world(tmp_path, extra_args=SNAPSHOT_BY_SIZE) as made:
        most = 0

        def watch() -> None:
            nonlocal most
            most = max(most, *(_journal_bytes(made, name) for name in made.cluster.names))

        await _write_much(made, 12 * LOG_BYTES_MAX, watch)
        assert most < 8 * LOG_BYTES_MAX
        made.cluster.kill_all()
        made.cluster.start_all()
        await made.ready()
        await made.check()


async def test_a_follower_far_behind_catches_up_by_snapshot(tmp_path: Path) -> None:
    async with world(tmp_path, extra_args=SNAPSHOT_BY_SIZE) as made:
        leader = await made.leader()
        late = next(name for name in made.cluster.names if name != leader)
        status = await asyncio.to_thread(made.cluster.status, late)
        assert status is not None
        had = status["journal"]["last_index"]
        made.cluster.kill(late)
        await _write_much(made, 3 * LOG_BYTES_MAX, lambda: None)

        async def compacted() -> bool:
            status = await asyncio.to_thread(made.cluster.status, leader)
            return status is not None and status["journal"]["first_index"] > had + 1

        await until(compacted)
        made.cluster.start(late)
        await made.ready()
        await made.check()
        # It must stand on its own feet: with another node gone, it is one half of the majority.
        made.cluster.kill(leader)
        client = made.client("after")
        await client.append("append/after", client.token())
        made.cluster.start(leader)
        await made.ready()
        await made.check()


async def test_a_small_state_makes_a_small_snapshot(tmp_path: Path) -> None:
    """The size of a snapshot is that of the state, not of the writes that led to it."""
    async with world(tmp_path, extra_args=("--snapshot-entries-max", "50")) as made:
        client = made.client("client")
        for _ in range(400):
            await client.put("register/a", client.token())
        leader = await made.leader()
        status = await asyncio.to_thread(made.cluster.status, leader)
        assert status is not None
        assert 0 < status["snapshot"]["bytes"] < 64 << 10
        await made.check()
