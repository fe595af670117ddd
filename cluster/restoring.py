"""What `raftkv restore`, `raftkv up --restore-from` and `raftkv snapshot drill` share."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from cluster.connection import EXIT_NOT_FOUND, EXIT_OTHER, EXIT_UNAVAILABLE, EXIT_USAGE
from cluster.local import LocalCluster
from raftkv.errors import (
    BadRequest,
    ConfigError,
    Fatal,
    RaftkvError,
    SnapshotMissing,
    StoreUnavailable,
)
from raftkv.model import Member
from raftkv.raft.restore import LATEST, Recovered, Restored, Target, recover, restore
from raftkv.snapshot.remote import RemoteStore, open_remote

_Command = TypeVar("_Command", bound=Callable[..., Any])

CLUSTER_ID = re.compile(r"[0-9a-f]{32}")


# --- options ---------------------------------------------------------------------------------------------


def source_options(command: _Command) -> _Command:
    """`--from` and what says which state, given to the command as `url` and `target`."""
    for option in reversed(
        (
            click.option(
                "--from",
                "url",
                required=True,
                metavar="URL",
                help="The store: rados://POOL/NAMESPACE or file:///PATH.",
            ),
            *target_options(),
        )
    ):
        command = option(command)
    return command


def target_options() -> Sequence[Callable[[_Command], _Command]]:
    return (
        click.option(
            "--id",
            "snapshot",
            default=LATEST,
            show_default=True,
            metavar="ID",
            help="A snapshot, and nothing after it; or latest: the newest one, and all of the log after it.",
        ),
        click.option(
            "--cluster",
            default="",
            metavar="ID",
            help="Which cluster's, by the beginning of its id, where the store has several.",
        ),
        click.option(
            "--to-revision",
            type=click.IntRange(min=1),
            metavar="N",
            help="Stop when the store's revision is N.",
        ),
        click.option(
            "--to-time",
            metavar="TIME",
            callback=_time,
            help="Stop before the first write that was not applied by then: 2026-01-02T03:04:05Z, with "
            "an offset for another zone, or Unix seconds.",
        ),
    )


def _time(ctx: click.Context, option: click.Parameter, value: str | None) -> int | None:
    """Unix time in milliseconds."""
    if value is None:
        return None
    try:
        return round(float(value) * 1000)
    except ValueError:
        pass
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is neither ISO 8601, as in 2026-01-02T03:04:05Z, nor Unix seconds"
        ) from None
    return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


# --- doing it --------------------------------------------------------------------------------------------


@contextmanager
def refusals() -> Iterator[None]:
    """What can't be done is said in a sentence, with the exit codes of every other command."""
    try:
        yield
    except RaftkvError as error:
        click.echo(f"Error: {error}", err=True)
        match error:
            case BadRequest() | ConfigError():
                sys.exit(EXIT_USAGE)
            case SnapshotMissing():
                sys.exit(EXIT_NOT_FOUND)
            case StoreUnavailable():
                sys.exit(EXIT_UNAVAILABLE)
            case _:
                sys.exit(EXIT_OTHER)


@contextmanager
def opened(url: str) -> Iterator[RemoteStore]:
    remote = open_remote(url, os.environ)
    try:
        yield remote
    finally:
        remote.close()


def local_members(cluster: LocalCluster) -> tuple[Member, ...]:
    return tuple(Member(name, cluster.raft_address(name), cluster.api_url(name)) for name in cluster.names)


def restore_from(
    url: str,
    target: Target,
    directories: dict[str, Path],
    members: Sequence[Member],
    *,
    new_cluster: str = "",
    say: Callable[[str], None],
) -> tuple[Recovered, Restored]:
    """Raises RaftkvError. What was read is told as it goes, and how long it took."""
    from raftkv.raft.restore import refuse_unless_empty

    for directory in directories.values():  # before minutes of reading
        refuse_unless_empty(directory)
    if not directories:
        raise Fatal("no member to restore")
    began = time.monotonic()
    with opened(url) as remote:
        recovered = recover(remote, target, say)
    read_s = time.monotonic() - began
    machine = recovered.machine
    if recovered.entries:
        say(f"log: {recovered.entries} entries of {recovered.ranges} ranges after it; {recovered.beyond}")
    if recovered.time_ms:
        say(f"the last of them was applied by {datetime.fromtimestamp(recovered.time_ms / 1000, UTC)}")
    say(
        f"read and verified in {read_s:.1f} s: index {machine.applied_index}, revision {machine.revision}, "
        f"{machine.keys} keys, state hash {machine.state_hash.hex() or 'unknown'}"
    )
    began = time.monotonic()
    restored = restore(recovered, directories, members, cluster=new_cluster)
    say(
        f"written in {time.monotonic() - began:.1f} s: cluster {restored.membership.cluster} (was "
        f"{recovered.cluster}), {len(restored.directories)} of {len(members)} members"
    )
    return recovered, restored
