"""The two long streams: a batch of writes, each done exactly once, and an export that is known to be whole.

A batch survives what happens to nodes while it runs. Every line goes out under an idempotency key of its
own and stays here until its answer is there; when the stream breaks, or a line is answered with something
that may be tried again, the line goes out again under the same key on the next stream. Two lines with one
key of the store are never on their way together, so they happen in the order of the source whatever is
repeated. Memory is bounded: at most IN_FLIGHT_MAX lines, and about IN_FLIGHT_BYTES_MAX bytes of them, are
unanswered.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, Protocol

import aiohttp
import msgspec

from raftkv.client.answers import (
    Answer,
    ClientError,
    Json,
    Problem,
    StreamCut,
    not_a_raftkv,
)
from raftkv.client.retry import Accept, Again, Course, Fail, Follow, Numbers

IN_FLIGHT_BYTES_MAX: Final = 8 << 20
CHUNK_BYTES: Final = 64 << 10  # lines that go out in one write
LINE_SECONDS_MAX: Final = 100.0  # for one line's answer: less than its idempotency key is kept
SILENCE_SECONDS_MAX: Final = 10.0  # of a stream with unanswered lines, before it counts as lost
LINE_BYTES_MAX: Final = 64 << 20  # of an answer or an item
_PROBLEM: Final = {"content-type": "application/problem+json"}

Operation = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class LineResult:
    """What became of line `number` (from 1) of a batch. `answer` is the node's line, where it has one."""

    number: int
    answer: Json
    error: ClientError | None = None


@dataclass(slots=True)
class _Line:
    number: int
    key: object
    body: bytes
    course: Course
    deadline: float


class Streams(Protocol):
    """What a stream needs of the client."""

    async def open_stream(
        self,
        course: Course,
        method: str,
        path: str,
        query: Mapping[str, str | int],
        body: AsyncIterator[bytes] | None,
        *,
        origin: str,
    ) -> tuple[aiohttp.ClientResponse | None, Accept | Again | Fail | Follow]: ...

    def route(self, *, to_leader: bool) -> str: ...
    def forget(self, origin: str) -> None: ...
    def led_by(self, origin: str) -> None: ...


@dataclass(slots=True)
class Batch:
    """One batch on its way. `on_result` is called once a line, in order but for lines that were sent again;
    what it raises ends the batch."""

    streams: Streams
    on_result: Callable[[LineResult], None]
    random: Random
    client_id: str = field(default_factory=lambda: secrets.token_hex(8))
    _numbers: Numbers = field(default_factory=Numbers)
    _unsent: deque[_Line] = field(default_factory=deque)
    _sent: deque[_Line] = field(default_factory=deque)  # on the stream that is open, in order
    _again: list[_Line] = field(default_factory=list)  # answered there, and to be sent again on the next
    _keys: set[object] = field(default_factory=set)  # of every line that is not settled
    _bytes: int = 0
    _exhausted: bool = False
    _source_error: Exception | None = None
    _to_send: asyncio.Event = field(default_factory=asyncio.Event)
    _room: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, operations: AsyncIterable[Operation] | Iterable[Operation]) -> None:
        """Until every operation has its result. Raises what the source raised, after the lines before it."""
        try:
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(self._read(operations))
                await self._send_all()
                reading.cancel()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        if self._source_error is not None:
            raise self._source_error

    # --- from the source ----------------------------------------------------------------------------

    async def _read(self, operations: AsyncIterable[Operation] | Iterable[Operation]) -> None:
        """A task of its own: a stream that breaks must not break the source, which may be a generator."""
        try:
            async for operation in _each(operations):
                while not self._has_room(operation):
                    self._room.clear()
                    await self._room.wait()
                self._unsent.append(self._line(operation))
                self._to_send.set()
        except Exception as error:  # noqa: BLE001 (raised by run, once what came before it is settled)
            self._source_error = error
        self._exhausted = True
        self._to_send.set()

    def _has_room(self, operation: Operation) -> bool:
        return (
            self._numbers.free()
            and self._bytes <= IN_FLIGHT_BYTES_MAX
            and operation.get("key") not in self._keys
        )

    def _line(self, operation: Operation) -> _Line:
        number = self._numbers.take()
        body = msgspec.json.encode({**operation, "idempotency_key": f"{self.client_id}/{number}"}) + b"\n"
        self._bytes += len(body)
        self._keys.add(operation.get("key"))
        course = Course(write=True, keyed=True, random=self.random)
        return _Line(
            number, operation.get("key"), body, course, asyncio.get_running_loop().time() + LINE_SECONDS_MAX
        )

    # --- to the nodes -------------------------------------------------------------------------------

    async def _send_all(self) -> None:
        """One stream after another until nothing is left."""
        course = Course(write=True, keyed=True, random=self.random)
        origin = self.streams.route(to_leader=True)
        while await self._anything():
            settled_before = self._numbers.settled
            response, step = await self.streams.open_stream(
                course, "POST", "/v1/batch", {}, self._body(), origin=origin
            )
            if response is not None and isinstance(step, Accept):
                async with response:
                    step = await self._take_answers(response, course)
            self._take_back(refused=isinstance(step, Follow) or course.last_outcome == "not_applied")
            if self._numbers.settled > settled_before:
                course = Course(write=True, keyed=True, random=self.random)
            match step:
                case Fail(error):
                    raise error
                case Follow(target):
                    self.streams.led_by(target)
                    origin = target
                case Again(delay_s):
                    self.streams.forget(origin)
                    origin = self.streams.route(to_leader=True)
                    await asyncio.sleep(delay_s)
                case Accept():
                    pass
            self._give_up_what_is_late()

    async def _anything(self) -> bool:
        """Whether there is something to send, now or ever. At once where a line is to be sent again."""
        while not self._unsent and not self._exhausted and not self._again:
            self._to_send.clear()
            await self._to_send.wait()
        return bool(self._unsent or self._again)

    async def _body(self) -> AsyncIterator[bytes]:
        """The lines as they come, until the source has ended and all were sent, or until one is to be sent
        again: this node may not be the one to ask, so the stream is brought to its end."""
        while await self._anything() and not self._again:
            chunk = bytearray()
            while self._unsent and len(chunk) < CHUNK_BYTES:
                line = self._unsent.popleft()
                self._sent.append(line)
                chunk += line.body
            yield bytes(chunk)

    async def _take_answers(self, response: aiohttp.ClientResponse, course: Course) -> Accept | Again | Fail:
        """Gives each answer to its line. Accept: the stream ended as it should."""
        again: Again | None = None
        try:
            async for text in self._answers(response):
                if not self._sent:  # the last line of a stream that the node gave up, such as a timeout
                    return _again_of(course, f"batch on {response.url.origin()}: {text[:200]!r}")
                again = self._answered(self._sent.popleft(), text) or again
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return _again_of(course, f"batch on {response.url.origin()}: {error or 'no answer'}")
        if self._sent:
            return _again_of(course, f"batch on {response.url.origin()}: it ended early")
        return again or Accept()

    async def _answers(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """The answer's lines. Silence while lines are unanswered is a TimeoutError; without any it is not."""
        rest = b""
        while True:
            try:
                async with asyncio.timeout(SILENCE_SECONDS_MAX):
                    chunk = await response.content.readany()
            except TimeoutError:
                if self._sent:
                    raise
                continue
            if not chunk:
                if rest:
                    raise aiohttp.ClientPayloadError("the last line is cut")
                return
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line
            if len(rest) > LINE_BYTES_MAX:
                raise aiohttp.ClientPayloadError(f"a line of more than {LINE_BYTES_MAX} bytes")

    def _answered(self, line: _Line, text: bytes) -> Again | None:
        """Settles the line, or puts it by and returns how long to wait."""
        try:
            document = msgspec.json.decode(text)
            status = document["status"]
        except (msgspec.MsgspecError, KeyError, TypeError):
            raise not_a_raftkv("a batch's answer without a status") from None
        step = line.course.answered(Answer(status, _PROBLEM, text))
        match step:
            case Accept():
                self._settle(line, LineResult(line.number, document))
            case Fail(error):
                self._settle(line, LineResult(line.number, document, error))
            case Again() | Follow():
                self._again.append(line)
                self._to_send.set()
                return step if isinstance(step, Again) else Again(0)
        return None

    def _take_back(self, *, refused: bool) -> None:
        """What the closed stream left unsettled goes to the front, in order. A stream that was `refused` as
        a whole did nothing with its lines; any other may have."""
        if not refused:
            for line in self._sent:
                line.course.lost("the stream of its batch broke")
        back = sorted([*self._again, *self._sent], key=lambda line: line.number)
        self._again.clear()
        self._sent.clear()
        self._unsent.extendleft(reversed(back))

    def _give_up_what_is_late(self) -> None:
        now = asyncio.get_running_loop().time()
        late = [line for line in self._unsent if line.deadline < now]
        for line in late:
            self._unsent.remove(line)
            self._settle(line, LineResult(line.number, {}, line.course.out_of_time()))

    def _settle(self, line: _Line, result: LineResult) -> None:
        self._numbers.done(line.number)
        self._bytes -= len(line.body)
        self._keys.discard(line.key)
        self._room.set()
        self.on_result(result)


def _again_of(course: Course, detail: str) -> Again | Fail:
    step = course.lost(detail)
    assert isinstance(step, Again | Fail)
    return step


async def _each(operations: AsyncIterable[Operation] | Iterable[Operation]) -> AsyncIterator[Operation]:
    if isinstance(operations, AsyncIterable):
        async for operation in operations:
            yield operation
    else:
        for operation in operations:
            yield operation


# --- export --------------------------------------------------------------------------------------------


async def export_lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Every line of an export with its newline, the `_end` line last, and that only where the count and the
    checksum in it agree with what came. Raises StreamCut."""
    checksum = hashlib.sha256()
    count = 0
    rest = b""
    try:
        async for chunk in response.content.iter_any():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if line.startswith(b'{"_end"'):
                    _check_end(line, count, checksum.hexdigest())
                    yield line + b"\n"
                    return
                checksum.update(line + b"\n")
                count += 1
                yield line + b"\n"
            if len(rest) > LINE_BYTES_MAX:
                raise _cut(f"a line of more than {LINE_BYTES_MAX} bytes")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise _cut(f"after {count} items: {error or type(error).__name__}") from error
    raise _cut(f"after {count} items, before its last line")


def _check_end(line: bytes, count: int, checksum: str) -> None:
    try:
        end = msgspec.json.decode(line)
        told = end["count"], end["sha256"]
    except (msgspec.MsgspecError, KeyError, TypeError):
        raise _cut(f"its last line is unreadable: {line[:200]!r}") from None
    if told != (count, checksum):
        raise _cut(f"{count} items of sha256 {checksum} came; its last line says {told[0]} of {told[1]}")


def _cut(detail: str) -> StreamCut:
    return StreamCut(Problem(0, "stream_cut", detail, "not_applied", retryable=True))
