"""`/v1/batch`: lines in, an answer a line out, in the same order, pipelined. Knows no aiohttp.

Lines are proposed in their order, without waiting for one another, up to a bound on their number and bytes;
a `get` waits for the lines before it, and those after it for the `get`, so that it sees the former and not
the latter. When the bound is reached, or the client does not take its answers, no more of the body is read:
neither side ever holds the whole.

What came in one piece of the body is parsed together, admitted together and proposed together, since a line
by itself would cost as much as a request without its head. It is not one write for all that: a line answers
with the status, code and outcome of the same single call, and what is wrong with one concerns no other.
A key for the whole batch in `Idempotency-Key` becomes one for each line that has none.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from raftkv.api.bodies import Line, parse_lines
from raftkv.api.calls import Call, Streamed
from raftkv.api.errors import InternalErrorOnWrite, KeyNotFound, problem, refusal, status_of
from raftkv.api.handlers import refuse_media_type
from raftkv.api.limits import Limits
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
from raftkv.model import Appended, Applied, Deleted, Incremented, Written
from raftkv.service import LINEARIZABLE, keyed

log = logging.getLogger("raftkv.api")

BYTES_IN_FLIGHT_MAX = 8 << 20  # of one batch, beside its number of lines; answers count as well
OUT_BYTES = 16 << 10  # answers are handed out in pieces of about this size
# Lines that are handed over together: enough that what is done once for all of them vanishes, little enough
# that other work gets its turn in between, and that several parts are on their way at once.
PART_LINES_MAX = 256
PART_BYTES_MAX = 256 << 10

Write = Put | Delete | Append | Increment


async def batch(call: Call) -> Streamed:
    refuse_media_type(call, NDJSON, JSON, "application/jsonl", "application/octet-stream", "text/plain")
    idempotency_key_of(call.headers)
    call.service.check_leads()
    return Streamed(Answer(200, content_type=NDJSON), Batch(call).answers())


class TooLongLine:
    """In the place of a line that was passed over because it was longer than allowed."""

    def __len__(self) -> int:
        return 0


class Part:
    """Lines that were handed over together, until their answers were handed out. `size` is what they hold
    in memory: their own bytes, then those of their answers."""

    __slots__ = ("answers", "first", "lines", "size")

    def __init__(self, lines: Sequence[Line], first: int, size: int) -> None:
        self.lines = lines
        self.first = first  # the number of the first of them, from 1
        self.size = size
        self.answers: bytes | None = None


class Batch:
    """A reader task hands lines over, callbacks bring their answers, and the generator hands those out in
    order."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._service = call.service
        self._key = idempotency_key_of(call.headers)
        self._lines_max = call.limits.batch_in_flight_max
        self._number = 0  # of lines that came so far
        self._parts: deque[Part] = deque()  # in order; the first ones may have their answers already
        self._lines = 0  # of all parts
        self._bytes = 0
        self._unanswered = 0  # parts
        self._ended = False  # no more will come
        self._failure: RaftkvError | None = None
        self._to_hand_out = asyncio.Event()  # perhaps
        self._to_go_on = asyncio.Event()  # perhaps: there is room, or the last answer that was missing

    async def answers(self) -> AsyncIterator[bytes]:
        """Raises nothing for what is wrong with a line; what is wrong with the body ends the stream with a
        last line that says so, and the connection."""
        gone = False
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read())
                while not self._ended or self._parts:
                    out = self._ready()
                    if out:
                        yield out
                        continue
                    self._to_hand_out.clear()
                    await self._to_hand_out.wait()
        except* GeneratorExit:  # closed at a yield: the client is gone, and the group has ended its task
            gone = True
        if self._failure is not None and not gone:
            yield self._refused(self._failure)
            raise self._failure

    def _ready(self) -> bytes:
        """The next answers, as many as are there in a row."""
        parts, size = self._parts, 0
        out: list[bytes] = []
        while parts and (answers := parts[0].answers) is not None and size < OUT_BYTES:
            part = parts.popleft()
            self._lines -= len(part.lines)
            self._bytes -= part.size
            out.append(answers)
            size += len(answers)
        self._to_go_on.set()
        return b"".join(out)

    # --- taking lines ------------------------------------------------------------------------------

    async def _read(self) -> None:
        limits = self._call.limits
        try:
            async for lines in lines_of(self._call.body.pieces(), limits.batch_line_bytes_max):
                for some in cut(lines, min(self._lines_max, PART_LINES_MAX)):
                    await self._take(some)
        except RaftkvError as error:
            self._failure = error
        except ConnectionError:
            pass  # nobody is left to tell; what is on its way goes on, and writing the answers ends this
        self._ended = True
        self._to_hand_out.set()

    async def _take(self, lines: Sequence[bytes | TooLongLine]) -> None:
        """Starts them all, once there is room."""
        size = sum(map(len, lines))
        await self._until(
            lambda: (
                not self._parts
                or (self._lines + len(lines) <= self._lines_max and self._bytes + size <= BYTES_IN_FLIGHT_MAX)
            )
        )
        together: list[Line] = []
        for line in map(self._permitted, parsed(lines, self._call.limits)):
            if isinstance(line, Line) and isinstance(line.operation, Write):
                together.append(line)
                continue
            self._write(together)
            together = []
            await self._take_alone(line)
        self._write(together)

    def _permitted(self, line: Line | RaftkvError) -> Line | RaftkvError:
        """The line, or what stands against doing it."""
        call = self._call
        if call.admission.guard is None or isinstance(line, RaftkvError) or line.operation is None:
            return line
        try:
            call.admission.line(call.caller, line.operation)
        except RaftkvError as error:
            call.admission.denied(call.caller, call.what, error, call.request_id)
            return error
        return line

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._to_go_on.clear()
            await self._to_go_on.wait()

    async def _take_alone(self, line: Line | RaftkvError) -> None:
        """One that is no write."""
        part = self._part((Line(None),))
        if isinstance(line, RaftkvError):
            self._settle(part, self._refused(line))
        elif isinstance(line.operation, Get):
            await self._until(lambda: self._unanswered == 1)
            self._settle(part, await self._get(line.operation.key, part.first))
        else:
            self._settle(part, _line({"status": 200}))

    async def _get(self, key: bytes, number: int) -> bytes:
        service = self._service
        try:
            await service.reach(LINEARIZABLE, timeout_s=self._call.timeout_s)
            self._call.admission.still(self._call.caller)
            item = service.machine.get(key)
            if item is None:
                raise KeyNotFound(f"no key {shown(key)} at revision {service.machine.revision}")
            return _line({"status": 200, **envelope(item)})
        except RaftkvError as error:
            return self._refused(error)
        except Exception as bug:  # noqa: BLE001  # the edge, as for a single call
            return self._internal(bug, number)

    # --- writing -----------------------------------------------------------------------------------

    def _write(self, lines: list[Line]) -> None:
        """Proposes them, all together if nothing stands against it."""
        commands = [self._command(line, number) for number, line in enumerate(lines, self._number + 1)]
        while lines:
            size = sum(map(_size, commands))
            part = self._part(lines, size)
            try:
                count = self._service.write_all_soon(
                    commands,
                    lambda outcome, part=part: self._written(part, outcome),  # type: ignore[misc]
                    timeout_s=self._call.timeout_s,
                    size_bytes=size,
                )
                if count < len(lines):
                    self._keep_first(part, max(count, 1))
                if not count:
                    self._write_alone(part, commands[0])
            except RaftkvError as error:
                self._keep_first(part, 1)
                self._settle(part, self._refused(error))
            except Exception as bug:  # noqa: BLE001  # the edge, as for a single call
                self._keep_first(part, 1)
                self._settle(part, self._internal(bug, part.first))
            lines, commands = lines[len(part.lines) :], commands[len(part.lines) :]

    def _write_alone(self, part: Part, command: Write) -> None:
        """One whose idempotency key is on its way. Raises what it is refused with."""

        def done(outcome: Applied | RaftkvError) -> None:
            self._written(part, outcome if isinstance(outcome, RaftkvError) else (outcome,))

        self._service.write_soon(command, done, timeout_s=self._call.timeout_s, size_bytes=part.size)

    def _command(self, line: Line, number: int) -> Write:
        operation = line.operation
        assert isinstance(operation, Write)
        key = line.idempotency_key
        if key is None and self._key is not None:
            text = b"%d %b" % (number, self._key)
            key = b"batch-" + hashlib.blake2b(text, digest_size=16).hexdigest().encode()
        return operation if key is None else keyed(operation, key)

    def _written(self, part: Part, outcome: Sequence[Applied] | RaftkvError) -> None:
        if isinstance(outcome, RaftkvError):
            self._settle(part, self._refused(outcome) * len(part.lines))
            return
        try:
            answers = b"".join(map(self._answer, part.lines, outcome))
        except Exception as bug:  # noqa: BLE001  # the edge, as for a single call
            answers = self._internal(bug, part.first) * len(part.lines)
        self._settle(part, answers)

    def _answer(self, line: Line, applied: Applied) -> bytes:
        result = applied.result
        if isinstance(result, Written) and not line.prev and not applied.replayed:
            return b'{"status":%d,"revision":%d}\n' % (201 if result.created else 200, result.revision)
        replayed = {"replayed": True} if applied.replayed else {}
        error = refusal(result)
        if error is not None:
            return self._refused(error, **replayed)
        assert isinstance(result, Written | Deleted | Appended | Incremented)
        status = 201 if isinstance(result, Written) and result.created else 200
        body = result_body(result, prev=line.prev)
        assert body is not None
        return _line({"status": status, **body, **replayed})

    # --- parts -------------------------------------------------------------------------------------

    def _part(self, lines: Sequence[Line], size: int = 0) -> Part:
        part = Part(lines, self._number + 1, size)
        self._number += len(lines)
        self._lines += len(lines)
        self._bytes += size
        self._unanswered += 1
        self._parts.append(part)
        return part

    def _keep_first(self, part: Part, count: int) -> None:
        """The others of the newest part go on in another one."""
        rest = len(part.lines) - count
        part.lines = part.lines[:count]
        self._number -= rest
        self._lines -= rest

    def _settle(self, part: Part, answers: bytes) -> None:
        part.answers = answers
        self._bytes += len(answers) - part.size
        part.size = len(answers)
        self._unanswered -= 1
        self._to_hand_out.set()
        self._to_go_on.set()

    # --- what goes wrong ---------------------------------------------------------------------------

    def _internal(self, bug: Exception, number: int) -> bytes:
        request_id = self._call.request_id
        log.error("internal_error request_id=%s route=/v1/batch line=%d", request_id, number, exc_info=bug)
        return self._refused(
            InternalErrorOnWrite(f"something went wrong on this node; its log has it under {request_id}")
        )

    def _refused(self, error: RaftkvError, **more: Any) -> bytes:
        made = problem(
            error,
            request_id=self._call.request_id,
            leader_url=self._service.leadership.leader_url,
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


def _size(command: Write) -> int:
    value = command.value if isinstance(command, Put | Append) else b""
    return len(command.key) + len(value)


# --- lines -----------------------------------------------------------------------------------------------


async def lines_of(
    pieces: AsyncIterator[bytes], line_bytes_max: int
) -> AsyncIterator[list[bytes | TooLongLine]]:
    """The lines of a body that are not blank, as they come; the last with or without its line end."""
    tail = b""
    too_long = False
    async for piece in pieces:
        *whole, rest = piece.split(b"\n")
        if whole:
            whole[0] = tail + whole[0]
            tail = b""
            lines: list[bytes | TooLongLine] = []
            for line in whole:
                if too_long or len(line) > line_bytes_max:
                    too_long = False
                    lines.append(TooLongLine())
                elif line and not line.isspace():
                    lines.append(line)
            yield lines
        tail += rest
        if too_long or len(tail) > line_bytes_max:
            too_long = True
            tail = b""
    if too_long:
        yield [TooLongLine()]
    elif tail.strip():
        yield [tail]


def cut(lines: Sequence[bytes | TooLongLine], lines_max: int) -> Sequence[Sequence[bytes | TooLongLine]]:
    """In order, in pieces of at most `lines_max` lines and about `PART_BYTES_MAX` bytes."""
    if len(lines) <= lines_max and sum(map(len, lines)) <= PART_BYTES_MAX:
        return (lines,) if lines else ()
    parts: list[list[bytes | TooLongLine]] = [[]]
    size = 0
    for line in lines:
        if parts[-1] and (len(parts[-1]) >= lines_max or size + len(line) > PART_BYTES_MAX):
            parts.append([])
            size = 0
        parts[-1].append(line)
        size += len(line)
    return parts


def parsed(lines: Sequence[bytes | TooLongLine], limits: Limits) -> Sequence[Line | RaftkvError]:
    """Each line, or what is wrong with it."""
    good = [line for line in lines if isinstance(line, bytes)]
    found = parse_lines(good, limits)
    if len(good) == len(lines):
        return found
    flag = limits.flag("batch_line_bytes_max")
    too_long = BodyTooLarge(
        f"line: it has more than {limits.batch_line_bytes_max} bytes ({flag})",
        limit=limits.batch_line_bytes_max,
        size=None,
        flag=flag,
    )
    rest = iter(found)
    return [next(rest) if isinstance(line, bytes) else too_long for line in lines]
