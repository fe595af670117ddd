"""`raftkv up`: a whole cluster on this machine, in the foreground.

The nodes are `raftkv serve` processes of `LocalCluster`. One loop watches them: what changes (a leader, a
term, a node dying) becomes one line on stdout. A node that a signal ended is started again; one that
ended with an error refused to go on and said why, so it stays down and its last words are shown. The
data directory remembers how many nodes it has and where they listen, since they do too.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import click

from cluster.local import LocalCluster, port_is_free, port_owner, ports_of
from raftkv.config import SETTING_BY_NAME

WATCH_SECONDS = 0.5
RESTART_DELAYS_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0)  # for each death in a row; the last one repeats
RESTARTS_MAX = 10  # deaths in a row; a node that stayed up for STEADY_SECONDS starts anew
STEADY_SECONDS = 60.0
SILENCE_SECONDS = 3.0  # of a node that was just started: nothing to tell
NODES_MAX = 9
_SILENT = "it does not answer yet"


@dataclass
class _Watched:
    """What the loop knows of one node."""

    started_at: float = 0.0
    deaths: int = 0
    restart_at: float | None = None
    given_up: bool = False


@dataclass
class _View:
    """What was last said of the cluster."""

    leader: str | None = None
    term: int = 0
    ready: bool = False
    said_waiting: dict[str, str] = field(default_factory=dict)


@click.command(
    epilog="""\b
Examples:
  raftkv up
  raftkv up --data-dir /tmp/trial --nodes 5 --base-port 9400
  raftkv up --snapshots rados://raftkv/prod --restore-from rados://raftkv/prod
  curl -L -X PUT --data-binary world http://127.0.0.1:8410/v1/kv/hello"""
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("raftkv-data"),
    show_default=True,
    help="Where everything is kept; start again with the same one to go on with its data.",
)
@click.option(
    "--nodes", type=click.IntRange(1, NODES_MAX), help="How many nodes. [default: 3, or what the data has]"
)
@click.option(
    "--base-port",
    type=click.IntRange(1024, 65000),
    help="API port of the first node; the next ones 10 up each. [default: 8400, or what the data has]",
)
@click.option(
    "--tls/--no-tls",
    default=None,
    help="Clients and nodes speak TLS, with certificates made in DATA_DIR/tls. [default: no, or what the "
    "data has]",
)
@click.option(
    "--auth/--no-auth",
    default=None,
    help="Clients need a token; that of the first administrator is made in DATA_DIR/admin-token. [default: "
    "no, or what the data has]",
)
@click.option(
    "--snapshots",
    metavar="URL",
    help="Store that snapshots are published to, beside each node's own. [default: none]",
)
@click.option(
    "--restore-from",
    metavar="URL",
    help="First restore the newest state of this store into the nodes' directories, which must be empty; "
    "`raftkv restore` can do more.",
)
@click.argument("serve_arguments", nargs=-1, type=click.UNPROCESSED)
def up(
    data_dir: Path,
    nodes: int | None,
    base_port: int | None,
    tls: bool | None,
    auth: bool | None,
    snapshots: str | None,
    restore_from: str | None,
    serve_arguments: tuple[str, ...],
) -> None:
    """Run a cluster on this machine: three nodes by default, in the foreground.

    Ctrl-C stops it in order. What follows `--` goes to every `raftkv serve`.
    """
    if snapshots is not None:
        try:
            SETTING_BY_NAME["snapshots"].parse(snapshots)
        except ValueError as error:
            allowed = SETTING_BY_NAME["snapshots"].allowed
            raise click.UsageError(f"--snapshots {snapshots}: {error}; allowed: {allowed}") from None
        serve_arguments = ("--snapshots", snapshots, *serve_arguments)
    with claimed(data_dir):
        shape = shape_of(data_dir, nodes, base_port, tls, auth)
        _check_ports(shape.base_port, shape.nodes)
        with LocalCluster(
            data_dir,
            nodes=shape.nodes,
            base_port=shape.base_port,
            extra_args=serve_arguments,
            tls=shape.tls,
            auth=shape.auth,
        ) as cluster:
            if restore_from is not None:
                _restore(cluster, restore_from)
            sys.exit(_Supervisor(cluster).run())


def _restore(cluster: LocalCluster, url: str) -> None:
    from cluster import restoring
    from raftkv.raft.restore import Target

    directories = {name: cluster.node_dir(name) for name in cluster.names}
    with restoring.refusals():
        restoring.restore_from(url, Target(), directories, restoring.local_members(cluster), say=say)


class _Supervisor:
    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self._stop = threading.Event()
        self._interrupts = 0
        self._nodes = {name: _Watched() for name in cluster.names}
        self._view = _View()

    def run(self) -> int:
        """Until a signal, or until every node has given up. Returns the exit code."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        self._introduce()
        for name in self._cluster.names:
            self._start(name)
        while not self._stop.wait(WATCH_SECONDS):
            self._tend()
            self._tell(self._cluster.statuses())
            if all(node.given_up for node in self._nodes.values()):
                say("every node is down for good; see above")
                return 1
        self._stop_in_order()
        return 0

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += 1
        self._stop.set()
        if self._interrupts > 1:  # without waiting here: the interrupted code may hold the child's lock
            for pid in filter(None, map(self._cluster.pid, self._cluster.names)):
                os.kill(pid, signal.SIGKILL)

    # --- keeping them alive -------------------------------------------------------------------------

    def _start(self, name: str) -> None:
        self._cluster.start(name)
        self._nodes[name].started_at = time.monotonic()
        self._nodes[name].restart_at = None

    def _tend(self) -> None:
        now = time.monotonic()
        for name, node in self._nodes.items():
            if node.given_up:
                continue
            if node.restart_at is not None:
                if now >= node.restart_at:
                    self._start(name)
                    say(f"{name} started again, pid {self._cluster.pid(name)}")
            elif not self._cluster.alive(name):
                self._bury(name, node, now)

    def _bury(self, name: str, node: _Watched, now: float) -> None:
        """Says how a node died, and decides when it is started again."""
        code = self._cluster.exit_code(name)
        assert code is not None
        node.deaths = 1 if now - node.started_at > STEADY_SECONDS else node.deaths + 1
        self._view.ready = False
        if code > 0:
            node.given_up = True
            say(f"{name} REFUSED TO GO ON (exit code {code}); it is not started again. Its last words:")
        elif node.deaths > RESTARTS_MAX:
            node.given_up = True
            say(f"{name} DIED {node.deaths} times in a row ({cause_of(code)}): not started again. Its log:")
        else:
            delay = RESTART_DELAYS_SECONDS[min(node.deaths, len(RESTART_DELAYS_SECONDS)) - 1]
            node.restart_at = now + delay
            say(f"{name} DIED ({cause_of(code)}), to be started again in {delay:g} s. Its log ends:")
        for line in self._cluster.last_log_lines(name, 8):
            click.echo(f"    {line}")

    def _stop_in_order(self) -> None:
        leader = self._cluster.leader()
        order = sorted(self._cluster.names, key=lambda name: name == leader)
        say(f"stopping {', '.join(filter(self._cluster.alive, order))} (Ctrl-C again: at once)")
        for name in order:
            if self._cluster.alive(name):
                code = self._cluster.stop(name)
                say(f"{name} stopped" + ("" if code == 0 else f" ({cause_of(code or 0)})"))

    # --- telling ------------------------------------------------------------------------------------

    def _introduce(self) -> None:
        cluster = self._cluster
        click.echo(f"raftkv: {len(cluster.names)} node(s) in {cluster.data_dir}")
        for name in cluster.names:
            click.echo(
                f"  {name}  {cluster.api_url(name)}  raft {cluster.raft_address(name)}"
                f"  log {cluster.log_path(name)}"
            )

    def _tell(self, statuses: Mapping[str, Mapping[str, Any] | None]) -> None:
        view = self._view
        led = {
            status["leader"]: status["term"]
            for status in statuses.values()
            if status is not None and status.get("role") == "leader" and status.get("leader")
        }
        leader, term = max(led.items(), key=lambda pair: pair[1], default=(None, view.term))
        if (leader, term) != (view.leader, view.term):
            say(f"{leader} leads, term {term}" if leader else f"no leader, term {term}")
            view.leader, view.term = leader, term
        self._tell_waiting()

    def _tell_waiting(self) -> None:
        """Why nodes are not ready, and once that they all are."""
        if self._view.ready:
            return
        reasons = {name: self._reason(name) for name in self._cluster.names if self._cluster.alive(name)}
        for name, reason in reasons.items():
            if reason == _SILENT and time.monotonic() - self._nodes[name].started_at < SILENCE_SECONDS:
                continue
            if reason and reason != self._view.said_waiting.get(name):
                say(f"{name} waits: {reason}")
            self._view.said_waiting[name] = reason
        if len(reasons) == len(self._nodes) and not any(reasons.values()):
            self._view.ready = True
            say(f"ready: {len(self._nodes)} of {len(self._nodes)} nodes")
            self._example()

    def _reason(self, name: str) -> str:
        """Empty where the node is ready."""
        code, body = self._cluster.get(name, "/readyz")
        if code == 200:
            # The leader makes the first token when it leads: until then a ready node lets nobody in.
            locked = self._cluster.auth and self._cluster.get(name, "/v1/status")[0] == 401
            return "the first token is not there yet" if locked else ""
        if code == 0:
            return _SILENT
        with contextlib.suppress(ValueError):
            problem = json.loads(body)
            if isinstance(problem, dict):
                return str(problem.get("detail") or problem.get("code") or code)
        return body.decode(errors="replace").strip().partition("\n")[0][:200] or str(code)

    def _example(self) -> None:
        urls = self._cluster.api_urls()
        curl = f"curl --cacert {self._cluster.tls_dir / 'ca.pem'}" if self._cluster.tls else "curl"
        if self._cluster.auth:
            # Not as a word of the command line, which others can see; the shell's own echo is no process.
            curl += (
                f' --location-trusted -H @<(echo "Authorization: Bearer $(cat {self._cluster.token_path})")'
            )
        click.echo("  try, on any node:")
        click.echo(f"    {curl} -L -X PUT --data-binary world {urls[1 % len(urls)]}/v1/kv/hello")
        click.echo(f"    {curl} {urls[2 % len(urls)]}/v1/kv/hello")


# --- the data directory and the ports -------------------------------------------------------------------


@contextlib.contextmanager
def claimed(data_dir: Path) -> Iterator[None]:
    """Holds DATA_DIR/up.lock, which has the holder's pid in it."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / "up.lock").open("a+")
    except OSError as error:
        raise click.ClickException(f"--data-dir {data_dir}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise click.ClickException(
                f"another `raftkv up` (pid {lock.read().strip() or 'unknown'}) runs on {data_dir}; stop "
                "that one, or give this one a --data-dir and a --base-port of its own"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


class Shape(NamedTuple):
    """What a data directory remembers of its cluster."""

    nodes: int
    base_port: int
    tls: bool
    auth: bool


def shape_of(
    data_dir: Path,
    nodes: int | None,
    base_port: int | None,
    tls: bool | None = None,
    auth: bool | None = None,
) -> Shape:
    """As asked for on first use, and as recorded ever after."""
    record = data_dir / "up.json"
    try:
        known = json.loads(record.read_text())
        nodes_had, port_had = int(known["nodes"]), int(known["base_port"])
        kept = Shape(nodes_had, port_had, bool(known.get("tls", False)), bool(known.get("auth", False)))
    except FileNotFoundError:
        shape = Shape(nodes or 3, base_port or 8400, bool(tls), bool(auth))
        if ports_of(shape.base_port, shape.nodes)[-1] > 65535:
            raise click.UsageError(
                f"--base-port {shape.base_port} leaves no room for {shape.nodes} nodes"
            ) from None
        record.write_text(json.dumps(shape._asdict()) + "\n")
        return shape
    except (ValueError, KeyError, TypeError) as error:
        raise click.ClickException(
            f"{record} is unreadable ({error}); it holds the cluster's shape, as in "
            '{"nodes": 3, "base_port": 8400}: put it right or choose another --data-dir'
        ) from error
    asked_and_had = (
        ("--nodes", nodes, kept.nodes),
        ("--base-port", base_port, kept.base_port),
        ("--tls", tls, kept.tls),
        ("--auth", auth, kept.auth),
    )
    for flag, asked, had in asked_and_had:
        if asked is not None and asked != had:
            raise click.UsageError(
                f"{flag} {asked}: the cluster in {data_dir} was formed with {flag} {had}, and its members "
                f"know each other so; leave {flag} out, or choose another --data-dir"
            )
    return kept


def _check_ports(base_port: int, nodes: int) -> None:
    for port in ports_of(base_port, nodes):
        if not port_is_free("127.0.0.1", port):
            owner = port_owner(port)
            who = f"pid {owner[0]}: {owner[1][:120]}" if owner else "a process that /proc does not show us"
            raise click.ClickException(
                f"port {port} on 127.0.0.1 is in use by {who}; stop that, or choose another --base-port "
                "(and --data-dir, where this one's cluster has formed)"
            )


# --- words ----------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """One event a line, with the time, at once also where stdout is a file."""
    click.echo(f"{time.strftime('%H:%M:%S')}  {text}")
    sys.stdout.flush()


def cause_of(code: int) -> str:
    """A process's exit code in words."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
