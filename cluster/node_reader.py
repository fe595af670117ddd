"""A node's snapshots as a `Reader`, so that they can be copied like those of a store.

The errors are those of a store, since whoever copies cleans up after these. Once a manifest has come, its
chunks are asked of the same node: where nodes share no store, no other has them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from raftkv.client import ClientError, NotFound, SyncClient
from raftkv.errors import RaftkvError, SnapshotDamaged, SnapshotMissing, StoreUnavailable
from raftkv.snapshot.codec import Manifest, decode_manifest

T = TypeVar("T")


class NodeReader:
    """See `snapshot.store.Reader`. Nothing that a node says is believed: the manifest has to agree with its
    checksum, and who copies checks each chunk against it."""

    advice = "Try again; if that doesn't help, `raftkv snapshot verify` says what the node reads itself."

    def __init__(self, client: SyncClient) -> None:
        self._client = client
        self._node: str | None = None
        self._last: tuple[str, int, bytes] = ("", 0, b"")  # a chunk is read in parts, and comes whole

    def location(self, name: str) -> str:
        return f"{name} of {self._node or self._client.node}"

    def manifest(self, snapshot: str) -> Manifest:
        data = _asked(lambda: self._client.snapshot_manifest(snapshot))
        self._node = self._client.node
        manifest = decode_manifest(data)
        if manifest.id != snapshot:
            raise SnapshotDamaged(f"{self._node} gave the manifest of {manifest.id} for that of {snapshot}")
        return manifest

    def read_chunk(self, snapshot: str, number: int, offset: int = 0, size: int | None = None) -> bytes:
        if self._last[:2] != (snapshot, number) or not offset:
            data = _asked(lambda: self._client.snapshot_chunk(snapshot, number, self._node))
            self._last = (snapshot, number, data)
        return self._last[2][offset : None if size is None else offset + size]


def _asked(ask: Callable[[], T]) -> T:
    try:
        return ask()
    except ClientError as error:
        raise _as_of_a_store(error) from error


def _as_of_a_store(error: ClientError) -> RaftkvError:
    if isinstance(error, NotFound):
        return SnapshotMissing(error.problem.detail)
    if error.problem.code == "snapshot_damaged":
        return SnapshotDamaged(error.problem.detail)
    return StoreUnavailable(str(error), reason=error.problem.code)
