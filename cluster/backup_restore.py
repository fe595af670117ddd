"""Every disk is lost, and the cluster comes back from its store: to its end, and to a moment in the middle.

The machine's Debian package index is loaded into three nodes that publish to a store, a snapshot is taken,
and then a tenth of the keys is overwritten and some are deleted, twice: exports between and after say what
each moment was. Once the log has reached the store all nodes are killed and all data directories deleted.
What `raftkv restore` makes of the store must export the same bytes, from each node: keys, values, types,
revisions. A node of the old cluster has no place in the new one, which has another id.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from cluster.local import LocalCluster, NodeFailed, find_base_port
from cluster.packages import Package, lines_of, packages_of, read_index
from raftkv.client import LineResult, SyncClient

CEPH_SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "ceph-dev.sh"
COMMAND_SECONDS_MAX = 900.0
CLIENT_SECONDS_MAX = 60.0
ARCHIVE_SECONDS_MAX = 60.0

Say = Callable[[str], None]


class Differs(Exception):
    """What came back is not what was there. Says what."""


@dataclass(frozen=True, slots=True)
class Moment:
    """An export: its lines without the last, which tells of the rest."""

    keys: int
    revision: int
    sha256: str


# --- the run ---------------------------------------------------------------------------------------------


def run(index: bytes, url: str, data_dir: Path, *, environment: Mapping[str, str], say: Say) -> None:
    """Raises Differs, NodeFailed, CalledProcessError."""
    packages = packages_of(index)
    say(f"source: {len(packages)} packages, {len(index)} bytes; store: {url.partition('?')[0]}")
    middle, end, state_hash = _make(packages, url, data_dir / "source", environment, say)
    shutil.rmtree(data_dir / "source")
    say("all nodes killed with -9, all data directories deleted")
    found = _restore(url, data_dir / "end", [], environment, say)
    _compare("the end", end, found, state_hash, say)
    revision = ["--to-revision", str(middle.revision), "--cluster", _cluster_of(data_dir, "source-cluster")]
    found = _restore(url, data_dir / "middle", revision, environment, say)
    _compare(f"revision {middle.revision}", middle, found, None, say)


def _make(
    packages: Sequence[Package], url: str, data_dir: Path, environment: Mapping[str, str], say: Say
) -> tuple[Moment, Moment, str]:
    """Loads, changes, exports twice, waits for the store, kills. The moments, and the last state hash."""
    with _cluster(data_dir, url, environment) as cluster:
        cluster.start_all()
        cluster.wait_ready()
        endpoints = ",".join(cluster.api_urls())
        began = time.monotonic()
        _raftkv("kv", "import", "-", "--endpoints", endpoints, input=lines_of(packages), env=environment)
        say(f"imported in {time.monotonic() - began:.1f} s")
        began = time.monotonic()
        with SyncClient(cluster.api_urls(), timeout_s=CLIENT_SECONDS_MAX) as client:
            made = client.create_snapshot()
            say(f"snapshot {made['id']} published: {made['bytes']} bytes, {time.monotonic() - began:.1f} s")
            client.batch(_changes(packages, 1), _must_succeed)
            middle = _export(cluster, "n1")
            say(f"a moment in the middle: {_words(middle)}")
            client.batch(_changes(packages, 2), _must_succeed)
            end = _export(cluster, "n1")
            say(f"the end: {_words(end)}")
        seconds, status = _wait_archived(cluster)
        say(f"the log is in the store up to index {status['log_archive']['index']}, {seconds:.1f} s after")
        (data_dir.parent / "source-cluster").write_text(status["cluster_id"])
        state_hash = status["agreement"]["hash"]
        cluster.kill_all()
    return middle, end, state_hash


def _changes(packages: Sequence[Package], turn: int) -> Iterator[dict[str, Any]]:
    for number, package in enumerate(packages):
        if number % 10 == turn:
            yield {"op": "put", "key": package.key, "value": f"changed in turn {turn}: {number}"}
        elif number % 40 == turn + 3:
            yield {"op": "delete", "key": package.key}
    for number in range(100):
        yield {"op": "put", "key": f"turn/{turn}/{number}", "value": str(number)}


def _must_succeed(result: LineResult) -> None:
    if result.error is not None:
        raise result.error


def _wait_archived(cluster: LocalCluster) -> tuple[float, dict[str, Any]]:
    """Until the store has all that is committed; how long that took, and the leader's status then."""
    began = time.monotonic()
    while time.monotonic() - began < ARCHIVE_SECONDS_MAX:
        status = cluster.status(cluster.wait_leader())
        if status is not None and status["role"] == "leader":
            archive = status["log_archive"]
            if archive["state"] == "current" and archive["index"] >= status["applied_index"]:
                return time.monotonic() - began, status
        time.sleep(0.05)
    raise NodeFailed(f"the log has not reached the store within {ARCHIVE_SECONDS_MAX} s: {status}")


def _restore(
    url: str, data_dir: Path, words: list[str], environment: Mapping[str, str], say: Say
) -> tuple[dict[str, Moment], str]:
    """Restores, starts, exports from each node. The exports by node, and the state hash."""
    base_port = find_base_port()
    command = ["restore", "--from", url, "--data-dir", str(data_dir), "--base-port", str(base_port), *words]
    began = time.monotonic()
    for line in _raftkv(*command, env=environment).decode().splitlines():
        say(f"  {line}")
    restored_s = time.monotonic() - began
    with _cluster(data_dir, None, environment, base_port) as cluster:
        began = time.monotonic()
        cluster.start_all()
        cluster.wait_ready()
        say(f"restored in {restored_s:.1f} s, ready after {time.monotonic() - began:.1f} s more")
        hashes = {status["agreement"]["hash"] for status in cluster.statuses().values() if status}
        if len(hashes) != 1:
            raise Differs(f"the nodes have different state hashes: {hashes}")
        found = {name: _export(cluster, name) for name in cluster.names}
        cluster.stop_all()
    return found, hashes.pop()


def _compare(
    what: str, expected: Moment, found: tuple[dict[str, Moment], str], state_hash: str | None, say: Say
) -> None:
    moments, found_hash = found
    for name, moment in moments.items():
        say(f"{what}, from {name}: {_words(moment)}")
        if moment != expected:
            raise Differs(f"{what}, from {name}: {_words(moment)}; it was {_words(expected)}")
    if state_hash not in (None, found_hash):
        raise Differs(f"{what}: state hash {found_hash}, it was {state_hash}")
    say(f"{what}: equal, byte for byte, on each node; state hash {found_hash}")


def _export(cluster: LocalCluster, name: str) -> Moment:
    digest = hashlib.sha256()
    last = b""
    with SyncClient((cluster.api_url(name),), timeout_s=CLIENT_SECONDS_MAX) as client:
        for line in client.export_lines():
            digest.update(last)
            last = line
    summary = json.loads(last)
    return Moment(summary["count"], summary["revision"], digest.hexdigest())


def _words(moment: Moment) -> str:
    return f"{moment.keys} keys, revision {moment.revision}, sha256 {moment.sha256}"


def _cluster_of(data_dir: Path, name: str) -> str:
    return (data_dir / name).read_text()


def _cluster(
    data_dir: Path, url: str | None, environment: Mapping[str, str], base_port: int | None = None
) -> LocalCluster:
    words = () if url is None else ("--snapshots", url)
    return LocalCluster(data_dir, base_port=base_port or find_base_port(), extra_args=words, env=environment)


def _raftkv(*words: str, env: Mapping[str, str], input: bytes | None = None) -> bytes:
    done = subprocess.run(
        [sys.executable, "-m", "raftkv", *words],
        check=True,
        input=input,
        stdout=subprocess.PIPE,
        timeout=COMMAND_SECONDS_MAX,
        env={**os.environ, **env},
    )
    return done.stdout


# --- the store -------------------------------------------------------------------------------------------


def ceph_is_here() -> bool:
    return (
        shutil.which("ceph-mon", path="/usr/bin:/usr/sbin") is not None
        and importlib.util.find_spec("rados") is not None
    )


@contextmanager
def ceph_store(say: Say) -> Iterator[str]:
    """A throw-away Ceph; the URL of an empty namespace in it. Its directory's path is short, since sockets
    lie in it."""
    directory = Path(tempfile.mkdtemp(prefix="raftkv-ceph-", dir="/tmp"))
    environment = {**os.environ, "CEPH_DIR": str(directory / "c")}
    ceph = [str(CEPH_SCRIPT)]
    try:
        began = time.monotonic()
        subprocess.run([*ceph, "start"], check=True, env=environment, stdout=subprocess.DEVNULL)
        say(f"a Ceph of one monitor and one OSD started in {time.monotonic() - began:.1f} s")
        conf, keyring = directory / "c" / "ceph.conf", directory / "c" / "client.keyring"
        yield f"rados://raftkv/backup?conf={conf}&keyring={keyring}&user=raftkv"
    finally:
        subprocess.run([*ceph, "reset"], check=False, env=environment, stdout=subprocess.DEVNULL)
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def directory_store(directory: Path) -> Iterator[str]:
    yield directory.as_uri()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--records", type=click.IntRange(min=100), help="Only the first so many.  [default: all]")
@click.option(
    "--store",
    metavar="URL",
    help="Where to; nothing else may be in it.  [default: a Ceph that this starts, where Debian's packages "
    "are installed, else a directory]",
)
def main(records: int | None, store: str | None) -> None:
    """Loses every disk of a cluster and brings it back from its store: to the end, and to the middle."""
    directory = Path(tempfile.mkdtemp(prefix="raftkv-backup-"))
    opened = ceph_store(click.echo) if ceph_is_here() else directory_store(directory / "store")
    try:
        index = read_index(records)
        if store is not None:
            run(index, store, directory, environment={}, say=click.echo)
        else:
            with opened as url:
                run(index, url, directory, environment={}, say=click.echo)
    except (Differs, NodeFailed, subprocess.SubprocessError) as error:
        click.echo(f"FAILED: {error}; logs are in {directory}", err=True)
        sys.exit(1)
    shutil.rmtree(directory)
