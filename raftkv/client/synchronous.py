"""The client for code without an event loop: the same `Client` on a loop thread of its own.

Calls may come from several threads. The methods take and return what those of `Client` do; iterators
fetch as they are consumed.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from raftkv.client.answers import (
    Appended,
    Deleted,
    Incremented,
    Item,
    Json,
    TransactionResult,
    Value,
    Written,
)
from raftkv.client.asynchronous import DEFAULT_ENDPOINTS, DEFAULT_TIMEOUT_SECONDS, Client
from raftkv.client.bulk import LineResult, Operation

T = TypeVar("T")


class SyncClient:
    """See `Client`. Close it, or use it in a `with`."""

    def __init__(
        self,
        endpoints: str | Iterable[str] = DEFAULT_ENDPOINTS,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_SECONDS,
        idempotent: bool = True,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        cache_bytes_max: int = 0,
        token: str | None = None,
    ) -> None:
        self._client = Client(
            endpoints,
            timeout_s=timeout_s,
            idempotent=idempotent,
            headers=headers,
            tls=tls,
            cache_bytes_max=cache_bytes_max,
            token=token,
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="raftkv-client", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._loop.is_closed():
            return
        self.run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        """The call's result; an interrupt here cancels it there."""
        future = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        done = object()

        async def following() -> T | object:
            return await anext(items, done)

        while (item := self.run(following())) is not done:
            yield item  # type: ignore[misc]

    @property
    def endpoints(self) -> tuple[str, ...]:
        return self._client.endpoints

    def get(
        self,
        key: str,
        *,
        stale: bool = False,
        min_revision: int | None = None,
        max_staleness_ms: int | None = None,
        timeout_s: float | None = None,
    ) -> Value:
        return self.run(
            self._client.get(
                key,
                stale=stale,
                min_revision=min_revision,
                max_staleness_ms=max_staleness_ms,
                timeout_s=timeout_s,
            )
        )

    def get_item(
        self,
        key: str,
        *,
        stale: bool = False,
        min_revision: int | None = None,
        max_staleness_ms: int | None = None,
        timeout_s: float | None = None,
    ) -> Item:
        return self.run(
            self._client.get_item(
                key,
                stale=stale,
                min_revision=min_revision,
                max_staleness_ms=max_staleness_ms,
                timeout_s=timeout_s,
            )
        )

    def put(
        self,
        key: str,
        value: bytes | str,
        *,
        content_type: str | None = None,
        if_revision: int | None = None,
        if_exists: bool | None = None,
        previous: bool = False,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> Written:
        return self.run(
            self._client.put(
                key,
                value,
                content_type=content_type,
                if_revision=if_revision,
                if_exists=if_exists,
                previous=previous,
                idempotency_key=idempotency_key,
                timeout_s=timeout_s,
            )
        )

    def delete(
        self,
        key: str,
        *,
        if_revision: int | None = None,
        if_exists: bool | None = None,
        previous: bool = False,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> Deleted:
        return self.run(
            self._client.delete(
                key,
                if_revision=if_revision,
                if_exists=if_exists,
                previous=previous,
                idempotency_key=idempotency_key,
                timeout_s=timeout_s,
            )
        )

    def append(
        self,
        key: str,
        value: bytes | str,
        *,
        if_revision: int | None = None,
        if_exists: bool | None = None,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> Appended:
        return self.run(
            self._client.append(
                key,
                value,
                if_revision=if_revision,
                if_exists=if_exists,
                idempotency_key=idempotency_key,
                timeout_s=timeout_s,
            )
        )

    def incr(
        self,
        key: str,
        by: int = 1,
        *,
        if_revision: int | None = None,
        if_exists: bool | None = None,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> Incremented:
        return self.run(
            self._client.incr(
                key,
                by,
                if_revision=if_revision,
                if_exists=if_exists,
                idempotency_key=idempotency_key,
                timeout_s=timeout_s,
            )
        )

    def list(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        keys_only: bool = False,
        stale: bool = False,
        timeout_s: float | None = None,
    ) -> Iterator[Item]:
        return self._iterate(
            self._client.list(
                prefix,
                start=start,
                end=end,
                limit=limit,
                keys_only=keys_only,
                stale=stale,
                timeout_s=timeout_s,
            )
        )

    def delete_prefix(
        self,
        prefix: str,
        *,
        all: bool = False,
        limit: int | None = None,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> Deleted:
        return self.run(
            self._client.delete_prefix(
                prefix, all=all, limit=limit, idempotency_key=idempotency_key, timeout_s=timeout_s
            )
        )

    def txn(
        self,
        compare: Sequence[Json] = (),
        success: Sequence[Json] = (),
        failure: Sequence[Json] = (),
        *,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> TransactionResult:
        return self.run(
            self._client.txn(compare, success, failure, idempotency_key=idempotency_key, timeout_s=timeout_s)
        )

    def batch(self, operations: Iterable[Operation], on_result: Callable[[LineResult], None]) -> None:
        """`on_result` is called on the client's own thread."""
        self.run(self._client.batch(operations, on_result))

    def export_lines(self, prefix: str = "") -> Iterator[bytes]:
        return self._iterate(self._client.export_lines(prefix))

    def export(self, prefix: str = "") -> Iterator[Item]:
        return self._iterate(self._client.export(prefix))

    def status(self, endpoint: str | None = None, *, timeout_s: float | None = None) -> Json:
        return self.run(self._client.status(endpoint, timeout_s=timeout_s))

    def cluster(self, endpoint: str | None = None, *, timeout_s: float | None = None) -> Json:
        return self.run(self._client.cluster(endpoint, timeout_s=timeout_s))

    @property
    def node(self) -> str:
        """The URL of the node that answered the last read, and would be asked next."""
        return self._client.route(to_leader=False)

    def add_member(
        self,
        name: str,
        *,
        peer: str,
        client_url: str,
        auto_promote: bool = False,
        dry_run: bool = False,
        timeout_s: float | None = None,
    ) -> Json:
        return self.run(
            self._client.add_member(
                name,
                peer=peer,
                client_url=client_url,
                auto_promote=auto_promote,
                dry_run=dry_run,
                timeout_s=timeout_s,
            )
        )

    def remove_member(self, name: str, *, dry_run: bool = False, timeout_s: float | None = None) -> Json:
        return self.run(self._client.remove_member(name, dry_run=dry_run, timeout_s=timeout_s))

    def promote_member(self, name: str, *, dry_run: bool = False, timeout_s: float | None = None) -> Json:
        return self.run(self._client.promote_member(name, dry_run=dry_run, timeout_s=timeout_s))

    def transfer_leadership(self, to: str | None = None, *, timeout_s: float | None = None) -> Json:
        return self.run(self._client.transfer_leadership(to, timeout_s=timeout_s))

    def create_token(
        self,
        name: str,
        grants: Iterable[tuple[str, str]],
        *,
        rate: int = 0,
        expires_in_s: int = 0,
        timeout_s: float | None = None,
    ) -> Json:
        return self.run(
            self._client.create_token(name, grants, rate=rate, expires_in_s=expires_in_s, timeout_s=timeout_s)
        )

    def tokens(self, *, timeout_s: float | None = None) -> Sequence[Json]:
        return self.run(self._client.tokens(timeout_s=timeout_s))

    def revoke_token(self, name: str, *, timeout_s: float | None = None) -> int:
        return self.run(self._client.revoke_token(name, timeout_s=timeout_s))

    def snapshots(self, endpoint: str | None = None, *, timeout_s: float | None = None) -> Sequence[Json]:
        return self.run(self._client.snapshots(endpoint, timeout_s=timeout_s))

    def snapshot(self, name: str, endpoint: str | None = None, *, timeout_s: float | None = None) -> Json:
        return self.run(self._client.snapshot(name, endpoint, timeout_s=timeout_s))

    def snapshot_manifest(
        self, name: str, endpoint: str | None = None, *, timeout_s: float | None = None
    ) -> bytes:
        return self.run(self._client.snapshot_manifest(name, endpoint, timeout_s=timeout_s))

    def snapshot_chunk(
        self, name: str, number: int, endpoint: str | None = None, *, timeout_s: float | None = None
    ) -> bytes:
        return self.run(self._client.snapshot_chunk(name, number, endpoint, timeout_s=timeout_s))

    def start_snapshot(self, endpoint: str | None = None, *, timeout_s: float | None = None) -> Json:
        return self.run(self._client.start_snapshot(endpoint, timeout_s=timeout_s))

    def verify_snapshot(
        self, name: str, endpoint: str | None = None, *, timeout_s: float | None = None
    ) -> Json:
        return self.run(self._client.verify_snapshot(name, endpoint, timeout_s=timeout_s))

    def delete_snapshot(
        self, name: str, endpoint: str | None = None, *, timeout_s: float | None = None
    ) -> None:
        self.run(self._client.delete_snapshot(name, endpoint, timeout_s=timeout_s))

    def create_snapshot(self, endpoint: str | None = None, *, timeout_s: float | None = None) -> Json:
        return self.run(self._client.create_snapshot(endpoint, timeout_s=timeout_s))
