"""Requests as OpenTelemetry spans, sent to a collector over OTLP/HTTP. Needs `pip install 'raftkv[otel]'`.

One span a request, of kind server: a child of the caller's where it sent a `traceparent`. A request that is
passed on to the leader is a span here and its child there. Spans are made of what is known when a request
ends, queued, and sent by a thread of the library's own; what the queue does not hold is dropped, never
waited for. The library's environment variables apply: OTEL_TRACES_SAMPLER for a share of them,
OTEL_EXPORTER_OTLP_HEADERS for what a collector wants to see, OTEL_RESOURCE_ATTRIBUTES for more about this
node.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.span import TraceState

from raftkv.api.request_log import Ended
from raftkv.api.trace import TraceContext, trace_context

TRACES_PATH = "/v1/traces"
CLOSE_S = 2.0  # what a stop waits for the last spans


class OtlpSpans:
    """`endpoint`: the collector's base URL, or its whole one where it has a path. `situation`: this node's
    role and the index that it has applied, at the moment when a request ends."""

    def __init__(
        self, endpoint: str, *, node: str, version: str, situation: Callable[[], tuple[str, int]]
    ) -> None:
        self._node = node
        self._situation = situation
        resource = Resource.create(
            {"service.name": "raftkv", "service.instance.id": node, "service.version": version}
        )
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        url = endpoint if urlsplit(endpoint).path.strip("/") else endpoint.rstrip("/") + TRACES_PATH
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
        self._tracer = self._provider.get_tracer("raftkv", version)

    def begin(self, method: str, route: str, parent: TraceContext | None) -> tuple[Span, TraceContext]:
        """For a request that another node may have to go on with, as part of the second."""
        span = self._tracer.start_span(f"{method} {route}", context=_context(parent), kind=SpanKind.SERVER)
        known = span.get_span_context()
        return span, TraceContext(
            trace.format_trace_id(known.trace_id),
            trace.format_span_id(known.span_id),
            int(known.trace_flags),
            known.trace_state.to_header(),
        )

    def end(self, span: Span, request: Ended) -> None:
        self._fill(span, request)
        span.end()

    def record(self, request: Ended) -> None:
        """One that was not begun, and has ended just now."""
        now_ns = time.time_ns()
        span = self._tracer.start_span(
            f"{request.method} {request.route}",
            context=_context(trace_context(request.headers)),
            kind=SpanKind.SERVER,
            start_time=now_ns - int(request.seconds * 1e9),
        )
        self._fill(span, request)
        span.end(now_ns)

    def _fill(self, span: Span, request: Ended) -> None:
        if not span.is_recording():
            return
        role, applied_index = self._situation()
        span.set_attributes(
            {
                "http.request.method": request.method,
                "http.route": request.route,
                "http.response.status_code": request.status,
                "raftkv.request_id": request.request_id,
                "raftkv.node": self._node,
                "raftkv.role": role,
                "raftkv.applied_index": applied_index,
            }
        )
        if request.status >= 500:
            span.set_status(Status(StatusCode.ERROR))

    def close(self) -> None:
        """Sends what is left, for `CLOSE_S` at most. Blocks."""
        closing = threading.Thread(target=self._provider.shutdown, name="raftkv-spans", daemon=True)
        closing.start()
        closing.join(CLOSE_S)


def _context(parent: TraceContext | None) -> Context:
    """Never the thread's own: a node's spans have no parents but their callers'."""
    if parent is None:
        return Context()
    remote = SpanContext(
        trace_id=int(parent.trace_id, 16),
        span_id=int(parent.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(parent.flags),
        trace_state=TraceState.from_header([parent.state]) if parent.state else TraceState(),
    )
    return trace.set_span_in_context(NonRecordingSpan(remote), Context())
