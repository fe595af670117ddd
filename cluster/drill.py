"""`raftkv snapshot drill`: is the backup one? Restored into scratch processes, and compared.

Compared with what the manifest says: the state's sha256, built anew from the restored pages, the counts and
the state hash. Compared with the state in memory, on every node, over HTTP: each key, its value, its type and
its revisions. Where the log behind the snapshot was replayed, the counts and hashes are those of the replay.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import click

from cluster.connection import EXIT_OTHER
from cluster.local import LocalCluster, NodeFailed, find_base_port
from cluster.output import print_table
from cluster.restoring import local_members, refusals, restore_from, source_options
from cluster.up import NODES_MAX
from raftkv.client import SyncClient
from raftkv.kv.machine import Machine
from raftkv.model import Item
from raftkv.raft.restore import Recovered, Restored, Target

READY_SECONDS_MAX = 120.0
CLIENT_SECONDS_MAX = 60.0
_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class Check:
    what: str
    expected: object
    found: object

    @property
    def ok(self) -> bool:
        return self.expected == self.found


@click.command(
    epilog="""\b
Examples:
  raftkv snapshot drill --from rados://raftkv/prod
  raftkv snapshot drill --from file:///mnt/backup --nodes 1 --to-revision 4711"""
)
@source_options
@click.option("--nodes", type=click.IntRange(1, NODES_MAX), default=3, show_default=True, help="How many.")
def drill(
    url: str,
    snapshot: str,
    cluster: str,
    to_revision: int | None,
    to_time: int | None,
    nodes: int,
) -> None:
    """Restore into scratch processes on this machine, compare, and say how long it took.

    Exits 0 if all is as it should be, 1 if anything differs. Nothing of it stays.
    """
    target = Target(snapshot, cluster, to_revision, to_time)
    with refusals(), tempfile.TemporaryDirectory(prefix="raftkv-drill-") as directory:
        try:
            ok = run(url, target, nodes, Path(directory))
        except NodeFailed as error:
            click.echo(f"FAILED: {error}", err=True)
            ok = False
    sys.exit(0 if ok else EXIT_OTHER)


def run(url: str, target: Target, nodes: int, directory: Path) -> bool:
    began = time.monotonic()
    with LocalCluster(directory, nodes=nodes, base_port=find_base_port(nodes)) as cluster:
        directories = {name: cluster.node_dir(name) for name in cluster.names}
        recovered, restored = restore_from(url, target, directories, local_members(cluster), say=click.echo)
        restored_at = time.monotonic()
        cluster.start_all()
        cluster.wait_ready(timeout_s=READY_SECONDS_MAX)
        ready_at = time.monotonic()
        checks = [*_checks_of_files(recovered, restored)]
        for name in cluster.names:
            checks += _checks_of_node(cluster, name, recovered.machine)
        compared_at = time.monotonic()
        cluster.stop_all()
    print_table(
        ("check", "expected", "found", ""),
        [(each.what, each.expected, each.found, "ok" if each.ok else "DIFFERS") for each in checks],
    )
    click.echo(
        f"restored in {restored_at - began:.1f} s, ready after {ready_at - restored_at:.1f} s more, "
        f"compared in {compared_at - ready_at:.1f} s"
    )
    failed = [each.what for each in checks if not each.ok]
    click.echo(
        f"FAILED: {', '.join(failed)}" if failed else "the backup is one: all of it is as it should be"
    )
    return not failed


def _checks_of_files(recovered: Recovered, restored: Restored) -> Iterator[Check]:
    """What was written anew, against the source's manifest; after a replay, there is none to compare with."""
    manifest, written = recovered.snapshot, restored.manifest
    if manifest is None or recovered.entries:
        return
    yield Check("sha256 of the state", manifest.sha256, written.sha256)
    yield Check("keys", manifest.keys, written.keys)
    yield Check("bytes of keys and records", manifest.data_bytes, written.data_bytes)
    yield Check("outcomes kept", manifest.idempotency_records, written.idempotency_records)
    yield Check("revision", manifest.revision, written.revision)
    yield Check("state hash", manifest.state_hash, written.state_hash)


def _checks_of_node(cluster: LocalCluster, name: str, machine: Machine) -> Iterator[Check]:
    status = cluster.status(name)
    if status is None:
        raise NodeFailed(f"{name} does not say its status")
    yield Check(f"{name}: keys", machine.keys, status["keys"])
    yield Check(f"{name}: revision", machine.revision, status["revision"])
    yield Check(f"{name}: state hash", machine.state_hash.hex(), status["agreement"]["hash"])
    with SyncClient((cluster.api_url(name),), timeout_s=CLIENT_SECONDS_MAX) as client:
        differ = _first_difference(machine, client)
    yield Check(f"{name}: every key, value and revision", "equal", differ or "equal")


def _first_difference(machine: Machine, client: SyncClient) -> str:
    for expected, found in zip_longest(_items(machine), client.export()):
        if expected is None or found is None:
            return f"{'more' if expected is None else 'fewer'} keys"
        there = (
            found.key.encode(),
            found.value,
            found.content_type,
            found.create_revision,
            found.mod_revision,
            found.version,
        )
        wanted = (
            expected.key,
            expected.value,
            expected.content_type,
            expected.create_revision,
            expected.mod_revision,
            expected.version,
        )
        if there != wanted:
            return f"differs under {expected.key!r}"
    return ""


def _items(machine: Machine) -> Iterator[Item]:
    start = b""
    while page := machine.scan(start, None, _PAGE):
        yield from page
        start = page[-1].key + b"\0"
