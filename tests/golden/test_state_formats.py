"""Bytes that older releases wrote, kept for ever: this release must read them, and write the same.

Made once by `python -m tests.golden.test_state_formats`, which leaves alone what is there: a format that
changes gets a new version and files of its own beside these.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from raftkv.kv.command import (
    Append,
    Command,
    Compare,
    Condition,
    CreateToken,
    Delete,
    DeletePrefix,
    Get,
    Idempotency,
    Increment,
    Put,
    RevokeToken,
    Transaction,
    decode_entry,
    encode,
    encode_entry,
)
from raftkv.kv.machine import Machine
from raftkv.kv.tokens import Grant, Token
from raftkv.snapshot.codec import decompress
from raftkv.snapshot.directory import DirectoryStore
from raftkv.snapshot.loader import load_machine
from tests.unit.snapshot_samples import dump, publish

HERE = Path(__file__).parent
ENTRY = HERE / "log_entry_1.bin"
SNAPSHOT = HERE / "snapshot_1"
ENTRY_WITH_TOKENS = HERE / "log_entry_1_tokens.bin"
SNAPSHOT_WITH_TOKENS = HERE / "snapshot_2"
LOG_TIME_MS = 1_234_567_890_123
COMMANDS: list[Command] = [
    Put(b"a", b"1"),
    Put(b"b", b"two", "text/plain", Condition(revision=0), True, Idempotency(b"client/1", b"f" * 16)),
    Append(b"b", b"+", 1 << 20, "text/html", Condition(exists=True), Idempotency(b"client/2", b"g" * 16)),
    Increment(b"a", -5, idempotency=Idempotency(b"0f8fad5b", b"h" * 16)),
    Put("ключ".encode(), bytes(range(256)), "image/png"),
    Delete(b"nothing", return_previous=True),
    Transaction(
        (Compare(b"a", "value", "==", b"-4"), Compare(b"b", "exists", "!=", False)),
        (Put(b"t/1", b"x"), Get(b"b"), Increment(b"t/2", 1 << 62), Delete(b"a", None, True)),
        (Append(b"t/3", b"", 9),),
        Idempotency(b"client/3", b"i" * 16),
    ),
    DeletePrefix(b"t/", 1, Idempotency(b"other/7", b"")),
]
ADMIN = Token(
    "0123456789abcdef",
    "first",
    (Grant("admin", b""),),
    b"s" * 16,
    b"h" * 32,
    (1 << 14, 8, 1),
    1_767_225_600_000,
)
TOKEN_COMMANDS: list[Command] = [
    CreateToken(ADMIN, only_first=True),
    CreateToken(
        Token(
            "fedcba9876543210",
            "ключи",
            (Grant("read", "ключ/".encode()), Grant("write", b"b/")),
            b"t" * 16,
            b"i" * 32,
            (1 << 15, 8, 2),
            1_767_225_600_001,
            1_798_761_600_000,
            250,
            ADMIN.id,
        )
    ),
    RevokeToken(ADMIN.id, Idempotency(b"client/9", b"j" * 16)),
    RevokeToken("nothing"),
]


def a_machine(commands: list[Command] = COMMANDS) -> Machine:
    machine = Machine()
    for index, command in enumerate(commands, 1):
        machine.apply(index, LOG_TIME_MS, command)
    return machine


def a_machine_with_tokens() -> Machine:
    return a_machine([*COMMANDS, *TOKEN_COMMANDS])


def test_log_entries_with_tokens() -> None:
    payload = ENTRY_WITH_TOKENS.read_bytes()
    assert decode_entry(payload) == (LOG_TIME_MS, TOKEN_COMMANDS)
    assert encode_entry(LOG_TIME_MS, map(encode, TOKEN_COMMANDS)) == payload


def test_snapshots_of_format_2(tmp_path: Path) -> None:
    shutil.copytree(SNAPSHOT_WITH_TOKENS, tmp_path / "snapshot")
    store = DirectoryStore.open(tmp_path / "snapshot")
    (manifest,) = store.list()
    assert manifest.format == 2
    loaded = load_machine(store, manifest.id)
    assert list(loaded.tokens) == list(a_machine_with_tokens().tokens)
    assert dump(loaded) == dump(a_machine_with_tokens())
    assert loaded.state() == a_machine_with_tokens().state()
    again = publish(store, loaded)
    assert (again.sha256, again.raw_bytes, again.format) == (manifest.sha256, manifest.raw_bytes, 2)


def test_a_snapshot_without_tokens_is_one_that_older_releases_read(tmp_path: Path) -> None:
    assert publish(DirectoryStore.open(tmp_path), a_machine()).format == 1


def test_log_entries_of_version_1() -> None:
    payload = ENTRY.read_bytes()
    assert decode_entry(payload) == (LOG_TIME_MS, COMMANDS)
    assert encode_entry(LOG_TIME_MS, map(encode, COMMANDS)) == payload


def test_snapshots_of_format_1(tmp_path: Path) -> None:
    """Raw bytes are compared: zstd may pack them otherwise from release to release."""
    shutil.copytree(SNAPSHOT, tmp_path / "snapshot")
    store = DirectoryStore.open(tmp_path / "snapshot")
    (manifest,) = store.list()
    loaded = load_machine(store, manifest.id)
    assert dump(loaded) == dump(a_machine())
    assert loaded.state() == replace(a_machine().state(), hash=b"")  # they knew no state hash yet
    (chunk,) = manifest.chunks
    assert decompress(chunk, store.read_chunk(manifest.id, 0)) == dump(a_machine())
    again = publish(store, loaded)
    assert (again.sha256, again.raw_bytes, again.keys) == (manifest.sha256, manifest.raw_bytes, manifest.keys)


def test_outcomes_of_format_1_are_replayed(tmp_path: Path) -> None:
    shutil.copytree(SNAPSHOT, tmp_path / "snapshot")
    store = DirectoryStore.open(tmp_path / "snapshot")
    loaded, applied = load_machine(store, store.list()[0].id), a_machine()
    for command in COMMANDS:
        if command.idempotency is not None:
            again = loaded.apply(99, LOG_TIME_MS, command)
            assert again == applied.apply(99, LOG_TIME_MS, command)
            assert again.replayed


def write() -> None:
    """What is not there yet."""
    for path, commands in ((ENTRY, COMMANDS), (ENTRY_WITH_TOKENS, TOKEN_COMMANDS)):
        if not path.exists():
            path.write_bytes(encode_entry(LOG_TIME_MS, map(encode, commands)))
    for path, machine in ((SNAPSHOT, a_machine()), (SNAPSHOT_WITH_TOKENS, a_machine_with_tokens())):
        if not path.exists():
            path.mkdir()
            publish(DirectoryStore.open(path), machine, page_records=1_000)


if __name__ == "__main__":
    write()
