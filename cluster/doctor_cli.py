"""`raftkv doctor`: looks for what would keep a node from working, and says what to do about it."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import click

from cluster.connection import client_settings, output_option, security_options
from cluster.output import print_json
from raftkv.client import ClientError, SyncClient, parse_endpoints
from raftkv.errors import RaftkvError
from raftkv.snapshot.bucket import Bucket
from raftkv.snapshot.remote import RemoteStore, attempts, open_bucket

SYNCS = 200  # enough for a p99 with two beyond it
SYNC_BYTES = 4096
# Every write waits for one of these on the leader and on a majority. Above, elections begin to suffer.
SYNC_MS_P99_MAX = 50.0
PROBE_BYTES = 4 << 20


class Check(NamedTuple):
    name: str
    state: Literal["ok", "warn", "fail"]
    detail: str


@click.command(
    epilog="""\b
Examples:
  raftkv doctor --snapshots rados://raftkv/prod
  raftkv doctor --data-dir /var/lib/raftkv --endpoints http://10.0.0.1:8400,http://10.0.0.2:8400

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
    help="Time the disk under a data directory.",
)
@click.option("--endpoints", metavar="URL[,URL…]", help="Ask these nodes about their cluster.")
@security_options
@output_option
def doctor(store: str | None, data_dir: Path | None, endpoints: str | None, output: str) -> None:
    """Check the snapshot store, the disk, and the members; whichever are named. Leaves nothing behind."""
    if store is None and data_dir is None and endpoints is None:
        raise click.UsageError("nothing to check: give --snapshots, --data-dir or --endpoints")
    failed = False
    for check in _checks(store, data_dir, endpoints):
        failed |= check.state == "fail"
        if output == "json":
            print_json(check._asdict())
        else:
            click.echo(f"{check.state:<5} {check.name:<16} {check.detail}")
    sys.exit(1 if failed else 0)


def _checks(store: str | None, data_dir: Path | None, endpoints: str | None) -> Iterator[Check]:
    if store is not None:
        yield from store_checks(store)
    if data_dir is not None:
        yield disk_check(data_dir)
    if endpoints is not None:
        try:
            urls = parse_endpoints(endpoints)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        yield from member_checks(urls)


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


# --- the disk --------------------------------------------------------------------------------------------


def disk_check(directory: Path) -> Check:
    """fdatasync of small appends, as the journal's."""
    path = directory / f".raftkv-doctor-{secrets.token_hex(4)}"
    times_ms = []
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            for number in range(SYNCS):
                os.pwrite(descriptor, b"\0" * SYNC_BYTES, number * SYNC_BYTES)
                began = time.perf_counter()
                os.fdatasync(descriptor)
                times_ms.append((time.perf_counter() - began) * 1000)
        finally:
            os.close(descriptor)
            path.unlink()
    except OSError as error:
        return Check(
            "disk", "fail", f"{directory}: {error.strerror}: a node could not write its journal there"
        )
    times_ms.sort()
    p50, p99 = times_ms[len(times_ms) // 2], times_ms[int(len(times_ms) * 0.99)]
    detail = f"fdatasync of {SYNC_BYTES} bytes: p50 {p50:.2f} ms, p99 {p99:.2f} ms"
    if p99 > SYNC_MS_P99_MAX:
        return Check("disk", "warn", f"{detail}: every write waits for one; use a disk with less to do")
    return Check("disk", "ok", detail)


# --- members ---------------------------------------------------------------------------------------------


def member_checks(urls: tuple[str, ...]) -> Iterator[Check]:
    with SyncClient(urls, timeout_s=3, **client_settings()) as client:
        for url in urls:
            try:
                known = client.status(url, timeout_s=3)
            except ClientError as error:
                yield Check("node", "fail", f"{url}: {error}")
                continue
            away = [peer["name"] for peer in known["peers"] if not peer["reachable"]]
            if not known["ready"]:
                yield Check("node", "fail", f"{known['name']} at {url}: {known['ready_reason']}")
            elif away:
                detail = f"{known['name']} at {url} can't reach {', '.join(away)} at their raft addresses"
                yield Check("node", "warn", detail)
            else:
                yield Check("node", "ok", f"{known['name']} at {url}: {known['role']}, reaches every member")
            archive = known.get("archive")
            if archive and archive["state"] == "failing":
                yield Check("node", "fail", f"{known['name']} can't publish snapshots: {archive['error']}")
