"""`raftkv doctor`: looks for what would keep a node from working, and says what to do about it."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from cluster.checks import Check, machine_checks, node_checks
from cluster.connection import client_settings, output_option, security_options
from cluster.output import print_json
from cluster.survey import Node, survey
from raftkv.client import Client, ClientError, parse_endpoints
from raftkv.errors import RaftkvError
from raftkv.snapshot.bucket import Bucket
from raftkv.snapshot.remote import RemoteStore, attempts, open_bucket

PROBE_BYTES = 4 << 20
NODE_SECONDS = 5.0  # what a node may take to answer


@click.command(
    epilog="""\b
Examples:
  raftkv doctor --snapshots rados://raftkv/prod
  raftkv doctor --data-dir /var/lib/raftkv
  raftkv doctor --endpoints http://10.0.0.1:8400

Exit code 1 where a check failed."""
)
@click.option(
    "--snapshots",
    "store",
    envvar="RAFTKV_SNAPSHOTS",
    show_envvar=True,
    metavar="URL",
    help="Try the snapshot store: file:///PATH or rados://POOL/NAMESPACE. Ceph's configuration, keyring and "
    "user come from the URL or from RAFTKV_CEPH_CONF, _KEYRING, _USER.",
)
@click.option(
    "--data-dir",
    envvar="RAFTKV_DATA_DIR",
    show_envvar=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Check this machine for a node with that data directory: how fast its disk syncs, room, limits.",
)
@click.option(
    "--endpoints", metavar="URL[,URL…]", help="Check the nodes of a cluster; one address is enough."
)
@security_options
@output_option
def doctor(store: str | None, data_dir: Path | None, endpoints: str | None, output: str) -> None:
    """Check the snapshot store, this machine, and the nodes; whichever are named. Leaves nothing behind.

    Of nodes: links, clocks, round trips, versions, alarms, fsync, CPU, disk, memory, open files and
    certificates.
    """
    if store is None and data_dir is None and endpoints is None:
        raise click.UsageError("nothing to check: give --snapshots, --data-dir or --endpoints")
    failed = False
    for check in _checks(store, data_dir, endpoints):
        failed |= check.state == "fail"
        if output == "json":
            print_json(check._asdict())
        else:
            click.echo(f"{check.state:<5} {check.name:<18} {check.detail}")
    sys.exit(1 if failed else 0)


def _checks(store: str | None, data_dir: Path | None, endpoints: str | None) -> Iterator[Check]:
    if store is not None:
        yield from store_checks(store)
    if data_dir is not None:
        yield from machine_checks(data_dir)
    if endpoints is not None:
        try:
            urls = parse_endpoints(endpoints)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        yield from members(urls)


# --- the store -------------------------------------------------------------------------------------------


def store_checks(url: str) -> Iterator[Check]:
    """Each step needs the one before: it ends with the first that fails."""
    try:
        bucket = open_bucket(url, os.environ)
    except RaftkvError as error:
        yield Check("store: setup", "fail", str(error))
        return
    yield Check("store: setup", "ok", bucket.url)
    name = f"raftkv.doctor.{secrets.token_hex(4)}"
    steps: list[tuple[str, Callable[[], str]]] = [
        ("store: reach", lambda: _reach(bucket)),
        ("store: write", lambda: _write(bucket, name)),
        ("store: read", lambda: _read(bucket, name)),
        ("store: delete", lambda: _delete(bucket, name)),
        ("store: content", lambda: _content(bucket)),
    ]
    what = ""
    try:
        for what, step in steps:
            try:
                yield Check(what, "ok", step())
            except RaftkvError as error:
                yield Check(what, "fail", str(error))
                return
    finally:
        if what != steps[0][0]:
            with suppress(RaftkvError):
                _delete(bucket, name)
        bucket.close()


def _reach(bucket: Bucket) -> str:
    began = time.monotonic()
    bucket.index()
    return f"answers after {(time.monotonic() - began) * 1000:.0f} ms: configuration, key and pool are right"


def _write(bucket: Bucket, name: str) -> str:
    bucket.create(f"{name}.0", b"raftkv doctor")
    data = secrets.token_bytes(PROBE_BYTES)
    began = time.monotonic()
    bucket.write((f"{name}.{number}", data) for number in range(1, 5))
    return f"{4 * PROBE_BYTES / (time.monotonic() - began) / 1e6:.0f} MB/s"


def _read(bucket: Bucket, name: str) -> str:
    began = time.monotonic()
    size = sum(len(bucket.read(f"{name}.{number}")) for number in range(1, 5))
    return f"{size / (time.monotonic() - began) / 1e6:.0f} MB/s"


def _delete(bucket: Bucket, name: str) -> str:
    bucket.remove(f"{name}.{number}" for number in range(5))
    return "the probe's objects are gone"


def _content(bucket: Bucket) -> str:
    there = RemoteStore(bucket).list()
    unfinished = len(attempts(bucket.index(), "p", None))
    if not there:
        return f"no snapshot yet, {unfinished} being published"
    age_s = time.time() - there[-1].time_ms / 1000
    return f"{len(there)} snapshots, the newest {age_s:.0f} s old, {unfinished} being published"


# --- nodes -----------------------------------------------------------------------------------------------


def members(urls: tuple[str, ...]) -> Iterator[Check]:
    nodes, limits = asyncio.run(_look(urls))
    yield from node_checks(nodes, limits)


async def _look(urls: tuple[str, ...]) -> tuple[list[Node], Mapping[str, Any]]:
    async with Client(urls, timeout_s=NODE_SECONDS, patient=False, **client_settings()) as client:
        nodes = await survey(client, timeout_s=NODE_SECONDS, metrics=True)
        there = next((node.url for node in nodes if node.answers), None)
        limits: Mapping[str, Any] = {}
        if there is not None:
            with suppress(ClientError):
                limits = await client.limits(there, timeout_s=NODE_SECONDS)
    return nodes, limits
