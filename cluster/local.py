"""Real `raftkv serve` processes on this machine: what `raftkv up`, the tests and the fault campaigns run.

Each node is a plain child process with a directory of its own:

    DATA_DIR/secret              the cluster's secret, made on first use, mode 0600
    DATA_DIR/<name>/             the node's data directory: journal/, snapshots/, identity.json …
    DATA_DIR/<name>/node.log     its stdout and stderr, appended over restarts
    DATA_DIR/admin-token         with `auth`: the first administrator's token, made on first use, mode 0600
    DATA_DIR/tls/                with `tls`: ca.pem and the nodes' certificates, made on first use

Node number i (from 0) answers clients on `base_port + 10 i` and members on the port after that. Children
stand in sessions of their own, so that Ctrl-C in a terminal reaches the parent alone, which stops them in
order; the kernel kills them when the parent dies, whatever it dies of.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import random
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from raftkv.access.secret import new_token
from raftkv.tls.credentials import client_context

PORTS_A_NODE = 10  # room beside the API and raft ports for what comes later
POLL_SECONDS = 0.05
STATUS_TIMEOUT_SECONDS = 1.0
STOP_TIMEOUT_SECONDS = 15.0  # a node exits within 10 s of SIGTERM; after this it is killed
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class NodeFailed(Exception):
    """A node's process ended where it should run, or did not get ready in time."""


class LocalCluster:
    """Starts, stops, kills, pauses and asks the nodes. Not thread-safe for one node; nodes are independent.

    `hosts` gives a node another address than 127.0.0.1; `command_prefix` words before its command line,
    which must exec it (`ip netns exec …`). `extra_args` go to every `raftkv serve`. `tls`: for clients and
    between the nodes. `founders`: how many of the nodes form the cluster (default: all); those after them
    join it, once they are started and added.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        nodes: int = 3,
        base_port: int = 8400,
        hosts: Mapping[str, str] | None = None,
        command_prefix: Mapping[str, list[str]] | None = None,
        extra_args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        tls: bool = False,
        founders: int | None = None,
        auth: bool = False,
    ) -> None:
        self.data_dir = Path(data_dir).absolute()
        self.base_port = base_port
        self.names: tuple[str, ...] = tuple(f"n{number + 1}" for number in range(nodes))
        self.founders = self.names[: nodes if founders is None else founders]
        self.joining = set(self.names[len(self.founders) :])  # who is started with --join
        self._hosts = dict(hosts or {})
        self._command_prefix = dict(command_prefix or {})
        self._extra_args = tuple(extra_args)
        self.tls = tls
        self.auth = auth
        self._context: ssl.SSLContext | None = None
        self._environment = {**os.environ, **(env or {})}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._paused: set[str] = set()
        # A parent-death signal fires when the *thread* that forked ends, so one thread forks them all
        # and lives as long as this object.
        self._forker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="raftkv-forker")

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- where things are ---------------------------------------------------------------------------

    def host(self, name: str) -> str:
        return self._hosts.get(name, "127.0.0.1")

    def api_port(self, name: str) -> int:
        return self.base_port + PORTS_A_NODE * self.names.index(name)

    def api_url(self, name: str) -> str:
        return f"http{'s' if self.tls else ''}://{self.host(name)}:{self.api_port(name)}"

    def api_urls(self) -> list[str]:
        return [self.api_url(name) for name in self.names]

    def raft_address(self, name: str) -> str:
        return f"{self.host(name)}:{self.api_port(name) + 1}"

    def node_dir(self, name: str) -> Path:
        return self.data_dir / name

    def log_path(self, name: str) -> Path:
        return self.node_dir(name) / "node.log"

    @property
    def tls_dir(self) -> Path:
        return self.data_dir / "tls"

    @property
    def client_tls(self) -> ssl.SSLContext | None:
        """What a client of these nodes needs, where they speak TLS."""
        if self.tls and self._context is None:
            self._make_certificates()
            self._context = client_context(
                self.tls_dir / "ca.pem", self.tls_dir / "client.pem", self.tls_dir / "client.key"
            )
        return self._context

    @property
    def token_path(self) -> Path:
        """The first administrator's token, where the nodes ask for tokens."""
        return self.data_dir / "admin-token"

    @property
    def token(self) -> str | None:
        """That token; None where none is asked for."""
        if not self.auth:
            return None
        self._make_token()
        return self.token_path.read_text().strip()

    @property
    def secret_path(self) -> Path:
        return self.data_dir / "secret"

    def pid(self, name: str) -> int | None:
        """None where the node does not run."""
        return self._processes[name].pid if self.alive(name) else None

    def alive(self, name: str) -> bool:
        """A paused process is alive."""
        process = self._processes.get(name)
        return process is not None and process.poll() is None

    def exit_code(self, name: str) -> int | None:
        """How the node's last process ended (-9: by SIGKILL); None where it runs or never ran."""
        process = self._processes.get(name)
        return None if process is None else process.poll()

    def last_log_lines(self, name: str, count: int = 10) -> list[str]:
        try:
            with self.log_path(name).open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - 64 * 1024))
                return log.read().decode(errors="replace").splitlines()[-count:]
        except FileNotFoundError:
            return []

    # --- life and death -----------------------------------------------------------------------------

    def command(self, name: str) -> list[str]:
        """The node's whole command line."""
        known = self.founders if name in self.founders else (*self.founders, name)
        members = (f"{each}={self.raft_address(each)},{self.api_url(each)}" for each in known)
        return [
            *self._command_prefix.get(name, ()),
            *(sys.executable, "-m", "raftkv", "serve"),
            *("--name", name),
            *("--data-dir", str(self.node_dir(name))),
            *("--api", f"{self.host(name)}:{self.api_port(name)}"),
            *("--raft", self.raft_address(name)),
            *(word for member in members for word in ("--member", member)),
            *("--secret-file", str(self.secret_path)),
            *(("--join",) if name in self.joining else ()),
            *(self._tls_arguments(name) if self.tls else ()),
            *(("--auth", "tokens", "--bootstrap-token-file", str(self.token_path)) if self.auth else ()),
            *self._extra_args,
        ]

    def _tls_arguments(self, name: str) -> list[str]:
        cert, key, ca = (str(self.tls_dir / file) for file in (f"{name}.pem", f"{name}.key", "ca.pem"))
        return [
            *("--tls-cert", cert, "--tls-key", key, "--tls-ca", ca),
            *("--peer-tls-cert", cert, "--peer-tls-key", key, "--peer-tls-ca", ca),
        ]

    def start(self, name: str) -> None:
        """Returns when the process is there, which is before it is ready."""
        assert not self.alive(name), f"{name} runs already"
        self._make_directories(name)
        self._processes[name] = self._forker.submit(self._fork, name).result()
        self._paused.discard(name)

    def start_all(self) -> None:
        """Those that found the cluster."""
        for name in self.founders:
            if not self.alive(name):
                self.start(name)

    def stop(self, name: str, timeout_s: float = STOP_TIMEOUT_SECONDS) -> int | None:
        """SIGTERM, and SIGKILL where that is not enough in `timeout_s`. Returns the exit code."""
        self.terminate(name)
        return self.wait_stopped(name, timeout_s)

    def terminate(self, name: str) -> None:
        """SIGTERM without waiting. A paused node is resumed, or it would never hear it."""
        self._signal(name, signal.SIGTERM)
        self.resume(name)

    def wait_stopped(self, name: str, timeout_s: float = STOP_TIMEOUT_SECONDS) -> int | None:
        process = self._processes.get(name)
        if process is None:
            return None
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def kill(self, name: str) -> None:
        """SIGKILL, and waits until the process is gone."""
        self._signal(name, signal.SIGKILL)
        if name in self._processes:
            self._processes[name].wait()
        self._paused.discard(name)

    def pause(self, name: str) -> None:
        self._signal(name, signal.SIGSTOP)
        self._paused.add(name)

    def resume(self, name: str) -> None:
        self._signal(name, signal.SIGCONT)
        self._paused.discard(name)

    def stop_all(self) -> None:
        """Followers first and the leader last, so that leadership does not wander from one to the next."""
        leader = self.leader()
        for name in sorted(self.names, key=lambda each: each == leader):
            self.stop(name)

    def kill_all(self) -> None:
        """All at once: every SIGKILL is sent before the first process is waited for."""
        for name in self.names:
            self._signal(name, signal.SIGKILL)
        for name in self.names:
            self.kill(name)

    def close(self) -> None:
        """Ends every process that still runs, without ceremony."""
        self.kill_all()
        self._forker.shutdown()

    # --- asking -------------------------------------------------------------------------------------

    def status(self, name: str) -> dict[str, Any] | None:
        """The node's /v1/status; None where it does not answer within a second."""
        if not self.alive(name) or name in self._paused:
            return None
        code, body = self.get(name, "/v1/status")
        try:
            document = json.loads(body) if code == 200 else None
        except ValueError:
            return None
        return document if isinstance(document, dict) else None

    def get(self, name: str, path: str) -> tuple[int, bytes]:
        """A GET that never raises for a node that is not there: its status is 0 then."""
        return get(self.api_url(name) + path, tls=self.client_tls, token=self.token)

    def statuses(self) -> dict[str, dict[str, Any] | None]:
        return {name: self.status(name) for name in self.names}

    def leader(self) -> str | None:
        """The node that says it leads, in the highest term where several do."""
        answers = [(name, status) for name, status in self.statuses().items() if status is not None]
        leading = [
            (status.get("term", 0), name) for name, status in answers if status.get("role") == "leader"
        ]
        return max(leading)[1] if leading else None

    def ready(self, name: str) -> bool:
        return self.alive(name) and name not in self._paused and self.get(name, "/readyz")[0] == 200

    def wait_ready(self, names: Iterable[str] | None = None, timeout_s: float = 30) -> None:
        """Until each of `names` (default: the founders) answers /readyz with 200. Raises NodeFailed with the
        end of the log where one dies or is too late."""
        deadline = time.monotonic() + timeout_s
        for name in self.founders if names is None else tuple(names):
            while not self.ready(name):
                if not self.alive(name):
                    raise NodeFailed(f"{name} ended with code {self.exit_code(name)}\n{self._log_end(name)}")
                if time.monotonic() > deadline:
                    raise NodeFailed(f"{name} is not ready after {timeout_s} s\n{self._log_end(name)}")
                time.sleep(POLL_SECONDS)

    def wait_leader(self, timeout_s: float = 30) -> str:
        deadline = time.monotonic() + timeout_s
        while (name := self.leader()) is None:
            if time.monotonic() > deadline:
                raise NodeFailed(f"no leader after {timeout_s} s")
            time.sleep(POLL_SECONDS)
        return name

    # --- the parts ----------------------------------------------------------------------------------

    def _make_directories(self, name: str) -> None:
        self.node_dir(name).mkdir(parents=True, exist_ok=True)
        _make_private(self.secret_path, secrets.token_hex(32))
        if self.auth:
            self._make_token()
        if self.tls:
            self._make_certificates()

    def _make_token(self) -> None:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        _make_private(self.token_path, new_token()[1])

    def _make_certificates(self) -> None:
        from cluster.certs import LOCAL_HOSTS, make_all  # of use to few

        new = [name for name in self.names if not (self.tls_dir / f"{name}.pem").exists()]
        if new:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            make_all(self.tls_dir, [(name, (*LOCAL_HOSTS, self.host(name))) for name in new])

    def _fork(self, name: str) -> subprocess.Popen[bytes]:
        with self.log_path(name).open("ab") as log:
            return subprocess.Popen(
                self.command(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
                preexec_fn=_die_with_parent(os.getpid()),
            )

    def _signal(self, name: str, number: signal.Signals) -> None:
        if self.alive(name):
            self._processes[name].send_signal(number)

    def _log_end(self, name: str) -> str:
        return "\n".join(self.last_log_lines(name, 20)) or f"({self.log_path(name)} is empty)"


def _make_private(path: Path, line: str) -> None:
    """Unless it is there."""
    with contextlib.suppress(FileExistsError):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(line + "\n")


def _die_with_parent(parent: int) -> Callable[[], None]:
    """Run in the child between fork and exec. SIGKILL and not SIGTERM, since a paused node would never
    act on the latter, and since a node must stand a SIGKILL anyway."""

    def prepare() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return prepare


def get(
    url: str,
    timeout_s: float = STATUS_TIMEOUT_SECONDS,
    *,
    tls: ssl.SSLContext | None = None,
    token: str | None = None,
) -> tuple[int, bytes]:
    """A GET that never raises for a node that is not there: its status is 0 then."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    if parts.scheme == "https":
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            parts.hostname, parts.port, timeout=timeout_s, context=tls
        )
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)
    try:
        headers = {"Connection": "close"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        connection.request("GET", parts.path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


# --- ports ---------------------------------------------------------------------------------------------


def find_base_port(nodes: int = 3) -> int:
    """A base port with every port of `nodes` nodes free now, below the range that the kernel hands out
    by itself, so that only another caller of this could take one before it is used."""
    for _ in range(200):
        base = random.SystemRandom().randrange(10_000, 32_000, PORTS_A_NODE)
        if all(port_is_free("127.0.0.1", port) for port in ports_of(base, nodes)):
            return base
    raise OSError(f"found no {nodes} pairs of free ports between 10000 and 32000")


def ports_of(base_port: int, nodes: int) -> list[int]:
    return [base_port + PORTS_A_NODE * number + offset for number in range(nodes) for offset in (0, 1)]


def port_is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def port_owner(port: int) -> tuple[int, str] | None:
    """(pid, command line) of a process that listens on the TCP port, as far as /proc shows it to us."""
    inodes = _listening_inodes(port)
    for directory in Path("/proc").glob("[0-9]*/fd") if inodes else ():
        with contextlib.suppress(OSError):
            for link in directory.iterdir():
                with contextlib.suppress(OSError):
                    if link.readlink().name in inodes:
                        words = (directory.parent / "cmdline").read_bytes().split(b"\0")
                        return int(directory.parent.name), b" ".join(words).decode(errors="replace").strip()
    return None


def _listening_inodes(port: int) -> set[str]:
    """The sockets that listen on `port`, named as /proc/PID/fd links name them."""
    listening = "0A"
    found: set[str] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                columns = line.split()
                if columns[3] == listening and int(columns[1].rpartition(":")[2], 16) == port:
                    found.add(f"socket:[{columns[9]}]")
    return found
