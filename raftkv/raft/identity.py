"""Who this node is, across restarts: `identity.json` in its data directory.

    {"format": 1, "name": "n1", "instance": <32 hex digits>, "founding": null | {cluster, members, instances},
     "sha256": <of the JSON of all other fields, as `_digest` writes them>, "joined": <a membership>}

`joined` is there on a node that was added to a cluster that stood already: the membership that let it in.

Invariants:
- The instance is drawn once, for a data directory that holds no journal and no snapshot. Data without an
  identity is refused: someone's votes and entries are in it, and a new instance would disown them.
- A file is replaced whole (written aside, synced, renamed, the directory synced), so that a crash leaves
  the old one or the new one.
- The journal's first entry is where a cluster's founding becomes durable; `founding` here follows it. A
  crash between the two is put right by `reconcile`. A founding without any data is a lost journal. A node
  that joins says so here first (`joined` without a founding), since the founding entry does not name it.

The functions block on the disk; run them before the loop starts or on a worker thread.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from raftkv.errors import ConfigError, Fatal
from raftkv.model import Identity, Membership

FILE = "identity.json"
UNFINISHED = "restore-unfinished"  # in a directory that a restore has not completed
FORMAT = 1
DATA_DIRECTORIES = ("journal", "snapshots")


@dataclass(frozen=True, slots=True)
class Stored:
    """`founding` is the membership that the cluster began with, None before this node has formed; `joined`
    the one that let this node in, where it is not one of the founders."""

    identity: Identity
    founding: Membership | None
    joined: Membership | None = None


class _File(msgspec.Struct, frozen=True):
    format: int
    name: str
    instance: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    founding: Membership | None
    sha256: str = ""
    joined: Membership | msgspec.UnsetType = msgspec.UNSET


class _Format(msgspec.Struct, frozen=True):
    format: int


def draw_id() -> str:
    """32 hex digits that nobody can guess: instances, clusters, rounds of forming."""
    return secrets.token_hex(16)


def load_or_create(directory: Path, name: str, *, draw: Callable[[], str] = draw_id) -> Stored:
    """The identity on this disk; a new one if the disk is empty. Creates the directory if need be.

    Raises ConfigError if the disk belongs to another name, Fatal if it can't be told whose it is.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if (directory / UNFINISHED).exists():
            _finish_or_refuse(directory)
        if (directory / FILE).exists():
            return _load(directory / FILE, name)
        _refuse_data_without_identity(directory)
        stored = Stored(Identity(name, draw(), ""), None)
        _write(directory, stored)
    except OSError as error:
        raise Fatal(f"can't read or write the identity in the data directory {directory}: {error}") from error
    return stored


def begin_restore(directory: Path, all_directories: Sequence[Path]) -> None:
    """Marks an empty directory as one that a restore writes, together with the others. The marks go when all
    of them are complete and durable; so where one of them has gone, the rest is complete as well."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / UNFINISHED, "xb") as file:
        file.write(msgspec.json.encode([str(each.absolute()) for each in all_directories]) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    sync_directory(directory)
    sync_directory(directory.parent)


def end_restore(directory: Path) -> None:
    (directory / UNFINISHED).unlink()
    sync_directory(directory)


def _finish_or_refuse(directory: Path) -> None:
    try:
        others = [
            Path(each) for each in msgspec.json.decode((directory / UNFINISHED).read_bytes(), type=list[str])
        ]
    except (msgspec.MsgspecError, UnicodeDecodeError):
        others = []  # cut short before it said more
    if not any((each / FILE).exists() and not (each / UNFINISHED).exists() for each in others):
        raise Fatal(
            f"{directory} holds a restore that did not finish: remove the directory, and those of the "
            "other members, and restore again"
        )
    end_restore(directory)


def adopt(directory: Path, name: str, founding: Membership) -> Stored:
    """Gives a new directory the identity that `founding` has for `name`: of a member that was restored, not
    formed. Raises OSError."""
    stored = Stored(Identity(name, dict(founding.instances)[name], founding.cluster), founding)
    _write(directory, stored)
    return stored


def begin_join(directory: Path, stored: Stored, joined: Membership) -> Stored:
    """Records, durably, that the journal which is about to be begun is this node's although its first entry
    does not say so. Raises Fatal; the node must then stop."""
    beginning = Stored(stored.identity, None, joined)
    try:
        _write(directory, beginning)
    except OSError as error:
        raise Fatal(f"can't record in {directory / FILE} that this node joins: {error}") from error
    return beginning


def settle(directory: Path, stored: Stored, founding: Membership, joined: Membership | None = None) -> Stored:
    """Records the founding, durably. Raises Fatal; the node must then stop."""
    me = stored.identity
    settled = Stored(Identity(me.name, me.instance, founding.cluster), founding, joined)
    try:
        _write(directory, settled)
    except OSError as error:
        raise Fatal(f"can't record the cluster's founding in {directory / FILE}: {error}") from error
    return settled


def reconcile(directory: Path, stored: Stored, found: Membership | None) -> Stored:
    """Brings the identity in line with `found`, the membership at the start of this disk's log or in its
    snapshot.

    Raises Fatal where the two can't be of one node. A node that joined may find a membership that does not
    know it yet, or knows an earlier disk under its name: what it missed is on its way.
    """
    me = stored.identity
    if found is None:
        if stored.founding is not None:
            raise Fatal(
                f"{directory / FILE} says that {me.name} belongs to cluster {me.cluster}, but there is no "
                "journal and no snapshot: restore them, or re-admit the node with an empty data directory"
            )
        return stored
    founder = found.instance(me.name) == me.instance
    joins = stored.joined is not None and stored.joined.cluster == found.cluster
    if (me.cluster and me.cluster != found.cluster) or not (founder or joins):
        raise Fatal(
            f"the data in {directory} belongs to cluster {found.cluster}, which knows {me.name} as instance "
            f"{found.instance(me.name)}; {FILE} says instance {me.instance}, cluster "
            f"{me.cluster or 'none'}: they come from different nodes. Restore the data directory as one"
        )
    if stored.founding is not None:
        return stored
    return settle(directory, stored, found, stored.joined)


def _load(path: Path, name: str) -> Stored:
    content = path.read_bytes()
    try:
        file_format = msgspec.json.decode(content, type=_Format).format
        if file_format != FORMAT:
            raise Fatal(
                f"{path} has format {file_format}, this release reads format {FORMAT}: start the release "
                "that wrote it, or a newer one"
            )
        file = msgspec.json.decode(content, type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Fatal(
            f"{path} can't be read as an identity ({error}): restore it from where it was copied"
        ) from error
    if file.sha256 != _digest(file):
        raise Fatal(f"{path} does not match its own checksum: it was damaged or edited; restore it")
    if file.name != name:
        raise ConfigError(
            f"the data directory {path.parent} belongs to the node {file.name}, but this node was started as "
            f"{name}: use --name {file.name}, or another --data-dir"
        )
    cluster = file.founding.cluster if file.founding is not None else ""
    joined = None if isinstance(file.joined, msgspec.UnsetType) else file.joined
    return Stored(Identity(name, file.instance, cluster), file.founding, joined)


def _refuse_data_without_identity(directory: Path) -> None:
    for name in DATA_DIRECTORIES:
        inner = directory / name
        if inner.is_dir() and any(inner.iterdir()):
            raise Fatal(
                f"{directory} has no {FILE} but {inner} is not empty: these are data of a node whose "
                f"identity is lost. Restore {FILE}, or use another --data-dir"
            )


def _write(directory: Path, stored: Stored) -> None:
    me = stored.identity
    joined = msgspec.UNSET if stored.joined is None else stored.joined
    file = _File(FORMAT, me.name, me.instance, stored.founding, joined=joined)
    content = msgspec.json.encode(msgspec.structs.replace(file, sha256=_digest(file)))
    aside = directory / (FILE + ".tmp")
    with open(aside, "wb") as handle:
        handle.write(msgspec.json.format(content, indent=2) + b"\n")
        handle.flush()
        os.fsync(handle.fileno())
    os.rename(aside, directory / FILE)
    sync_directory(directory)
    sync_directory(directory.parent)  # the data directory itself may be new


def set_aside(directory: Path) -> Path:
    """Renames the data directory of a member that was removed, in one step, and forgets one that was set
    aside before. Returns where it is. Raises Fatal."""
    aside = directory.with_name(directory.name + ".removed")
    try:
        if aside.exists():
            shutil.rmtree(aside)
        os.rename(directory, aside)
        sync_directory(directory.parent)
    except OSError as error:
        raise Fatal(f"can't set {directory} aside as {aside}: {error}. Do so by hand") from error
    return aside


def sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(file: _File) -> str:
    return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(file, sha256=""))).hexdigest()
