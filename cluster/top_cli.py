"""`raftkv top`: what the nodes do at this moment, drawn anew every second. Rates and latencies are of the
time between two looks at each node's `/metrics`."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cluster.connection import client_settings, connection_options, output_option
from cluster.output import print_json
from cluster.survey import NODE_SECONDS, Between, Node, Readings, survey
from raftkv.client import Client

HISTORY = 40  # looks that the small graphs show
KEY = "/v1/kv/{key}"
TIMES = "http_request_seconds"
_BARS = " ▁▂▃▄▅▆▇█"


@click.command(
    epilog="""\b
Examples:
  raftkv top
  raftkv top --endpoints http://10.0.0.1:8400 --interval 5
  raftkv top --once -o json | jq '.nodes[].put_p99_s'

Ctrl-C ends it. Latencies are from a node's own histograms: their resolution is that of the buckets."""
)
@click.option("--once", is_flag=True, help="One look, printed; it takes one interval.")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(0.2, 60),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks.",
)
@output_option
@connection_options
def top(once: bool, interval_s: float, output: str, endpoints: tuple[str, ...], timeout_s: float) -> None:
    """Watch the nodes: roles, lag, rates, latencies, fsync, load. One node's address is enough.

    With -o json one document a look, one a line.
    """
    node_timeout_s = min(timeout_s, NODE_SECONDS)
    with suppress(KeyboardInterrupt):
        asyncio.run(_top(endpoints, node_timeout_s, interval_s, once=once, as_json=output == "json"))


async def _top(
    endpoints: tuple[str, ...], timeout_s: float, interval_s: float, *, once: bool, as_json: bool
) -> None:
    async with Client(endpoints, timeout_s=timeout_s, patient=False, **client_settings()) as client:
        watch = Watch(client, timeout_s)
        await watch.look()
        if once or as_json:
            while True:
                await asyncio.sleep(interval_s)
                cluster = await watch.look()
                if as_json:
                    print_json(asdict(cluster))
                else:
                    Console().print(drawn(cluster, watch.history))
                if once:
                    return
        with Live(screen=True, auto_refresh=False) as live:
            while True:
                await asyncio.sleep(interval_s)
                cluster = await watch.look()
                live.update(drawn(cluster, watch.history), refresh=True)


# --- what was measured -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NodeNow:
    """A node between two looks: rates a second, times in seconds; None where nothing of the kind happened.
    `error` is why it did not answer; then all but `name` and `url` is as it was born."""

    name: str
    url: str
    error: str = ""
    role: str = "-"
    term: int = 0
    ready: bool = False
    commit_index: int = 0
    applied_index: int = 0
    lag: int | None = None  # entries behind the leader, as that knows it
    revision: int = 0
    keys: int = 0
    bytes: int = 0
    puts: float = 0.0
    gets: float = 0.0
    others: float = 0.0
    failures: float = 0.0  # 5xx and 429
    put_p50_s: float | None = None
    put_p99_s: float | None = None
    get_p50_s: float | None = None
    get_p99_s: float | None = None
    sync_p50_s: float | None = None
    sync_p99_s: float | None = None
    syncs: float = 0.0
    batch_commands: float | None = None
    journal_bytes: float = 0.0
    disk_free_bytes: float | None = None
    cpu_cores: float = 0.0
    memory_bytes: float = 0.0
    connections: float = 0.0
    in_flight: float = 0.0
    late_p99_s: float | None = None
    alarms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ClusterNow:
    cluster_id: str
    leader: str | None
    term: int
    time: float
    puts: float
    gets: float
    others: float
    failures: float
    nodes: tuple[NodeNow, ...]


@dataclass(slots=True)
class History:
    """The newest last."""

    puts: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    gets: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    put_p99_s: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    sync_p99_s: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))

    def add(self, now: ClusterNow) -> None:
        self.puts.append(now.puts)
        self.gets.append(now.gets)
        self.put_p99_s.append(max((node.put_p99_s or 0.0 for node in now.nodes), default=0.0))
        self.sync_p99_s.append(max((node.sync_p99_s or 0.0 for node in now.nodes), default=0.0))


class Watch:
    """Looks at all nodes, and remembers what each said last."""

    def __init__(self, client: Client, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._before: dict[str, Readings] = {}
        self.history = History()

    async def look(self) -> ClusterNow:
        nodes = await survey(self._client, timeout_s=self._timeout_s, metrics=True)
        first = not self._before
        now = cluster_now(nodes, self._before)
        self._before = {node.url: node.readings for node in nodes if node.readings is not None}
        if not first:
            self.history.add(now)
        return now


def cluster_now(nodes: Sequence[Node], before: Mapping[str, Readings]) -> ClusterNow:
    answering = [node for node in nodes if node.answers]
    newest = max(answering, key=lambda node: int(node.status["term"]), default=None)
    lags = {
        peer["name"]: peer["lag"]
        for node in answering
        if node.status["role"] == "leader"
        for peer in node.status["peers"]
    }
    rows = tuple(node_now(node, before.get(node.url), lags.get(node.name)) for node in nodes)
    return ClusterNow(
        cluster_id="" if newest is None else newest.status["cluster_id"],
        leader=None if newest is None else newest.status["leader"],
        term=0 if newest is None else newest.status["term"],
        time=time.time(),
        puts=sum(row.puts for row in rows),
        gets=sum(row.gets for row in rows),
        others=sum(row.others for row in rows),
        failures=sum(row.failures for row in rows),
        nodes=rows,
    )


def node_now(node: Node, before: Readings | None, lag: int | None) -> NodeNow:
    if not node.answers or node.readings is None:
        return NodeNow(node.name, node.url, node.error or "no metrics")
    status, now = node.status, node.readings
    happened = Between(before or now, now)

    def requests(**labels: str) -> float:
        return happened.rate("raftkv_http_requests_total", **labels)

    def times(share: float, method: str) -> float | None:
        return happened.quantile(share, "raftkv_" + TIMES, route=KEY, method=method)

    def now_is(name: str) -> float:
        return now.sum(name) or 0.0

    puts, gets = requests(route=KEY, method="PUT"), requests(route=KEY, method="GET")
    own = sum(requests(route=route) for route in OWN_ROUTES)
    return NodeNow(
        name=node.name,
        url=node.url,
        role=status["role"],
        term=status["term"],
        ready=status["ready"],
        commit_index=status["commit_index"],
        applied_index=status["applied_index"],
        lag=lag,
        revision=status["revision"],
        keys=status["keys"],
        bytes=status["bytes"],
        puts=puts,
        gets=gets,
        others=max(0.0, requests() - puts - gets - own),
        failures=sum(
            requests(status=code)
            for code in now.by("raftkv_http_requests_total", "status")
            if code == "429" or code.startswith("5")
        ),
        put_p50_s=times(0.5, "PUT"),
        put_p99_s=times(0.99, "PUT"),
        get_p50_s=times(0.5, "GET"),
        get_p99_s=times(0.99, "GET"),
        sync_p50_s=happened.quantile(0.5, "raftkv_journal_sync_seconds"),
        sync_p99_s=happened.quantile(0.99, "raftkv_journal_sync_seconds"),
        syncs=happened.rate("raftkv_journal_sync_seconds_count"),
        batch_commands=happened.mean("raftkv_batch_commands"),
        journal_bytes=now_is("raftkv_journal_bytes"),
        disk_free_bytes=now.sum("raftkv_disk_free_bytes"),
        cpu_cores=happened.rate("raftkv_process_cpu_seconds_total"),
        memory_bytes=now_is("raftkv_process_resident_memory_bytes"),
        connections=now_is("raftkv_http_connections"),
        in_flight=now_is("raftkv_http_requests_in_flight"),
        late_p99_s=happened.quantile(0.99, "raftkv_loop_late_seconds"),
        alarms=tuple(alarm["name"] for alarm in status.get("alarms", ())),
    )


# What a look itself asks, and probes: not the clients' doing.
OWN_ROUTES = ("/v1/status", "/metrics", "/livez", "/readyz", "/startupz")


# --- how it looks ----------------------------------------------------------------------------------------

_ROLE_STYLES = {"leader": "bold green", "follower": "cyan", "candidate": "bold yellow", "learner": "magenta"}


def drawn(now: ClusterNow, history: History) -> RenderableType:
    return Panel(
        Group(*_parts(now, history)),
        title="[bold]raftkv top[/]",
        subtitle=f"[dim]cluster {now.cluster_id or 'not formed'}[/]",
        border_style="green" if now.leader and not _trouble(now) else "red",
        padding=(0, 1),
    )


def _parts(now: ClusterNow, history: History) -> Iterator[RenderableType]:
    yield _heading(now)
    for table in (_consensus(now), _requests(now), _machines(now)):
        yield Text()
        yield table
    yield from _graphs(history)


def _trouble(now: ClusterNow) -> bool:
    return any(node.error or node.alarms or not node.ready for node in now.nodes)


def _heading(now: ClusterNow) -> Text:
    up = sum(1 for node in now.nodes if not node.error)
    text = Text()
    if now.leader:
        text.append(f"{now.leader} leads", "bold green")
        text.append(f" in term {now.term}")
    else:
        text.append("no leader", "bold red")
    text.append(f"   {up} of {len(now.nodes)} nodes answer", "" if up == len(now.nodes) else "bold red")
    text.append(f"   {count(now.puts)} PUT/s   {count(now.gets)} GET/s   {count(now.others)} other/s")
    if now.failures >= 0.05:
        text.append(f"   {count(now.failures)} failures/s", "bold red")
    text.append("   " + time.strftime("%H:%M:%S", time.localtime(now.time)), "dim")
    for node in now.nodes:
        for alarm in node.alarms:
            text.append(f"\n{node.name}: {alarm}", "bold red")
    return text


def _consensus(now: ClusterNow) -> Table:
    names = ("ROLE", "TERM", "APPLIED", "BEHIND", "REVISION", "KEYS", "SIZE", "JOURNAL", "DISK FREE")
    table = _table(names)
    for node in now.nodes:
        if node.error:
            table.add_row(Text(node.name or node.url, "bold"), Text("unreachable", "bold red"))
            continue
        behind = "-" if node.lag is None else str(node.lag)
        table.add_row(
            Text(node.name, "bold"),
            Text(node.role if node.ready else f"{node.role}, not ready", _ROLE_STYLES.get(node.role, "")),
            str(node.term),
            str(node.applied_index),
            Text(behind, "yellow" if (node.lag or 0) > 1000 else ""),
            str(node.revision),
            str(node.keys),
            size(node.bytes),
            size(node.journal_bytes),
            "-" if node.disk_free_bytes is None else size(node.disk_free_bytes),
        )
    return table


def _requests(now: ClusterNow) -> Table:
    names = ("PUT/s", "p50", "p99", "GET/s", "p50", "p99", "OTHER/s", "FAIL/s", "IN FLIGHT", "CONNS")
    table = _table(names)
    for node in _there(now):
        table.add_row(
            Text(node.name, "bold"),
            count(node.puts),
            duration(node.put_p50_s),
            _time(node.put_p99_s, 0.05, 0.25),
            count(node.gets),
            duration(node.get_p50_s),
            _time(node.get_p99_s, 0.05, 0.25),
            count(node.others),
            Text(count(node.failures), "bold red" if node.failures >= 0.05 else ""),
            f"{node.in_flight:.0f}",
            f"{node.connections:.0f}",
        )
    return table


def _machines(now: ClusterNow) -> Table:
    names = ("SYNC/s", "p50", "p99", "BATCH", "CPU", "MEMORY", "LATE p99")
    table = _table(names)
    for node in _there(now):
        table.add_row(
            Text(node.name, "bold"),
            count(node.syncs),
            duration(node.sync_p50_s),
            _time(node.sync_p99_s, 0.025, 0.1),
            "-" if node.batch_commands is None else count(node.batch_commands),
            f"{node.cpu_cores * 100:.0f}%",
            size(node.memory_bytes),
            _time(node.late_p99_s, 0.025, 0.1),
        )
    return table


def _graphs(history: History) -> Iterator[RenderableType]:
    if len(history.puts) < 2:
        return
    grid = Table.grid(padding=(0, 2))
    for title, values, text in (
        ("PUT/s", history.puts, count),
        ("GET/s", history.gets, count),
        ("PUT p99", history.put_p99_s, duration),
        ("fsync p99", history.sync_p99_s, duration),
    ):
        grid.add_row(
            Text(title, "dim"), Text(bars(values), "green"), Text(f"up to {text(max(values))}", "dim")
        )
    yield Text()
    yield grid


def _there(now: ClusterNow) -> Iterator[NodeNow]:
    return (node for node in now.nodes if not node.error)


def _table(names: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("NODE", min_width=6)
    for name in names:
        table.add_column(name, justify="left" if name == "ROLE" else "right", min_width=len(name))
    return table


def _time(seconds: float | None, high: float, too_high: float) -> Text:
    if seconds is None or seconds < high:
        return Text(duration(seconds))
    return Text(duration(seconds), "bold red" if seconds >= too_high else "yellow")


def bars(values: Sequence[float]) -> str:
    """A line of blocks, the highest value a full one."""
    most = max(values, default=0.0)
    if most <= 0:
        return _BARS[0] * len(values)
    return "".join(_BARS[min(8, int(8 * value / most + 0.999))] for value in values)


def count(value: float) -> str:
    if value < 10:
        return f"{value:.1f}".removesuffix(".0")
    return f"{value:,.0f}" if value < 100_000 else f"{value / 1000:,.0f}k"


def size(value: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
