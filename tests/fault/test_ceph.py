"""A real Ceph that is killed, paused, full or refusing: what a publisher sees, and what is there afterwards.

Runs with shorter timeouts than a node's, so that each case takes seconds.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from cluster.cli import cli
from raftkv.errors import ConfigError, StoreUnavailable
from raftkv.snapshot import rados as rados_module
from raftkv.snapshot import store as store_module
from raftkv.snapshot.codec import Manifest
from raftkv.snapshot.directory import DirectoryStore
from raftkv.snapshot.loader import verify
from raftkv.snapshot.rados import Location, RadosBucket
from raftkv.snapshot.remote import RemoteStore, Retention, attempts
from tests.ceph import Ceph
from tests.unit.snapshot_samples import CLUSTER, a_machine, publish

OSD_TIMEOUT_S = 4


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "CHUNK_RAW_BYTES", 1_000)
    options = {
        **rados_module.OPTIONS,
        "client_mount_timeout": "3",
        "rados_mon_op_timeout": "3",
        "rados_osd_op_timeout": str(OSD_TIMEOUT_S),
    }
    monkeypatch.setattr(rados_module, "OPTIONS", options)
    monkeypatch.setattr(rados_module, "CONNECT_S", 8.0)


@pytest.fixture
def location(ceph: Ceph) -> Iterator[Location]:
    """Afterwards the cluster is as it was, whatever the test did to it."""
    yield ceph.new_location()
    ceph.run("start")


@pytest.fixture
def store(location: Location) -> Iterator[RemoteStore]:
    made = RemoteStore(RadosBucket(location))
    yield made
    made.close()


@pytest.fixture
def local(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore.open(tmp_path / "local")


class During:
    """A local store, at one of whose reads something happens to the cluster."""

    def __init__(self, local: DirectoryStore, at: int, happens: Callable[[], object]) -> None:
        self._local = local
        self._left = at
        self._happens = happens
        self.advice = local.advice

    def manifest(self, snapshot: str) -> Manifest:
        return self._local.manifest(snapshot)

    def location(self, name: str) -> str:
        return self._local.location(name)

    def read_chunk(self, snapshot: str, number: int, offset: int = 0, size: int | None = None) -> bytes:
        self._left -= 1
        if self._left == 0:
            self._happens()
        return self._local.read_chunk(snapshot, number, offset, size)


def assert_whole(ceph: Ceph, location: Location, listed: list[Manifest]) -> None:
    """What is listed is whole, and after the next leader's prune there is nothing else."""
    successor = RemoteStore(RadosBucket(location))
    assert successor.list() == listed
    for each in listed:
        verify(successor, each.id)
    successor.prune(cluster=CLUSTER, term=99)
    index = RadosBucket(location).index()
    expected = {name for each in attempts(index, "s", None) for name in each.objects()}
    assert ceph.object_names(location) - {"raftkv.index"} == expected
    successor.close()


# --- daemons that die or hang ------------------------------------------------------------------------------


def test_an_osd_killed_in_the_middle_and_back_costs_a_pause(
    ceph: Ceph, location: Location, store: RemoteStore, local: DirectoryStore
) -> None:
    made = publish(local, a_machine(1))

    def fall() -> None:
        ceph.run("kill-osd")
        threading.Thread(target=ceph.run, args=("start-osd",)).start()

    store.publish(During(local, 4, fall), made.id, term=1, publisher="n1")
    assert_whole(ceph, location, [made])


def test_an_osd_that_stays_away_is_said_in_time_and_the_next_attempt_succeeds(
    ceph: Ceph, location: Location, store: RemoteStore, local: DirectoryStore
) -> None:
    made = publish(local, a_machine(1))
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="are its monitors and OSDs up") as caught:
        store.publish(During(local, 4, lambda: ceph.run("kill-osd")), made.id, term=1, publisher="n1")
    assert caught.value.reason == "timed_out"
    assert time.monotonic() - began < 6 * OSD_TIMEOUT_S
    ceph.run("start-osd")
    assert store.list() == []
    store.publish(local, made.id, term=1, publisher="n1")
    assert_whole(ceph, location, [made])


def test_a_paused_osd_that_applies_late_what_timed_out_does_no_harm(
    ceph: Ceph, location: Location, store: RemoteStore, local: DirectoryStore
) -> None:
    """A write that timed out is applied when the OSD resumes; so is a change of the index."""
    made = publish(local, a_machine(1))
    for at in (1, len(made.chunks)):
        with pytest.raises(StoreUnavailable) as caught:
            store.publish(During(local, at, lambda: ceph.run("pause-osd")), made.id, term=1, publisher="n1")
        assert caught.value.reason == "timed_out"
        ceph.run("resume-osd")
        assert store.list() == []
    store.publish(local, made.id, term=2, publisher="n2")
    assert_whole(ceph, location, [made])


def test_a_commit_that_timed_out_and_happened_is_found_by_the_next_attempt(
    ceph: Ceph, location: Location, local: DirectoryStore
) -> None:
    made = publish(local, a_machine(1, 5))
    bucket = RadosBucket(location)
    change = bucket.change
    calls = 0

    def paused_at_commit(*arguments: object) -> bool:
        nonlocal calls
        calls += 1
        if calls == 2:
            ceph.run("pause-osd")
        return change(*arguments)  # type: ignore[arg-type]

    bucket.change = paused_at_commit  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        RemoteStore(bucket).publish(local, made.id, term=1, publisher="n1")
    ceph.run("resume-osd")
    store = RemoteStore(RadosBucket(location))
    store.publish(local, made.id, term=1, publisher="n1")
    assert_whole(ceph, location, [made])


def test_with_the_monitor_down_an_open_handle_works_and_a_new_one_is_refused_in_time(
    ceph: Ceph, location: Location, store: RemoteStore, local: DirectoryStore
) -> None:
    made = publish(local, a_machine(1, 5))
    assert store.list() == []
    ceph.run("kill-mon")
    store.publish(local, made.id, term=1, publisher="n1")
    fresh = RemoteStore(RadosBucket(location))
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="monitor") as caught:
        fresh.list()
    assert caught.value.reason == "timed_out"
    assert time.monotonic() - began < 10
    ceph.run("start-mon")
    assert fresh.list() == [made]
    assert_whole(ceph, location, [made])


def test_a_write_that_failed_among_others_is_not_taken_for_done(location: Location) -> None:
    """Each completion has its own result; nothing else tells of this one."""
    bucket = RadosBucket(location)
    objects = [("a", b"1"), ("x" * 3_000, b"2"), ("b", b"3")]  # a name that no OSD takes
    with pytest.raises(StoreUnavailable, match=f"errno {errno.ENAMETOOLONG}"):
        bucket.write(objects)
    with pytest.raises(StoreUnavailable, match=f"errno {errno.ENAMETOOLONG}"):
        bucket.remove(name for name, _ in objects)
    bucket.write(objects[::2])
    bucket.close()


# --- refusals ----------------------------------------------------------------------------------------------


def refusal(location: Location) -> StoreUnavailable:
    with pytest.raises(StoreUnavailable) as caught:
        RemoteStore(RadosBucket(location)).list()
    return caught.value


def test_each_refusal_says_what_is_wrong(ceph: Ceph, location: Location, tmp_path: Path) -> None:
    other = ceph.user("other", "allow rwx pool=raftkv")
    garbage = tmp_path / "garbage"
    garbage.write_text("[client.raftkv]\n\tkey = nonsense\n")
    wrong = tmp_path / "wrong"
    wrong.write_text(other.read_text().replace("client.other", "client.raftkv"))
    cases = {
        "wrong_key": replace(location, keyring=str(wrong)),
        "no_keyring": replace(location, keyring=str(tmp_path / "nowhere")),
        "bad_keyring": replace(location, keyring=str(garbage)),
        "no_conf": replace(location, conf=str(tmp_path / "nowhere.conf")),
        "no_pool": replace(location, pool="nopool"),
    }
    found = {name: refusal(each) for name, each in cases.items()}
    assert {name: error.reason for name, error in found.items()} == {name: name for name in cases}
    assert "ceph osd pool create nopool" in str(found["no_pool"])
    assert str(wrong) in str(found["wrong_key"])
    unknown = refusal(replace(location, user="stranger"))
    assert unknown.reason in ("wrong_key", "bad_keyring")


def test_without_caps_it_says_which_are_needed(ceph: Ceph, location: Location, local: DirectoryStore) -> None:
    made = publish(local, a_machine(1, 5))
    capless = ceph.user("capless", "allow rwx pool=another")
    error = refusal(replace(location, keyring=str(capless), user="capless"))
    assert error.reason == "no_caps"
    assert "osd 'allow rwx pool=raftkv'" in str(error)
    reader = ceph.user("reader", "allow r pool=raftkv")
    bucket = RadosBucket(replace(location, keyring=str(reader), user="reader"))
    with pytest.raises(StoreUnavailable) as caught:
        RemoteStore(bucket).publish(local, made.id, term=1, publisher="n1")
    assert caught.value.reason == "no_caps"
    assert_whole(ceph, location, [])


def test_a_full_pool_refuses_at_once_and_lets_room_be_made(
    ceph: Ceph, location: Location, store: RemoteStore, local: DirectoryStore
) -> None:
    first, second = publish(local, a_machine(1, 5)), publish(local, a_machine(1, 30))
    store.publish(local, first.id, term=1, publisher="n1")
    ratios = ("set-nearfull-ratio", "set-backfillfull-ratio", "set-full-ratio")
    try:
        for name in ratios:
            ceph.admin("osd", name, "0.0001")
        until(lambda: "full" in ceph.admin("health", "detail"))
        began = time.monotonic()
        error = None
        while error is None and time.monotonic() - began < 30:  # the OSD hears of it within seconds
            try:
                store.publish(local, second.id, term=1, publisher="n1")
                store.delete(second.id)
            except StoreUnavailable as refused:
                error = refused
        assert error is not None
        assert (error.reason, "keep fewer snapshots" in str(error)) == ("full", True)
        assert store.list() == [first]
    finally:
        for name, ratio in zip(reversed(ratios), ("0.95", "0.94", "0.93"), strict=True):
            ceph.admin("osd", name, ratio)
    until(lambda: published(store, local, second))
    assert_whole(ceph, location, [first, second])


def published(store: RemoteStore, local: DirectoryStore, made: Manifest) -> bool:
    try:
        store.publish(local, made.id, term=1, publisher="n1")
    except StoreUnavailable:
        return False
    return True


def until(condition: Callable[[], object], timeout_s: float = 40.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"


def test_doctor_names_each_and_finds_a_sound_one_sound(
    ceph: Ceph, location: Location, store: RemoteStore, local: DirectoryStore
) -> None:
    def doctor(where: Location) -> tuple[int, list[str]]:
        shown = CliRunner().invoke(cli, ["doctor", "--snapshots", ceph.url(where)])
        return shown.exit_code, shown.stdout.splitlines()

    store.publish(local, publish(local, a_machine(1, 5)).id, term=1, publisher="n1")
    before = ceph.object_names(location)
    code, lines = doctor(location)
    assert (code, len(lines)) == (0, 6), lines
    assert "1 snapshots" in lines[-1]
    assert ceph.object_names(location) == before
    reader = ceph.user("reader", "allow r pool=raftkv")
    for where, step, word in (
        (replace(location, pool="nopool"), "store: reach", "ceph osd pool create nopool"),
        (replace(location, user="stranger"), "store: reach", "client.stranger"),
        (replace(location, keyring=str(reader), user="reader"), "store: write", "allow rwx pool=raftkv"),
    ):
        code, lines = doctor(where)
        assert code == 1
        assert lines[-1].startswith("fail")
        assert step in lines[-1]
        assert word in lines[-1]


def test_handles_that_are_given_up_are_closed(ceph: Ceph, location: Location) -> None:
    """Each has a dozen threads. A refusal leaves one in doubt, so the next operation makes another."""
    capless = ceph.user("capless", "allow rwx pool=another")
    bucket = RadosBucket(replace(location, keyring=str(capless), user="capless"))
    before = len(os.listdir("/proc/self/task"))
    for _ in range(6):
        with pytest.raises(StoreUnavailable):
            bucket.index()
    until(lambda: len(os.listdir("/proc/self/task")) <= before + 2)


# --- the process -------------------------------------------------------------------------------------------


def test_without_the_binding_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rados", None)
    with pytest.raises(ConfigError, match="python3-rados"):
        RadosBucket(Location("raftkv"))


def test_memory_is_bounded_whatever_the_size(ceph: Ceph, location: Location, tmp_path: Path) -> None:
    """300 MB that don't compress; in its own process, since the peak of a process never falls."""
    program = """
import os, sys
from pathlib import Path
from types import SimpleNamespace
from raftkv.kv.image import MachineState, Page, Section
from raftkv.snapshot.directory import DirectoryStore
from raftkv.snapshot.loader import check
from raftkv.snapshot.remote import open_remote
from raftkv.snapshot.store import SnapshotWriter
from tests.unit.snapshot_samples import CLUSTER, MEMBERSHIP

def peak_kb():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

local = DirectoryStore.open(Path(sys.argv[1]))
image = SimpleNamespace(state=MachineState(9, 9, 0, 0), state_hash=bytes(16))
writer = SnapshotWriter(local, cluster=CLUSTER, index=9, term=1, membership=MEMBERSHIP, image=image)
for n in range(300):
    keys = [b"%06d" % (n * 8 + i) for i in range(8)]
    writer.write(Page(Section.ITEMS, keys, [os.urandom(1 << 17) for _ in keys]))
manifest = writer.commit()
before = peak_kb()
store = open_remote(sys.argv[2], {})
store.publish(local, manifest.id, term=1, publisher="n1")
check(store, manifest)
store.close()
print(manifest.bytes >> 20, (peak_kb() - before) >> 10)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "big"), ceph.url(location)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    size_mib, grown_mib = map(int, done.stdout.split())
    assert size_mib > 290
    assert grown_mib < 80, done.stdout
    RemoteStore(RadosBucket(location)).prune(retention=Retention(1))


@pytest.mark.parametrize("seed", range(3))
def test_a_publisher_killed_at_any_time_leaves_nothing_half(
    ceph: Ceph, location: Location, local: DirectoryStore, tmp_path: Path, seed: int
) -> None:
    """SIGKILL at a random moment, several terms in a row; each next publisher goes on."""
    rng = random.Random(seed)
    for keys in (10, 20, 30):
        publish(local, a_machine(1, keys))
    bucket = RadosBucket(location)
    store = RemoteStore(bucket)
    for term in range(1, 6):
        child = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.fault.ceph_publisher",
                ceph.url(location),
                str(tmp_path / "local"),
                str(term),
            ],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        head = threading.Event()
        head.wait(rng.uniform(0.0, 0.4))  # the moment of its death, not a synchronisation
        os.kill(child.pid, signal.SIGKILL)
        said = child.stdout.read().split()
        child.stdout.close()
        child.wait()
        listed = store.list()
        for each in listed:
            verify(store, each.id)
        if said:
            assert said[-1].decode() in {each.id for each in listed} | {local.list()[0].id}
    store.prune(cluster=CLUSTER, retention=Retention(2), term=9)
    assert_whole(ceph, location, store.list())
    store.publish(local, local.list()[-1].id, term=10, publisher="n9")
    assert store.list()[-1] == local.list()[-1]
    store.close()
