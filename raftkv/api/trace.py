"""W3C trace context: whose work a request is part of. PURE.

    traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
                 version, trace id, id of the caller's span, flags (bit 0: sampled)

What is not as https://www.w3.org/TR/trace-context/ has it is left alone as if it were not there: no request
is refused for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class TraceContext:
    """Ids in lower-case hex, never all zeros. `state` is what else vendors sent along, "" for nothing."""

    trace_id: str
    span_id: str
    flags: int
    state: str = ""

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"


def trace_context(headers: Mapping[str, str]) -> TraceContext | None:
    """Of a request; None where it carries none that is valid."""
    text = headers.get("Traceparent")
    found = None if text is None else _TRACEPARENT.fullmatch(text)
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return TraceContext(trace_id, span_id, int(flags, 16), headers.get("Tracestate", ""))
