"""The leader's container is killed under load, and every write that was acknowledged is read back.

k6 writes at a fixed rate to all three nodes of docker-compose.cluster.yml, each key once. After a third of
the time the container of whoever leads is killed with SIGKILL, and after two thirds started again. Then each
node is asked, by a linearizable read, for all that k6 was told had been written.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import click

from raftkv.client import ClientError, SyncClient

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "loadtest" / "demo" / "acknowledged.js"
NAMES = ("n1", "n2", "n3")
PORTS = {"n1": 8400, "n2": 8410, "n3": 8420}
UP_SECONDS_MAX = 900.0  # the first time, the image is built
READY_SECONDS_MAX = 60.0
OVERRUN_SECONDS_MAX = 90.0  # of k6: its graceful stop, and start and end


class DemoFailed(Exception):
    """What could not be done, and what was said."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A write that k6 was told had happened, and when it was told."""

    key: str
    at: datetime


# --- pure: from k6's points to the verdict ---------------------------------------------------------------


def acknowledged_of(lines: Iterable[str]) -> list[Acknowledged]:
    """Those in k6's JSON output, in order of time."""
    found = []
    for line in lines:
        if '"metric":"acknowledged","type":"Point"' in line:
            data = json.loads(line)["data"]
            found.append(Acknowledged(data["tags"]["key"], datetime.fromisoformat(data["time"])))
    return sorted(found, key=lambda each: each.at)


def longest_gap_s(writes: Sequence[Acknowledged]) -> float:
    """Between two that follow each other."""
    return max(((b.at - a.at).total_seconds() for a, b in pairwise(writes)), default=0.0)


def lost(writes: Iterable[Acknowledged], there: Mapping[str, str]) -> list[str]:
    """The keys of acknowledged writes whose value is not there."""
    return [each.key for each in writes if there.get(each.key) != f"value of {each.key}"]


# --- the run ---------------------------------------------------------------------------------------------


class Compose:
    """The three nodes, by way of `docker compose` or docker-compose 1.29, whichever is there."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command = [*command, "--file", str(ROOT / "docker-compose.cluster.yml")]
        self.urls = {
            name: f"http://127.0.0.1:{environment.get(f'RAFTKV_PORT_{name.upper()}', PORTS[name])}"
            for name in NAMES
        }

    def run(self, *words: str, timeout_s: float = 60.0) -> None:
        done = subprocess.run(
            [*self._command, *words],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode != 0:
            raise DemoFailed(f"{' '.join([*self._command, *words])}:\n{done.stdout}")

    def start(self) -> None:
        """And waits until each node is ready."""
        self.run("up", "--detach", *NAMES, timeout_s=UP_SECONDS_MAX)
        self.wait_ready()

    def wait_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS_MAX
        waiting = dict(self.urls)
        while waiting:
            for name, url in list(waiting.items()):
                if _is_ready(url):
                    del waiting[name]
            if time.monotonic() > deadline:
                raise DemoFailed(f"{', '.join(waiting)} not ready within {READY_SECONDS_MAX:g} s")
            time.sleep(0.05)

    def leader(self) -> str:
        with SyncClient(tuple(self.urls.values())) as client:
            deadline = time.monotonic() + READY_SECONDS_MAX
            while time.monotonic() < deadline:
                leader = client.status()["leader"]
                if leader is not None:
                    return str(leader)
                time.sleep(0.05)
        raise DemoFailed(f"no leader within {READY_SECONDS_MAX:g} s")


def _is_ready(url: str) -> bool:
    try:
        with SyncClient(url, timeout_s=2) as client:
            return bool(client.status(url)["ready"])
    except ClientError:
        return False


def compose_command(environment: Mapping[str, str]) -> list[str]:
    """RAFTKV_COMPOSE, or what is installed."""
    if environment.get("RAFTKV_COMPOSE"):
        return environment["RAFTKV_COMPOSE"].split()
    if shutil.which("docker"):
        asked = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
        if asked.returncode == 0:
            return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    raise DemoFailed("neither `docker compose` nor docker-compose is here: see docs/containers.md")


def demonstrate(compose: Compose, duration_s: int, rate: int) -> bool:
    """Prints what it does and finds; whether nothing was lost."""
    prefix = f"demo/{secrets.token_hex(4)}/"
    compose.start()
    click.echo(f"three nodes are ready; k6 writes {rate} keys a second for {duration_s} s")
    with tempfile.TemporaryDirectory() as directory:
        points = Path(directory) / "points.json"
        load = _start_k6(compose, points, prefix, duration_s, rate)
        try:
            _fail_over(compose, duration_s, load)
            load.wait(timeout=duration_s + OVERRUN_SECONDS_MAX)
        finally:
            if load.poll() is None:
                load.kill()
                load.wait()
        if load.returncode != 0:
            raise DemoFailed(f"k6 ended with {load.returncode}:\n{(Path(directory) / 'k6.log').read_text()}")
        with points.open() as lines:
            writes = acknowledged_of(lines)
    compose.wait_ready()
    missing = {name: lost(writes, _there(url, prefix)) for name, url in compose.urls.items()}
    _clear(compose, prefix)
    return _report(writes, missing)


def _start_k6(
    compose: Compose, points: Path, prefix: str, duration_s: int, rate: int
) -> subprocess.Popen[bytes]:
    settings = {
        "URLS": ",".join(compose.urls.values()),
        "PREFIX": prefix,
        "DURATION": f"{duration_s}s",
        "RATE": str(rate),
    }
    words = [word for name, value in settings.items() for word in ("--env", f"{name}={value}")]
    k6 = Path(sys.executable).parent / "k6"
    if not k6.exists():
        raise DemoFailed("k6 comes with the bench extra: scripts/venv --dev")
    with (points.parent / "k6.log").open("wb") as log:
        return subprocess.Popen(
            [str(k6), "run", "--quiet", "--out", f"json={points}", *words, str(SCRIPT)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "K6_NO_USAGE_REPORT": "true"},
        )


def _fail_over(compose: Compose, duration_s: int, load: subprocess.Popen[bytes]) -> None:
    began = time.monotonic()
    _sleep_until(began + duration_s / 3, load)
    leader = compose.leader()
    compose.run("kill", leader)
    click.echo(f"killed {leader}, which led, after {time.monotonic() - began:.1f} s")
    _sleep_until(began + duration_s * 2 / 3, load)
    compose.run("start", leader)
    click.echo(f"started {leader} again after {time.monotonic() - began:.1f} s; {compose.leader()} leads")


def _sleep_until(moment: float, load: subprocess.Popen[bytes]) -> None:
    while (left_s := moment - time.monotonic()) > 0:
        if load.poll() is not None:
            return
        time.sleep(min(left_s, 0.2))


def _there(url: str, prefix: str) -> dict[str, str]:
    """What one node says there is, linearizably."""
    with SyncClient(url, timeout_s=30) as client:
        items = (json.loads(line) for line in client.export_lines(prefix))
        return {item["key"]: item.get("value", "") for item in items if "key" in item}


def _clear(compose: Compose, prefix: str) -> None:
    with SyncClient(tuple(compose.urls.values())) as client:
        while client.delete_prefix(prefix).more:
            pass


def _report(writes: Sequence[Acknowledged], missing: Mapping[str, Sequence[str]]) -> bool:
    click.echo(f"acknowledged writes: {len(writes)}")
    click.echo(f"longest time without one: {longest_gap_s(writes):.2f} s")
    for name, keys in missing.items():
        click.echo(f"lost writes, read back from {name}: {len(keys)}")
        for key in keys[:10]:
            click.echo(f"  {key}")
    return bool(writes) and not any(missing.values())


@click.command()
@click.option("--seconds", type=click.IntRange(6, 600), default=20, show_default=True, help="Of load.")
@click.option("--rate", type=click.IntRange(1, 2000), default=100, show_default=True, help="Writes a second.")
def main(seconds: int, rate: int) -> None:
    """Kill the leader's container under k6 load; count lost writes and the longest gap between writes.

    Starts the nodes of docker-compose.cluster.yml where they don't run, and leaves them running. Exit code 1
    where a write was lost."""
    try:
        compose = Compose(compose_command(os.environ), os.environ)
        sys.exit(0 if demonstrate(compose, seconds, rate) else 1)
    except (DemoFailed, ClientError, subprocess.TimeoutExpired) as error:
        click.echo(f"failover demo: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
