"""Requests as OpenTelemetry spans, over real sockets to a collector that decodes what it is sent; the same
request in the log where it is slow or fails; and trace contexts passed on between nodes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from cluster.local import LocalCluster, find_base_port, get
from raftkv.api.limits import Limits
from raftkv.api.request_log import RequestLog
from raftkv.api.spans import OtlpSpans
from tests.contract.conftest import EXTERNAL, Node, start_node

pytestmark = pytest.mark.skipif(EXTERNAL is not None, reason="sets up what a cluster does to a node")

TRACE_ID, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{CALLER}-01"


class Collector:
    """OTLP over HTTP, as a collector takes it. `spans` are (node, span) in the order of their arrival."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []
        self.paths: set[str] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    import gzip

                    body = gzip.decompress(body)
                collector.take(self.path, ExportTraceServiceRequest.FromString(body))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def take(self, path: str, request: ExportTraceServiceRequest) -> None:
        self.paths.add(path)
        for of_resource in request.resource_spans:
            resource = attributes(of_resource.resource)
            assert resource["service.name"] == "raftkv"
            for scope in of_resource.scope_spans:
                self.spans += [(resource["service.instance.id"], span) for span in scope.spans]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def attributes(of: Any) -> dict[str, Any]:
    return {
        each.key: each.value.int_value if each.value.HasField("int_value") else each.value.string_value
        for each in of.attributes
    }


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def spans_of(node: str, collector: Collector) -> OtlpSpans:
    return OtlpSpans(collector.url, node=node, version="0", situation=lambda: ("leader", 7))


@pytest.fixture
async def traced(collector: Collector) -> AsyncIterator[tuple[Node, Callable[[], None]]]:
    """A node, and what sends all its spans."""
    spans = spans_of("n1", collector)
    node = await start_node(Limits(), requests=RequestLog(spans=spans))
    yield node, spans.close
    await node.api.close()
    spans.close()


async def test_hot_and_cold_requests_are_spans(
    traced: tuple[Node, Callable[[], None]], collector: Collector
) -> None:
    node, send = traced
    began = time.time_ns()
    headers = {"Traceparent": TRACEPARENT, "Request-Id": "mine"}
    assert (await node.http("PUT", "/v1/kv/hot", b"v", headers)).status == 201
    assert (await node.http("POST", "/v1/kv/cold?op=append", b"v", headers)).status == 200
    assert (await node.http("GET", "/v1/kv/hot")).status == 200
    assert (await node.http("GET", "/nowhere")).status == 404
    await asyncio.to_thread(send)
    assert collector.paths == {"/v1/traces"}
    by_name = {span.name: span for _, span in collector.spans}
    assert set(by_name) == {"PUT /v1/kv/{key}", "POST /v1/kv/{key}", "GET /v1/kv/{key}", "GET unmatched"}
    for name in ("PUT /v1/kv/{key}", "POST /v1/kv/{key}"):
        span = by_name[name]
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE_ID, CALLER)
        assert span.kind == span.SPAN_KIND_SERVER
        assert began <= span.start_time_unix_nano <= span.end_time_unix_nano <= time.time_ns()
        told = attributes(span)
        assert told["http.route"] == "/v1/kv/{key}"
        assert told["raftkv.request_id"] == "mine"
        assert (told["raftkv.node"], told["raftkv.role"], told["raftkv.applied_index"]) == ("n1", "leader", 7)
    assert attributes(by_name["PUT /v1/kv/{key}"])["http.response.status_code"] == 201
    assert by_name["GET /v1/kv/{key}"].parent_span_id == b""
    assert not any(b"hot" in span.SerializeToString() for _, span in collector.spans), "a key is in a span"


async def test_a_failed_request_is_a_failed_span(
    traced: tuple[Node, Callable[[], None]], collector: Collector
) -> None:
    node, send = traced
    node.consensus.follow(None, None)
    assert (await node.http("PUT", "/v1/kv/a", b"v")).status == 503
    await asyncio.to_thread(send)
    ((_, span),) = collector.spans
    assert span.status.code == span.status.STATUS_CODE_ERROR


async def test_what_the_caller_does_not_sample_is_not_sent(
    traced: tuple[Node, Callable[[], None]], collector: Collector
) -> None:
    node, send = traced
    unsampled = {"Traceparent": TRACEPARENT[:-1] + "0"}
    assert (await node.http("PUT", "/v1/kv/a", b"v", unsampled)).status == 201
    assert (await node.http("POST", "/v1/kv/a?op=append", b"v", unsampled)).status == 200
    await asyncio.to_thread(send)
    assert collector.spans == []


async def test_a_request_that_is_passed_on_is_one_trace(collector: Collector) -> None:
    spans = {name: spans_of(name, collector) for name in ("n1", "n2")}
    leader = await start_node(Limits(), "n1", requests=RequestLog(spans=spans["n1"]))
    follower = await start_node(Limits(), "n2", requests=RequestLog(spans=spans["n2"]), route="forward")
    try:
        follower.consensus.follow("n1", f"http://127.0.0.1:{leader.api.port}")
        assert (await follower.http("PUT", "/v1/kv/a", b"v", {"Traceparent": TRACEPARENT})).status == 201
    finally:
        await follower.api.close()
        await leader.api.close()
        for each in spans.values():
            await asyncio.to_thread(each.close)
    of = dict(collector.spans)
    assert of["n2"].parent_span_id.hex() == CALLER
    assert of["n1"].parent_span_id == of["n2"].span_id
    assert {span.trace_id.hex() for span in of.values()} == {TRACE_ID}


async def test_without_a_collector_the_context_goes_on_as_it_came(caplog: pytest.LogCaptureFixture) -> None:
    leader = await start_node(Limits(), "n1", requests=RequestLog(slow_s=0.0))
    follower = await start_node(Limits(), "n2", route="forward")
    try:
        follower.consensus.follow("n1", f"http://127.0.0.1:{leader.api.port}")
        for sent in (TRACEPARENT, "00-nonsense"):
            assert (await follower.http("PUT", "/v1/kv/a", b"v", {"Traceparent": sent})).status in (200, 201)
    finally:
        await follower.api.close()
        await leader.api.close()
    told = [message for message in caplog.messages if message.startswith("request_slow")]
    assert [f"trace_id={each} " in message for each, message in zip((TRACE_ID, "-"), told, strict=True)] == [
        True,
        True,
    ]


@pytest.mark.parametrize("hot_path", [True, False])
async def test_slow_and_failed_requests_are_in_the_log(
    hot_path: bool, caplog: pytest.LogCaptureFixture
) -> None:
    node = await start_node(Limits(), requests=RequestLog(slow_s=0.05), hot_path=hot_path)
    try:
        assert (await node.http("PUT", "/v1/kv/secret-key", b"value")).status == 201
        assert [each for each in caplog.messages if each.startswith("request_")] == []
        node.consensus.hold()
        headers = {"Request-Id": "mine", "Traceparent": TRACEPARENT}
        failed = await node.http("PUT", "/v1/kv/secret-key?timeout=100ms", b"value", headers)
        assert failed.status == 504
    finally:
        node.consensus.release()
        await node.api.close()
    (line,) = (each for each in caplog.messages if each.startswith("request_"))
    assert line.startswith("request_failed request_id=mine method=PUT route=/v1/kv/{key} status=504 ")
    assert "code=commit_timeout" in line
    assert f"trace_id={TRACE_ID}" in line
    assert "secret-key" not in caplog.text


def test_a_real_node_sends_its_spans_before_it_ends(collector: Collector, tmp_path: Path) -> None:
    with LocalCluster(
        tmp_path,
        nodes=1,
        base_port=find_base_port(1),
        extra_args=("--otlp-endpoint", collector.url, "--slow-request-ms", "1", "--log-format", "json"),
    ) as nodes:
        nodes.start_all()
        nodes.wait_ready()
        assert get(nodes.api_url("n1") + "/v1/kv/a")[0] == 404
        assert nodes.stop("n1") == 0
    assert ("n1", "GET /v1/kv/{key}") in [(node, span.name) for node, span in collector.spans]
