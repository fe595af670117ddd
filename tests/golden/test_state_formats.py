"""Bytes that older releases wrote, kept for ever: this release must read them, and write the same.

Made once by `python -m tests.golden.test_state_formats`, which refuses to overwrite: a format that changes
gets a new version and files of its own beside these.
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
    Delete,
    DeletePrefix,
    Get,
    Idempotency,
    Increment,
    Put,
    Transaction,
    decode_entry,
    encode,
    encode_entry,
)
from raftkv.kv.machine import Machine
from raftkv.snapshot.codec import decompress
from raftkv.snapshot.directory import DirectoryStore
from raftkv.snapshot.loader import load_machine
from tests.unit.snapshot_samples import dump, publish

HERE = Path(__file__).parent
ENTRY = HERE / "log_entry_1.bin"
SNAPSHOT = HERE / "snapshot_1"
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


def a_machine() -> Machine:
    machine = Machine()
    for index, command in enumerate(COMMANDS, 1):
        machine.apply(index, LOG_TIME_MS, command)
    return machine


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
    with ENTRY.open("xb") as file:
        file.write(encode_entry(LOG_TIME_MS, map(encode, COMMANDS)))
    SNAPSHOT.mkdir()
    store = DirectoryStore.open(SNAPSHOT)
    publish(store, a_machine(), page_records=1_000)


if __name__ == "__main__":
    write()
