"""`raftkv snapshot … --from URL` and `raftkv doctor`, on a store that is a directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raftkv.snapshot.codec import Manifest
from raftkv.snapshot.directory import DirectoryStore
from raftkv.snapshot.remote import open_remote
from tests.unit.fake_node import Reply, problem
from tests.unit.snapshot_samples import a_machine, publish
from tests.unit.test_cli import node, on, run


@pytest.fixture
def url(tmp_path: Path) -> str:
    return (tmp_path / "shared").as_uri()


@pytest.fixture
def made(tmp_path: Path, url: str) -> list[Manifest]:
    local = DirectoryStore.open(tmp_path / "local")
    snapshots = [publish(local, a_machine(1, keys)) for keys in (5, 9, 12)]
    store = open_remote(url, {})
    for each in snapshots:
        store.publish(local, each.id, term=3, publisher="n1")
    return snapshots


def test_list_is_newest_first(url: str, made: list[Manifest]) -> None:
    shown = run("snapshot", "list", "--from", url, "-o", "json")
    assert [json.loads(line)["id"] for line in shown.stdout.splitlines()] == [each.id for each in made[::-1]]
    assert shown.exit_code == 0


def test_inspect_tells_the_manifest_of_an_id_or_the_latest(url: str, made: list[Manifest]) -> None:
    for name, expected in (("latest", made[2]), (made[0].id, made[0])):
        document = json.loads(run("snapshot", "inspect", name, "--from", url, "-o", "json").stdout)
        assert (document["id"], document["keys"]) == (expected.id, expected.keys)
        assert document["members"] == ["n1"]
    assert "data_bytes" in run("snapshot", "inspect", "latest", "--from", url).stdout


def test_verify_tells_sound_from_damaged(url: str, made: list[Manifest], tmp_path: Path) -> None:
    shown = run("snapshot", "verify", "latest", "--from", url)
    assert (shown.exit_code, f"{made[2].id}: sound: 13 keys" in shown.stdout) == (0, True)
    (chunk,) = (tmp_path / "shared" / "objects").glob(f"{made[2].id}*.00000.0")
    chunk.write_bytes(chunk.read_bytes()[:-1])
    shown = run("snapshot", "verify", "latest", "--from", url)
    assert shown.exit_code == 1
    assert chunk.name.split(".")[2] in shown.stderr
    assert "take another snapshot" in shown.stderr


def test_a_download_is_a_store_of_its_own(url: str, made: list[Manifest], tmp_path: Path) -> None:
    for name in (made[1].id, "latest"):
        shown = run("snapshot", "download", name, str(tmp_path / "copy"), "--from", url)
        assert shown.exit_code == 0, shown.stderr
    copy = (tmp_path / "copy").as_uri()
    assert run("snapshot", "verify", made[1].id, "--from", copy).exit_code == 0
    assert run("snapshot", "list", "--from", copy).stdout.count("\n") == 3


def test_prune_keeps_the_newest(url: str, made: list[Manifest]) -> None:
    shown = run("snapshot", "prune", "--keep", "2", "--from", url)
    assert shown.stdout == made[0].id + "\n"
    assert "1 deleted, 0 unfinished" in shown.stderr
    run("snapshot", "prune", "--keep", "2", "--age-seconds", "0", "--from", url)
    assert open_remote(url, {}).list() == made[2:]


@pytest.mark.parametrize(
    ("store", "code", "word"),
    [
        ("http://x", 2, "allowed are file:///"),
        ("rados://", 2, "rados://POOL"),
        ("rados://p/n?pool=x", 2, "'pool'"),
        ("rados://p/n/m", 2, "rados://POOL"),
        ("rados://p/n?conf=/nowhere/ceph.conf", 5, "/nowhere/ceph.conf"),
        ("file:///proc/raftkv/nothing", 3, "no snapshot"),
    ],
)
def test_each_failure_has_its_code_and_says_why(store: str, code: int, word: str) -> None:
    shown = run("snapshot", "inspect", "latest", "--from", store)
    assert (shown.exit_code, word in shown.stderr) == (code, True), shown.stderr


def test_through_a_node_latest_is_looked_up_and_the_verdict_waited_for() -> None:
    entry = {"id": "s9", "keys": 4, "bytes": 7, "time": "2026-01-02T03:04:05.678Z"}
    listed = Reply(200, json.dumps({"snapshots": [entry]}).encode())
    operation = {"id": "verify-1", "kind": "verify", "state": "running"}
    started = Reply(202, json.dumps(operation).encode(), {"Location": "/v1/operations/verify-1"})
    ended = Reply(
        200, json.dumps(operation | {"state": "done", "result": entry | {"verified": True}}).encode()
    )
    with node(listed, started, ended) as fake:
        shown = on(fake, "snapshot", "verify", "latest")
    assert (shown.exit_code, "s9: sound: 4 keys" in shown.stdout) == (0, True)
    assert [each.target for each in fake.requests] == [
        "/v1/snapshots",
        "/v1/snapshots/s9/verify",
        "/v1/operations/verify-1",
    ]


def test_through_a_node_prune_deletes_what_is_beyond() -> None:
    entries = [{"id": f"s{n}", "time": "2026-01-02T03:04:05.678Z"} for n in (9, 8, 7)]
    gone = Reply(200, b"{}")
    with node(Reply(200, json.dumps({"snapshots": entries}).encode()), gone, gone) as fake:
        shown = on(fake, "snapshot", "prune", "--keep", "1")
    assert shown.stdout == "s8\ns7\n"
    assert [(each.method, each.target) for each in fake.requests[1:]] == [
        ("DELETE", "/v1/snapshots/s8"),
        ("DELETE", "/v1/snapshots/s7"),
    ]


def test_through_a_node_a_missing_snapshot_is_not_found() -> None:
    with node(problem(404, "snapshot_missing")) as fake:
        assert on(fake, "snapshot", "inspect", "s9").exit_code == 3


# --- doctor ----------------------------------------------------------------------------------------------


def test_doctor_tries_store_and_disk_and_leaves_nothing(
    url: str, made: list[Manifest], tmp_path: Path
) -> None:
    before = sorted(each.name for each in (tmp_path / "shared" / "objects").iterdir())
    shown = run("doctor", "--snapshots", url, "--data-dir", str(tmp_path), "-o", "json")
    checks = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [each["name"] for each in checks] == [
        *(f"store: {step}" for step in ("setup", "reach", "write", "read", "delete", "content")),
        "disk",
    ]
    assert shown.exit_code == 0, shown.stdout
    assert checks[5]["detail"].startswith("3 snapshots, the newest ")
    assert sorted(each.name for each in (tmp_path / "shared" / "objects").iterdir()) == before
    assert not list(tmp_path.glob(".raftkv-doctor*"))


def test_doctor_names_what_is_wrong_and_stops_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    shown = run("doctor", "--snapshots", (tmp_path / "file").as_uri())
    assert shown.exit_code == 1
    assert shown.stdout.splitlines()[-1].startswith("fail  store: ")
    shown = run("doctor", "--snapshots", "rados://p/n?conf=/nowhere/ceph.conf")
    assert shown.exit_code == 1
    assert "conf /nowhere/ceph.conf: No such file" in shown.stdout
    assert run("doctor").exit_code == 2


def test_doctor_asks_the_nodes() -> None:
    peers = [{"name": "n1", "reachable": True}, {"name": "n2", "reachable": False}]
    archive = {"state": "failing", "error": "pool is full"}
    status = {"name": "n1", "role": "leader", "ready": True, "ready_reason": "", "peers": peers}
    with node(Reply(200, json.dumps(status | {"archive": archive}).encode())) as fake:
        shown = run("doctor", "--endpoints", fake.url)
    assert shown.exit_code == 1
    assert "can't reach n2" in shown.stdout
    assert "pool is full" in shown.stdout
