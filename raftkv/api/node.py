"""Handlers that tell of the node itself: status, limits, members, health, snapshots, metrics, documents.

All but `/readyz` answer from what the node knows at once. Knows no aiohttp.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import re
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import msgspec

from raftkv import metrics
from raftkv.api.alarms import alarms
from raftkv.api.calls import Call, Streamed
from raftkv.api.errors import NoSuchOperation, problem
from raftkv.api.handlers import no_body
from raftkv.api.limits import limits_in_force
from raftkv.api.openapi import document
from raftkv.api.samples import samples
from raftkv.api.wire import Answer, decoded, encode_json, json_answer, shown
from raftkv.errors import BadRequest, NotReady, Overloaded, RaftkvError
from raftkv.metrics import Metrics
from raftkv.model import DEFAULT_CONTENT_TYPE
from raftkv.service import KVService
from raftkv.snapshot.codec import Manifest, encode_manifest
from raftkv.tls.credentials import Security

READY_TIMEOUT_S = 1.0  # what probes wait for by default
OPERATIONS_MAX = 100  # of those that have ended, how many are remembered
CHUNKS_SENT_MAX = 4  # at once: each is some 8 MiB in memory until its reader has taken it
PIECE_BYTES = 256 << 10  # of a chunk, so that a slow reader fills no buffer beside it
_NUMBER = re.compile(rb"[0-9]{1,9}")

ACKNOWLEDGED_MEANS = "fsynced on a majority of the members, the leader among them"

try:
    VERSION = version("raftkv")
except PackageNotFoundError:  # run from a checkout that is not installed
    VERSION = "0.0.0"


# --- what is known ---------------------------------------------------------------------------------------


async def limits(call: Call) -> Answer:
    return json_answer(200, {"limits": limits_in_force(call.limits)})


async def cluster(call: Call) -> Answer:
    known = call.service.consensus.status()
    voters = [peer for peer in known.peers if peer.role != "learner"]
    reachable = sum(1 for peer in voters if peer.reachable)
    quorum = len(voters) // 2 + 1
    body = {
        "cluster_id": known.cluster_id,
        "term": known.term,
        "leader": known.leader,
        "quorum": quorum,
        "voters": len(voters),
        "reachable": reachable,
        "failures_tolerated": max(0, reachable - quorum),
        "members": [msgspec.to_builtins(peer) for peer in known.peers],
    }
    return json_answer(200, body)


# --- health ----------------------------------------------------------------------------------------------


async def livez(call: Call) -> Answer:
    return healthy(call, [("loop", "it answers")])


async def readyz(call: Call) -> Answer:
    timeout_s = call.query.get("timeout", READY_TIMEOUT_S)
    try:
        await call.service.check_ready(timeout_s=timeout_s)
    except RaftkvError as error:
        return unhealthy(call, error, "first_token" if call.service.lacks_token else "linearizable_read")
    return healthy(call, [("linearizable_read", "it succeeded"), ("draining", "no")])


async def startupz(call: Call) -> Answer:
    known = call.service.consensus.status()
    if not known.started:
        return unhealthy(call, NotReady(known.ready_reason or "the node is still starting"), "started")
    return healthy(call, [("started", "recovered, and a member of its cluster")])


def healthy(call: Call, checks: list[tuple[str, str]]) -> Answer:
    body: dict[str, Any] = {"status": "ok"}
    if call.query.get("verbose", False):
        body["checks"] = [{"name": name, "ok": True, "detail": detail} for name, detail in checks]
    return Answer(200, encode_json(body), headers=(("Cache-Control", "no-store"),))


def unhealthy(call: Call, error: RaftkvError, check: str) -> Answer:
    """Says which check failed, where that was asked for; else the problem is raised like any other."""
    if not call.query.get("verbose", False):
        raise error
    made = msgspec.to_builtins(
        problem(
            error,
            request_id=call.request_id,
            leader_url=call.service.leadership.leader_url,
            write=False,
        )
    )
    made["checks"] = [{"name": check, "ok": False, "detail": str(error)}]
    return Answer(made["status"], encode_json(made), "application/problem+json", (("Retry-After", "1"),))


# --- snapshots and operations ----------------------------------------------------------------------------


@dataclass(slots=True)
class Operation:
    id: str
    kind: str
    state: Literal["running", "done", "failed"] = "running"
    progress: float = 0.0
    result: Any = None
    detail: str = ""


@dataclass(slots=True)
class Operations:
    """What takes longer than a request. One of a kind at a time: who asks again is told of the one there."""

    by_id: dict[str, Operation] = field(default_factory=dict)
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def start(self, kind: str, work: Coroutine[Any, Any, Any]) -> Operation:
        running = next(
            (each for each in self.by_id.values() if each.kind == kind and each.state == "running"), None
        )
        if running is not None:
            work.close()
            return running
        operation = Operation(f"{kind}-{next(self.numbers)}", kind)
        self._forget_old()
        self.by_id[operation.id] = operation
        self.tasks[operation.id] = asyncio.create_task(self._run(operation, work))
        return operation

    async def _run(self, operation: Operation, work: Coroutine[Any, Any, Any]) -> None:
        try:
            operation.result = await work
        except RaftkvError as error:
            operation.state, operation.detail = "failed", str(error)
        except asyncio.CancelledError:
            operation.state, operation.detail = "failed", "the node shut down"
            raise
        else:
            operation.state, operation.progress = "done", 1.0
        finally:
            if operation.state == "running":
                operation.state, operation.detail = "failed", "internal error"
            self.tasks.pop(operation.id, None)

    def _forget_old(self) -> None:
        ended = [each.id for each in self.by_id.values() if each.state != "running"]
        for old in ended[: max(0, len(ended) - OPERATIONS_MAX + 1)]:
            del self.by_id[old]

    async def close(self) -> None:
        tasks = list(self.tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def manifest_body(manifest: Manifest) -> dict[str, Any]:
    """What a client sees of a snapshot's manifest: not its chunks, nor the membership."""
    made_at = datetime.fromtimestamp(manifest.time_ms / 1000, UTC)
    return {
        "id": manifest.id,
        "index": manifest.index,
        "term": manifest.term,
        "revision": manifest.revision,
        "time": made_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "bytes": manifest.bytes,
        "keys": manifest.keys,
        "sha256": manifest.sha256,
        "state_hash": manifest.state_hash,
    }


def _id_of(call: Call) -> str:
    assert call.rest is not None
    return decoded(call.rest, "path: id").decode()


def _chunk_of(call: Call) -> tuple[str, int]:
    assert call.rest is not None
    name, _, number = call.rest.partition(b"/")
    if not _NUMBER.fullmatch(number):
        raise BadRequest(f"path: {shown(number)} is no number of a chunk; allowed are 0, 1, 2 and so on")
    return decoded(name, "path: id").decode(), int(number)


def _octets(data: bytes, sha256: str) -> Answer:
    return Answer(200, data, DEFAULT_CONTENT_TYPE, (("ETag", f'"{sha256}"'),))


class NodeHandlers:
    """The handlers that need more than the call."""

    def __init__(
        self, service: KVService, counted: Metrics, operations: Operations, security: Security
    ) -> None:
        self._service = service
        self._security = security
        self._metrics = counted
        self._operations = operations
        self._chunks_sent = 0
        counted.source(lambda: samples(service, VERSION, security))
        self._document = encode_json(document(VERSION, tokens=security.auth == "tokens"))
        self._page = resources.files("raftkv.api").joinpath("static/docs.html").read_bytes()

    async def status(self, call: Call) -> Answer:
        service = self._service
        known = service.consensus.status()
        machine = service.machine
        room, refusing = service.room, service.room.refusing(machine.bytes)
        body = msgspec.to_builtins(known)
        body |= {
            "time": time.time(),
            "alarms": msgspec.to_builtins(alarms(known, machine.bytes, self._security, refusing)),
            "room": {
                "refusing": list(refusing),
                "quota_bytes": room.quota_bytes,
                "disk_free_bytes": room.reading.disk_free,
                "disk_free_bytes_min": room.disk_free_bytes_min,
                "memory_available_bytes": room.reading.memory_available,
                "memory_available_bytes_min": room.memory_available_bytes_min,
                "memory_resident_bytes": room.reading.memory_resident,
            },
            "revision": machine.revision,
            "keys": machine.keys,
            "bytes": machine.bytes,
            "version": VERSION,
            "draining": service.retiring or known.draining,
            "acknowledged_means": ACKNOWLEDGED_MEANS,
            "security": self._security.status(),
        }
        return json_answer(200, body)

    async def list_snapshots(self, call: Call) -> Answer:
        manifests = [manifest_body(each) for each in await self._service.consensus.snapshots()]
        manifests.sort(key=lambda each: each.get("index", 0), reverse=True)
        return json_answer(200, {"snapshots": manifests})

    async def create_snapshot(self, call: Call) -> Answer:
        await no_body(call)
        base = ""
        if self._service.consensus.publishes:
            self._service.check_leads()  # who follows passes it on, so the operation may be another node's
            base = self._service.leadership.leader_url or ""
        return self._started("snapshot", self._create(), base)

    async def _create(self) -> dict[str, Any]:
        return manifest_body(await self._service.consensus.create_snapshot())

    async def get_snapshot(self, call: Call) -> Answer:
        manifest = await self._service.consensus.snapshot(_id_of(call))
        body = manifest_body(manifest)
        body |= {
            "cluster": manifest.cluster,
            "members": [member.name for member in manifest.membership.members],
            "data_bytes": manifest.data_bytes,
            "raw_bytes": manifest.raw_bytes,
            "idempotency_records": manifest.idempotency_records,
            "chunks": len(manifest.chunks),
        }
        return json_answer(200, body)

    async def get_snapshot_manifest(self, call: Call) -> Answer:
        data = encode_manifest(await self._service.consensus.snapshot(_id_of(call)))
        return _octets(data, hashlib.sha256(data).hexdigest())

    async def get_snapshot_chunk(self, call: Call) -> Streamed:
        name, number = _chunk_of(call)
        if self._chunks_sent >= CHUNKS_SENT_MAX:
            raise Overloaded(f"{self._chunks_sent} chunks of snapshots are on their way; try again shortly")
        chunk, data = await self._service.consensus.snapshot_chunk(name, number)
        return Streamed(_octets(b"", chunk.sha256), self._pieces(data))

    async def _pieces(self, data: bytes) -> AsyncIterator[bytes]:
        """Counted from the first piece on: of a HEAD none is asked for. Those that are read meanwhile come on
        top, and the consensus bounds them."""
        self._chunks_sent += 1
        try:
            for at in range(0, len(data), PIECE_BYTES):
                yield data[at : at + PIECE_BYTES]
        finally:
            self._chunks_sent -= 1

    async def delete_snapshot(self, call: Call) -> Answer:
        name = _id_of(call)
        await self._service.consensus.delete_snapshot(name)
        return json_answer(200, {"deleted": name})

    async def verify_snapshot(self, call: Call) -> Answer:
        await no_body(call)
        name = _id_of(call)
        await self._service.consensus.snapshot(name)  # 404 at once rather than an operation that fails
        return self._started(f"verify-{name}", self._verify(name))

    async def _verify(self, name: str) -> dict[str, Any]:
        return manifest_body(await self._service.consensus.verify_snapshot(name)) | {"verified": True}

    def _started(self, kind: str, work: Coroutine[Any, Any, Any], base: str = "") -> Answer:
        operation = self._operations.start(kind, work)
        location = f"{base}/v1/operations/{operation.id}"
        return json_answer(202, msgspec.to_builtins(operation), ("Location", location))

    async def get_operation(self, call: Call) -> Answer:
        name = _id_of(call)
        operation = self._operations.by_id.get(name)
        if operation is None:
            raise NoSuchOperation(
                f"no operation {shown(name)} on this node; the last {OPERATIONS_MAX} are kept"
            )
        return json_answer(200, msgspec.to_builtins(operation))

    async def metrics(self, call: Call) -> Answer:
        return Answer(200, self._metrics.text(), metrics.CONTENT_TYPE)

    async def openapi(self, call: Call) -> Answer:
        return Answer(200, self._document)

    async def docs(self, call: Call) -> Answer:
        policy = (
            "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"
        )
        return Answer(200, self._page, "text/html; charset=utf-8", (("Content-Security-Policy", policy),))
