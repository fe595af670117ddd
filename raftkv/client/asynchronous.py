"""The asynchronous client: `retry.Course` decides, this opens connections, waits and reads the clock.

aiohttp's own retry is off. Its client silently repeats a PUT or a DELETE once when a kept-alive connection
drops (aiohttp/client.py, `retry_persistent_connection`), and a repeat that nobody sees would make two
writes of one where there is no idempotency key.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import ssl
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from random import Random
from types import SimpleNamespace, TracebackType
from typing import Final, Self
from urllib.parse import quote, urlencode
from weakref import WeakKeyDictionary

import aiohttp
import msgspec
from aiohttp.client_proto import ResponseHandler
from aiohttp.tracing import Trace
from yarl import URL

from raftkv.client.answers import (
    Answer,
    Appended,
    Deleted,
    Incremented,
    Item,
    Json,
    NotFound,
    Problem,
    TransactionResult,
    Unavailable,
    Value,
    Written,
    item_of,
    not_a_raftkv,
    revision_of,
)
from raftkv.client.bulk import Batch, LineResult, Operation, export_lines
from raftkv.client.cache import Cache
from raftkv.client.retry import Accept, Again, Course, Fail, Follow, Numbers, Step, origin_of

DEFAULT_ENDPOINTS: Final = ("http://127.0.0.1:8400", "http://127.0.0.1:8410", "http://127.0.0.1:8420")
DEFAULT_TIMEOUT_SECONDS: Final = 15.0
TIMEOUT_SECONDS_MAX: Final = 100.0  # under the 2 minutes for which the outcome under a key is kept
CONNECT_SECONDS: Final = 1.0
ATTEMPT_SECONDS_FIRST: Final = 2.5  # a paused node takes connections and never answers; doubled each time
ATTEMPT_SECONDS_MAX: Final = 20.0
STREAM_OPEN_SECONDS: Final = 10.0  # to the head of a stream's answer, which comes with its first line
OPERATION_POLL_SECONDS: Final = 0.1
# A leader's address that means nothing here, as a container's on its host, is not tried each time.
LEADER_AVOIDED_SECONDS: Final = 30.0
CONNECTIONS_MAX: Final = 512
PAGE_ITEMS: Final = 1000

Query = Mapping[str, str | int]

# A key that no proxy, and no URL library, would rewrite in a path. Every other key goes in the query.
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_~-][A-Za-z0-9._~-]*(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*")


class Client:
    """Talks to a cluster through any of `endpoints`.

    Writes carry idempotency keys of one random client id, unless `idempotent` is off; so a write whose
    answer was lost is repeated safely. Every call ends within its deadline: `timeout_s`, at most 100.
    Errors are those of `raftkv.client.answers`. One event loop; `SyncClient` is for everything else.

    `cache_bytes_max` above 0 keeps values that `get` has read. A linearizable read of one of them asks a node
    whether it still stands, and its bytes travel again only if it does not; a read that says how old its
    answer may be (`max_staleness_ms`) need not ask at all. Own writes are always seen; see `client/cache.py`.
    """

    def __init__(
        self,
        endpoints: str | Iterable[str] = DEFAULT_ENDPOINTS,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_SECONDS,
        idempotent: bool = True,
        headers: Mapping[str, str] | None = None,
        cache_bytes_max: int = 0,
        random: Random | None = None,
        tls: ssl.SSLContext | None = None,
        token: str | None = None,
        patient: bool = True,
    ) -> None:
        """`patient` False: a read that failed is not tried again, for who wants to know how a node is at this
        moment. `token`: what the cluster asks for, where it does. `tls`: for endpoints with https://, as
        `tls_context` makes it; by default the CAs that the system trusts count, and no certificate is
        shown."""
        self.endpoints = parse_endpoints(endpoints)
        self.client_id = secrets.token_hex(8)
        self._timeout_s = _checked_timeout(timeout_s)
        self._idempotent = idempotent
        self._headers = dict(headers or {})
        if token is not None:
            self._headers["Authorization"] = f"Bearer {_checked_token(token)}"
        self._random = random or Random()
        self._tls = tls
        self._patient = patient
        self._numbers = Numbers()
        self._number_freed = asyncio.Condition()
        self._leader: str | None = None
        self._avoided: dict[str, float] = {}  # leaders that could not be reached: until when, by the loop
        self._at = 0
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        self._cache = Cache(cache_bytes_max, _clock) if cache_bytes_max > 0 else None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Returns when every connection is closed, so that the loop may be too."""
        sessions = list(self._sessions.values())
        self._sessions.clear()
        for session in sessions:
            connector = session.connector
            await session.close()
            if isinstance(connector, _Connector):
                await connector.abort()

    # --- one key ------------------------------------------------------------------------------------

    async def get(
        self,
        key: str,
        *,
        stale: bool = False,
        min_revision: int | None = None,
        max_staleness_ms: int | None = None,
        timeout_s: float | None = None,
    ) -> Value:
        """The key's bytes; linearizable unless `stale`: then one node answers from its own state, if it has
        heard from a leader within `max_staleness_ms`, where that is given.

        Without `stale`, `max_staleness_ms` is for the cache: a value that was surely current so long ago, or
        less, is answered without asking; `age_ms` tells. Raises NotFound.
        """
        if stale:
            query = _freshness(stale, min_revision, max_staleness_ms)
            return _value_of(await self._read(*_at_key(key, query), timeout_s=timeout_s))
        where = _at_key(key, _freshness(False, min_revision, None))
        cache = self._cache
        if cache is None:
            return _value_of(await self._read(*where, timeout_s=timeout_s))
        if max_staleness_ms is not None:
            value = cache.young(key, age_ms_max=max_staleness_ms, min_revision=min_revision)
            if value is not None:
                return value
        with cache.reading(key) as read:
            headers = {} if read.known is None else {"If-None-Match": f'"{read.known.revision}"'}
            try:
                answer = await self._read(*where, headers=headers, timeout_s=timeout_s)
            except NotFound:
                cache.absent(read)
                raise
            confirmed = answer.status == 304 and read.known is not None
            value = read.known if confirmed else _value_of(answer)
            assert value is not None
            cache.keep(read, value)
            return value

    async def get_item(
        self,
        key: str,
        *,
        stale: bool = False,
        min_revision: int | None = None,
        max_staleness_ms: int | None = None,
        timeout_s: float | None = None,
    ) -> Item:
        """The key with its revisions and version. Raises NotFound."""
        query = {"format": "json", **_freshness(stale, min_revision, max_staleness_ms)}
        return item_of((await self._read(*_at_key(key, query), timeout_s=timeout_s)).json())

    async def put(
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
        """`if_revision` 0: only where the key is absent. Raises PreconditionFailed."""
        query: dict[str, str | int] = {"prev": "true"} if previous else {}
        headers = _conditions(query, if_revision, if_exists)
        headers["Content-Type"] = content_type or "application/octet-stream"
        answer = await self._write(
            "PUT",
            *_at_key(key, query),
            key=key,
            body=_bytes(value),
            headers=headers,
            idempotency_key=idempotency_key,
            timeout_s=timeout_s,
        )
        document = answer.json()
        return Written(
            _integer(document, "revision"), answer.status == 201, _previous(document), answer.replayed
        )

    async def delete(
        self,
        key: str,
        *,
        if_revision: int | None = None,
        if_exists: bool | None = None,
        previous: bool = False,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> Deleted:
        """`deleted` is 0 where the key was absent. Raises PreconditionFailed."""
        query: dict[str, str | int] = {"prev": "true"} if previous else {}
        headers = _conditions(query, if_revision, if_exists)
        answer = await self._write(
            "DELETE",
            *_at_key(key, query),
            key=key,
            headers=headers,
            idempotency_key=idempotency_key,
            timeout_s=timeout_s,
        )
        return _deleted(answer)

    async def append(
        self,
        key: str,
        value: bytes | str,
        *,
        if_revision: int | None = None,
        if_exists: bool | None = None,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> Appended:
        """Adds bytes to the end of the value, creating the key where it is absent."""
        query: dict[str, str | int] = {"op": "append"}
        headers = _conditions(query, if_revision, if_exists)
        headers["Content-Type"] = "application/octet-stream"
        answer = await self._write(
            "POST",
            *_at_key(key, query),
            key=key,
            body=_bytes(value),
            headers=headers,
            idempotency_key=idempotency_key,
            timeout_s=timeout_s,
        )
        document = answer.json()
        return Appended(_integer(document, "revision"), _integer(document, "length"), answer.replayed)

    async def incr(
        self,
        key: str,
        by: int = 1,
        *,
        if_revision: int | None = None,
        if_exists: bool | None = None,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> Incremented:
        """Adds to the decimal integer that the value is; an absent one is 0. Raises BadRequest
        (`not_a_number`)."""
        query: dict[str, str | int] = {"op": "incr", "by": by}
        headers = _conditions(query, if_revision, if_exists)
        answer = await self._write(
            "POST",
            *_at_key(key, query),
            key=key,
            headers=headers,
            idempotency_key=idempotency_key,
            timeout_s=timeout_s,
        )
        document = answer.json()
        return Incremented(_integer(document, "revision"), _integer(document, "value"), answer.replayed)

    # --- many keys ----------------------------------------------------------------------------------

    async def list(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        keys_only: bool = False,
        stale: bool = False,
        timeout_s: float | None = None,
    ) -> AsyncIterator[Item]:
        """Items in key order, page by page: `start` included, `end` not, at most `limit` of them. Each page
        is of one revision; the next may be of a later one (`export` is of one revision throughout)."""
        left, cursor = limit, None
        query: dict[str, str | int] = {"prefix": prefix, **_freshness(stale, None, None)}
        query |= {name: value for name, value in (("start", start), ("end", end)) if value is not None}
        if keys_only:
            query["keys_only"] = "true"
        while left is None or left > 0:
            query["limit"] = PAGE_ITEMS if left is None else min(left, PAGE_ITEMS)
            if cursor is not None:
                query["cursor"] = cursor
            page = (await self._read("/v1/kv", query, timeout_s=timeout_s)).json()
            items = [item_of(document) for document in page.get("items", ())]
            for item in items:
                yield item
            cursor = page.get("next_cursor")
            left = None if left is None else left - len(items)
            if not cursor:
                return

    async def delete_prefix(
        self,
        prefix: str,
        *,
        all: bool = False,
        limit: int | None = None,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> Deleted:
        """Deletes the first keys with the prefix, atomically, as many as one call may; `more` says whether
        keys are left. An empty prefix needs `all`."""
        query: dict[str, str | int] = {"prefix": prefix}
        if all:
            query["all"] = "true"
        if limit is not None:
            query["limit"] = limit
        answer = await self._write(
            "DELETE", "/v1/kv", query, idempotency_key=idempotency_key, timeout_s=timeout_s
        )
        return _deleted(answer)

    async def txn(
        self,
        compare: Sequence[Json] = (),
        success: Sequence[Json] = (),
        failure: Sequence[Json] = (),
        *,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> TransactionResult:
        """One atomic transaction, in the JSON shapes of `POST /v1/txn`."""
        answer = await self._write(
            "POST",
            "/v1/txn",
            {},
            body=msgspec.json.encode({"compare": compare, "success": success, "failure": failure}),
            headers={"Content-Type": "application/json"},
            idempotency_key=idempotency_key,
            timeout_s=timeout_s,
        )
        document = answer.json()
        return TransactionResult(
            bool(document.get("succeeded")),
            _integer(document, "revision"),
            tuple(document.get("responses", ())),
            answer.replayed,
        )

    async def batch(
        self,
        operations: AsyncIterable[Operation] | Iterable[Operation],
        on_result: Callable[[LineResult], None],
    ) -> None:
        """Any number of writes, pipelined, each done exactly once in the shapes of `POST /v1/batch`:
        `{"op": "put", "key": …, "value": …}`. Not atomic. `on_result` is called once for each, and what it
        raises ends the batch. A line without an answer for 100 s is given up with its error."""
        with self._writing(None):
            await Batch(self, on_result, self._random).run(operations)

    async def export_lines(self, prefix: str = "") -> AsyncIterator[bytes]:
        """The NDJSON lines of `GET /v1/export`, `_end` line included, all of one revision. Raises StreamCut
        where the stream ended early or is not what its checksum says."""
        course = Course(write=False, keyed=False, random=self._random)
        deadline = self._deadline(None)
        origin = self.route(to_leader=False)
        while True:
            if asyncio.get_running_loop().time() > deadline:
                raise course.out_of_time()
            response, step = await self.open_stream(
                course, "GET", "/v1/export", {"prefix": prefix}, None, origin=origin
            )
            match step:
                case Fail(error):
                    raise error
                case Follow(target):
                    origin = target
                case Again(delay_s):
                    self.forget(origin)
                    origin = self.route(to_leader=False)
                    await asyncio.sleep(delay_s)
                case Accept():
                    break
        assert response is not None
        async with response:
            async for line in export_lines(response):
                yield line

    async def export(self, prefix: str = "") -> AsyncIterator[Item]:
        """Every item with the prefix, in key order, as they all were at one revision. Raises StreamCut, after
        the items, where they were not all of them."""
        async for line in self.export_lines(prefix):
            document = msgspec.json.decode(line)
            if "_end" not in document:
                yield item_of(document)

    # --- the cluster --------------------------------------------------------------------------------

    async def status(self, endpoint: str | None = None, *, timeout_s: float | None = None) -> Json:
        """`/v1/status` of the node at `endpoint`, which is then asked alone, or of the first that answers."""
        return (await self._read("/v1/status", {}, only=endpoint, timeout_s=timeout_s)).json()

    async def cluster(self, endpoint: str | None = None, *, timeout_s: float | None = None) -> Json:
        """`/v1/cluster`, of which the leader knows most."""
        return (await self._read("/v1/cluster", {}, only=endpoint, timeout_s=timeout_s)).json()

    async def limits(self, endpoint: str | None = None, *, timeout_s: float | None = None) -> Json:
        """`/v1/limits`: every limit in force, and the flag that sets it."""
        return (await self._read("/v1/limits", {}, only=endpoint, timeout_s=timeout_s)).json()

    async def metrics(self, endpoint: str | None = None, *, timeout_s: float | None = None) -> str:
        """`/metrics`, as Prometheus reads them."""
        return (await self._read("/metrics", {}, only=endpoint, timeout_s=timeout_s)).body.decode()

    async def check_ready(self, endpoint: str, *, timeout_s: float) -> None:
        """Returns where a linearizable read succeeds at that node within the time. Raises ClientError."""
        query = {"timeout": f"{max(1, int(timeout_s * 1000))}ms"}
        await self._read("/readyz", query, only=endpoint, timeout_s=timeout_s)

    async def add_member(
        self,
        name: str,
        *,
        peer: str,
        client_url: str,
        auto_promote: bool = False,
        dry_run: bool = False,
        timeout_s: float | None = None,
    ) -> Json:
        """Adds a learner; `auto_promote` makes it a voter once it has caught up. Start its node with --join.

        What must answer before and after, as the three calls below. They raise OutcomeUnknown where the
        change may have been made: then look at `cluster()`.
        """
        body = msgspec.json.encode(
            {"name": name, "peer": peer, "client_url": client_url, "auto_promote": auto_promote}
        )
        return await self._change_members("POST", "", body, dry_run, timeout_s)

    async def remove_member(
        self, name: str, *, dry_run: bool = False, timeout_s: float | None = None
    ) -> Json:
        """A leader that is removed hands over first. Raises NotFound for who is no member."""
        return await self._change_members("DELETE", f"/{quote(name, safe='')}", b"", dry_run, timeout_s)

    async def promote_member(
        self, name: str, *, dry_run: bool = False, timeout_s: float | None = None
    ) -> Json:
        """Makes a learner a voter; tries until it has caught up, or the time is over. Raises NotFound."""
        return await self._change_members("POST", f"/{quote(name, safe='')}/promote", b"", dry_run, timeout_s)

    async def _change_members(
        self, method: str, rest: str, body: bytes, dry_run: bool, timeout_s: float | None
    ) -> Json:
        course = Course(write=True, keyed=False, random=self._random)
        headers = {"Content-Type": "application/json"} if body else {}
        query: Query = {"dry_run": "true"} if dry_run else {}
        path, deadline = "/v1/cluster/members" + rest, self._deadline(timeout_s)
        answer = await self._run(
            course, method, path, query, body, headers, deadline=deadline, to_leader=True
        )
        return answer.json()

    async def transfer_leadership(self, to: str | None = None, *, timeout_s: float | None = None) -> Json:
        """Hands leadership to that member, or to the one that is furthest; who leads then. Raises NotFound
        for who is no member, ClientError where nobody took over."""
        body = msgspec.json.encode({} if to is None else {"to": to})
        return (await self._ask_leader("POST", "/v1/cluster/leader", body, self._deadline(timeout_s))).json()

    async def snapshots(
        self, endpoint: str | None = None, *, timeout_s: float | None = None
    ) -> Sequence[Json]:
        """The snapshots in the store, as `/v1/snapshots` lists them."""
        document = (await self._read("/v1/snapshots", {}, only=endpoint, timeout_s=timeout_s)).json()
        return tuple(document.get("snapshots", ()))

    async def create_snapshot(self, endpoint: str | None = None, *, timeout_s: float | None = None) -> Json:
        """Asks for a snapshot and waits until it is durable, and published where there is a store."""
        return await self._operation("/v1/snapshots", endpoint, timeout_s)

    async def start_snapshot(self, endpoint: str | None = None, *, timeout_s: float | None = None) -> Json:
        """Asks for a snapshot; the operation as it began."""
        return (await self._ask("POST", "/v1/snapshots", endpoint, self._deadline(timeout_s))).json()

    async def verify_snapshot(
        self, name: str, endpoint: str | None = None, *, timeout_s: float | None = None
    ) -> Json:
        """Has a node read a snapshot back and check every hash, and waits for the verdict."""
        return await self._operation(f"/v1/snapshots/{name}/verify", endpoint, timeout_s)

    async def snapshot(
        self, name: str, endpoint: str | None = None, *, timeout_s: float | None = None
    ) -> Json:
        """What a snapshot's manifest says. Raises NotFound."""
        return (await self._read(f"/v1/snapshots/{name}", {}, only=endpoint, timeout_s=timeout_s)).json()

    async def snapshot_manifest(
        self, name: str, endpoint: str | None = None, *, timeout_s: float | None = None
    ) -> bytes:
        """A snapshot's manifest as a store keeps it. Raises NotFound."""
        path = f"/v1/snapshots/{name}/manifest"
        return (await self._read(path, {}, only=endpoint, timeout_s=timeout_s)).body

    async def snapshot_chunk(
        self, name: str, number: int, endpoint: str | None = None, *, timeout_s: float | None = None
    ) -> bytes:
        """A chunk of a snapshot as it is stored; the manifest has its sha256. Raises NotFound."""
        path = f"/v1/snapshots/{name}/chunks/{number}"
        return (await self._read(path, {}, only=endpoint, timeout_s=timeout_s)).body

    async def delete_snapshot(
        self, name: str, endpoint: str | None = None, *, timeout_s: float | None = None
    ) -> None:
        """Raises NotFound."""
        await self._ask("DELETE", f"/v1/snapshots/{name}", endpoint, self._deadline(timeout_s))

    # --- tokens -------------------------------------------------------------------------------------

    async def create_token(
        self,
        name: str,
        grants: Iterable[tuple[str, str]],
        *,
        rate: int = 0,
        expires_in_s: int = 0,
        timeout_s: float | None = None,
    ) -> Json:
        """`grants` are (role, prefix) with the roles read, write and admin. `token` in the answer is the
        token, which nobody can ask for again. Sent once: where it raises OutcomeUnknown, `tokens` says
        whether there is one more."""
        body = {
            "name": name,
            "grants": [{"role": role, "prefix": prefix} for role, prefix in grants],
            "rate": rate,
            "expires_in_seconds": expires_in_s,
        }
        headers = {"Content-Type": "application/json"}
        encoded = msgspec.json.encode(body)
        deadline = self._deadline(timeout_s)
        return (await self._write_under({}, "POST", "/v1/tokens", {}, encoded, headers, deadline)).json()

    async def tokens(self, *, timeout_s: float | None = None) -> Sequence[Json]:
        """Those that the caller's own administers, without their secrets."""
        return tuple((await self._read("/v1/tokens", {}, timeout_s=timeout_s)).json().get("tokens", ()))

    async def revoke_token(self, name: str, *, timeout_s: float | None = None) -> int:
        """By its id. The revision at which it was revoked. Raises NotFound."""
        path = f"/v1/tokens/{quote(name, safe='')}"
        return _integer((await self._write("DELETE", path, {}, timeout_s=timeout_s)).json(), "revision")

    async def _operation(self, path: str, endpoint: str | None, timeout_s: float | None) -> Json:
        deadline = self._deadline(timeout_s)
        answer = await self._ask("POST", path, endpoint, deadline)
        location = URL(answer.headers.get("location", ""))
        # Operations are the node's own: the one that Location names, or else the one that answered.
        node = str(location.origin()) if location.absolute else endpoint or self._node()
        where = location.path
        document = answer.json()
        while document.get("state") == "running":
            await asyncio.sleep(OPERATION_POLL_SECONDS)
            document = (await self._ask("GET", where, node, deadline)).json()
        if document.get("state") == "failed":
            detail = str(document.get("detail", ""))
            raise Unavailable(Problem(0, "snapshot_failed", detail, "not_applied", retryable=True))
        result = document.get("result")
        return result if isinstance(result, dict) else document

    async def _ask(self, method: str, path: str, only: str | None, deadline: float) -> Answer:
        """What may be asked any number of times."""
        course = Course(write=False, keyed=False, random=self._random)
        return await self._run(
            course, method, path, {}, b"", {}, deadline=deadline, only=only, to_leader=False
        )

    async def _ask_leader(self, method: str, path: str, body: bytes, deadline: float) -> Answer:
        """As `_ask`, of the leader."""
        course = Course(write=False, keyed=False, random=self._random)
        headers = {"Content-Type": "application/json"}
        return await self._run(course, method, path, {}, body, headers, deadline=deadline, to_leader=True)

    # --- requests and their attempts ----------------------------------------------------------------

    async def _read(
        self,
        path: str,
        query: Query,
        *,
        headers: Mapping[str, str] | None = None,
        only: str | None = None,
        timeout_s: float | None,
    ) -> Answer:
        course = Course(write=False, keyed=False, random=self._random, patient=self._patient)
        return await self._run(
            course,
            "GET",
            path,
            query,
            b"",
            headers or {},
            deadline=self._deadline(timeout_s),
            only=only,
            to_leader=False,
        )

    async def _write(
        self,
        method: str,
        path: str,
        query: Query,
        *,
        key: str | None = None,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """A write of that key, or of several (None)."""
        deadline = self._deadline(timeout_s)
        with self._writing(key):
            if idempotency_key is not None or not self._idempotent:
                keyed = {"Idempotency-Key": idempotency_key} if idempotency_key is not None else {}
                return await self._write_under(keyed, method, path, query, body, headers or {}, deadline)
            async with self.numbered(deadline) as number:
                keyed = {"Idempotency-Key": self.key_of(number)}
                return await self._write_under(keyed, method, path, query, body, headers or {}, deadline)

    def _writing(self, key: str | None) -> AbstractContextManager[None]:
        return nullcontext() if self._cache is None else self._cache.writing(key)

    async def _write_under(
        self,
        keyed: Mapping[str, str],
        method: str,
        path: str,
        query: Query,
        body: bytes,
        headers: Mapping[str, str],
        deadline: float,
    ) -> Answer:
        course = Course(write=True, keyed=bool(keyed), random=self._random)
        return await self._run(
            course, method, path, query, body, {**headers, **keyed}, deadline=deadline, to_leader=True
        )

    def key_of(self, number: int) -> str:
        return f"{self.client_id}/{number}"

    @asynccontextmanager
    async def numbered(self, deadline: float) -> AsyncIterator[int]:
        """A number for an idempotency key, for as long as its write is on its way."""
        course = Course(write=True, keyed=True, random=self._random)
        try:
            async with asyncio.timeout_at(deadline), self._number_freed:
                await self._number_freed.wait_for(self._numbers.free)
                number = self._numbers.take()
        except TimeoutError:
            raise course.out_of_time() from None
        try:
            yield number
        finally:
            self._numbers.done(number)
            async with self._number_freed:
                self._number_freed.notify_all()

    async def _run(
        self,
        course: Course,
        method: str,
        path: str,
        query: Query,
        body: bytes,
        headers: Mapping[str, str],
        *,
        deadline: float,
        to_leader: bool,
        only: str | None = None,
    ) -> Answer:
        """The request's attempts, until its course ends or its deadline is there."""
        loop = asyncio.get_running_loop()
        patience_s = ATTEMPT_SECONDS_FIRST if course.repeatable else TIMEOUT_SECONDS_MAX
        origin = only or self.route(to_leader=to_leader)
        while True:
            left_s = deadline - loop.time()
            if left_s <= 0:
                raise course.out_of_time()
            url = url_of(origin, path, query)
            session = self.session(fresh=not course.repeatable)
            answer, step = await self._attempt(
                course, session, method, url, body, headers, min(left_s, patience_s)
            )
            if answer is not None:
                self._learn(answer)
            match step:
                case Accept():
                    assert answer is not None
                    return answer
                case Fail(error):
                    raise error
                case Follow(target):
                    self._leader = origin = target
                case Again(delay_s):
                    patience_s = min(2 * patience_s, ATTEMPT_SECONDS_MAX) if answer is None else patience_s
                    self.forget(origin)
                    origin = only or self._node()
                    await asyncio.sleep(min(delay_s, max(0.0, deadline - loop.time())))

    async def _attempt(
        self,
        course: Course,
        session: aiohttp.ClientSession,
        method: str,
        url: URL,
        body: bytes,
        headers: Mapping[str, str],
        patience_s: float,
    ) -> tuple[Answer | None, Step]:
        timeout = aiohttp.ClientTimeout(total=patience_s, sock_connect=min(CONNECT_SECONDS, patience_s))
        link = _Link()
        try:
            async with session.request(
                method,
                url,
                data=body or None,
                headers=headers,
                allow_redirects=False,
                timeout=timeout,
                trace_request_ctx=link,
            ) as response:
                answer = answer_of(response, await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._not_answered(url, link)
            return None, link.failed(course, f"{method} {url.origin()}", error)
        return answer, course.answered(answer)

    async def open_stream(
        self,
        course: Course,
        method: str,
        path: str,
        query: Query,
        body: AsyncIterator[bytes] | None,
        *,
        origin: str,
    ) -> tuple[aiohttp.ClientResponse | None, Step]:
        """One attempt at a request whose body, or whose answer, has no bound. With Accept comes the response,
        open; the caller closes it."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
        url = url_of(origin, path, query)
        headers = {"Content-Type": "application/x-ndjson"} if body is not None else {}
        link = _Link()
        try:
            async with asyncio.timeout(STREAM_OPEN_SECONDS):
                response = await self.session(fresh=True).request(
                    method,
                    url,
                    data=body,
                    headers=headers,
                    allow_redirects=False,
                    timeout=timeout,
                    trace_request_ctx=link,
                )
                if response.status < 300:
                    return response, Accept()
                async with response:
                    answer = answer_of(response, await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._not_answered(url, link)
            return None, link.failed(course, f"{method} {url.origin()}", error)
        self._learn(answer)
        return None, course.answered(answer)

    # --- where to ask -------------------------------------------------------------------------------

    def route(self, *, to_leader: bool) -> str:
        """The node to ask now."""
        return (self._leader if to_leader else None) or self._node()

    def led_by(self, origin: str) -> None:
        self._leader = origin

    def _node(self) -> str:
        return self.endpoints[self._at % len(self.endpoints)]

    def _learn(self, answer: Answer) -> None:
        leader = origin_of(answer.headers.get("raftkv-leader", ""))
        if leader is not None and self._avoided.get(leader, 0) <= asyncio.get_running_loop().time():
            self._leader = leader

    def _not_answered(self, url: URL, link: _Link) -> None:
        """A leader that is none of our endpoints and can't be connected to is left alone for a while: nodes
        that advertise such addresses pass writes on."""
        origin = origin_of(str(url))
        if origin is not None and not link.made and origin not in self.endpoints:
            self._avoided[origin] = asyncio.get_running_loop().time() + LEADER_AVOIDED_SECONDS

    def forget(self, origin: str) -> None:
        """This node could not help: the next attempt goes to another, and no longer to it as the leader."""
        if self._leader == origin:
            self._leader = None
        if self._node() == origin:
            self._at += 1

    @property
    def leader(self) -> str | None:
        """The leader's URL as last heard."""
        return self._leader

    def session(self, *, fresh: bool = False) -> aiohttp.ClientSession:
        """`fresh`: each request on a connection of its own. A kept-alive one may have been closed by the
        node a moment ago, which for a write without a key would be an outcome unknown for nothing."""
        if fresh not in self._sessions:
            connector = _Connector(
                limit=CONNECTIONS_MAX, force_close=fresh, ssl=True if self._tls is None else self._tls
            )
            session = aiohttp.ClientSession(
                connector=connector,
                headers={"User-Agent": "raftkv-python", **self._headers},
                skip_auto_headers=("Content-Type",),
                auto_decompress=True,
                cookie_jar=aiohttp.DummyCookieJar(),
                trace_configs=[_link_tracing()],
            )
            session._retry_connection = False
            self._sessions[fresh] = session
        return self._sessions[fresh]

    def _deadline(self, timeout_s: float | None) -> float:
        allowed_s = self._timeout_s if timeout_s is None else _checked_timeout(timeout_s)
        return asyncio.get_running_loop().time() + allowed_s


class _Connector(aiohttp.TCPConnector):
    """Knows every connection it made until that one is closed.

    aiohttp's `close` waits for those that it still has. One that it let go before (an answer cut short, a
    session of `fresh` connections) is by then in TLS's closing handshake, for as long as the node takes over
    its part of it; a loop that is closed meanwhile leaves the socket open behind it.
    """

    def __init__(self, *, limit: int, force_close: bool, ssl: ssl.SSLContext | bool) -> None:
        super().__init__(limit=limit, force_close=force_close, ssl=ssl)
        self._made: WeakKeyDictionary[ResponseHandler, asyncio.Transport] = WeakKeyDictionary()

    async def _create_connection(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> ResponseHandler:
        protocol = await super()._create_connection(req, traces, timeout)
        if protocol.transport is not None:
            self._made[protocol] = protocol.transport
        return protocol

    async def abort(self) -> None:
        """Closes what is still open at once, and returns when all is closed."""
        closing = []
        for protocol, transport in list(self._made.items()):
            # asyncio's transport of TLS has nothing left to abort where it was closed after it was lost.
            with suppress(AttributeError):
                transport.abort()
            if protocol.closed is not None:
                closing.append(protocol.closed)
        await asyncio.gather(*closing, return_exceptions=True)


class _Link:
    """Whether one attempt got as far as a connection. Up to there nothing of it can have reached a node,
    whatever ended it: a refused connection, or the deadline while one was being made."""

    def __init__(self) -> None:
        self.made = False

    def failed(self, course: Course, what: str, error: Exception) -> Step:
        detail = f"{what}: {_reason(error)}"
        return course.lost(detail) if self.made else course.not_sent(detail)


def _reason(error: Exception) -> str:
    """In the words of the system's errors where it is one of those: aiohttp's add settings of its own."""
    cause: Exception = error
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        if isinstance(cause, ConnectionError) and cause.errno:
            return os.strerror(cause.errno).lower()
    return str(cause) or "no answer in time"


def _link_tracing() -> aiohttp.TraceConfig:
    async def made(session: aiohttp.ClientSession, context: SimpleNamespace, parameters: object) -> None:
        link = context.trace_request_ctx
        if isinstance(link, _Link):
            link.made = True

    tracing = aiohttp.TraceConfig()
    tracing.on_connection_create_end.append(made)
    tracing.on_connection_reuseconn.append(made)
    return tracing


# --- parts of requests and answers ------------------------------------------------------------------------


def _checked_token(token: str) -> str:
    """What goes into a header as it stands. Never says what it was."""
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"the token ({len(token)} characters) is not printable ASCII without spaces")
    return token


def parse_endpoints(endpoints: str | Iterable[str], scheme: str = "http") -> tuple[str, ...]:
    """URLs, or bare HOST:PORT, which get the scheme; one text may name several with commas. Raises
    ValueError."""
    texts = endpoints.split(",") if isinstance(endpoints, str) else endpoints
    found = []
    for text in (text.strip() for text in texts):
        url = text if "://" in text else f"{scheme}://{text}"
        origin = origin_of(url)
        if origin is None or url.rstrip("/") != origin:
            raise ValueError(f"{text!r} is no endpoint; allowed: http(s)://HOST:PORT, several with commas")
        found.append(origin)
    if not found:
        raise ValueError("no endpoint; example: http://127.0.0.1:8400")
    return tuple(found)


def url_of(origin: str, path: str, query: Query) -> URL:
    tail = "?" + urlencode(query, quote_via=quote) if query else ""
    return URL(origin + path + tail, encoded=True)


def answer_of(response: aiohttp.ClientResponse, body: bytes) -> Answer:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status, headers, body)


def _at_key(key: str, query: Query) -> tuple[str, Query]:
    """The path and the query that name the key."""
    if _PLAIN_KEY.fullmatch(key):
        return f"/v1/kv/{key}", query
    return "/v1/kv", {"key": key, **query}


def _clock() -> float:
    """Seconds that go on while the machine sleeps, where it can tell: an age must not stop then."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def _value_of(answer: Answer) -> Value:
    revision = revision_of(answer.headers)
    if revision is None or answer.status != 200:
        raise not_a_raftkv(f"status {answer.status}, or no ETag, where a value was asked for")
    return Value(answer.body, answer.headers.get("content-type", ""), revision)


def _freshness(stale: bool, min_revision: int | None, max_staleness_ms: int | None) -> dict[str, str | int]:
    query: dict[str, str | int] = {"consistency": "stale"} if stale else {}
    if min_revision is not None:
        query["min_revision"] = min_revision
    if max_staleness_ms is not None:
        query["max_staleness_ms"] = max_staleness_ms
    return query


def _conditions(
    query: dict[str, str | int], if_revision: int | None, if_exists: bool | None
) -> dict[str, str]:
    """Puts `if_revision` into the query and returns the header that `if_exists` is."""
    if if_revision is not None:
        query["if_revision"] = if_revision
    if if_exists is None:
        return {}
    return {"If-Match": "*"} if if_exists else {"If-None-Match": "*"}


def _bytes(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else value


def _integer(document: Json, name: str) -> int:
    value = document.get(name)
    if not isinstance(value, int):
        raise not_a_raftkv(f"an answer without a whole number {name}")
    return value


def _previous(document: Json) -> Item | None:
    previous = document.get("prev")
    return item_of(previous) if isinstance(previous, dict) else None


def _deleted(answer: Answer) -> Deleted:
    document = answer.json()
    return Deleted(
        _integer(document, "revision"),
        _integer(document, "deleted"),
        bool(document.get("more", False)),
        _previous(document),
        answer.replayed,
    )


def _checked_timeout(timeout_s: float) -> float:
    if not 0 < timeout_s <= TIMEOUT_SECONDS_MAX:
        raise ValueError(
            f"timeout_s {timeout_s}: allowed is up to {TIMEOUT_SECONDS_MAX:g}, less than the time for which "
            "the outcome under an idempotency key is kept"
        )
    return timeout_s
