"""What a person sees of real nodes, from one of them: health, top, doctor, a bundle for others to look at."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cluster.local import LocalCluster, find_base_port
from raftkv.client import NotFound, SyncClient


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("cluster"), base_port=find_base_port()) as cluster:
        cluster.start_all()
        cluster.wait_ready()
        yield cluster


def raftkv(nodes: LocalCluster, *arguments: str, through: str = "n1") -> subprocess.CompletedProcess[str]:
    """With the address of one node only."""
    return subprocess.run(
        [sys.executable, "-m", "raftkv", *arguments, "--endpoints", nodes.api_url(through)],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_top_shows_what_all_nodes_did_between_two_looks(nodes: LocalCluster) -> None:
    with SyncClient(nodes.api_urls()) as client:
        client.put("seen", b"x")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "raftkv", "top", "--once", "--interval", "2", "-o", "json"),
            *("--endpoints", nodes.api_url("n1")),
        ],
        stdout=subprocess.PIPE,
    )
    with SyncClient(nodes.api_urls()) as client:
        while process.poll() is None:
            client.put("seen", b"y")
    assert process.stdout is not None
    shown = json.loads(process.stdout.read())
    process.stdout.close()
    assert process.returncode == 0
    assert [node["name"] for node in shown["nodes"]] == list(nodes.names)
    assert shown["leader"] == nodes.leader()
    assert shown["puts"] > 0
    leading = next(node for node in shown["nodes"] if node["name"] == shown["leader"])
    assert leading["role"] == "leader"
    assert 0 < leading["put_p50_s"] <= leading["put_p99_s"] < 5
    assert 0 < leading["sync_p50_s"] <= leading["sync_p99_s"] < 5
    assert leading["batch_commands"] >= 1
    assert leading["memory_bytes"] > 10_000_000
    drawn = raftkv(nodes, "top", "--once", "--interval", "0.2")
    assert drawn.returncode == 0
    assert all(name in drawn.stdout for name in (*nodes.names, "PUT/s", "BEHIND", "SYNC/s"))


def test_top_lives_on_a_terminal_until_it_is_interrupted(nodes: LocalCluster) -> None:
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "raftkv", "top", "--interval", "0.2"),
            *("--endpoints", nodes.api_url("n1")),
        ],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "COLUMNS": "130", "LINES": "40", "TERM": "xterm-256color"},
        start_new_session=True,
    )
    os.close(theirs)
    try:
        drawn = b""
        deadline = time.monotonic() + 30
        while drawn.count(b"BEHIND") < 3:  # it was drawn anew
            assert time.monotonic() < deadline, drawn[-2000:]
            if select.select([ours], [], [], 1.0)[0]:
                drawn += os.read(ours, 1 << 16)
        process.send_signal(signal.SIGINT)
        while select.select([ours], [], [], 5.0)[0]:  # or it could not write its last words
            try:
                drawn += os.read(ours, 1 << 16)
            except OSError:  # EIO: nobody writes there any more
                break
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert b"Traceback" not in drawn
    assert all(name.encode() in drawn for name in nodes.names)


def test_doctor_finds_real_nodes_sound(nodes: LocalCluster) -> None:
    with SyncClient(nodes.api_urls()) as client:
        client.put("seen", b"x")
    shown = raftkv(nodes, "doctor", "-o", "json")
    checks = [json.loads(line) for line in shown.stdout.splitlines()]
    assert shown.returncode == 0, shown.stdout
    names = [each["name"] for each in checks]
    assert names[:6] == ["node", "node", "node", "members", "versions", "clocks"]
    of_each = ("fsync", "cpu", "round trip", "room", "memory", "open files")
    assert [f"{name}: {each}" for name in nodes.names for each in of_each] == names[6:]
    assert [each["state"] for each in checks[:6]] == ["ok"] * 6


def test_a_bundle_has_all_nodes_and_no_secret(nodes: LocalCluster, tmp_path: Path) -> None:
    secret = nodes.secret_path.read_text().strip()
    with SyncClient(nodes.api_urls()) as client:
        client.put("a-key-of-a-customer", b"a-value-of-a-customer")
        with suppress(NotFound):
            client.get("another-key-of-a-customer")
    log = tmp_path / "node.log"
    log.write_text(f"{nodes.log_path('n1').read_text()}\nWARNING token=canary-token {secret}\n")
    config = tmp_path / "n1.toml"
    config.write_text(f'name = "n1"\nsecret_file = "/etc/raftkv/secret"\nsecret = "{secret}"\n')
    place = tmp_path / "bundle.tar.gz"
    made = raftkv(nodes, "debug", "bundle", "-f", str(place), "--log", str(log), "--config", str(config))
    assert made.returncode == 0, made.stderr
    assert place.stat().st_mode & 0o777 == 0o600
    with tarfile.open(place) as archive:
        files = {each.name.partition("/")[2]: archive.extractfile(each).read() for each in archive}  # type: ignore[union-attr]
    for at, name in enumerate(nodes.names):
        status = json.loads(files[f"nodes/{at}-{name}/status.json"])
        assert (status["name"], status["keys"] > 0) == (name, True)
        assert b"raftkv_journal_sync_seconds_bucket" in files[f"nodes/{at}-{name}/metrics.txt"]
        assert json.loads(files[f"nodes/{at}-{name}/limits.json"])["limits"]
        assert json.loads(files[f"nodes/{at}-{name}/cluster.json"])["members"]
    assert b"role_changed" in files["logs/0-node.log"]
    assert json.loads(files["config/0-n1.toml.json"])["secret_file"] == "/etc/raftkv/secret"
    manifest = json.loads(files["manifest.json"])
    assert [node["name"] for node in manifest["nodes"]] == list(nodes.names)
    everything = b"".join(files.values())
    for canary in (secret, "canary-token", "a-key-of-a-customer", "a-value-of", "another-key"):
        assert canary.encode() not in everything, canary
    assert raftkv(nodes, "debug", "bundle", "-f", str(place)).returncode == 1  # never over what is there


def health(
    nodes: LocalCluster, code: int, *arguments: str, through: str = "n1"
) -> subprocess.CompletedProcess[str]:
    """The first answer with that exit code, within a minute: nodes need a while to see what became of
    others."""
    deadline = time.monotonic() + 60
    while (shown := raftkv(nodes, "cluster", "health", *arguments, through=through)).returncode != code:
        assert time.monotonic() < deadline, (shown.returncode, shown.stdout, shown.stderr)
    return shown


def test_health_is_the_exit_code(nodes: LocalCluster) -> None:
    well = health(nodes, 0)
    assert well.stdout.partition(":")[0] == "healthy"
    leader = nodes.wait_leader()
    first, second = (name for name in nodes.names if name != leader)
    nodes.kill(first)
    degraded = health(nodes, 1, "--json", through=leader)
    told = json.loads(degraded.stdout)
    assert (told["state"], told["ready"], told["failures_tolerated"]) == ("degraded", 2, 0)
    assert any(first in problem for problem in told["problems"])
    nodes.pause(second)
    assert health(nodes, 2, "-q", through=leader).stdout == ""
    nodes.resume(second)
    nodes.start(first)
    nodes.wait_ready()
    health(nodes, 0, "-q")
