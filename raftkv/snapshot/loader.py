"""From a stored snapshot back to a state machine. Blocks; for a worker thread, or a start.

Every hash is checked before anything is given out: a chunk's before it is unpacked, the whole's at the end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from raftkv.errors import SnapshotDamaged, SnapshotMissing
from raftkv.kv.image import Page
from raftkv.kv.machine import Machine
from raftkv.snapshot.codec import Manifest, decode_pages, decompress, manifest_name
from raftkv.snapshot.store import Store, damaged


def load_machine(store: Store, snapshot: str) -> Machine:
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


def verify(store: Store, snapshot: str) -> Manifest:
    """Reads everything back as a load would. Raises SnapshotMissing, SnapshotDamaged."""
    load_machine(store, snapshot)
    return store.manifest(snapshot)


def read_pages(store: Store, manifest: Manifest) -> Iterator[Page]:
    """The snapshot's pages in order, each chunk verified. Raises SnapshotDamaged; for a wrong sum of the
    whole only at the end, so keep back what was read until then."""
    whole = hashlib.sha256()
    for number, chunk in enumerate(manifest.chunks):
        try:
            raw = decompress(chunk, store.read_chunk(manifest.id, number))
            whole.update(raw)
            yield from decode_pages(raw)
        except SnapshotMissing as error:
            raise damaged(store, chunk.name, f"chunk {number} is gone") from error
        except (SnapshotDamaged, ValueError) as error:
            raise damaged(store, chunk.name, error) from error
    if whole.hexdigest() != manifest.sha256:
        raise damaged(store, manifest_name(manifest.id), "the chunks together don't have its sha256")
