"""`raftkv snapshot … --from URL` and `raftkv doctor`, on a store that is a directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from raftkv.snapshot import remote as remote_module
from raftkv.snapshot import store as store_module
from raftkv.snapshot.codec import Manifest
from raftkv.snapshot.directory import DirectoryStore
from raftkv.snapshot.remote import open_remote
from tests.unit.fake_node import Drop, Reply, Request, Word, problem
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


def test_through_a_node_what_is_gone_already_counts_as_deleted() -> None:
    entries = [{"id": f"s{n}", "time": "2026-01-02T03:04:05.678Z"} for n in (9, 8, 7)]
    listed = Reply(200, json.dumps({"snapshots": entries}).encode())
    with node(listed, problem(404, "snapshot_missing"), Reply(200, b"{}")) as fake:
        shown = on(fake, "snapshot", "prune", "--keep", "1")
    assert (shown.exit_code, shown.stdout) == (0, "s8\ns7\n")


# --- a download through a node ---------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """A snapshot of several chunks, as a node keeps it in `local`."""
    monkeypatch.setattr(store_module, "CHUNK_RAW_BYTES", 1_000)
    return publish(DirectoryStore.open(tmp_path / "local"), a_machine(1))


def serving(local: Path, kept: Manifest) -> Callable[[Request], Word]:
    """What a node answers that has the snapshot."""

    def answer(request: Request) -> Word:
        match request.target.removeprefix("/v1/snapshots").split("/")[1:]:
            case []:
                return Reply(200, json.dumps({"snapshots": [{"id": kept.id}]}).encode())
            case [kept.id, "manifest"]:
                return Reply(200, (local / f"{kept.id}.manifest").read_bytes())
            case [kept.id, "chunks", number]:
                return Reply(200, (local / kept.chunks[int(number)].name).read_bytes())
        return problem(404, "snapshot_missing")

    return answer


def names_in(copy: Path) -> list[str]:
    """Of the objects, without what is of one attempt."""
    parts = [each.name.split(".") for each in (copy / "objects").iterdir()]
    return sorted(".".join(each[:2] + each[3:]) for each in parts)


def test_a_download_through_a_node_is_what_one_from_the_store_is(kept: Manifest, tmp_path: Path) -> None:
    with node(serving(tmp_path / "local", kept)) as fake:
        shown = on(fake, "snapshot", "download", "latest", str(tmp_path / "copy"))
    assert shown.exit_code == 0, shown.stderr
    assert f"{kept.id}: {kept.bytes} bytes, now in {(tmp_path / 'copy').as_uri()}" in shown.stdout
    copy = (tmp_path / "copy").as_uri()
    assert open_remote(copy, {}).list() == [kept]
    assert run("snapshot", "verify", kept.id, "--from", copy).exit_code == 0
    again = run("snapshot", "download", kept.id, str(tmp_path / "again"), "--from", copy)
    assert again.exit_code == 0
    assert names_in(tmp_path / "again") == names_in(tmp_path / "copy")


def test_a_chunk_larger_than_an_object_is_fetched_once(
    kept: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_module, "OBJECT_BYTES_MAX", 300)
    with node(serving(tmp_path / "local", kept)) as fake:
        shown = on(fake, "snapshot", "download", kept.id, str(tmp_path / "copy"))
    assert shown.exit_code == 0, shown.stderr
    asked = [each.target for each in fake.requests if "/chunks/" in each.target]
    assert len(asked) == len(set(asked)) == len(kept.chunks)
    assert len(names_in(tmp_path / "copy")) > len(kept.chunks) + 1


def bent(reply: Reply) -> Word:
    return Reply(200, reply.body[:-1] + b"?")


@pytest.mark.parametrize(
    ("part", "word", "code", "says"),
    [
        ("manifest", bent, 1, "doesn't match the checksum"),
        ("chunks/1", bent, 1, "doesn't match its manifest"),
        ("chunks/1", lambda reply: Reply(200, reply.body[:-1]), 1, "doesn't match its manifest"),
        ("chunks/1", lambda reply: problem(404, "snapshot_missing"), 3, "said so"),
        ("chunks/1", lambda reply: problem(500, "snapshot_damaged"), 1, "said so"),
        ("chunks/1", lambda reply: problem(404, "no_such_route"), 5, "no_such_route"),
        ("chunks/1", lambda reply: problem(503, "store_unavailable", retryable=True), 5, "said so"),
    ],
)
def test_a_download_that_fails_says_why_and_leaves_nothing(
    kept: Manifest, tmp_path: Path, part: str, word: Callable[[Reply], Word], code: int, says: str
) -> None:
    sound = serving(tmp_path / "local", kept)

    def answer(request: Request) -> Word:
        reply = sound(request)
        assert isinstance(reply, Reply)
        return word(reply) if request.target.endswith(part) else reply

    with node(answer) as fake:
        shown = on(fake, "snapshot", "download", "latest", str(tmp_path / "copy"))
    assert (shown.exit_code, says in shown.stderr) == (code, True), shown.stderr
    assert open_remote((tmp_path / "copy").as_uri(), {}).list() == []
    assert not list((tmp_path / "copy").glob("objects/*"))


def test_a_download_and_a_prune_stay_with_the_node_whose_list_it_is(kept: Manifest, tmp_path: Path) -> None:
    """Where nodes share no store, another node answers 404; a delete there would seem to have been done."""
    sound = serving(tmp_path / "local", kept)
    dropped: set[str] = set()

    def answer(request: Request) -> Word:
        if "chunks" not in request.target or request.target in dropped:
            return sound(request)
        dropped.add(request.target)
        return Drop()

    with node(answer) as fake, node(problem(404, "snapshot_missing")) as other:
        both = ("--endpoints", f"{fake.url},{other.url}")
        shown = run("snapshot", "download", "latest", str(tmp_path / "copy"), *both)
        assert shown.exit_code == 0, shown.stderr
    old = [{"id": each, "time": "2026-01-02T03:04:05.678Z"} for each in ("s9", "s8")]
    listed = Reply(200, json.dumps({"snapshots": old}).encode())
    with node(listed, Drop(), Reply(200)) as fake, node(problem(404, "snapshot_missing")) as other:
        both = ("--endpoints", f"{fake.url},{other.url}")
        assert run("snapshot", "prune", "--keep", "1", *both).stdout == "s8\n"
        assert [each.method for each in fake.requests] == ["GET", "DELETE", "DELETE"]
        assert not other.requests


def test_the_manifest_of_another_snapshot_is_not_taken(kept: Manifest, tmp_path: Path) -> None:
    other = publish(DirectoryStore.open(tmp_path / "other"), a_machine(2))
    manifest = Reply(200, (tmp_path / "other" / f"{other.id}.manifest").read_bytes())
    listed = Reply(200, json.dumps({"snapshots": []}).encode())
    with node(listed, manifest) as fake:
        shown = on(fake, "snapshot", "download", kept.id, str(tmp_path / "copy"))
    assert (shown.exit_code, f"the manifest of {other.id}" in shown.stderr) == (1, True), shown.stderr


def test_a_download_without_a_snapshot_to_take_is_not_found(tmp_path: Path) -> None:
    listed = Reply(200, json.dumps({"snapshots": []}).encode())
    with node(listed, problem(404, "snapshot_missing")) as fake:
        assert on(fake, "snapshot", "download", "latest", str(tmp_path / "copy")).exit_code == 3


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
        *("disk", "file system", "room", "open files", "memory"),
    ]
    assert {each["name"] for each in checks if each["state"] == "fail"} <= {"file system"}  # /tmp in memory
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
