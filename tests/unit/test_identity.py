"""identity.json: drawn once, for an empty disk; refused whenever it can't be told whose disk it is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from raftkv.errors import ConfigError, Fatal
from raftkv.model import Identity, Member, Membership
from raftkv.raft import identity
from raftkv.raft.identity import Stored, load_or_create, reconcile, settle

INSTANCE = "a" * 32
FOUNDING = Membership("c" * 32, (Member("n1", "h:1", "http://h:2"),), (("n1", INSTANCE),))


def draw() -> str:
    return INSTANCE


def created(directory: Path) -> Stored:
    return load_or_create(directory, "n1", draw=draw)


def test_an_empty_disk_gets_an_instance_once(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "n1"
    first = load_or_create(directory, "n1")
    assert len(first.identity.instance) == 32
    assert first == load_or_create(directory, "n1")
    assert first == Stored(Identity("n1", first.identity.instance, ""), None)


def test_every_disk_gets_another_instance(tmp_path: Path) -> None:
    assert load_or_create(tmp_path / "a", "n1") != load_or_create(tmp_path / "b", "n1")


def test_what_a_person_may_keep_beside_it_is_not_data(tmp_path: Path) -> None:
    (tmp_path / "node.log").write_text("a log of the supervisor")
    (tmp_path / "journal").mkdir()  # made, but empty
    assert created(tmp_path).identity.instance == INSTANCE


@pytest.mark.parametrize("inner", ["journal", "snapshots"])
def test_data_without_an_identity_is_refused(tmp_path: Path, inner: str) -> None:
    (tmp_path / inner).mkdir()
    (tmp_path / inner / "something").write_bytes(b"")
    with pytest.raises(Fatal, match="identity is lost"):
        created(tmp_path)
    assert not (tmp_path / identity.FILE).exists()


def test_the_founding_survives_a_restart(tmp_path: Path) -> None:
    settled = settle(tmp_path, created(tmp_path), FOUNDING)
    assert settled == Stored(Identity("n1", INSTANCE, FOUNDING.cluster), FOUNDING)
    assert created(tmp_path) == settled


def test_a_disk_of_another_name_is_a_configuration_error(tmp_path: Path) -> None:
    created(tmp_path)
    with pytest.raises(ConfigError, match=r"belongs to the node n1.*started as n2"):
        load_or_create(tmp_path, "n2")


def test_no_byte_of_the_file_can_change_unnoticed(tmp_path: Path) -> None:
    settled = settle(tmp_path, created(tmp_path), FOUNDING)
    path = tmp_path / identity.FILE
    whole = path.read_bytes()
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        try:
            assert created(tmp_path) == settled, f"byte {position}"  # white space, read alike
        except Fatal:
            continue


@pytest.mark.parametrize("content", [b"", b"{}", b"null", b"\xff", b'{"format": 1, "name": "n1"}', b"[1]"])
def test_what_is_no_identity_is_refused_with_its_path(tmp_path: Path, content: bytes) -> None:
    (tmp_path / identity.FILE).write_bytes(content)
    with pytest.raises(Fatal, match=identity.FILE):
        created(tmp_path)


def test_every_torn_file_is_refused(tmp_path: Path) -> None:
    created(tmp_path)
    path = tmp_path / identity.FILE
    whole = path.read_bytes().rstrip()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(Fatal):
            created(tmp_path)


def test_a_later_format_is_named(tmp_path: Path) -> None:
    created(tmp_path)
    path = tmp_path / identity.FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(Fatal, match="format 2, this release reads format 1"):
        created(tmp_path)


def test_an_unwritable_disk_is_a_clear_stop(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Fatal, match="can't read or write the identity"):
        created(tmp_path / "file" / "n1")


@pytest.mark.parametrize("call", ["open", "fsync", "rename"])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_write_that_fails_leaves_the_old_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, nth: int
) -> None:
    """Whichever step fails: the file is the old one or the new one, whole."""
    before = created(tmp_path)
    real = getattr(os, call)
    calls = 0

    def failing(*arguments: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise OSError(5, "Input/output error")
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        try:
            settle(tmp_path, before, FOUNDING)
        except Fatal:
            failed = True
        else:
            failed = False
    assert failed == (calls >= nth)
    after = created(tmp_path)
    assert after in (before, Stored(Identity("n1", INSTANCE, FOUNDING.cluster), FOUNDING))
    assert failed or after != before


def test_the_file_and_its_directory_are_synced_in_this_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Content before name: a rename that the disk sees first would leave an empty identity."""
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def traced_fsync(handle: int) -> None:
        steps.append("sync " + Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    def traced_rename(source: Path, target: Path) -> None:
        steps.append(f"rename {Path(target).name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(os, "rename", traced_rename)
    created(tmp_path)
    assert steps[:3] == ["sync identity.json.tmp", "rename identity.json", f"sync {tmp_path.name}"]


# --- reconcile: the identity and the journal are of one node --------------------------------------------


def test_an_unformed_node_has_nothing_to_reconcile(tmp_path: Path) -> None:
    stored = created(tmp_path)
    assert reconcile(tmp_path, stored, None) == stored


def test_a_crash_between_journal_and_identity_is_put_right(tmp_path: Path) -> None:
    reconciled = reconcile(tmp_path, created(tmp_path), FOUNDING)
    assert reconciled.founding == FOUNDING
    assert created(tmp_path) == reconciled


def test_a_formed_node_without_data_has_lost_its_journal(tmp_path: Path) -> None:
    stored = settle(tmp_path, created(tmp_path), FOUNDING)
    with pytest.raises(Fatal, match="no journal and no snapshot"):
        reconcile(tmp_path, stored, None)


def test_a_journal_of_another_node_or_cluster_is_refused(tmp_path: Path) -> None:
    stored = created(tmp_path)
    stranger = Membership("c" * 32, FOUNDING.members, (("n1", "b" * 32),))
    with pytest.raises(Fatal, match="different nodes"):
        reconcile(tmp_path, stored, stranger)
    settled = settle(tmp_path, stored, FOUNDING)
    with pytest.raises(Fatal, match="different nodes"):
        reconcile(tmp_path, settled, Membership("d" * 32, FOUNDING.members, FOUNDING.instances))


def test_a_later_membership_keeps_the_founding(tmp_path: Path) -> None:
    settled = settle(tmp_path, created(tmp_path), FOUNDING)
    grown = Membership(
        FOUNDING.cluster,
        (*FOUNDING.members, Member("n2", "h:3", "http://h:4")),
        (*FOUNDING.instances, ("n2", "b" * 32)),
    )
    assert reconcile(tmp_path, settled, grown) == settled


# --- set aside: the disk of a member that was removed ----------------------------------------------------


def test_a_directory_that_was_set_aside_makes_room_for_a_new_identity(tmp_path: Path) -> None:
    directory = tmp_path / "node"
    settle(directory, created(directory), FOUNDING)
    first = (directory / "identity.json").read_bytes()
    aside = identity.set_aside(directory)
    assert (aside / "identity.json").read_bytes() == first
    assert load_or_create(directory, "n1").founding is None
    second = (directory / "identity.json").read_bytes()
    assert identity.set_aside(directory) == aside
    assert (aside / "identity.json").read_bytes() == second != first, "only the last one is kept"


def test_a_directory_that_can_not_be_set_aside_stops_the_node(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="Do so by hand"):
        identity.set_aside(tmp_path / "is not there")
