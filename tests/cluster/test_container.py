"""The image and the compose file, for real: built, started, tormented, and the data read back.

One Docker for all of it, see `tests/docker.py`; what is made in it goes with it, or is removed by name where
the daemon is the machine's own. Sizes and times are printed in every run.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest

from cluster import history
from cluster.history import Recorder
from cluster.local import find_base_port
from cluster.nemesis import export
from cluster.workload import Client, Load
from raftkv.client import SyncClient
from tests.docker import BUILD_SECONDS_MAX, ROOT, Docker, some_docker

SIZE_BYTES_MAX = 250_000_000
NAMES = ("n1", "n2", "n3")
WAIT_SECONDS = 60.0
STOP_SECONDS_MAX = 10.0  # what SIGTERM promises
LOAD_CLIENTS = 6

pytestmark = pytest.mark.slow


def wait_for(what: str, condition: Callable[[], Any], seconds: float = WAIT_SECONDS) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.05)
    return found


_figures: list[str] = []


def say(text: str) -> None:
    """Figures belong into the output of every run: see `figures`."""
    _figures.append(text)


@pytest.fixture(scope="module", autouse=True)
def figures(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print("", *(f"container: {text}" for text in _figures), sep="\n", flush=True)


def status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


# --- the images ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def docker() -> Iterator[Docker]:
    with some_docker() as docker:
        if not docker.has_image("debian:bookworm-slim"):
            began = time.monotonic()
            docker.shell("scripts/base-image", timeout_s=BUILD_SECONDS_MAX)
            say(f"base image made in {time.monotonic() - began:.1f} s")
        yield docker


@pytest.fixture(scope="module")
def others(docker: Docker) -> Iterator[dict[str, Future[str]]]:
    """The images of the profiles, built while the rest goes on: they need no more than downloads."""
    images = {
        "raftkv-ceph:dev": ["--file", "cluster/ceph/Dockerfile", "."],
        "raftkv-prometheus:dev": ["cluster/prometheus"],
    }
    with ThreadPoolExecutor(1) as pool:
        yield {
            name: pool.submit(
                docker.run,
                *["build", "--network=host", "--tag", name, *words],
                timeout_s=BUILD_SECONDS_MAX,
            )
            for name, words in images.items()
        }


@pytest.fixture(scope="module")
def image(docker: Docker, others: dict[str, Future[str]]) -> str:
    began = time.monotonic()
    docker.shell("scripts/image", "--network=host", timeout_s=BUILD_SECONDS_MAX)
    say(f"image built in {time.monotonic() - began:.1f} s")
    return "raftkv:dev"


def inspected(docker: Docker, name: str) -> dict[str, Any]:
    (found,) = json.loads(docker.run("inspect", name))
    assert isinstance(found, dict)
    return found


def test_the_image_is_small_and_says_what_it_is(docker: Docker, image: str) -> None:
    found = inspected(docker, image)
    say(f"image of {found['Size'] / 1e6:.0f} MB")
    assert found["Size"] < SIZE_BYTES_MAX
    assert found["Config"]["User"] == "10001:10001"
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    labels = found["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == version
    assert labels["org.opencontainers.image.created"]
    assert docker.run("run", "--rm", image, "--version").strip() == f"raftkv, version {version}"


def test_the_image_has_nothing_that_only_its_build_needs(docker: Docker, image: str) -> None:
    script = "command -v pip pip3 gcc strip; find /opt /usr /etc -path '*build-ca*'; ls -d /src /opt/*; true"
    assert docker.run("run", "--rm", "--entrypoint", "sh", image, "-c", script).split() == ["/opt/raftkv"]


def test_the_bill_of_materials_names_both_kinds_of_packages(docker: Docker, image: str) -> None:
    text = docker.run("run", "--rm", "--entrypoint", "cat", image, "/usr/share/sbom/raftkv.cdx.json")
    document = json.loads(text)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert document["metadata"]["component"]["name"] == "raftkv"
    addresses = {
        component["purl"].split("@")[0] for component in document["components"] if "purl" in component
    }
    installed = docker.run(
        "run", "--rm", "--entrypoint", "dpkg-query", image, "-W", "-f", "${Package}\n"
    ).split()
    assert {f"pkg:deb/debian/{name.replace('+', '%2B')}" for name in installed} <= addresses
    assert {"pkg:pypi/pysyncobj", "pkg:pypi/aiohttp", "pkg:pypi/uvloop"} <= addresses


# --- one node --------------------------------------------------------------------------------------------


@pytest.fixture
def lone(docker: Docker, image: str) -> Iterator[tuple[str, str, float]]:
    """(container, URL, when it was started): one node on the host's network, locked up as far as it goes."""
    name = f"raftkv-test-{secrets.token_hex(4)}"
    port = find_base_port(1)
    words = ["--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
    settings = {
        "RAFTKV_SECRET": secrets.token_hex(32),
        "RAFTKV_NAME": "n1",
        "RAFTKV_API": f"127.0.0.1:{port}",
        "RAFTKV_RAFT": f"127.0.0.1:{port + 1}",
        "RAFTKV_OPS_LISTEN": f"127.0.0.1:{port + 2}",
        "RAFTKV_MEMBER": f"n1=127.0.0.1:{port + 1},http://127.0.0.1:{port}",
    }
    for variable, value in settings.items():
        words += ["--env", f"{variable}={value}"]
    began = time.monotonic()
    docker.run("run", "--detach", "--name", name, "--network=host", "--health-interval=1s", *words, image)
    yield name, f"http://127.0.0.1:{port}", began
    docker.run("rm", "--force", "--volumes", name)


def test_a_node_runs_locked_up_and_keeps_its_data(docker: Docker, lone: tuple[str, str, float]) -> None:
    name, url, began = lone
    wait_for("ready", lambda: status_of(f"{url}/readyz") == 200)
    say(f"docker run to ready: {time.monotonic() - began:.2f} s")
    with SyncClient(url) as client:
        client.put("hello", b"world")
    assert docker.run("exec", name, "id", "-u").strip() == "10001"
    touch = "touch /usr/x /opt/raftkv/x 2>&1 || touch /tmp/x /var/lib/raftkv/x && echo writable"
    said = docker.run("exec", name, "sh", "-c", touch)
    assert said.count("Read-only file system") == 2
    assert said.rstrip().endswith("writable")
    wait_for("healthy", lambda: inspected(docker, name)["State"]["Health"]["Status"] == "healthy")

    began = time.monotonic()
    docker.run("stop", "--time=30", name)
    assert time.monotonic() - began < STOP_SECONDS_MAX
    assert inspected(docker, name)["State"]["ExitCode"] == 0

    docker.run("start", name)
    wait_for("ready again", lambda: status_of(f"{url}/readyz") == 200)
    with SyncClient(url) as client:
        assert client.get("hello").value == b"world"


def test_a_signal_counts_from_the_first_moment(docker: Docker, lone: tuple[str, str, float]) -> None:
    """Pid 1 ignores what it has no handler for, and Python takes a moment to set one."""
    name, _, _ = lone
    docker.run("kill", "--signal=TERM", name)
    wait_for("end", lambda: not inspected(docker, name)["State"]["Running"], STOP_SECONDS_MAX)
    assert inspected(docker, name)["State"]["ExitCode"] in (0, 128 + 15)


# --- three nodes -----------------------------------------------------------------------------------------


class Compose:
    """The compose file as a project of this test's own, with ports of its own."""

    def __init__(self, docker: Docker, command: Sequence[str]) -> None:
        base = find_base_port(5)
        self.docker = docker
        self.project = f"raftkv-test-{secrets.token_hex(4)}"
        self.ports = {name: base + 10 * number for number, name in enumerate([*NAMES, "prometheus"])}
        self.environment = {
            "COMPOSE_PROJECT_NAME": self.project,
            "RAFTKV_SNAPSHOTS": "rados://raftkv/cluster",
            "PROMETHEUS_PORT": str(self.ports["prometheus"]),
            **{f"RAFTKV_PORT_{name.upper()}": str(self.ports[name]) for name in NAMES},
        }
        self.words = [
            *command,
            "--file",
            "docker-compose.cluster.yml",
            "--profile",
            "ceph",
            "--profile",
            "monitoring",
        ]

    def run(self, *words: str, timeout_s: float = 120.0) -> str:
        return self.docker.shell(*self.words, *words, timeout_s=timeout_s, more=self.environment)

    def raftkv(self, *words: str) -> str:
        """A command in the first node's container."""
        return self.run("exec", "-T", "n1", "raftkv", *words)

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    def urls(self) -> tuple[str, ...]:
        return tuple(self.url(name) for name in NAMES)

    def container(self, name: str) -> str:
        return self.run("ps", "--quiet", name).strip()

    def wait_healthy(self, *names: str) -> None:
        for name in names:
            container = self.container(name)

            def healthy(container: str = container) -> bool:
                return bool(inspected(self.docker, container)["State"]["Health"]["Status"] == "healthy")

            wait_for(f"{name} healthy", healthy)

    def wait_ready(self) -> None:
        for name in NAMES:
            wait_for(f"{name} ready", lambda name=name: status_of(f"{self.url(name)}/readyz") == 200)

    def pause(self, name: str) -> None:
        """runc gives up where processes come and go while it freezes them, as health checks do."""

        def paused() -> bool:
            try:
                self.run("pause", name)
            except AssertionError as error:
                if "unable to freeze" not in str(error):
                    raise
                return False
            return True

        wait_for(f"{name} paused", paused)

    def leader(self) -> str:
        def asked() -> str | None:
            with SyncClient(self.urls()) as client:
                return client.status()["leader"]

        return str(wait_for("leader", asked))

    @property
    def network(self) -> str:
        return f"{self.project}_default"


def compose_commands() -> list[str]:
    """Debian's docker-compose: 1.29 on 12, 2 on 13."""
    command = shutil.which("docker-compose", path="/usr/bin") or shutil.which("docker-compose")
    if command is None:
        pytest.skip("needs docker-compose: see scripts/apt-packages")
    return [command]


@pytest.fixture(scope="module")
def compose(docker: Docker, image: str) -> Iterator[Compose]:
    for tries_left in (2, 1, 0):
        compose = Compose(docker, compose_commands())
        try:
            began = time.monotonic()
            try:
                compose.run("up", "--detach", *NAMES)
            except AssertionError as error:
                if tries_left and "address already in use" in str(error):
                    continue  # another test took a port that was free when it was chosen
                raise
            compose.wait_ready()
            say(f"compose up to three nodes ready: {time.monotonic() - began:.2f} s")
            yield compose
            return
        finally:
            compose.run("down", "--volumes", "--timeout", "20")


def test_three_nodes_are_healthy_and_share_a_secret_that_they_made(compose: Compose) -> None:
    compose.wait_healthy(*NAMES)
    found = {compose.run("exec", "-T", name, "cat", "/run/raftkv/secret") for name in NAMES}
    assert len(found) == 1
    assert re.fullmatch(r"[0-9a-f]{64}", found.pop())
    assert compose.run("exec", "-T", "n1", "ls", "/run/raftkv").split() == ["secret"]


def test_any_node_takes_a_write_from_the_host_and_from_inside(compose: Compose) -> None:
    for name in NAMES:
        with SyncClient(compose.url(name)) as client:
            client.put(f"written-at/{name}", name.encode())
    assert compose.raftkv("kv", "get", "written-at/n3") == "n3"
    compose.raftkv("kv", "put", "written-at/inside", "there")
    with SyncClient(compose.urls()) as client:
        assert client.get("written-at/inside").value == b"there"


async def test_one_container_killed_one_paused_one_disconnected(compose: Compose) -> None:
    """Under load; then all are restarted. What the clients saw is linearizable, and all nodes agree."""
    recorder = Recorder(time.monotonic)
    random = Random(1)
    endpoints = {name: ("127.0.0.1", compose.ports[name]) for name in NAMES}
    clients = [
        Client(f"c{number}", endpoints, recorder, random, attempt_timeout_s=1.0)
        for number in range(LOAD_CLIENTS)
    ]
    stop = asyncio.Event()

    async def act(function: Callable[..., Any], *words: str) -> Any:
        return await asyncio.to_thread(function, *words)

    async def writes_come_back(began: float, what: str) -> None:
        """After the fault, before it is healed."""
        moment = time.monotonic()
        while recorder.resumed_after_s(moment) is None:
            assert time.monotonic() < moment + WAIT_SECONDS, "no write was acknowledged any more"
            await asyncio.sleep(0.02)
        gap_s, _ = history.write_gap(recorder.records(), began, time.monotonic())
        say(f"{what}: {gap_s:.2f} s without an acknowledged write")

    async def faults() -> None:
        docker = compose.docker
        leader = await act(compose.leader)
        began = time.monotonic()
        await act(compose.run, "kill", leader)
        await writes_come_back(began, f"killed {leader}, the leader")
        await act(compose.run, "start", leader)
        await act(compose.wait_ready)

        leader = await act(compose.leader)
        began = time.monotonic()
        await act(compose.pause, leader)
        await writes_come_back(began, f"paused {leader}, the leader")
        await act(compose.run, "unpause", leader)
        await act(compose.wait_ready)

        leader = await act(compose.leader)
        container = await act(compose.container, leader)
        began = time.monotonic()
        await act(docker.run, "network", "disconnect", compose.network, container)
        await writes_come_back(began, f"disconnected {leader}, the leader")
        await act(docker.run, "network", "connect", "--alias", leader, compose.network, container)
        await act(compose.wait_ready)

        began = time.monotonic()
        await act(compose.run, "restart", *NAMES)
        await writes_come_back(began, "restarted all")
        await act(compose.wait_ready)
        stop.set()

    load = Load(clients, random)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run(stop))
            group.create_task(faults())
        for node in NAMES:
            for key in load.keys.used():
                await clients[0].read(key, node=node)
    finally:
        for client in clients:
            client.close()
    records = recorder.records()
    acknowledged = history.acknowledged_writes(records)
    say(f"{len(records)} operations, {len(acknowledged)} writes acknowledged")
    assert len(acknowledged) > 100
    assert history.judge(records) == []
    exports = {await asyncio.to_thread(export, url) for url in compose.urls()}
    assert len(exports) == 1


def test_the_failover_demo_loses_nothing(compose: Compose) -> None:
    if not (Path(sys.executable).parent / "k6").exists():
        pytest.skip("k6 comes with the bench extra")
    compose.wait_ready()
    environment = {**compose.docker.environment, **compose.environment, "RAFTKV_COMPOSE": compose.words[0]}
    done = subprocess.run(
        ["scripts/demo_failover.sh", "--seconds", "9"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in NAMES:
        assert f"lost writes, read back from {name}: 0" in done.stdout
    for line in done.stdout.splitlines():
        say(f"demo: {line}")


# --- the profiles ----------------------------------------------------------------------------------------


def test_a_snapshot_goes_into_the_ceph_of_the_profile(
    compose: Compose, others: dict[str, Future[str]]
) -> None:
    """The nodes run long before it and find it; it comes back with all it had."""
    others["raftkv-ceph:dev"].result()
    began = time.monotonic()
    compose.run("up", "--detach", "ceph")
    compose.wait_healthy("ceph")
    say(f"ceph healthy after {time.monotonic() - began:.2f} s")
    compose.raftkv("kv", "put", "in/ceph", "yes")
    assert "in/ceph" not in compose.raftkv("snapshot", "create")  # it prints what it made, not what is in it
    said = compose.raftkv("snapshot", "verify", "latest", "--from", "rados://raftkv/cluster")
    assert "sound" in said

    compose.run("restart", "--timeout", "30", "ceph")
    compose.wait_healthy("ceph")
    compose.raftkv("kv", "put", "in/ceph", "again")
    wait_for("a second snapshot", lambda: _made(compose))
    assert len(compose.raftkv("snapshot", "list").strip().splitlines()) >= 3  # a line of titles, and two


def test_the_postman_collection_holds(compose: Compose) -> None:
    """From the host, where the addresses that nodes advertise mean nothing; the store is that of the test
    before. The leader is asked, since it has the operations that publish."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs node and npm")
    wait_for("the store answers", lambda: _made(compose))
    leader = compose.leader()
    follower = next(name for name in NAMES if name != leader)
    done = subprocess.run(
        [ROOT / "loadtest" / "postman" / "run", compose.url(leader)],
        env={**os.environ, "FOLLOWER_URL": compose.url(follower), "REQUIRE_FOLLOWER": "true"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
    (asserted,) = re.findall(r"assertions \|\s+(\d+) \|\s+0 \|", done.stdout)
    say(f"newman against the containers: {asserted} assertions, none failed")


def _made(compose: Compose) -> bool:
    try:
        compose.raftkv("snapshot", "create")
    except AssertionError:
        return False
    return True


def test_prometheus_of_the_profile_scrapes_every_node(
    compose: Compose, others: dict[str, Future[str]]
) -> None:
    others["raftkv-prometheus:dev"].result()
    compose.wait_ready()
    compose.run("up", "--detach", "prometheus")
    compose.wait_healthy("prometheus")
    url = f"http://127.0.0.1:{compose.ports['prometheus']}/api/v1"

    def up() -> bool:
        with urllib.request.urlopen(f"{url}/query?query=up", timeout=5) as answer:
            result = json.load(answer)["data"]["result"]
        return [each["value"][1] for each in result] == ["1"] * len(NAMES)

    wait_for("three targets up", up)
    with urllib.request.urlopen(f"{url}/rules", timeout=5) as answer:
        groups = json.load(answer)["data"]["groups"]
    assert sum(len(group["rules"]) for group in groups) > 0


def test_every_file_that_compose_mounts_is_there(compose: Compose) -> None:
    """Docker makes a directory of what is missing. Grafana's image can't be had here: this is all of it."""
    text = (ROOT / "docker-compose.cluster.yml").read_text()
    sources = re.findall(r"- (\./[^:]+):", text)
    assert len(sources) >= 4
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert set(compose.run("config", "--services").split()) == {*NAMES, "ceph", "prometheus", "grafana"}
