"""The systems under load, each started the same way: fresh data in a directory, loopback, default settings.

Load always goes to the leader, so no system pays for a redirect or a proxied request. What a system did is
checked on the system itself after each case (`writes_made`, `fetch`), since a load generator that is fast
enough looks at little more than the status of an answer.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import shutil
import socket
import ssl
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.bench import load
from cluster.bench.load import Load
from cluster.bench.processes import Children, cpu_seconds, listens
from cluster.bench.requests import Case, Operation, encoded, key, requests, with_header
from cluster.local import LocalCluster, find_base_port

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 10.0
READS_AND_WRITES: tuple[Operation, ...] = ("put", "get", "stale", "mix")


class Refused(Exception):
    """A system answered something else than success to a request outside the load."""


class System(ABC):
    """One system, of one or several processes. `start` and `stop` in turn, as often as needed."""

    name: str
    about: str
    operations: tuple[Operation, ...]
    stores = True  # False: what was put can't be had back
    address: str  # host:port of who takes the load
    in_memory = False  # True: its directory is to be on a tmpfs

    def __init__(self, programs: Path) -> None:
        self.programs = programs  # where the Go load generators are built

    @abstractmethod
    def missing(self) -> str | None:
        """A sentence on what must be installed; None where nothing is."""

    @abstractmethod
    def start(self, directory: Path) -> None:
        """Returns once it can take writes. `directory` is empty."""

    @abstractmethod
    def aim(self) -> None:
        """Points the load at the leader of this moment. Writes nothing."""

    @abstractmethod
    def stop(self) -> None: ...

    @property
    @abstractmethod
    def pids(self) -> list[int]: ...

    @abstractmethod
    def run(self, case: Case, tag: str, seconds: int) -> Load: ...

    @abstractmethod
    def store(self, number: int, content: str) -> None:
        """Puts one key, or raises Refused."""

    @abstractmethod
    def fetch(self, number: int) -> str | None:
        """What the system has under the key now; None where it has nothing."""

    def writes_made(self) -> int | None:
        """A number that grows by one with every write; None where the system has none."""
        return None

    def version(self) -> str:
        return ""

    def cpu_seconds(self) -> float:
        return cpu_seconds(self.pids)


def ask(
    address: str,
    method: str,
    target: str,
    body: str = "",
    content_type: str = "",
    *,
    headers: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
) -> bytes:
    """One request on a connection of its own. Raises Refused for anything but a 2xx."""
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT_SECONDS)
    if tls is not None:
        connection = http.client.HTTPSConnection(address, timeout=TIMEOUT_SECONDS, context=tls)
    sent = {**({"Content-Type": content_type} if content_type else {}), **(headers or {})}
    try:
        connection.request(method, target, body.encode() or None, sent)
        answer = connection.getresponse()
        content = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise Refused(f"{method} {target}: {error!r}") from error
    finally:
        connection.close()
    if answer.status // 100 != 2:
        raise Refused(f"{method} {target}: {answer.status} {content[:200]!r}")
    return content


def free_ports(count: int) -> list[int]:
    base = find_base_port(count)
    return [base + 10 * number for number in range(count)]


def package_missing(program: str, package: str) -> str | None:
    if shutil.which(program):
        return None
    return f"{program} is not there: apt-get install --no-install-recommends {package}"


def wrk_missing() -> str | None:
    return package_missing("wrk", "wrk")


def first_line(*command: str) -> str:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        output = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        return (output.stdout or output.stderr).strip().splitlines()[0]
    return "unknown"


class Raftkv(System):
    name = "raftkv"
    about = "three nodes, fsync on a majority"
    operations = (*READS_AND_WRITES, "batch")
    tls = False
    auth = False

    def missing(self) -> str | None:
        return wrk_missing()

    def start(self, directory: Path) -> None:
        self._cluster = LocalCluster(directory, base_port=find_base_port(), tls=self.tls, auth=self.auth)
        self._cluster.start_all()
        self._cluster.wait_ready()
        self.aim()

    def aim(self) -> None:
        self.address = self._cluster.api_url(self._cluster.wait_leader()).partition("://")[2]

    def stop(self) -> None:
        self._cluster.stop_all()
        self._cluster.close()

    @property
    def pids(self) -> list[int]:
        return [pid for name in self._cluster.names if (pid := self._cluster.pid(name)) is not None]

    def run(self, case: Case, tag: str, seconds: int) -> Load:
        scheme = "https" if self.tls else "http"
        asked = requests("raftkv", case, tag)
        if self.auth:
            asked = [with_header(each, "Authorization", f"Bearer {self._cluster.token}") for each in asked]
        return load.wrk(f"{scheme}://{self.address}", asked, case, seconds)

    def _ask(self, method: str, target: str, body: str = "") -> bytes:
        headers = {"Authorization": f"Bearer {self._cluster.token}"} if self.auth else {}
        return ask(self.address, method, target, body, headers=headers, tls=self._cluster.client_tls)

    def store(self, number: int, content: str) -> None:
        self._ask("PUT", f"/v1/kv/{key(number)}", content)

    def fetch(self, number: int) -> str | None:
        return self._ask("GET", f"/v1/kv/{key(number)}").decode()

    def writes_made(self) -> int | None:
        return int(json.loads(self._ask("GET", "/v1/status"))["revision"])

    def version(self) -> str:
        return first_line("git", "-C", str(ROOT), "describe", "--always", "--dirty")


class RaftkvWithTokens(Raftkv):
    name = "raftkv-tokens"
    about = "the same with --auth tokens; each request carries one"
    auth = True


class RaftkvSecured(RaftkvWithTokens):
    """wrk does not verify the certificate, which costs the client and not the nodes."""

    name = "raftkv-secured"
    about = "the same with tokens, and TLS for clients and between members"
    tls = True


class RaftkvInMemory(Raftkv):
    """The same code and settings; `campaign.py` gives it a directory on a tmpfs."""

    name = "raftkv-tmpfs"
    about = "the same on a tmpfs, where an fsync costs nothing"
    operations = ("put",)
    in_memory = True

    def missing(self) -> str | None:
        return wrk_missing() or (None if Path("/dev/shm").is_dir() else "there is no /dev/shm")


class WithChildren(System):
    """A system of plain child processes."""

    _children: Children
    _ports: list[int]

    def aim(self) -> None:
        self._children.wait_until(self._find_leader, "led by anyone")

    def _find_leader(self) -> bool:
        """Sets `address`, if there is a leader."""
        return True

    def stop(self) -> None:
        self._children.end()

    @property
    def pids(self) -> list[int]:
        return self._children.pids


class Ceiling(WithChildren):
    name = "ceiling"
    about = "raftkv's own protocol in one process, every answer a constant"
    operations = ("put", "get", "stale")
    stores = False
    kind = "protocol"

    def missing(self) -> str | None:
        return wrk_missing()

    def start(self, directory: Path) -> None:
        """The process knows one size of value; `store` starts it anew where that changes."""
        self._size = 0
        self._children = Children(directory)

    def _serve(self, size: int) -> None:
        self._children.end()
        self._size = size
        (port,) = free_ports(1)
        self.address = f"127.0.0.1:{port}"
        self._children.start(
            "ceiling",
            [sys.executable, "-m", "cluster.bench.ceiling", self.kind, str(port), str(size)],
            env={"PYTHONPATH": str(ROOT)},
        )
        self._children.wait_until(lambda: listens(port), "listening")

    def run(self, case: Case, tag: str, seconds: int) -> Load:
        return load.wrk(f"http://{self.address}", requests("raftkv", case, tag), case, seconds)

    def store(self, number: int, content: str) -> None:
        if self._size != len(content):
            self._serve(len(content))
        ask(self.address, "PUT", f"/v1/kv/{key(number)}", content)

    def fetch(self, number: int) -> str | None:
        return None


class ParserCeiling(Ceiling):
    name = "parser-ceiling"
    about = "a bare httptools parser in one process, every answer a constant, nothing looked at"
    kind = "parser"


class Etcd(WithChildren):
    """What both ways of asking etcd share: the server."""

    operations = READS_AND_WRITES

    def missing(self) -> str | None:
        return package_missing("etcd", "etcd-server") or wrk_missing()

    def start(self, directory: Path) -> None:
        self._children = Children(directory)
        self._ports = ports = free_ports(3)
        names = [f"e{number + 1}" for number in range(3)]
        peers = ",".join(
            f"{name}=http://127.0.0.1:{port + 1}" for name, port in zip(names, ports, strict=True)
        )
        for name, port in zip(names, ports, strict=True):
            client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}"
            self._children.start(
                name,
                [
                    *("etcd", "--name", name, "--data-dir", str(directory / name)),
                    *("--listen-client-urls", client, "--advertise-client-urls", client),
                    *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                    *("--initial-cluster", peers, "--initial-cluster-state", "new"),
                    *("--log-level", "error"),
                ],
            )
        self.aim()

    def _find_leader(self) -> bool:
        for port in self._ports:
            with contextlib.suppress(Refused):
                status = self._post(f"127.0.0.1:{port}", "/v3/maintenance/status", {})
                if status.get("leader", "0") == status["header"]["member_id"]:
                    self.address = f"127.0.0.1:{port}"
                    return True
        return False

    @staticmethod
    def _post(address: str, target: str, document: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(
            ask(address, "POST", target, json.dumps(document), "application/json")
        )
        return answer

    def store(self, number: int, content: str) -> None:
        self._post(self.address, "/v3/kv/put", {"key": encoded(key(number)), "value": encoded(content)})

    def fetch(self, number: int) -> str | None:
        found = self._post(self.address, "/v3/kv/range", {"key": encoded(key(number))}).get("kvs", [])
        return base64.b64decode(found[0]["value"]).decode() if found else None

    def writes_made(self) -> int | None:
        return int(self._post(self.address, "/v3/maintenance/status", {})["header"]["revision"])

    def version(self) -> str:
        return first_line("etcd", "--version")


class EtcdGateway(Etcd):
    name = "etcd-json"
    about = "three nodes, through the JSON gateway that etcd has built in"

    def run(self, case: Case, tag: str, seconds: int) -> Load:
        return load.wrk(f"http://{self.address}", requests("etcd", case, tag), case, seconds)


class EtcdGrpc(Etcd):
    name = "etcd-grpc"
    about = f"three nodes, through etcd's own Go client, {load.GRPC_CONNECTIONS} gRPC connections"

    def missing(self) -> str | None:
        return super().missing() or go_missing("etcd", self.programs)

    def run(self, case: Case, tag: str, seconds: int) -> Load:
        return load.etcd_client(self.address, case, tag, seconds, self.programs)


def go_missing(name: str, programs: Path) -> str | None:
    """None once the Go program is built, which takes a minute the first time."""
    if load.go_tool() is None:
        return "no Go compiler: apt-get install --no-install-recommends golang-go golang-etcd-server-dev"
    if name == "etcd" and not (load.GO_SYSTEM_PATHS / "src/go.etcd.io/etcd/clientv3").is_dir():
        return (
            "etcd's Go client is not there: apt-get install --no-install-recommends golang-etcd-server-dev "
            "(Debian 12; other releases have another one, which go/etcd does not build with)"
        )
    try:
        load.build(name, programs)
    except load.LoadFailed as error:
        return str(error)
    return None


class Redis(WithChildren):
    name = "redis"
    about = "one server and one replica, AOF with fsync always, WAIT 1 after each write; no consensus"
    operations = ("put", "stale", "mix")

    def missing(self) -> str | None:
        return package_missing("redis-server", "redis-server") or go_missing("redis", self.programs)

    def start(self, directory: Path) -> None:
        self._children = Children(directory)
        first, second = free_ports(2)
        self.address = f"127.0.0.1:{first}"
        for name, port, more in (
            ("r1", first, ()),
            ("r2", second, ("--replicaof", f"127.0.0.1 {first}")),
        ):
            (directory / name).mkdir()
            self._children.start(
                name,
                [
                    *(
                        "redis-server",
                        "--port",
                        str(port),
                        "--bind",
                        "127.0.0.1",
                        "--dir",
                        str(directory / name),
                    ),
                    *("--appendonly", "yes", "--appendfsync", "always", "--save", "", *more),
                    *("--repl-diskless-sync-delay", "0", "--daemonize", "no"),
                ],
            )
        self._children.wait_until(self._replicates, "replicating")

    def _replicates(self) -> bool:
        with contextlib.suppress(OSError, Refused):
            return "state=online" in self._info("replication")
        return False

    def _command(self, *words: str) -> str | None:
        host, _, port = self.address.partition(":")
        with socket.create_connection((host, int(port)), timeout=TIMEOUT_SECONDS) as connection:
            text = f"*{len(words)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
            connection.sendall(text.encode())
            with connection.makefile("rb") as answers:
                line = answers.readline().decode().strip()
                if line.startswith("-") or not line:
                    raise Refused(f"redis {words[0]}: {line}")
                if not line.startswith("$"):
                    return line[1:]
                size = int(line[1:])
                return None if size < 0 else answers.read(size).decode()

    def _info(self, section: str) -> str:
        return self._command("INFO", section) or ""

    def run(self, case: Case, tag: str, seconds: int) -> Load:
        return load.redis_client(self.address, case, tag, seconds, self.programs)

    def store(self, number: int, content: str) -> None:
        self._command("SET", key(number), content)

    def fetch(self, number: int) -> str | None:
        return self._command("GET", key(number))

    def writes_made(self) -> int | None:
        for line in self._info("commandstats").splitlines():
            if line.startswith("cmdstat_set:calls="):
                return int(line.split("=")[1].split(",")[0])
        return 0

    def version(self) -> str:
        return first_line("redis-server", "--version")


class PlainPySyncObj(WithChildren):
    name = "pysyncobj"
    about = "three nodes of stock PySyncObj behind Python's own HTTP server, nothing fsynced"
    operations = ("put", "stale", "mix")

    def missing(self) -> str | None:
        return wrk_missing()

    def start(self, directory: Path) -> None:
        self._children = Children(directory)
        self._ports = ports = free_ports(3)
        for port in ports:
            addresses = [f"127.0.0.1:{each + 1}" for each in ports if each != port]
            self._children.start(
                f"p{port}",
                [
                    *(sys.executable, str(ROOT / "scripts" / "plain_pysyncobj_http.py"), str(port)),
                    *(f"127.0.0.1:{port + 1}", str(directory / f"journal-{port}"), *addresses),
                ],
            )
        self._children.wait_until(self._takes_writes, "taking writes")

    def _takes_writes(self) -> bool:
        """It has a leader some time before it takes a write."""
        if self._find_leader():
            with contextlib.suppress(Refused):
                self.store(0, "ready")
                return True
        return False

    def _find_leader(self) -> bool:
        for port in self._ports:
            with contextlib.suppress(Refused):
                if ask(f"127.0.0.1:{port}", "GET", "/leader") == b"yes":
                    self.address = f"127.0.0.1:{port}"
                    return True
        return False

    def run(self, case: Case, tag: str, seconds: int) -> Load:
        return load.wrk(f"http://{self.address}", requests("plain", case, tag), case, seconds)

    def store(self, number: int, content: str) -> None:
        ask(self.address, "POST", f"/{key(number)}", content)

    def fetch(self, number: int) -> str | None:
        return ask(self.address, "GET", f"/{key(number)}").decode()


SYSTEMS: dict[str, type[System]] = {
    each.name: each
    for each in (
        *(Raftkv, EtcdGateway, EtcdGrpc, Redis, PlainPySyncObj),
        *(Ceiling, ParserCeiling, RaftkvInMemory, RaftkvWithTokens, RaftkvSecured),
    )
}
