"""Faults against real nodes under load, and the verdict on what their clients saw.

Each node is a `raftkv serve` process in a network namespace of its own. A seed gives the schedule: which
fault, when, for how long, whom it should hit; faults overlap. *When* a node does something is up to the
machine, so a seed repeats the pressure, not the run; what makes a run worth having is its recorded history,
which is kept whenever it breaks a promise.

The schedule, and what a set of faults leaves standing, are pure; `Campaign` acts on them.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import itertools
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Literal, TypeVar, assert_never
from urllib.parse import urlsplit

import click
import msgspec

from cluster import history, network
from cluster.history import Record, Recorder, Violation
from cluster.local import LocalCluster, NodeFailed, find_base_port
from cluster.network import Link, Network, both_ways
from cluster.plain_http import Address
from cluster.workload import Client, Load

Kind = Literal["kill", "pause", "stop", "kill_all", "isolate", "deaf", "mute", "split", "link", "lossy"]
Aim = Literal["leader", "follower", "any"]

PROCESS_FAULTS: tuple[Kind, ...] = ("kill", "pause", "stop", "kill_all")
NETWORK_FAULTS: tuple[Kind, ...] = ("isolate", "deaf", "mute", "split", "link", "lossy")
WEIGHTS: Mapping[Kind, float] = {
    "kill": 5,
    "pause": 3,
    "stop": 2,
    "kill_all": 0.5,
    "isolate": 3,
    "deaf": 2,
    "mute": 2,
    "split": 2,
    "link": 2,
    "lossy": 1,
}
BETWEEN_SECONDS = (1.0, 5.0)  # from one fault's start to the next one's
LASTING_SECONDS = (0.5, 7.0)  # longer than an election, and than the pause to the next: faults overlap
CALM_SECONDS = 4.0  # of load after everything is healed: writes must have come back
RESUME_SECONDS_MAX = 15.0  # for writes to come back after the last fault; elections take one or two
STOP_SECONDS_MAX = 10.0  # a SIGTERM's promise
READY_SECONDS_MAX = 60.0
VIOLATIONS_MAX = 20  # then the run ends: a node that can't start would fill the report
CLIENTS = 12
ATTEMPT_SECONDS = 1.0


# --- pure: what will be done, and what it leaves standing ------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fault:
    """`dice` in [0, 1) decides what is left open until it happens, such as which follower."""

    kind: Kind
    at_s: float
    lasting_s: float
    aim: Aim
    dice: float


def schedule(seed: int, duration_s: float, kinds: Collection[Kind] = tuple(WEIGHTS)) -> list[Fault]:
    """The faults that start within `duration_s`, in order; the last ones may end after it."""
    dice = Random(seed)
    kinds = sorted(kinds)
    faults = []
    at_s = dice.uniform(*BETWEEN_SECONDS)
    while at_s < duration_s:
        (kind,) = dice.choices(kinds, [WEIGHTS[kind] for kind in kinds])
        aim: Aim = dice.choice(("leader", "leader", "follower", "any"))
        faults.append(Fault(kind, at_s, dice.uniform(*LASTING_SECONDS), aim, dice.random()))
        at_s += dice.uniform(*BETWEEN_SECONDS)
    return faults


def victim(fault: Fault, names: Sequence[str], leader: str | None) -> str:
    """The node that the fault is aimed at; any node where nobody leads."""
    candidates = list(names)
    if leader is not None and fault.aim == "leader":
        candidates = [leader]
    elif leader is not None and fault.aim == "follower":
        candidates = [name for name in names if name != leader]
    return candidates[int(fault.dice * len(candidates))]


def links_of(fault: Fault, names: Sequence[str], hit: str) -> frozenset[Link]:
    """The links that a network fault spoils."""
    others = [name for name in names if name != hit]
    match fault.kind:
        case "isolate":
            return both_ways([hit], others)
        case "deaf":
            return frozenset((other, hit) for other in others)
        case "mute":
            return frozenset((hit, other) for other in others)
        case "split":  # the victim and as many others as leave a majority on the other side
            together = others[: (len(names) - 1) // 2 - 1]
            return both_ways([hit, *together], [name for name in others if name not in together])
        case "link":
            return both_ways([hit], [others[int(fault.dice * len(others))]])
        case "lossy":  # these links only lose packets
            return frozenset(itertools.permutations(names, 2))
    return frozenset()


def majority_stands(names: Sequence[str], working: Collection[str], cut: Collection[Link]) -> bool:
    """Is there a majority of working nodes with every link among them whole, none of them in `cut`?"""
    cut = set(cut)
    size = len(names) // 2 + 1
    return any(
        not any(pair in cut for pair in itertools.permutations(group, 2))
        for group in itertools.combinations(sorted(working), size)
    )


# --- what came of it -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Report:
    nodes: int
    partitions: str  # "yes", or why not
    seconds: float = 0.0
    operations: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    keys: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    standing: str = "while a majority stood"  # what the second write gap is of
    violations: list[Violation] = field(default_factory=list)
    write_gap: tuple[float, float] = (0.0, 0.0)  # (seconds, since when from the start)
    write_gap_with_majority: tuple[float, float] = (0.0, 0.0)
    elections_s: list[float] = field(default_factory=list)  # after kills of the leader with a majority left
    judged_s: float = 0.0
    saved: str = ""

    def lines(self) -> Iterator[str]:
        yield f"nodes {self.nodes}, partitions: {self.partitions}, {self.seconds:.0f} s under load"
        yield f"operations {self.operations} on {self.keys} keys, judged in {self.judged_s:.1f} s"
        yield "  " + ", ".join(f"{name} {count}" for name, count in self.outcomes.items())
        yield f"faults {sum(self.faults.values())}"
        yield "  " + ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items()))
        yield (
            "longest write gap {:.2f} s at {:.2f} s; ".format(*self.write_gap)
            + self.standing
            + " {:.2f} s at {:.2f} s".format(*self.write_gap_with_majority)
        )
        if self.elections_s:
            median, longest = statistics.median(self.elections_s), max(self.elections_s)
            yield (
                f"writes resumed after kill -9 of the leader: median {median:.2f} s, "
                f"longest {longest:.2f} s, of {len(self.elections_s)}"
            )
        yield f"violations {len(self.violations)}"
        for violation in self.violations[:20]:
            yield f"  {violation.rule} {violation.key}: {violation.evidence[:600]}"
        if self.saved:
            yield f"history and logs are in {self.saved}"


CampaignT = TypeVar("CampaignT", bound="Campaign")


# --- the campaign --------------------------------------------------------------------------------------


class Campaign:
    """One cluster, one load, one history. Used once, inside one event loop."""

    def __init__(
        self, cluster: LocalCluster, links: Network | None, *, seed: int, say: Callable[[str], None] = print
    ) -> None:
        self._cluster = cluster
        self._links = links
        self._say = say
        self._random = Random(f"load {seed}")
        self._recorder = Recorder(time.monotonic)
        self._endpoints = endpoints(cluster)
        self._members = list(cluster.founders)
        self._state = dict.fromkeys(self._members, "running")  # or paused, stopping, down
        self._cuts: dict[Fault, frozenset[Link]] = {}
        self._began = time.monotonic()
        self._standing: list[tuple[float, bool]] = []  # (moment, does a majority stand from now on)
        self._leader: str | None = None  # as the last fault found it
        self._leader_kills: list[float] = []  # those that left a majority
        self._load = Load(self._clients("c", CLIENTS), self._random)
        self.report = Report(len(self._members), "yes" if links else "no")

    async def torment(self, faults: Sequence[Fault]) -> Report:
        """The faults under load, then calm, then the verdict."""
        await asyncio.to_thread(self._cluster.wait_ready, None, READY_SECONDS_MAX)
        async with self._under_load():
            async with asyncio.TaskGroup() as group:
                for fault in faults:
                    group.create_task(self._inflict(fault))
            await self._heal_all()
            await asyncio.sleep(CALM_SECONDS)
        return await self._verdict()

    async def elections(self, count: int) -> Report:
        """Kills the leader `count` times under load, each time with every node well again."""
        await asyncio.to_thread(self._cluster.wait_ready, None, READY_SECONDS_MAX)
        async with self._under_load():
            for _ in range(count):
                await asyncio.sleep(self._random.uniform(0.5, 1.5))  # at any phase of heartbeats and batches
                leader = await asyncio.to_thread(self._cluster.wait_leader)
                self._kill(leader, leads=True)
                await self._resumed(time.monotonic())
                self._start(leader)
                await self._ready()
        return await self._verdict()

    # --- faults -------------------------------------------------------------------------------------

    async def _inflict(self, fault: Fault) -> None:
        await asyncio.sleep(max(0.0, self._began + fault.at_s - time.monotonic()))
        leader = await asyncio.to_thread(self._cluster.leader)
        hit = victim(fault, self._members, leader)
        self._leader = leader
        match fault.kind:
            case "kill":
                await self._kill_and_restart(hit, fault, leads=hit == leader)
            case "pause":
                await self._pause_and_resume(hit, fault)
            case "stop":
                await self._stop_and_restart(hit, fault)
            case "kill_all":
                await self._kill_all_and_restart(fault)
            case "isolate" | "deaf" | "mute" | "split" | "link" | "lossy":
                await self._cut_and_heal(hit, fault)
            case _:
                assert_never(fault.kind)

    async def _kill_and_restart(self, name: str, fault: Fault, *, leads: bool) -> None:
        if self._state[name] not in ("running", "paused"):
            return
        self._kill(name, leads=leads)
        await asyncio.sleep(fault.lasting_s)
        self._start(name)

    async def _pause_and_resume(self, name: str, fault: Fault) -> None:
        if self._state[name] != "running":
            return
        self._cluster.pause(name)
        self._set(name, "paused")
        self._count(fault.kind, name)
        await asyncio.sleep(fault.lasting_s)
        if self._state[name] == "paused":  # it may have been killed meanwhile
            self._cluster.resume(name)
            self._set(name, "running")
            self._tell(f"resume {name}")

    async def _stop_and_restart(self, name: str, fault: Fault) -> None:
        if self._state[name] != "running":
            return
        self._set(name, "stopping")
        self._count(fault.kind, name)
        started = time.monotonic()
        code = await asyncio.to_thread(self._cluster.stop, name)
        seconds = time.monotonic() - started
        if code != 0 or seconds > STOP_SECONDS_MAX:
            self._violate("stop", f"{name} ended with code {code} after {seconds:.1f} s of SIGTERM")
        self._set(name, "down")
        await asyncio.sleep(fault.lasting_s)
        self._start(name)

    async def _kill_all_and_restart(self, fault: Fault) -> None:
        names = [name for name, state in self._state.items() if state in ("running", "paused")]
        self._count(fault.kind, *names)
        for name in names:
            self._set(name, "down")
        for name in names:
            self._cluster.kill(name)
        await asyncio.sleep(fault.lasting_s / 4)
        for name in names:
            self._start(name)

    async def _cut_and_heal(self, hit: str, fault: Fault) -> None:
        self._cuts[fault] = links_of(fault, self._members, hit)
        self._count(fault.kind, hit)
        await self._apply_cuts()
        await asyncio.sleep(fault.lasting_s)
        del self._cuts[fault]
        await self._apply_cuts()
        self._tell(f"heal {fault.kind} {hit}")

    async def _apply_cuts(self) -> None:
        assert self._links is not None
        self._note_standing()
        self._links.cut(self._cut(), lossy=self._lossy())  # a few milliseconds
        self._note_standing()

    async def _heal_all(self) -> None:
        """Each fault undid itself. What is left is to see that the cluster comes back."""
        assert not self._cuts
        self._tell("calm")
        await self._resumed(time.monotonic())
        await self._ready()

    # --- acts and what is known after them -----------------------------------------------------------

    def _kill(self, name: str, *, leads: bool) -> None:
        self._cluster.kill(name)
        self._set(name, "down")
        self._leader = name if leads else None
        self._count("kill", name)
        if leads and self._standing[-1][1]:
            self._leader_kills.append(time.monotonic())

    def _start(self, name: str) -> None:
        self._cluster.start(name)
        self._set(name, "running")
        self._tell(f"start {name}")

    def _set(self, name: str, state: str) -> None:
        self._state[name] = state
        self._note_standing()

    def _cut(self) -> frozenset[Link]:
        return frozenset().union(*(links for fault, links in self._cuts.items() if fault.kind != "lossy"))

    def _lossy(self) -> frozenset[Link]:
        return frozenset().union(*(links for fault, links in self._cuts.items() if fault.kind == "lossy"))

    def _note_standing(self) -> None:
        working = [name for name, state in self._state.items() if state == "running"]
        self._standing.append((time.monotonic(), self._stands(working)))

    def _stands(self, working: Collection[str]) -> bool:
        return majority_stands(self._members, working, self._cut() | self._lossy())

    def _tell(self, text: str) -> None:
        self._say(f"{time.monotonic() - self._began:7.2f} s  {text}")

    def _count(self, kind: str, *hit: str) -> None:
        self.report.faults[kind] = self.report.faults.get(kind, 0) + 1
        told = [name + " (leader)" if name == self._leader else name for name in hit]
        self._tell(f"{kind} {' '.join(told)}")

    def _violate(self, rule: str, evidence: str) -> None:
        self.report.violations.append(Violation(rule, "", evidence))
        self._tell(f"VIOLATION {rule}: {evidence}")

    # --- load, waiting, verdict ----------------------------------------------------------------------

    def _clients(self, prefix: str, count: int) -> list[Client]:
        return [
            Client(
                f"{prefix}{number}",
                self._endpoints,
                self._recorder,
                self._random,
                attempt_timeout_s=ATTEMPT_SECONDS,
            )
            for number in range(1, count + 1)
        ]

    @asynccontextmanager
    async def _under_load(self) -> AsyncIterator[None]:
        stop = asyncio.Event()
        self._began = time.monotonic()
        self._note_standing()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._load.run(stop))
            watch = group.create_task(self._watch())
            try:
                yield
            finally:
                stop.set()
                watch.cancel()
        self.report.seconds = time.monotonic() - self._began

    async def _watch(self) -> None:
        """A node that ends when nobody asked it to is a violation; it is started again, to see more."""
        while True:
            await asyncio.sleep(0.2)
            for name, state in self._state.items():
                if state == "running" and not self._cluster.alive(name):
                    lines = "\n".join(self._cluster.last_log_lines(name, 5))
                    code = self._cluster.exit_code(name)
                    self._violate("process", f"{name} ended by itself with code {code}: {lines}")
                    if len(self.report.violations) > VIOLATIONS_MAX:
                        raise NodeFailed(f"gave up after {VIOLATIONS_MAX} violations: {name} keeps ending")
                    self._start(name)

    async def _ready(self) -> None:
        try:
            await asyncio.to_thread(self._cluster.wait_ready, self._members, READY_SECONDS_MAX)
        except NodeFailed as error:
            self._violate("ready", str(error))

    async def _resumed(self, moment: float) -> None:
        """Until a write that was sent after `moment` is acknowledged."""
        deadline = moment + RESUME_SECONDS_MAX
        while self._recorder.resumed_after_s(moment) is None:
            if time.monotonic() > deadline:
                self._violate("progress", f"no write was acknowledged for {RESUME_SECONDS_MAX} s")
                return
            await asyncio.sleep(0.05)

    async def _verdict(self) -> Report:
        end = self._began + self.report.seconds
        report = self.report
        await self._read_everything()
        await self._compare_exports()
        records = self._recorder.records()
        for client in self._load.clients:
            client.close()
        started = time.monotonic()
        report.violations += await asyncio.to_thread(history.judge, records)
        report.judged_s = time.monotonic() - started
        report.operations = len(records)
        report.outcomes = history.outcomes(records)
        report.keys = len(self._load.keys.used())
        stretches = standing_stretches(self._standing, end)
        report.write_gap = self._gap(records, [(self._began, end)])
        report.write_gap_with_majority = self._gap(records, stretches)
        resumed = [(moment, history.resumed_after_s(records, moment)) for moment in self._leader_kills]
        report.elections_s = [
            seconds
            for moment, seconds in resumed
            if seconds is not None
            and any(start <= moment and moment + seconds <= stop for start, stop in stretches)
        ]
        return report

    def _gap(self, records: list[Record], stretches: list[tuple[float, float]]) -> tuple[float, float]:
        gaps = (history.write_gap(records, start, stop) for start, stop in stretches)
        seconds, since = max(gaps, default=(0.0, self._began))
        return seconds, since - self._began

    async def _read_everything(self) -> None:
        """Every key, on every node: a linearizable read each, recorded like any other."""

        async def read(client: Client, name: str) -> None:
            for key in self._load.keys.used():
                record = await client.read(key, node=name)
                if record.outcome != "ok":
                    self._violate("progress", f"{name} can't read {key} in calm: {record.detail}")
                    return
            client.close()

        async with asyncio.TaskGroup() as group:
            for name, client in zip(self._members, self._clients("reader", len(self._members)), strict=True):
                group.create_task(read(client, name))

    async def _compare_exports(self) -> None:
        try:
            exports = [await asyncio.to_thread(export, self._cluster.api_url(name)) for name in self._members]
        except (OSError, ValueError, http.client.HTTPException) as error:
            self._violate("convergence", f"no export: {error}")
            return
        if len(set(exports)) != 1:
            told = ", ".join(
                f"{name}: {count} items, revision {revision}, sha256 {digest[:16]}"
                for name, (count, revision, digest) in zip(self._members, exports, strict=True)
            )
            self._violate("convergence", told)

    def save(self, directory: Path) -> None:
        """The history, and the violations with their records. Logs and data are there already."""
        history.save(directory / "history.ndjson", self._recorder.records())
        encoded = msgspec.json.format(msgspec.json.encode(self.report.violations))
        (directory / "violations.json").write_bytes(encoded)
        self.report.saved = str(directory)


def standing_stretches(changes: Sequence[tuple[float, bool]], end: float) -> list[tuple[float, float]]:
    """The stretches of time, up to `end`, in which a majority stood without a break."""
    stretches = []
    since: float | None = None
    for moment, stands in changes:
        if stands and since is None:
            since = moment
        elif not stands and since is not None:
            stretches.append((since, moment))
            since = None
    if since is not None and since < end:
        stretches.append((since, end))
    return stretches


def endpoints(cluster: LocalCluster) -> dict[str, Address]:
    found = {}
    for name in cluster.names:
        parts = urlsplit(cluster.api_url(name))
        assert parts.hostname is not None
        assert parts.port is not None
        found[name] = (parts.hostname, parts.port)
    return found


def export(api_url: str, timeout_s: float = 60.0) -> tuple[int, int, str]:
    """(items, revision, sha256 of their lines) of a node's whole export; ValueError where it was cut."""
    parts = urlsplit(api_url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)
    try:
        connection.request("GET", "/v1/export")
        answer = connection.getresponse()
        digest = hashlib.sha256()
        line, count = b"", 0
        for following in answer:
            if line:
                digest.update(line)
                count += 1
            line = following
    finally:
        connection.close()
    last = msgspec.json.decode(line) if line else {}
    if answer.status != 200 or not last.get("_end") or last.get("count") != count:
        raise ValueError(f"{api_url}/v1/export: status {answer.status}, {count} items, then {line!r}")
    return count, last["revision"], digest.hexdigest()


# --- the run, from directory to report -------------------------------------------------------------------


@contextmanager
def campaign(
    data_dir: Path,
    *,
    nodes: int,
    seed: int,
    spares: int = 0,
    kind: Callable[..., CampaignT],
    say: Callable[[str], None] = print,
) -> Iterator[CampaignT]:
    """A started cluster in namespaces of its own (on loopback, without partitions, where there can't be any).
    The calling thread is among them meanwhile. A run that broke a promise, or ended early, is saved in
    `data_dir`. `spares`: nodes beside the founders, for who has a use for them."""
    names = [f"n{number}" for number in range(1, nodes + spares + 1)]
    why_not = network.unavailable()
    with ExitStack() as stack:
        links: Network | None = None
        if why_not is None:
            links = stack.enter_context(Network(names))
            stack.enter_context(links.entered())
        cluster = stack.enter_context(
            LocalCluster(
                data_dir,
                nodes=nodes + spares,
                founders=nodes,
                base_port=8400 if links else find_base_port(nodes + spares),
                hosts=links.addresses if links else None,
                command_prefix={name: links.command_prefix(name) for name in names} if links else None,
            )
        )
        cluster.start_all()
        running = kind(cluster, links, seed=seed, say=say)
        running.report.partitions = why_not or "yes"
        finished = False
        try:
            yield running
            finished = True
        finally:
            if running.report.violations or not finished:
                running.save(data_dir)
        cluster.stop_all()


def run(
    data_dir: Path,
    *,
    nodes: int,
    seed: int,
    minutes: float,
    elections: int = 0,
    say: Callable[[str], None] = print,
) -> Report:
    """A whole run: `elections` kills of the leader and nothing else, or else the seed's faults."""
    with campaign(data_dir, nodes=nodes, seed=seed, kind=Campaign, say=say) as running:
        if elections:
            return asyncio.run(running.elections(elections))
        partitions = running.report.partitions == "yes"
        kinds = PROCESS_FAULTS + (NETWORK_FAULTS if partitions else ())
        return asyncio.run(running.torment(schedule(seed, 60 * minutes, kinds)))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--minutes", default=5.0, show_default=True, type=click.FloatRange(min=0.05))
@click.option("--seed", default=None, type=int, help="Of the schedule of faults.  [default: drawn]")
@click.option("--nodes", default="3", show_default=True, type=click.Choice(["3", "5"]))
@click.option("--elections", default=0, help="Instead of faults of all kinds: kill the leader this often.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Must be empty. Kept if you name it.")
@click.option("--membership", is_flag=True, help="Instead: members come, go, are replaced and restarted.")
def main(
    minutes: float, seed: int | None, nodes: str, elections: int, data_dir: Path | None, membership: bool
) -> None:
    """Torments a real cluster under load and checks what its clients saw. Exit code 1: a promise broke."""
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    directory = data_dir or Path(tempfile.mkdtemp(prefix="raftkv-nemesis-"))
    if directory.exists() and any(directory.iterdir()):
        raise click.UsageError(f"{directory} is not empty")
    directory.mkdir(parents=True, exist_ok=True)
    click.echo(f"seed {seed}, data in {directory}")
    if membership:
        from cluster.churn import run as run_churn

        report = run_churn(directory, seed=seed, minutes=minutes, say=click.echo)
    else:
        report = run(
            directory, nodes=int(nodes), seed=seed, minutes=minutes, elections=elections, say=click.echo
        )
    for line in report.lines():
        click.echo(line)
    if report.violations:
        sys.exit(1)
    if data_dir is None:
        shutil.rmtree(directory)
