"""A rolling restart under load, and what its clients notice of it: nothing, or it says what.

One node after another gets SIGTERM and, once it has ended, starts again; the leader always goes next while it
has not been restarted, so leadership moves as often as it can. The clients do what `docs/operations.md` asks
of a client: follow redirects, repeat what was not applied, and repeat what is unknown under its idempotency
key. A request that is not answered all the same is a failure of the cluster, not of the client.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import click

from cluster import history
from cluster.history import Record, Recorder, Violation
from cluster.local import LocalCluster, NodeFailed, find_base_port
from cluster.nemesis import endpoints
from cluster.plain_http import Answer, Connection, NoAnswer, NotSent
from cluster.workload import Client, Load

CLIENTS = 12
ATTEMPT_SECONDS = 2.0
BETWEEN_SECONDS = 1.0  # of load with every node well, before the next one goes
WRITE_GAP_SECONDS_MAX = 1.0
STOP_SECONDS_MAX = 10.0  # a SIGTERM's promise
READY_SECONDS_MAX = 30.0
PROBE_SECONDS = 0.01  # between two looks at the readiness of a node that leaves


@dataclass(slots=True)
class Leave:
    """One node's restart. `ready_after_signal` and `unready` count its answers to /readyz from SIGTERM on:
    200, and 503 before it was gone."""

    name: str
    led: bool
    ready_after_signal: int = 0
    unready: int = 0
    exit_code: int | None = None
    stop_s: float = 0.0
    start_s: float = 0.0  # from the new process to /readyz
    new_leader: str | None = None

    def line(self) -> str:
        role = f"led, then {self.new_leader}" if self.led else "followed"
        return (
            f"{self.name} ({role}): stopped in {self.stop_s:.2f} s with code {self.exit_code}, "
            f"said {self.unready} times that it is not ready, and was ready {self.start_s:.2f} s after"
        )


@dataclass(slots=True)
class Report:
    seconds: float = 0.0
    leaves: list[Leave] = field(default_factory=list)
    operations: int = 0
    repeated: int = 0  # operations that took more than one attempt
    failed: list[Record] = field(default_factory=list)
    write_gap: tuple[float, float] = (0.0, 0.0)  # (seconds, since when from the start)
    violations: list[Violation] = field(default_factory=list)

    @property
    def promises_kept(self) -> bool:
        return not self.failed and not self.violations and self.write_gap[0] <= WRITE_GAP_SECONDS_MAX

    def lines(self) -> Iterator[str]:
        for leave in self.leaves:
            yield leave.line()
        yield (
            f"operations {self.operations} in {self.seconds:.1f} s, "
            f"{self.repeated} took more than one attempt, failed {len(self.failed)}"
        )
        for record in self.failed[:10]:
            yield f"  {record.kind} {record.key} by {record.client}: {record.outcome}, {record.detail}"
        yield "longest write gap {:.3f} s at {:.2f} s".format(*self.write_gap)
        yield f"violations {len(self.violations)}"
        for violation in self.violations[:10]:
            yield f"  {violation.rule} {violation.key}: {violation.evidence[:600]}"


class Rolling:
    """Restarts under one load. `cluster` runs and stays running; used once, inside one event loop."""

    def __init__(
        self,
        cluster: LocalCluster,
        *,
        seed: int,
        clients: int = CLIENTS,
        say: Callable[[str], None] = print,
        before_start: Callable[[str], None] = lambda name: None,
    ) -> None:
        """`before_start` is called between a node's end and its new start: the place for a new release."""
        self._cluster = cluster
        self._say = say
        self._before_start = before_start
        self._random = Random(f"rolling {seed}")
        self._recorder = Recorder(time.monotonic)
        reached = endpoints(cluster)
        self._clients = [
            Client(f"c{number}", reached, self._recorder, self._random, attempt_timeout_s=ATTEMPT_SECONDS)
            for number in range(1, clients + 1)
        ]
        self._load = Load(self._clients, self._random, keyings=("sequence", "free"))
        self._probes = reached
        self._began = 0.0
        self.report = Report()

    async def run(self, names: Sequence[str] | None = None) -> Report:
        """Restarts each of `names` (default: every node) once."""
        await asyncio.to_thread(self._cluster.wait_ready, None, READY_SECONDS_MAX)
        async with self.under_load():
            await self.restart_each(self._cluster.names if names is None else names)
        return await self.verdict()

    @asynccontextmanager
    async def under_load(self) -> AsyncIterator[None]:
        stop = asyncio.Event()
        self._began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._load.run(stop))
            try:
                yield
                await asyncio.sleep(BETWEEN_SECONDS)
            finally:
                stop.set()
        self.report.seconds = time.monotonic() - self._began

    async def restart_each(self, names: Sequence[str]) -> None:
        left = list(names)
        while left:
            await asyncio.sleep(BETWEEN_SECONDS)
            leader = await asyncio.to_thread(self._cluster.wait_leader)
            name = leader if leader in left else left[0]
            left.remove(name)
            await self.restart(name, led=name == leader)

    async def restart(self, name: str, *, led: bool) -> None:
        """SIGTERM, its end, a new process, ready."""
        leave = Leave(name, led)
        self.report.leaves.append(leave)
        async with asyncio.TaskGroup() as group:
            started = time.monotonic()
            self._cluster.terminate(name)
            watch = group.create_task(self._watch_readiness(leave))
            leave.exit_code = await asyncio.to_thread(self._cluster.wait_stopped, name)
            leave.stop_s = time.monotonic() - started
            watch.cancel()
        leave.new_leader = await asyncio.to_thread(self._cluster.wait_leader) if led else None
        self._before_start(name)
        started = time.monotonic()
        self._cluster.start(name)
        await asyncio.to_thread(self._cluster.wait_ready, [name], READY_SECONDS_MAX)
        leave.start_s = time.monotonic() - started
        if leave.exit_code != 0 or leave.stop_s > STOP_SECONDS_MAX:
            self._violate("stop", f"{name} ended with code {leave.exit_code} after {leave.stop_s:.1f} s")
        if leave.ready_after_signal > 1:  # the first may have been asked before the signal was handled
            self._violate("ready", f"{name} said {leave.ready_after_signal} times that it is ready")
        self._say(f"{time.monotonic() - self._began:7.2f} s  {leave.line()}")

    async def _watch_readiness(self, leave: Leave) -> None:
        """Each look over a connection of its own, as a probe's."""
        while True:
            answer = await self._probe(leave.name)
            if answer is not None and answer.status == 200:
                leave.ready_after_signal += 1
            elif answer is not None:
                leave.unready += 1
            await asyncio.sleep(PROBE_SECONDS)

    async def _probe(self, name: str) -> Answer | None:
        connection = Connection(self._probes[name])
        try:
            return await connection.request("GET", "/readyz", timeout_s=1.0)
        except (NotSent, NoAnswer):
            return None
        finally:
            connection.close()

    def _violate(self, rule: str, evidence: str) -> None:
        self.report.violations.append(Violation(rule, "", evidence))

    async def verdict(self) -> Report:
        report = self.report
        for client in self._clients:
            client.close()
        records = self._recorder.records()
        report.operations = len(records)
        report.repeated = sum(1 for record in records if len(record.nodes) > 1 and _repeats(record))
        report.failed = [record for record in records if record.outcome != "ok"]
        seconds, since = history.write_gap(records, self._began, self._began + report.seconds)
        report.write_gap = (seconds, since - self._began)
        report.violations += await asyncio.to_thread(history.judge, records)
        return report


def _repeats(record: Record) -> bool:
    """A redirect asks two nodes once each; more than that was a second attempt."""
    return len(record.nodes) > 2 or record.nodes[0] == record.nodes[-1]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--nodes", default=3, show_default=True, type=click.IntRange(3, 9))
@click.option(
    "--rounds", default=1, show_default=True, type=click.IntRange(1), help="Restarts of every node."
)
@click.option("--clients", default=CLIENTS, show_default=True, type=click.IntRange(1, 500))
@click.option(
    "--drain-seconds", default="0", show_default=True, help="Of each node; see raftkv serve --help."
)
@click.option("--seed", default=None, type=int, help="Of the load.  [default: drawn]")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Must be empty. Kept if you name it.")
def main(
    nodes: int, rounds: int, clients: int, drain_seconds: str, seed: int | None, data_dir: Path | None
) -> None:
    """Restarts every node of a local cluster, one by one, under load. Exit code 1: a client noticed."""
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    directory = data_dir or Path(tempfile.mkdtemp(prefix="raftkv-rolling-"))
    if directory.exists() and any(directory.iterdir()):
        raise click.UsageError(f"{directory} is not empty")
    directory.mkdir(parents=True, exist_ok=True)
    click.echo(f"seed {seed}, data in {directory}")
    with LocalCluster(
        directory,
        nodes=nodes,
        base_port=find_base_port(nodes),
        extra_args=("--drain-seconds", drain_seconds),
    ) as cluster:
        cluster.start_all()
        report = asyncio.run(
            _rounds(Rolling(cluster, seed=seed, clients=clients, say=click.echo), cluster, rounds)
        )
        cluster.stop_all()
    for line in report.lines():
        click.echo(line)
    if not report.promises_kept:
        history.save(directory / "failed.ndjson", report.failed)
        click.echo(f"logs are in {directory}")
        sys.exit(1)
    if data_dir is None:
        shutil.rmtree(directory)


async def _rounds(rolling: Rolling, cluster: LocalCluster, rounds: int) -> Report:
    try:
        await asyncio.to_thread(cluster.wait_ready, None, READY_SECONDS_MAX)
    except NodeFailed as error:
        raise click.ClickException(str(error)) from None
    async with rolling.under_load():
        for _ in range(rounds):
            await rolling.restart_each(cluster.names)
    return await rolling.verdict()
