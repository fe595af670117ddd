"""What the log says of single requests and how; trace contexts; lines as JSON."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.api.request_log import LINES_A_SECOND, Ended, RequestLog
from raftkv.api.trace import TraceContext, trace_context
from raftkv.api.wire import collect_headers
from raftkv.config import load, parse_collector
from raftkv.errors import ConfigError
from raftkv.server import configure_log, spans_of

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"


# --- trace contexts ----------------------------------------------------------------------------------------


def test_a_valid_traceparent_is_taken_and_goes_on_as_it_came() -> None:
    context = trace_context({"Traceparent": TRACEPARENT, "Tracestate": "a=1,b=2"})
    assert context == TraceContext(TRACE_ID, SPAN_ID, 1, "a=1,b=2")
    assert context.traceparent == TRACEPARENT


def test_of_a_later_version_what_is_known_is_taken() -> None:
    assert trace_context({"Traceparent": f"cc-{TRACE_ID}-{SPAN_ID}-00-what-is-to-come"}) == TraceContext(
        TRACE_ID, SPAN_ID, 0
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00",
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-01-more",
        f"00-{TRACE_ID.upper()}-{SPAN_ID}-01",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID[:-1]}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-1",
        f"00-{TRACE_ID}-{SPAN_ID}-01 ",
        f"{TRACEPARENT}, {TRACEPARENT}",
    ],
)
def test_any_other_is_as_none(text: str) -> None:
    assert trace_context({"Traceparent": text}) is None


@given(st.text(alphabet="0123456789abcdef-, g", max_size=60))
def test_no_traceparent_raises(text: str) -> None:
    context = trace_context({"Traceparent": text})
    assert context is None or len(context.traceparent) == 55


def test_no_request_is_refused_for_its_trace() -> None:
    raw = [
        (b"traceparent", b"00-x"),
        (b"traceparent", b"00-y"),
        (b"tracestate", "ä=1".encode()),
        (b"a", b"b"),
    ]
    assert collect_headers(raw) == {"Traceparent": "00-x, 00-y"}


# --- slow and failed ---------------------------------------------------------------------------------------


def ended(status: int = 200, seconds: float = 0.0, body: bytes = b"", **more: bool) -> Ended:
    headers = {"Traceparent": TRACEPARENT}
    return Ended("PUT", "/v1/kv/{key}", status, seconds, "r-1", headers, body, **more)


def test_a_slow_request_is_told_with_where_to_find_it(caplog: pytest.LogCaptureFixture) -> None:
    requests = RequestLog(slow_s=0.5)
    requests.ended(ended(seconds=0.4))
    requests.ended(ended(seconds=9.0, streamed=True))  # a stream takes its time
    assert caplog.messages == []
    requests.ended(ended(seconds=0.5))
    (message,) = caplog.messages
    assert message == (
        "request_slow request_id=r-1 method=PUT route=/v1/kv/{key} status=200 code=- ms=500.0 "
        f"trace_id={TRACE_ID} left_out=0"
    )
    assert requests.slow == 1


def test_a_failed_request_is_told_with_its_code(caplog: pytest.LogCaptureFixture) -> None:
    requests = RequestLog()
    for status in (200, 404, 412, 429, 500, 501, 505):
        requests.ended(ended(status, body=b'{"code":"-"}'))
    requests.ended(ended(503, probe=True))
    assert caplog.messages == []
    requests.ended(ended(504, body=b'{"title": "x", "code": "commit_timeout"}'))
    requests.ended(ended(503, body=b"not JSON"))
    assert [message.split()[0] for message in caplog.messages] == ["request_failed"] * 2
    assert "code=commit_timeout" in caplog.messages[0]
    assert "code=-" in caplog.messages[1]


def test_a_storm_of_failures_is_counted_and_not_written(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    requests = RequestLog(clock=lambda: now)
    for _ in range(1000):
        requests.ended(ended(503))
    assert len(caplog.messages) == LINES_A_SECOND
    now = 101.0
    requests.ended(ended(503))
    assert caplog.messages[-1].endswith(f"left_out={1000 - LINES_A_SECOND}")


def test_nothing_is_observed_where_nothing_is_asked_for() -> None:
    assert RequestLog().observe_s == float("inf")
    assert RequestLog(slow_s=2.0).observe_s == 2.0


# --- lines -------------------------------------------------------------------------------------------------


@contextmanager
def logging_to(form: str) -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_log(form, "info", "n1", stream)
    try:
        yield stream
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def test_json_lines_have_the_values_by_name() -> None:
    with logging_to("json") as stream:
        log = logging.getLogger("raftkv.raft")
        log.info("role_changed node=%s term=%d role=%s leader=%s", "n1", 7, "leader", None)
        log.warning('connection_rejected address=%s reason="%s" seconds=%.1f', "h:1", "too late", 2.25)
        log.error("engine_failed node=%s", "n1", exc_info=ValueError("boom"))
        logging.getLogger("asyncio").warning("Executing %s took %.3f seconds", "x", 0.5)
    role, rejected, failed, foreign = map(json.loads, stream.getvalue().splitlines())
    assert (role["event"], role["term"], role["role"], role["leader"]) == ("role_changed", 7, "leader", None)
    assert role["message"] == "role_changed node=n1 term=7 role=leader leader=None"
    assert (role["level"], role["logger"], role["node"]) == ("INFO", "raftkv.raft", "n1")
    assert role["time"].endswith("Z")
    assert (rejected["reason"], rejected["seconds"]) == ("too late", 2.25)
    assert "boom" in failed["error"]
    assert (foreign["event"], foreign["message"]) == ("asyncio", "Executing x took 0.500 seconds")


def test_text_lines_are_events() -> None:
    with logging_to("text") as stream:
        logging.getLogger("raftkv.raft").info("role_changed node=%s term=%d", "n1", 7)
    assert stream.getvalue().rstrip().endswith("Z INFO raftkv.raft role_changed node=n1 term=7")


def test_a_node_that_can_t_send_spans_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "raftkv.api.spans", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    config = load(
        {
            "name": "n1",
            "data_dir": "/nowhere",
            "member": ["n1=127.0.0.1:8401,http://127.0.0.1:8400"],
            "otlp_endpoint": "http://127.0.0.1:4318",
        },
        {"RAFTKV_SECRET": "x" * 32},
    )
    with pytest.raises(ConfigError, match=re.escape("pip install 'raftkv[otel]'")):
        spans_of(config, situation=lambda: ("leader", 1))


@pytest.mark.parametrize("text", ["127.0.0.1:4318", "grpc://h:4317", "http://", "http://h/?a=b"])
def test_a_collector_is_named_by_its_url(text: str) -> None:
    with pytest.raises(ValueError, match="no http"):
        parse_collector(text)
