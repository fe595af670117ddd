"""`raftkv snapshot …`: a cluster's snapshots, through its nodes or straight from the store with `--from`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from cluster.connection import (
    EXIT_NOT_FOUND,
    EXIT_OTHER,
    EXIT_UNAVAILABLE,
    EXIT_USAGE,
    connected,
    connection_options,
    output_option,
)
from cluster.drill import drill
from cluster.node_reader import NodeReader
from cluster.output import print_json, print_table
from raftkv.client import NotFound
from raftkv.errors import ConfigError, RaftkvError, SnapshotMissing, StoreUnavailable
from raftkv.snapshot.codec import Manifest
from raftkv.snapshot.loader import verify as verify_everything
from raftkv.snapshot.remote import RemoteStore, Retention, open_remote

_COLUMNS = ("id", "index", "term", "revision", "time", "keys", "bytes")
_Command = TypeVar("_Command", bound=Callable[..., Any])

from_option = click.option(
    "--from",
    "source",
    metavar="URL",
    help="The store itself, with no node needed: file:///PATH or rados://POOL/NAMESPACE, as in "
    "--snapshots of `raftkv serve`; RAFTKV_CEPH_CONF, _KEYRING and _USER count here too.",
)
_ID = click.argument("name", metavar="ID")


@click.group(
    epilog="""\b
Examples:
  raftkv snapshot create
  raftkv snapshot list
  raftkv snapshot verify latest --from rados://raftkv/prod

Where a command takes an ID, `latest` names the newest. Exit codes: 0 done, 2 wrong usage, 3 no such snapshot,
5 the store or the nodes can't be reached, 1 damaged, or anything else."""
)
def snapshot() -> None:
    """Take, list, check, copy and delete snapshots."""


snapshot.add_command(drill)


@snapshot.command(
    name="list",
    epilog="""\b
Examples:
  raftkv snapshot list --endpoints http://127.0.0.1:8410 -o json
  raftkv snapshot list --from rados://raftkv/prod""",
)
@from_option
@output_option
@connection_options
def list_(source: str | None, output: str, endpoints: tuple[str, ...], timeout_s: float) -> None:
    """List the snapshots, newest first; with -o json one a line."""
    if source is None:
        with connected(endpoints, timeout_s) as client:
            snapshots = list(client.snapshots())
    else:
        with opened(source) as store:
            snapshots = [described(each) for each in reversed(store.list())]
    _show(snapshots, output)


@snapshot.command(epilog="Example: raftkv snapshot create --wait --timeout 60")
@click.option(
    "--wait/--no-wait",
    default=True,
    show_default=True,
    help="Wait until it is durable, and published where the nodes have a store.",
)
@output_option
@connection_options
def create(wait: bool, output: str, endpoints: tuple[str, ...], timeout_s: float) -> None:
    """Take a snapshot now; the leader publishes it."""
    with connected(endpoints, timeout_s) as client:
        if not wait:
            print_json(client.start_snapshot())
            return
        _show([client.create_snapshot()], output)


@snapshot.command(
    epilog="""\b
Examples:
  raftkv snapshot inspect latest
  raftkv snapshot inspect latest --from file:///mnt/raftkv -o json"""
)
@_ID
@from_option
@output_option
@connection_options
def inspect(name: str, source: str | None, output: str, endpoints: tuple[str, ...], timeout_s: float) -> None:
    """Show what a snapshot's manifest says."""
    if source is None:
        with connected(endpoints, timeout_s) as client:
            document = client.snapshot(_resolved(name, client.snapshots()))
    else:
        with opened(source) as store:
            manifest = find(store, name)
            document = described(manifest) | {
                "cluster": manifest.cluster,
                "members": [member.name for member in manifest.membership.members],
                "data_bytes": manifest.data_bytes,
                "raw_bytes": manifest.raw_bytes,
                "idempotency_records": manifest.idempotency_records,
                "chunks": len(manifest.chunks),
            }
    if output == "json":
        print_json(document)
    else:
        print_table(("field", "value"), document.items())


@snapshot.command(
    epilog="""\b
Examples:
  raftkv snapshot verify latest
  raftkv snapshot verify latest --from rados://raftkv/prod && echo sound"""
)
@_ID
@from_option
@connection_options
def verify(name: str, source: str | None, endpoints: tuple[str, ...], timeout_s: float) -> None:
    """Read a snapshot back and check every hash; with --from also that every record can be loaded."""
    began = time.monotonic()
    if source is None:
        with connected(endpoints, timeout_s) as client:
            document = client.verify_snapshot(_resolved(name, client.snapshots()))
    else:
        with opened(source) as store:
            document = described(verify_everything(store, find(store, name).id))
    seconds = time.monotonic() - began
    click.echo(
        f"{document['id']}: sound: {document['keys']} keys, {document['bytes']} bytes, in {seconds:.1f} s"
    )


@snapshot.command(
    epilog="""\b
Examples:
  raftkv snapshot download latest /mnt/backup
  raftkv snapshot download latest /mnt/backup --from rados://raftkv/prod"""
)
@_ID
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@from_option
@connection_options
def download(
    name: str, directory: Path, source: str | None, endpoints: tuple[str, ...], timeout_s: float
) -> None:
    """Copy a snapshot into DIRECTORY, verified, which is then a store of its own: file:///DIRECTORY.

    Every command that takes --from reads it there. Nodes without a store have a list each, and its snapshots:
    name the one with --endpoints. --timeout is for each chunk.
    """
    target = directory.absolute().as_uri()
    with opened(target) as copy:
        if source is None:
            with connected(endpoints, timeout_s) as client:
                manifest = copy.copy(NodeReader(client), _resolved(name, client.snapshots()))
        else:
            with opened(source) as store:
                manifest = copy.copy(store, find(store, name).id)
        verify_everything(copy, manifest.id)
    click.echo(f"{manifest.id}: {manifest.bytes} bytes, now in {target}")


@snapshot.command(
    epilog="""\b
Examples:
  raftkv snapshot prune --keep 5
  raftkv snapshot prune --keep 5 --age-seconds 604800 --from rados://raftkv/prod"""
)
@click.option(
    "--keep", type=click.IntRange(1), required=True, metavar="N", help="The newest N of each cluster stay."
)
@click.option(
    "--age-seconds", type=click.FloatRange(0), metavar="S", help="Older ones go too, but for the newest."
)
@from_option
@connection_options
def prune(
    keep: int, age_seconds: float | None, source: str | None, endpoints: tuple[str, ...], timeout_s: float
) -> None:
    """Delete old snapshots, and with --from also what attempts left that nobody finished.

    The leader does both by itself, as --snapshots-kept and --snapshots-age-seconds-max say. Nodes without
    a store have a list each: name the one with --endpoints.
    """
    if source is None:
        with connected(endpoints, timeout_s) as client:
            gone = _beyond(list(client.snapshots()), keep, age_seconds)
            node = client.node  # without a store its list is its own
            for each in gone:
                with suppress(NotFound):  # an answer was lost, or the leader deleted it meanwhile
                    client.delete_snapshot(each, node)
            unfinished: tuple[str, ...] = ()
    else:
        with opened(source) as store:
            pruned = store.prune(retention=Retention(keep, age_seconds))
            gone, unfinished = list(pruned.snapshots), pruned.unfinished
    for each in gone:
        click.echo(each)
    click.echo(f"{len(gone)} deleted, {len(unfinished)} unfinished removed", err=True)


# --- a store without nodes -------------------------------------------------------------------------------


@contextmanager
def opened(url: str) -> Iterator[RemoteStore]:
    """The store, and an end of the process with the right code and words where it fails."""
    store = None
    try:
        store = open_remote(url, os.environ)
        yield store
    except RaftkvError as error:
        click.echo(f"raftkv: {error}", err=True)
        sys.exit(_exit_code(error))
    finally:
        if store is not None:
            store.close()


def find(store: RemoteStore, name: str) -> Manifest:
    """By id, or the `latest`. Raises SnapshotMissing."""
    if name != "latest":
        return store.manifest(name)
    there = store.list()
    if not there:
        raise SnapshotMissing(f"there is no snapshot in {store.url}")
    return there[-1]


def described(manifest: Manifest) -> dict[str, Any]:
    """As `/v1/snapshots` shows it."""
    made_at = datetime.fromtimestamp(manifest.time_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return {
        "id": manifest.id,
        "index": manifest.index,
        "term": manifest.term,
        "revision": manifest.revision,
        "time": made_at.replace("+00:00", "Z"),
        "bytes": manifest.bytes,
        "keys": manifest.keys,
        "sha256": manifest.sha256,
        "state_hash": manifest.state_hash,
    }


def _exit_code(error: RaftkvError) -> int:
    match error:
        case ConfigError():
            return EXIT_USAGE
        case SnapshotMissing():
            return EXIT_NOT_FOUND
        case StoreUnavailable():
            return EXIT_UNAVAILABLE
        case _:
            return EXIT_OTHER


def _resolved(name: str, snapshots: Any) -> str:
    newest_first = list(snapshots)
    return str(newest_first[0]["id"]) if name == "latest" and newest_first else name


def _beyond(newest_first: Sequence[Mapping[str, Any]], keep: int, age_seconds: float | None) -> list[str]:
    """Ids of what goes. The nodes list one cluster's."""
    now = datetime.now(UTC)
    gone = []
    for place, each in enumerate(newest_first):
        age = (now - datetime.fromisoformat(each["time"])).total_seconds()
        if place > 0 and (place >= keep or (age_seconds is not None and age > age_seconds)):
            gone.append(str(each["id"]))
    return gone


def _show(snapshots: Sequence[Mapping[str, Any]], output: str) -> None:
    if output == "json":
        for each in snapshots:
            print_json(each)
    else:
        print_table(_COLUMNS, ([each.get(name, "-") for name in _COLUMNS] for each in snapshots))
