"""From a stored snapshot back to a state machine. Blocks; for a worker thread, or a start.

Every hash is checked before anything is given out: a chunk's before it is unpacked, the whole's at the end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from operator import ge

from raftkv.errors import SnapshotDamaged, SnapshotMissing
from raftkv.kv.image import Page, Section
from raftkv.kv.machine import Machine
from raftkv.snapshot.codec import Chunk, Manifest, check_chunk, decode_pages, decompress, manifest_name
from raftkv.snapshot.store import Reader, damaged


def load_machine(store: Reader, snapshot: str) -> Machine:
    """The machine as it was at the snapshot's index. Raises SnapshotMissing, SnapshotDamaged."""
    manifest = store.manifest(snapshot)
    try:
        machine = Machine.load(manifest.state, read_pages(store, manifest))
    except ValueError as error:
        raise damaged(store, manifest_name(snapshot), error) from error
    counted = (machine.keys, machine.idempotency_records)
    if counted != (manifest.keys, manifest.idempotency_records):
        raise damaged(
            store, manifest_name(snapshot), f"it counts other records than its chunks hold: {counted}"
        )
    return machine


def verify(store: Reader, snapshot: str) -> Manifest:
    """Reads everything back, in memory for one chunk, and checks every hash and that the records can be
    loaded: in order, as many as the manifest says. Raises SnapshotMissing, SnapshotDamaged."""
    manifest = store.manifest(snapshot)
    counts = dict.fromkeys(Section, 0)
    last: tuple[int, bytes] = (-1, b"")
    for page in read_pages(store, manifest):
        counts[page.section] += len(page)
        keys = [last[1]] if page.section == last[0] else []
        keys += page.keys
        if page.section < last[0] or any(map(ge, keys, islice(keys, 1, None))):
            raise damaged(
                store, manifest_name(snapshot), f"records of section {page.section.name} out of order"
            )
        last = (page.section, page.keys[-1])
    counted = (counts[Section.ITEMS], counts[Section.PLAIN] + counts[Section.OUTCOMES])
    if counted != (manifest.keys, manifest.idempotency_records):
        raise damaged(
            store, manifest_name(snapshot), f"it counts other records than its chunks hold: {counted}"
        )
    return manifest


def check(store: Reader, manifest: Manifest) -> None:
    """Every hash and no more: all of it is work that leaves the other threads alone, so a node that serves
    can do it. Raises SnapshotDamaged, SnapshotMissing."""
    for _ in read_raw(store, manifest):
        pass


def stored_chunk(store: Reader, snapshot: str, number: int) -> tuple[Chunk, bytes]:
    """One chunk as it is stored, verified. Raises SnapshotMissing, SnapshotDamaged."""
    manifest = store.manifest(snapshot)
    if not 0 <= number < len(manifest.chunks):
        raise SnapshotMissing(f"snapshot {snapshot} has {len(manifest.chunks)} chunks: none is {number}")
    chunk = manifest.chunks[number]
    try:
        data = store.read_chunk(snapshot, number)
        check_chunk(chunk, data)
    except SnapshotMissing as error:
        store.manifest(snapshot)  # raises where the snapshot was deleted meanwhile, which is no damage
        raise damaged(store, chunk.name, f"chunk {number} is gone") from error
    except SnapshotDamaged as error:
        raise damaged(store, chunk.name, error) from error
    except OSError as error:
        raise damaged(store, chunk.name, f"it can't be read: {error.strerror}") from error
    return chunk, data


def read_pages(store: Reader, manifest: Manifest) -> Iterator[Page]:
    """The snapshot's pages in order, each chunk verified. Raises SnapshotDamaged; for a wrong sum of the
    whole only at the end, so keep back what was read until then."""
    for chunk, raw in read_raw(store, manifest):
        try:
            yield from decode_pages(raw)
        except ValueError as error:
            raise damaged(store, chunk.name, error) from error


def read_raw(store: Reader, manifest: Manifest) -> Iterator[tuple[Chunk, bytes]]:
    """As `read_pages`, not taken apart yet."""
    whole = hashlib.sha256()
    for number, chunk in enumerate(manifest.chunks):
        try:
            raw = decompress(chunk, store.read_chunk(manifest.id, number))
        except SnapshotMissing as error:
            raise damaged(store, chunk.name, f"chunk {number} is gone") from error
        except SnapshotDamaged as error:
            raise damaged(store, chunk.name, error) from error
        whole.update(raw)
        yield chunk, raw
    if whole.hexdigest() != manifest.sha256:
        raise damaged(store, manifest_name(manifest.id), "the chunks together don't have its sha256")
