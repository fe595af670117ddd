"""Every disk lost, and the cluster back from its store, with real processes."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import backup_restore, packages
from cluster.local import LocalCluster, find_base_port, get
from raftkv.client import ClientError, SyncClient
from raftkv.raft.restore import Target, recover
from raftkv.snapshot.bucket import DirectoryBucket
from raftkv.snapshot.directory import DirectoryStore
from raftkv.snapshot.remote import RemoteStore
from tests.ceph import Ceph
from tests.unit.snapshot_samples import a_machine, publish

RECORDS = 1000


def wait(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.05)


def raftkv(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "raftkv", *words], capture_output=True, text=True, timeout=120
    )


def end_to_end(url: str, tmp_path: Path) -> None:
    if shutil.which("apt-cache") is None:
        pytest.skip("needs apt-cache, of Debian")
    said: list[str] = []
    backup_restore.run(packages.read_index(RECORDS), url, tmp_path, environment={}, say=said.append)
    assert len([line for line in said if "equal, byte for byte, on each node" in line]) == 2


def test_all_disks_lost_and_back_from_a_directory(tmp_path: Path) -> None:
    end_to_end((tmp_path / "store").as_uri(), tmp_path)


def test_all_disks_lost_and_back_from_ceph(tmp_path: Path, ceph: Ceph) -> None:
    end_to_end(ceph.url(ceph.new_location()), tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A snapshot of some keys, published."""
    local = DirectoryStore.open(tmp_path / "local")
    remote = RemoteStore(DirectoryBucket(tmp_path / "store"))
    remote.publish(local, publish(local, a_machine(1), page_records=500).id, term=3, publisher="n1")
    return (tmp_path / "store").as_uri()


def test_up_restores_first_where_it_is_told_to(tmp_path: Path, store: str) -> None:
    base_port = find_base_port()
    words = ("--data-dir", str(tmp_path / "up"), "--base-port", str(base_port), "--restore-from", store)
    output = (tmp_path / "up.out").open("wb")
    with (
        output,
        subprocess.Popen(
            [sys.executable, "-m", "raftkv", "up", *words], stdout=output, stderr=subprocess.STDOUT
        ) as up,
    ):
        try:
            url = f"http://127.0.0.1:{base_port}"
            wait(lambda: get(url + "/readyz")[0] == 200, "a ready node")
            assert json.loads(get(url + "/v1/status")[1])["keys"] == a_machine(1).keys
            with SyncClient(url) as client:
                assert client.put("after", b"it").revision == a_machine(1).revision + 1
        finally:
            up.terminate()
            up.wait(30)
    again = raftkv("up", *words)
    assert again.returncode == 2
    assert "is not empty" in again.stderr


def test_a_drill_says_that_the_backup_is_one(store: str) -> None:
    done = raftkv("snapshot", "drill", "--from", store, "--nodes", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "DIFFERS" not in done.stdout
    assert "sha256 of the state" in done.stdout


def test_a_drill_of_a_damaged_backup_fails_before_a_node_starts(store: str, tmp_path: Path) -> None:
    (chunk,) = (tmp_path / "store" / "objects").glob("*.00000.0")
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    done = raftkv("snapshot", "drill", "--from", store)
    assert done.returncode == 1
    assert "sha256" in done.stderr


def test_members_for_several_machines_are_restored_one_by_one(tmp_path: Path, store: str) -> None:
    base_port = find_base_port()
    with LocalCluster(tmp_path / "nodes", base_port=base_port) as cluster:
        members = [
            word
            for name in cluster.names
            for word in ("--member", f"{name}={cluster.raft_address(name)},{cluster.api_url(name)}")
        ]
        for name in cluster.names:
            words = ("--from", store, "--only", name, "--new-cluster-id", "ab" * 16)
            done = raftkv("restore", *words, "--data-dir", str(cluster.node_dir(name)), *members)
            assert done.returncode == 0, done.stderr
        cluster.start_all()
        cluster.wait_ready()
        statuses = cluster.statuses().values()
        assert {status["cluster_id"] for status in statuses if status} == {"ab" * 16}
        assert {status["keys"] for status in statuses if status} == {a_machine(1).keys}


def test_a_member_of_the_old_cluster_is_refused_by_the_new_one(tmp_path: Path) -> None:
    url = (tmp_path / "store").as_uri()
    base_port = find_base_port()
    with LocalCluster(tmp_path / "old", base_port=base_port, extra_args=("--snapshots", url)) as old:
        old.start_all()
        old.wait_ready()
        with SyncClient(old.api_urls()) as client:
            client.put("a", b"1")
        backup_restore._wait_archived(old)
        old.kill_all()
    done = raftkv(
        "restore", "--from", url, "--data-dir", str(tmp_path / "new"), "--base-port", str(base_port)
    )
    assert done.returncode == 0, done.stderr
    shutil.copy(tmp_path / "old" / "secret", tmp_path / "new" / "secret")
    shutil.rmtree(tmp_path / "new" / "n3")
    shutil.move(tmp_path / "old" / "n3", tmp_path / "new" / "n3")
    with LocalCluster(tmp_path / "new", base_port=base_port) as new:
        new.start_all()
        new.wait_ready(("n1", "n2"))
        wait(lambda: not new.alive("n3"), "the refusal of the old member")
        assert new.exit_code("n3") == 1
        assert any("cluster" in line for line in new.last_log_lines("n3"))
        with SyncClient((new.api_url("n1"),)) as client:
            assert client.get("a").value == b"1"


def test_with_every_disk_gone_only_the_last_second_is(tmp_path: Path) -> None:
    """Writers go on while two leaders are killed, then everything is at once. What comes back is what was
    acknowledged, in order, up to about a second before the end; never a write without one before it."""
    url = (tmp_path / "store").as_uri()
    with LocalCluster(tmp_path / "old", base_port=find_base_port(), extra_args=("--snapshots", url)) as old:
        old.start_all()
        old.wait_ready()
        acknowledged: list[tuple[int, float]] = []
        ended = threading.Event()

        def write() -> None:
            with SyncClient(old.api_urls(), timeout_s=8) as client:
                for number in itertools.count():
                    if ended.is_set():
                        return
                    with contextlib.suppress(ClientError):  # all nodes are gone, in the end
                        client.put(f"{number:08d}", b"x")
                        acknowledged.append((number, time.monotonic()))

        def more_writes(count: int) -> None:
            wanted = len(acknowledged) + count
            wait(lambda: len(acknowledged) > wanted, f"{count} more writes")

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(2):
                more_writes(200)
                leader = old.wait_leader()
                old.kill(leader)
                old.wait_leader()
                old.start(leader)
                old.wait_ready()
            more_writes(300)
        finally:
            ended.set()
            killed_at = time.monotonic()
            old.kill_all()
            writer.join()
    shutil.rmtree(tmp_path / "old")
    recovered = recover(RemoteStore(DirectoryBucket(tmp_path / "store")), Target())
    there = [int(item.key) for item in recovered.machine.scan(b"", None, 1_000_000)]
    assert there == list(range(len(there)))
    lost = [at for number, at in acknowledged if number >= len(there)]
    assert killed_at - min(lost, default=killed_at) < 1.0 + 1.5  # the interval, and a busy machine
