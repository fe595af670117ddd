"""How a cluster of raftkv behaves where a table of rates does not show it: `scripts/bench.py --probe NAME`.

    knee          more and more requests under way, until more bring nothing, and beyond: no collapse
    follower      what a slow, a stopped, a returning and a dead follower cost those who write
    growth        what an operation costs beside 1,000 keys and beside 1,000,000
    instruments   what counting and timing cost: nodes as they are, and nodes that count nothing

Each plays its situations one after another, round after round, so that neighbours on the machine meet all of
them. Compared are medians of successful requests a second, and of the CPU time of all nodes for one of them,
which neighbours disturb least. The load is wrk's, on the leader.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from cluster.bench.load import wrk
from cluster.bench.processes import cpu_seconds, machine_busy_seconds
from cluster.bench.requests import Case, Operation, get, key, put, value
from cluster.bench.results import markdown
from cluster.bench.systems import ask
from cluster.local import LocalCluster, find_base_port
from raftkv.client import SyncClient

ROOT = Path(__file__).resolve().parents[2]
VALUE_BYTES = 128
FEW, MANY = 1_000, 1_000_000  # keys there are
SAMPLED = 20_000  # of the many, drawn at random: more than the processor's caches hold
FILL_LINES = 2_000  # of one batch
LOADS = (16, 32, 64, 128, 256, 512, 1024, 2048)  # requests under way, each twice the one before
PIPELINE = 64  # requests in a row on one connection: what a node takes before it stops reading
OVERLOAD_CONNECTIONS = 512  # times PIPELINE: three times the writes that a node admits
KNEE_GAIN = 1.1  # twice the load brings less than this much more: that is the knee
PUT_LOG_BYTES = 200  # of log that a PUT takes, about
SNAPSHOT_LOG_BYTES = 64 << 20  # --snapshot-log-bytes-max as it is by default
SETTLE_SECONDS = 90  # a snapshot of a million keys takes 10 s where nothing else is to do
DUTY_SECONDS = 0.05  # a slow follower is stopped for so long, and runs for so long

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Bound:
    """What a ratio between two situations must be; PURE like all down to `show`."""

    title: str
    situation: str
    base: str
    of: str  # "rate" or "cpu_us"
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """One situation in one round. `cpu_us`: of all nodes, a successful request; `refused`: with a 429 or
    worse."""

    situation: str
    round: int
    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    refused: int
    neighbours_cpu_share: float


def middle(seen: Sequence[Seen], situation: str, of: str) -> float:
    return float(median(getattr(each, of) for each in seen if each.situation == situation))


def situations(seen: Sequence[Seen]) -> list[str]:
    return list(dict.fromkeys(each.situation for each in seen))


def holds(seen: Sequence[Seen], bound: Bound) -> tuple[float, bool]:
    ratio = middle(seen, bound.situation, bound.of) / middle(seen, bound.base, bound.of)
    low = bound.at_least is None or ratio >= bound.at_least
    return ratio, low and (bound.at_most is None or ratio <= bound.at_most)


def table(seen: Sequence[Seen]) -> str:
    rows = []
    for each in situations(seen):
        refused = sum(one.refused for one in seen if one.situation == each)
        numbers = [middle(seen, each, of) for of in ("rate", "p50_ms", "p99_ms", "cpu_us")]
        rate, p50, p99, cpu = numbers
        rows.append((each, f"{rate:,.0f}", f"{p50:.2f}", f"{p99:.2f}", f"{cpu:.1f}", f"{refused:,}"))
    return markdown(("situation", "good/s", "p50 ms", "p99 ms", "server CPU µs", "refused"), rows)


def bounds_table(seen: Sequence[Seen], bounds: Sequence[Bound]) -> str:
    rows = []
    for bound in bounds:
        ratio, met = holds(seen, bound)
        allowed = f"at least {bound.at_least:g}" if bound.at_least else f"at most {bound.at_most:g}"
        rows.append((bound.title, f"{ratio:.3f}", allowed, "yes" if met else "NO"))
    return markdown(("", "ratio", "allowed", "met"), rows)


def knee_of(seen: Sequence[Seen]) -> int:
    """The load from which on twice the load brings little more."""
    for load in LOADS[:-1]:
        twice = middle(seen, under_way(2 * load), "rate")
        if twice < KNEE_GAIN * middle(seen, under_way(load), "rate"):
            return load
    return LOADS[-2]


def under_way(load: int) -> str:
    return f"{load} under way"


# --- a cluster under load --------------------------------------------------------------------------------


class Loaded:
    """Three nodes, and wrk on the leader."""

    def __init__(self, directory: Path, cluster: LocalCluster | None = None) -> None:
        self.cluster = cluster or LocalCluster(directory, base_port=find_base_port())

    def __enter__(self) -> Loaded:
        self.cluster.start_all()
        self.cluster.wait_ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.cluster.stop_all()
        self.cluster.close()

    @property
    def url(self) -> str:
        return self.cluster.api_url(self.cluster.wait_leader())

    @property
    def pids(self) -> list[int]:
        return [pid for name in self.cluster.names if (pid := self.cluster.pid(name)) is not None]

    def follower(self) -> str:
        leader = self.cluster.wait_leader()
        return next(name for name in self.cluster.names if name != leader)

    def fill(self, count: int) -> None:
        for start in range(0, count, FILL_LINES):
            lines = "".join(
                json.dumps({"key": key(number), "value": value(number, "fill", VALUE_BYTES)}) + "\n"
                for number in range(start, min(start + FILL_LINES, count))
            )
            answers = ask(
                self.url.removeprefix("http://"), "POST", "/v1/batch", lines, "application/x-ndjson"
            )
            assert answers.count(b'"revision"') == lines.count("\n"), answers[-300:]

    def settle(self) -> None:
        """Until no node is making a snapshot, and all have applied the same."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            found = [status for status in self.cluster.statuses().values() if status is not None]
            idle = all(status["snapshot"]["state"] == "idle" for status in found)
            if idle and len({status["applied_index"] for status in found}) == 1:
                return
            assert time.monotonic() < deadline, f"not at rest in {SETTLE_SECONDS} s: {found}"
            time.sleep(0.1)

    def see(
        self, situation: str, number: int, requests: Sequence[bytes], connections: int, seconds: int
    ) -> Seen:
        case = Case("put", VALUE_BYTES, connections)
        url, pids = self.url, self.pids
        cpu, busy, began = cpu_seconds(pids), machine_busy_seconds(), time.monotonic()
        load = wrk(url, requests, case, seconds)
        cpu, busy = cpu_seconds(pids) - cpu, machine_busy_seconds() - busy
        capacity = (time.monotonic() - began) * (os.cpu_count() or 1)
        good = max(1, load.requests - load.errors)
        return Seen(
            situation,
            number,
            good / load.seconds,
            load.p50_ms,
            load.p99_ms,
            cpu * 1e6 / good,
            load.errors,
            max(0.0, busy - cpu - load.client_cpu_seconds) / capacity,
        )


def operations(operation: Operation, numbers: Sequence[int], tag: str) -> list[bytes]:
    """A request for each of these keys."""
    if operation == "put":
        return [put("raftkv", number, tag, VALUE_BYTES) for number in numbers]
    return [get("raftkv", number, stale=operation == "stale") for number in numbers]


# --- the probes ------------------------------------------------------------------------------------------


def knee(directory: Path, rounds: int, seconds: int, say: Say) -> tuple[list[Seen], list[Bound]]:
    overload = f"{OVERLOAD_CONNECTIONS * PIPELINE} under way, {PIPELINE} pipelined"
    puts = operations("put", range(FEW), "knee")
    pipelines = [b"".join(puts[at : at + PIPELINE]) for at in range(0, len(puts) - PIPELINE, PIPELINE)]
    seen: list[Seen] = []
    with Loaded(directory) as loaded:
        for number in range(1, rounds + 1):
            for load in LOADS:
                seen.append(loaded.see(under_way(load), number, puts, load, seconds))
                say(line(seen[-1]))
            seen.append(loaded.see(overload, number, pipelines, OVERLOAD_CONNECTIONS, seconds))
            say(line(seen[-1]))
    at = knee_of(seen)
    say(f"the knee is at {at} requests under way")
    base = under_way(at)
    return seen, [
        Bound(f"goodput at twice the knee's load ({2 * at})", under_way(2 * at), base, "rate", 0.9),
        Bound(f"goodput at {LOADS[-1]} under way", under_way(LOADS[-1]), base, "rate", 0.9),
        Bound("goodput beyond what is admitted, clients that never wait", overload, base, "rate", 0.9),
    ]


def follower(directory: Path, rounds: int, seconds: int, say: Say) -> tuple[list[Seen], list[Bound]]:
    puts = operations("put", range(FEW), "follower")
    seen: list[Seen] = []

    def look(situation: str) -> None:
        count = sum(each.situation == situation for each in seen)
        seen.append(loaded.see(situation, count + 1, puts, 256, seconds))
        say(line(seen[-1]))

    with Loaded(directory) as loaded:
        cluster = loaded.cluster
        for _ in range(rounds):
            victim = loaded.follower()
            look("all three run")
            with limping(cluster.pid(victim)):
                look("one follower is slow: stopped half of the time")
            cluster.pause(victim)
            look("one follower is stopped")
            cluster.resume(victim)
            look("it comes back, and catches up")
            cluster.wait_ready()
            cluster.kill(victim)
            look("one follower is dead")
            cluster.start(victim)
            cluster.wait_ready()
    base, *others = situations(seen)
    return seen, [Bound(each, each, base, "rate", 0.8) for each in others]


@contextlib.contextmanager
def limping(pid: int | None) -> Iterator[None]:
    """The process is stopped and goes on, in turns."""
    assert pid is not None
    ended = threading.Event()

    def limp() -> None:
        while not ended.wait(DUTY_SECONDS):
            os.kill(pid, signal.SIGSTOP)
            ended.wait(DUTY_SECONDS)
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=limp, name="limp")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


CASES: tuple[tuple[Operation, int], ...] = (("put", 256), ("get", 64), ("stale", 64))
NAMES: dict[Operation, str] = {"put": "PUT, 256", "get": "linearizable GET, 64", "stale": "stale GET, 64"}


def growth(directory: Path, rounds: int, seconds: int, say: Say) -> tuple[list[Seen], list[Bound]]:
    """The same requests beside few keys and beside many. Asked for are as many of the many as there are few:
    neighbours, which says what the number of keys costs alone; then spread over all of them, each on pages of
    memory of its own; and then a larger sample drawn at random, which no cache of the processor holds. The
    last two would cost more in one plain dict as well. Each begins at rest, so that none pays for a snapshot
    that the one before made due; what a snapshot costs is said apart."""
    neighbours = range(MANY // 2, MANY // 2 + FEW)
    spread = range(0, MANY, MANY // FEW)
    drawn = random.Random(1).sample(range(MANY), SAMPLED)
    seen: list[Seen] = []
    with contextlib.ExitStack() as stack:
        few, many = (stack.enter_context(Loaded(directory / str(keys))) for keys in (FEW, MANY))
        for loaded, keys in ((few, FEW), (many, MANY)):
            say(fill_and_weigh(loaded, keys))
            loaded.settle()
            say(weigh_snapshot(loaded, keys))
        asked: tuple[tuple[str, Loaded, Sequence[int]], ...] = (
            (f"all of {FEW:,} keys", few, range(FEW)),
            (f"{FEW:,} neighbours of {MANY:,} keys", many, neighbours),
            (f"{FEW:,} of {MANY:,} keys", many, spread),
            (f"{SAMPLED:,} of {MANY:,} keys", many, drawn),
        )
        for number in range(1, rounds + 1):
            for operation, connections in CASES:
                for name, loaded, numbers in asked:
                    requests = operations(operation, numbers, f"r{number}")
                    situation = f"{NAMES[operation]}, {name}"
                    loaded.settle()
                    seen.append(loaded.see(situation, number, requests, connections, seconds))
                    say(line(seen[-1]))
    base, *others = (name for name, _, _ in asked)
    return seen, [
        Bound(
            f"CPU of a {NAMES[operation]}, {other}",
            f"{NAMES[operation]}, {other}",
            f"{NAMES[operation]}, {base}",
            "cpu_us",
            at_most=1.2,
        )
        for operation, _ in CASES
        for other in others
    ]


def fill_and_weigh(loaded: Loaded, keys: int) -> str:
    before, began = memory_bytes(loaded.pids), time.monotonic()
    loaded.fill(keys)
    grown = [now - then for now, then in zip(memory_bytes(loaded.pids), before, strict=True)]
    return (
        f"{keys:,} keys filled in {time.monotonic() - began:.1f} s; the nodes grew by "
        + ", ".join(f"{each / keys:.0f}" for each in grown)
        + f" bytes a key, the log in memory included; {len(key(0)) + VALUE_BYTES} are key and value"
    )


def weigh_snapshot(loaded: Loaded, keys: int) -> str:
    """What it costs the node that makes one, and so each PUT until the next is due."""
    leader = loaded.cluster.wait_leader()
    pid = loaded.cluster.pid(leader)
    assert pid is not None
    with SyncClient(loaded.cluster.api_url(leader)) as client:
        client.put("one-more", b"")  # else the newest snapshot would do
        before = cpu_seconds([pid])
        client.create_snapshot(loaded.cluster.api_url(leader))
    seconds = cpu_seconds([pid]) - before
    a_put = seconds * 1e6 * PUT_LOG_BYTES / SNAPSHOT_LOG_BYTES
    return (
        f"a snapshot of {keys:,} keys takes a node {seconds:.2f} s of CPU time; one is due after "
        f"{SNAPSHOT_LOG_BYTES >> 20} MiB of log, which is {a_put:.1f} µs a PUT"
    )


def memory_bytes(pids: Sequence[int]) -> list[int]:
    page = resource.getpagesize()
    return [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page for pid in pids]


class Uncounted(LocalCluster):
    """Nodes whose counters and timers do nothing."""

    def command(self, name: str) -> list[str]:
        python, _, _, *arguments = super().command(name)
        return [python, "-m", "cluster.bench.uncounted", *arguments]


def instruments(directory: Path, rounds: int, seconds: int, say: Say) -> tuple[list[Seen], list[Bound]]:
    seen: list[Seen] = []
    with contextlib.ExitStack() as stack:
        counted = stack.enter_context(Loaded(directory / "counted"))
        environment = {"PYTHONPATH": str(ROOT)}
        other = Uncounted(directory / "uncounted", base_port=find_base_port(), env=environment)
        uncounted = stack.enter_context(Loaded(directory / "uncounted", other))
        both = (("counted, and scraped every second", counted), ("nothing counted", uncounted))
        for _, loaded in both:
            loaded.fill(FEW)
        for number in range(1, rounds + 1):
            for operation, connections in CASES:
                for name, loaded in both if number % 2 else reversed(both):
                    requests = operations(operation, range(FEW), f"r{number}")
                    with scraped(loaded.cluster.api_urls() if loaded is counted else []):
                        situation = f"{NAMES[operation]}, {name}"
                        seen.append(loaded.see(situation, number, requests, connections, seconds))
                    say(line(seen[-1]))
    (on, _), (off, _) = both
    return seen, [
        Bound(
            f"CPU of a {NAMES[operation]} with instruments",
            f"{NAMES[operation]}, {on}",
            f"{NAMES[operation]}, {off}",
            "cpu_us",
            at_most=1.03,
        )
        for operation, _ in CASES
    ]


@contextlib.contextmanager
def scraped(urls: Sequence[str]) -> Iterator[None]:
    """`/metrics` of each node once a second, as Prometheus would ask."""
    ended = threading.Event()

    def scrape() -> None:
        while not ended.wait(1.0):
            for url in urls:
                with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
                    answer.read()

    thread = threading.Thread(target=scrape, name="scrape")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


PROBES: dict[str, Callable[[Path, int, int, Say], tuple[list[Seen], list[Bound]]]] = {
    "knee": knee,
    "follower": follower,
    "growth": growth,
    "instruments": instruments,
}


def line(seen: Seen) -> str:
    refused = f"  refused {seen.refused:,}" if seen.refused else ""
    return (
        f"{seen.round}  {seen.situation:58} {seen.rate:>9,.0f}/s  p99 {seen.p99_ms:7.2f} ms  "
        f"CPU {seen.cpu_us:5.1f} µs  neighbours {seen.neighbours_cpu_share:4.0%}{refused}"
    )


def probe(name: str, rounds: int, seconds: int, directory: Path) -> int:
    """Plays it, says what came out, keeps it as `probe-NAME.json`; 1 where a bound did not hold."""
    with tempfile.TemporaryDirectory(prefix="data-", dir=directory) as data:
        seen, bounds = PROBES[name](
            Path(data), rounds, seconds, lambda text: print(text, file=sys.stdout, flush=True)
        )
    judged = [{**asdict(bound), "ratio": holds(seen, bound)[0]} for bound in bounds]
    document = {"probe": name, "bounds": judged, "seen": [asdict(each) for each in seen]}
    (directory / f"probe-{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    print(f"\n{table(seen)}\n\n{bounds_table(seen, bounds)}\n")
    share = median(each.neighbours_cpu_share for each in seen)
    print(f"neighbours took {share:.0%} of the machine (median); medians of {rounds} rounds of {seconds} s")
    return 0 if all(holds(seen, bound)[1] for bound in bounds) else 1
