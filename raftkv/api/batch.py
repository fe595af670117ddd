"""`/v1/batch`: lines in, an answer a line out, in the same order, pipelined. Knows no aiohttp.

Lines are proposed in their order, without waiting for one another, up to a bound on their number and bytes;
a `get` waits for the lines before it, and those after it for the `get`, so that it sees the former and not
the latter. When the bound is reached, or the client does not take its answers, no more of the body is read:
neither side ever holds the whole.

A line answers with the status, code and outcome of the same single call. A key for the whole batch in
`Idempotency-Key` becomes one for each line that has none.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator
from typing import Any

from raftkv.api.bodies import Line, parse_line
from raftkv.api.calls import Call, Streamed
from raftkv.api.errors import InternalErrorOnWrite, KeyNotFound, problem, refusal, status_of
from raftkv.api.handlers import refuse_media_type
from raftkv.api.wire import (
    JSON,
    NDJSON,
    Answer,
    encode_json,
    envelope,
    idempotency_key_of,
    result_body,
    shown,
)
from raftkv.errors import BodyTooLarge, RaftkvError
from raftkv.kv.command import Append, Delete, Get, Increment, Put
from raftkv.model import Appended, Deleted, Incremented, Written
from raftkv.service import LINEARIZABLE, keyed

log = logging.getLogger("raftkv.api")

BYTES_IN_FLIGHT_MAX = 8 << 20  # of one batch, beside its number of lines
OUT_BYTES = 16 << 10  # answers are handed out in pieces of about this size


async def batch(call: Call) -> Streamed:
    refuse_media_type(call, NDJSON, JSON, "application/jsonl", "application/octet-stream", "text/plain")
    idempotency_key_of(call.headers)
    call.service.check_leads()
    return Streamed(Answer(200, content_type=NDJSON), Batch(call).answers())


class TooLongLine:
    """In the place of a line that was passed over because it was longer than allowed."""


class Batch:
    """One reader task takes lines and starts them; the generator hands out their answers in order."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._key = idempotency_key_of(call.headers)
        self._number = 0
        self._bytes = 0
        self._room = asyncio.Event()
        self._pending: set[asyncio.Task[bytes]] = set()
        self._queue: asyncio.Queue[asyncio.Task[bytes] | RaftkvError | None] = asyncio.Queue(
            call.limits.batch_in_flight_max
        )

    async def answers(self) -> AsyncIterator[bytes]:
        """Raises nothing for what is wrong with a line; what is wrong with the body ends the stream with a
        last line that says so, and the connection."""
        out = bytearray()
        failure: RaftkvError | None = None
        gone = False
        try:
            async with asyncio.TaskGroup() as group:
                reader = group.create_task(self._read(group))
                while True:
                    if out and (len(out) >= OUT_BYTES or self._queue.empty()):
                        yield bytes(out)
                        out.clear()
                    answer = await self._queue.get()
                    if answer is None:
                        break
                    if isinstance(answer, RaftkvError):
                        out += self._refused(answer)
                        failure = answer
                        break
                    if out and not answer.done():
                        yield bytes(out)
                        out.clear()
                    out += await answer
                await reader
        except* GeneratorExit:  # closed at a yield: the client is gone, and the group has ended its tasks
            gone = True
        if gone:
            return
        if out:
            yield bytes(out)
        if failure is not None:
            raise failure

    async def _read(self, group: asyncio.TaskGroup) -> None:
        last: RaftkvError | None = None
        try:
            async for line in lines(self._call.body.pieces(), self._call.limits.batch_line_bytes_max):
                await self._start(group, line)
        except RaftkvError as error:
            last = error
        except ConnectionError:
            pass  # nobody is left to tell; what is on its way goes on, and writing the answers ends this
        await self._queue.put(last)

    async def _start(self, group: asyncio.TaskGroup, line: bytes | TooLongLine) -> None:
        self._number += 1
        size = 0 if isinstance(line, TooLongLine) else len(line)
        while self._pending and self._bytes + size > BYTES_IN_FLIGHT_MAX:
            self._room.clear()
            await self._room.wait()
        alone = False
        try:
            parsed = self._parse(line)
        except RaftkvError as error:
            work = self._done(self._refused(error))
        else:
            alone = isinstance(parsed.operation, Get)
            if alone and self._pending:
                await asyncio.wait(self._pending)
            work = self._answer(parsed, size, self._number)
        task = group.create_task(work)
        self._bytes += size
        self._pending.add(task)
        task.add_done_callback(lambda task: self._ended(task, size))
        await self._queue.put(task)
        if alone:
            await asyncio.wait((task,))

    def _ended(self, task: asyncio.Task[bytes], size: int) -> None:
        self._pending.discard(task)
        self._bytes -= size
        self._room.set()

    def _parse(self, line: bytes | TooLongLine) -> Line:
        limits = self._call.limits
        if isinstance(line, TooLongLine):
            flag = limits.flag("batch_line_bytes_max")
            raise BodyTooLarge(
                f"line: it has more than {limits.batch_line_bytes_max} bytes ({flag})",
                limit=limits.batch_line_bytes_max,
                size=None,
                flag=flag,
            )
        return parse_line(line, limits)

    async def _done(self, answer: bytes) -> bytes:
        return answer

    async def _answer(self, line: Line, size: int, number: int) -> bytes:
        try:
            match line.operation:
                case None:
                    return _line({"status": 200})
                case Get(key=key):
                    return await self._get(key)
                case operation:
                    return await self._write(operation, line, size, number)
        except RaftkvError as error:
            return self._refused(error)
        except Exception as error:  # the edge, as for a single call
            request_id = self._call.request_id
            log.error(
                "internal_error request_id=%s route=/v1/batch line=%d", request_id, number, exc_info=error
            )
            return self._refused(
                InternalErrorOnWrite(f"something went wrong on this node; its log has it under {request_id}")
            )

    async def _get(self, key: bytes) -> bytes:
        service = self._call.service
        await service.reach(LINEARIZABLE, timeout_s=self._call.timeout_s)
        item = service.machine.get(key)
        if item is None:
            raise KeyNotFound(f"no key {shown(key)} at revision {service.machine.revision}")
        return _line({"status": 200, **envelope(item)})

    async def _write(
        self, operation: Put | Delete | Append | Increment, line: Line, size: int, number: int
    ) -> bytes:
        key = line.idempotency_key or self._key_of_line(number)
        command = operation if key is None else keyed(operation, key)
        applied = await self._call.service.write(command, timeout_s=self._call.timeout_s, size_bytes=size)
        replayed = {"replayed": True} if applied.replayed else {}
        error = refusal(applied.result)
        if error is not None:
            return self._refused(error, **replayed)
        result = applied.result
        assert isinstance(result, Written | Deleted | Appended | Incremented)
        status = 201 if isinstance(result, Written) and result.created else 200
        body = result_body(result, prev=line.prev)
        assert body is not None
        return _line({"status": status, **body, **replayed})

    def _key_of_line(self, number: int) -> bytes | None:
        if self._key is None:
            return None
        return (
            b"batch-" + hashlib.blake2b(b"%d %b" % (number, self._key), digest_size=16).hexdigest().encode()
        )

    def _refused(self, error: RaftkvError, **more: Any) -> bytes:
        made = problem(
            error,
            request_id=self._call.request_id,
            leader_url=self._call.service.leadership.leader_url,
            write=True,
        )
        told: dict[str, Any] = {
            "status": status_of(error).status,
            "code": made.code,
            "outcome": made.outcome,
            "retryable": made.retryable,
            "detail": made.detail,
        }
        for name in ("limit", "size", "flag", "current"):
            if getattr(made, name) is not None:
                told[name] = getattr(made, name)
        return _line({**told, **more})


def _line(body: dict[str, Any]) -> bytes:
    return encode_json(body) + b"\n"


async def lines(pieces: AsyncIterator[bytes], line_bytes_max: int) -> AsyncIterator[bytes | TooLongLine]:
    """The lines of a body that are not blank, the last with or without its line end."""
    tail = b""
    too_long = False
    async for piece in pieces:
        *whole, rest = piece.split(b"\n")
        if whole:
            first = tail + whole[0]
            tail = b""
            for line in (first, *whole[1:]):
                if too_long or len(line) > line_bytes_max:
                    too_long = False
                    yield TooLongLine()
                elif line.strip():
                    yield line
        tail += rest
        if too_long or len(tail) > line_bytes_max:
            too_long = True
            tail = b""
    if too_long:
        yield TooLongLine()
    elif tail.strip():
        yield tail
