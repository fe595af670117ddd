"""What is said of single requests: those that were slow or failed in the log, and all of them as spans where
an OpenTelemetry collector is named.

The server asks for it only where `observe_s` or a status of 5xx says so: two comparisons a request otherwise.
Storms must not fill the disk: so many lines a second, and the next one says how many were left out.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from raftkv.api.trace import TraceContext, trace_context

log = logging.getLogger("raftkv.requests")

LINES_A_SECOND = 20

AnySpan = Any  # of whatever library makes them


@dataclass(frozen=True, slots=True)
class Ended:
    """A request that has its answer. `body` is only read where it is a problem. A stream takes its time and
    is never slow; a probe asks after the node itself, and is told when that is not well."""

    method: str
    route: str
    status: int
    seconds: float
    request_id: str
    headers: Mapping[str, str]
    body: bytes
    streamed: bool = False
    probe: bool = False


class Spans(Protocol):
    """Where spans go; `api/spans.py` has it. Each is of one request, and part of what its caller does."""

    def begin(self, method: str, route: str, parent: TraceContext | None) -> tuple[AnySpan, TraceContext]:
        """For a request that another node may have to go on with, as part of the second."""
        ...

    def end(self, span: AnySpan, request: Ended) -> None: ...

    def record(self, request: Ended) -> None:
        """One that was not begun, and has ended just now."""
        ...


class RequestLog:
    """`slow_s`: infinite for none. `clock` is monotonic, in seconds."""

    def __init__(
        self,
        *,
        slow_s: float = math.inf,
        spans: Spans | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spans = spans
        self.observe_s = slow_s if spans is None else 0.0  # a request that took this long is to be told
        self.slow = 0
        self._slow_s = slow_s
        self._clock = clock
        self._second = -math.inf
        self._lines = 0
        self._left_out = 0

    def ended(self, request: Ended, span: AnySpan = None) -> None:
        if span is not None and self.spans is not None:
            self.spans.end(span, request)
        elif self.spans is not None:
            self.spans.record(request)
        slow = request.seconds >= self._slow_s and not request.streamed
        self.slow += slow
        if (slow or _failed(request)) and self._may_write():
            self._write(request)

    def _may_write(self) -> bool:
        now = self._clock()
        if now - self._second >= 1.0:
            self._second, self._lines = now, 0
        self._lines += 1
        if self._lines > LINES_A_SECOND:
            self._left_out += 1
            return False
        return True

    def _write(self, request: Ended) -> None:
        context = trace_context(request.headers)
        words = (
            request.request_id,
            request.method,
            request.route,
            request.status,
            "-" if request.status < 400 else code_of(request.body),
            request.seconds * 1000,
            "-" if context is None else context.trace_id,
            self._left_out,
        )
        self._left_out = 0
        text = "request_id=%s method=%s route=%s status=%d code=%s ms=%.1f trace_id=%s left_out=%d"
        if _failed(request):
            log.warning("request_failed " + text, *words)
        else:
            log.warning("request_slow " + text, *words)


def _failed(request: Ended) -> bool:
    """A 500 is told as the bug that it is; 501 and 505 are not this node's failures."""
    return request.status >= 502 and request.status != 505 and not request.probe


class _Problem(msgspec.Struct):
    code: str = "-"


def code_of(body: bytes) -> str:
    """Of a problem document."""
    try:
        return msgspec.json.decode(body, type=_Problem).code
    except msgspec.MsgspecError:
        return "-"
