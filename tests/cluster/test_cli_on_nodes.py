"""The command line and the client against real nodes: what goes in comes out, also while leaders die."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cluster.local import LocalCluster, find_base_port
from raftkv.client import BadRequest, NotFound, PreconditionFailed, SyncClient
from raftkv.snapshot.remote import open_remote

LINES = 20_000


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("cluster"), base_port=find_base_port()) as cluster:
        cluster.start_all()
        cluster.wait_ready()
        yield cluster
        cluster.stop_all()
        assert [cluster.exit_code(name) for name in cluster.names] == [0, 0, 0]


@pytest.fixture
def client(nodes: LocalCluster) -> Iterator[SyncClient]:
    with SyncClient(nodes.api_urls()) as client:
        yield client


def raftkv(
    nodes: LocalCluster, *arguments: str, stdin: bytes = b"", only: str | None = None
) -> subprocess.CompletedProcess[bytes]:
    endpoints = nodes.api_url(only) if only else ",".join(nodes.api_urls())
    return subprocess.run(
        [sys.executable, "-m", "raftkv", *arguments, "--endpoints", endpoints],
        input=stdin,
        capture_output=True,
        timeout=120,
    )


def test_a_value_goes_in_and_out_on_every_node(nodes: LocalCluster) -> None:
    value = bytes(range(256)) * 100
    assert raftkv(nodes, "kv", "put", "dir/a key", "-", stdin=value).returncode == 0
    for name in nodes.names:
        shown = raftkv(nodes, "kv", "get", "dir/a key", only=name)
        assert (shown.returncode, shown.stdout) == (0, value)
    assert raftkv(nodes, "kv", "get", "nothing here").returncode == 3


def test_conditions_fail_with_4_and_leave_the_value(nodes: LocalCluster) -> None:
    assert raftkv(nodes, "kv", "cas", "cas", "one", "--absent").returncode == 0
    assert raftkv(nodes, "kv", "cas", "cas", "two", "--absent").returncode == 4
    assert raftkv(nodes, "kv", "cas", "cas", "two", "--expected", "other").returncode == 4
    assert raftkv(nodes, "kv", "get", "cas").stdout == b"one"
    assert raftkv(nodes, "kv", "cas", "cas", "two", "--expected", "one").returncode == 0
    assert raftkv(nodes, "kv", "get", "cas").stdout == b"two"


def test_append_incr_txn_list_and_del(nodes: LocalCluster) -> None:
    assert raftkv(nodes, "kv", "append", "ops/log", "a").returncode == 0
    assert raftkv(nodes, "kv", "append", "ops/log", "b").returncode == 0
    assert raftkv(nodes, "kv", "get", "ops/log").stdout == b"ab"
    assert raftkv(nodes, "kv", "incr", "ops/n", "5").stdout == b"5\n"
    refused = raftkv(nodes, "kv", "incr", "ops/log")
    assert (refused.returncode, b"not_a_number" in refused.stderr) == (2, True)
    document = {
        "compare": [{"key": "ops/n", "target": "value", "op": "==", "value": "5"}],
        "success": [{"put": {"key": "ops/done", "value": "yes"}}, {"get": {"key": "ops/done"}}],
    }
    done = raftkv(nodes, "kv", "txn", "-", stdin=json.dumps(document).encode())
    assert json.loads(done.stdout)["succeeded"] is True
    listed = raftkv(nodes, "kv", "list", "ops/", "-o", "json")
    assert [json.loads(line)["key"] for line in listed.stdout.splitlines()] == [
        "ops/done",
        "ops/log",
        "ops/n",
    ]
    assert raftkv(nodes, "kv", "del", "ops/n").stdout.endswith(b"deleted 1\n")
    assert raftkv(nodes, "kv", "del", "--prefix", "ops/").stdout.endswith(b"deleted 2\n")
    assert raftkv(nodes, "kv", "list", "ops/").stdout.splitlines()[1:] == []


def test_the_client_speaks_every_call(client: SyncClient) -> None:
    first = client.put("c/a//b ü", b"1", content_type="text/x", if_revision=0)
    assert first.created
    again = client.put("c/a//b ü", b"2", if_revision=first.revision, previous=True)
    assert (again.created, again.previous and again.previous.value) == (False, b"1")
    with pytest.raises(PreconditionFailed) as failed:
        client.put("c/a//b ü", b"3", if_revision=first.revision)
    assert failed.value.current == again.revision
    with pytest.raises(PreconditionFailed):
        client.put("c/a//b ü", b"3", if_exists=False)
    assert client.get("c/a//b ü", min_revision=again.revision).value == b"2"
    assert client.get("c/a//b ü", stale=True, max_staleness_ms=60_000).revision == again.revision
    item = client.get_item("c/a//b ü")
    assert (item.key, item.create_revision, item.mod_revision, item.version) == (
        "c/a//b ü",
        first.revision,
        again.revision,
        2,
    )
    assert client.append("c/log", b"\xff").length == 1
    assert client.incr("c/n", -7).value == -7
    with pytest.raises(BadRequest):
        client.incr("c/log")
    result = client.txn(
        [{"key": "c/n", "target": "exists", "op": "==", "value": True}], [{"incr": {"key": "c/n", "by": 1}}]
    )
    assert (result.succeeded, result.responses[0]["value"]) == (True, -6)
    assert [item.key for item in client.list("c/")] == ["c/a//b ü", "c/log", "c/n"]
    assert [(item.key, item.value) for item in client.list("c/", keys_only=True, limit=1)] == [
        ("c/a//b ü", None)
    ]
    assert [item.key for item in client.list(start="c/l", end="c/n")] == ["c/log"]
    assert [item.value for item in client.export("c/")] == [b"2", b"\xff", b"-6"]
    assert client.delete("c/n", previous=True).previous is not None
    assert client.delete("c/n").deleted == 0
    assert client.delete_prefix("c/").deleted == 2
    with pytest.raises(NotFound):
        client.get("c/log")
    assert client.status()["leader"] in ("n1", "n2", "n3")
    assert len(client.cluster()["members"]) == 3


def test_the_same_idempotency_key_is_answered_and_not_done_again(client: SyncClient) -> None:
    first = client.append("idem", b"x", idempotency_key="once")
    again = client.append("idem", b"x", idempotency_key="once")
    assert (first.replayed, again.replayed) == (False, True)
    assert again.revision == first.revision
    assert client.get("idem").value == b"x"
    with pytest.raises(BadRequest, match="idempotency_mismatch"):
        client.append("idem", b"y", idempotency_key="once")


def test_status_and_snapshots_are_shown(nodes: LocalCluster) -> None:
    shown = raftkv(nodes, "status", "-o", "json")
    assert shown.returncode == 0
    assert sorted(node["role"] for node in json.loads(shown.stdout)["nodes"]) == [
        "follower",
        "follower",
        "leader",
    ]
    made = raftkv(nodes, "snapshot", "create", "-o", "json", "--timeout", "60")
    assert made.returncode == 0, made.stderr
    listed = raftkv(nodes, "snapshot", "list", "-o", "json", only="n1")
    assert json.loads(made.stdout)["id"] in [json.loads(line)["id"] for line in listed.stdout.splitlines()]


def test_every_snapshot_command_works_through_a_node(nodes: LocalCluster, tmp_path: Path) -> None:
    made = []
    for value in "ab":
        assert raftkv(nodes, "kv", "put", "kept", value).returncode == 0
        assert raftkv(nodes, "kv", "get", "kept", only="n2").stdout == value.encode()
        shown = raftkv(nodes, "snapshot", "create", "-o", "json", only="n2")
        assert shown.returncode == 0, shown.stderr
        made.append(json.loads(shown.stdout)["id"])
    assert raftkv(nodes, "snapshot", "verify", made[0], only="n2").returncode == 0
    for name in (made[0], "latest"):
        shown = raftkv(nodes, "snapshot", "download", name, str(tmp_path / "copy"), only="n2")
        assert shown.returncode == 0, shown.stderr
    copy = (tmp_path / "copy").as_uri()
    assert [each.id for each in open_remote(copy, {}).list()] == made
    inspected = json.loads(raftkv(nodes, "snapshot", "inspect", "latest", "-o", "json", only="n2").stdout)
    assert open_remote(copy, {}).manifest(made[1]).sha256 == inspected["sha256"]
    assert made[0].encode() in raftkv(nodes, "snapshot", "prune", "--keep", "1", only="n2").stdout
    assert raftkv(nodes, "snapshot", "download", made[0], str(tmp_path / "none"), only="n2").returncode == 3


def test_refused_lines_of_an_import_are_told_and_the_rest_is_written(nodes: LocalCluster) -> None:
    lines = [{"key": "mixed/1", "value": "a"}, {"key": "mixed/2"}, {"key": "mixed/3", "value": "c"}]
    done = raftkv(nodes, "kv", "import", "-", stdin="\n".join(map(json.dumps, lines)).encode())
    assert done.returncode == 2
    assert b"line 2" in done.stderr
    assert b"2 written, 1 refused" in done.stdout
    assert raftkv(nodes, "kv", "list", "mixed/", "--keys-only").stdout.count(b"mixed/") == 2


def source(path: Path) -> dict[str, bytes]:
    """An import file of LINES lines, some of them bytes that are no UTF-8, and what must be in the store."""
    values = {
        f"load/{n:06}": (b"\xff%d" % n if n % 10 == 0 else b"value of line %d" % n) for n in range(LINES)
    }
    with path.open("w") as file:
        for key, value in values.items():
            encoded = (
                {"base64": base64.b64encode(value).decode()}
                if value[:1] == b"\xff"
                else {"value": value.decode()}
            )
            file.write(json.dumps({"key": key, **encoded}) + "\n")
    return values


def test_an_import_survives_two_leaders_and_comes_out_of_every_node_equal(
    nodes: LocalCluster, tmp_path: Path
) -> None:
    """Each line is written exactly once: every key is at version 1. The file is a pipe that gives the next
    part once a leader was killed, so that no import is over before."""
    values = source(tmp_path / "load.ndjson")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    killed = [threading.Event(), threading.Event()]
    feeding = threading.Thread(target=lambda: feed(pipe, tmp_path / "load.ndjson", killed))
    done: list[subprocess.CompletedProcess[bytes]] = []
    loading = threading.Thread(target=lambda: done.append(raftkv(nodes, "kv", "import", str(pipe))))
    feeding.start()
    loading.start()
    for part, event in zip((0.2, 0.5), killed, strict=True):
        leader = wait_for_keys(nodes, int(LINES * part), loading)
        assert leader is not None, done
        nodes.kill(leader)
        event.set()
        nodes.wait_leader()
        nodes.start(leader)
        nodes.wait_ready([leader])
    loading.join()
    feeding.join()
    assert done[0].returncode == 0, done[0].stderr
    assert b"%d written in" % LINES in done[0].stdout
    nodes.wait_ready()
    for name in nodes.names:
        exported = raftkv(nodes, "kv", "export", "--prefix", "load/", only=name)
        assert exported.returncode == 0
        items = [json.loads(line) for line in exported.stdout.splitlines()]
        found = {
            item["key"]: base64.b64decode(item["base64"]) if "base64" in item else item["value"].encode()
            for item in items
        }
        assert found == values
        assert {item["version"] for item in items} == {1}


def feed(pipe: Path, path: Path, gates: Sequence[threading.Event]) -> None:
    """The lines of `path`: two fifths, and as many behind each gate."""
    lines = path.read_text().splitlines(keepends=True)
    share = LINES * 2 // 5
    with pipe.open("w") as file:
        for number, gate in enumerate((*gates, None)):
            file.writelines(lines[number * share : (number + 1) * share])
            file.flush()
            if gate is not None:
                gate.wait(60)


def wait_for_keys(nodes: LocalCluster, least: int, loading: threading.Thread) -> str | None:
    """The leader, once so many keys are there; None where the load ends before."""
    while loading.is_alive():
        leader = nodes.leader()
        status = nodes.status(leader) if leader else None
        if status is not None and status["keys"] >= least:
            return leader
        time.sleep(0.02)
    return None


def test_an_export_goes_back_in(nodes: LocalCluster, client: SyncClient, tmp_path: Path) -> None:
    client.put("round/a", b"\x00\xff", content_type="image/png")
    client.put("round/b", "text")
    path = tmp_path / "round.ndjson"
    assert (
        raftkv(nodes, "kv", "export", "--prefix", "round/", "--file", str(path), "--with-end").returncode == 0
    )
    client.delete_prefix("round/")
    assert raftkv(nodes, "kv", "import", str(path)).returncode == 0
    assert client.get("round/a").value == b"\x00\xff"
    assert client.get("round/a").content_type == "image/png"
    assert client.get("round/b").value == b"text"


def test_a_paused_leader_costs_a_write_time_and_not_its_outcome(nodes: LocalCluster) -> None:
    leader = nodes.wait_leader()
    with SyncClient(nodes.api_urls(), timeout_s=30) as client:
        client.put("paused", "before")
        nodes.pause(leader)
        try:
            client.append("paused", " and after")
        finally:
            nodes.resume(leader)
        nodes.wait_ready()
        assert client.get("paused").value == b"before and after"


def test_without_a_majority_writes_are_unavailable_or_unknown(nodes: LocalCluster) -> None:
    leader = nodes.wait_leader()
    followers = [name for name in nodes.names if name != leader]
    for name in followers:
        nodes.pause(name)
    try:
        refused = raftkv(nodes, "kv", "put", "k", "v", "--timeout", "4", only=leader)
        assert refused.returncode in (5, 6)
    finally:
        for name in followers:
            nodes.resume(name)
    nodes.wait_ready()
