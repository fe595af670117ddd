"""The failover demo's verdict, from the lines that k6 writes."""

from __future__ import annotations

import pytest

from cluster.failover_demo import acknowledged_of, compose_command, longest_gap_s, lost

POINTS = """\
{"type":"Metric","data":{"name":"acknowledged","type":"counter"},"metric":"acknowledged"}
{"metric":"acknowledged","type":"Point","data":{"time":"2026-01-01T00:00:02.5+00:00","value":1,"tags":{"key":"b"}}}
{"metric":"http_reqs","type":"Point","data":{"time":"2026-01-01T00:00:01+00:00","value":1,"tags":{"name":"PUT"}}}
{"metric":"acknowledged","type":"Point","data":{"time":"2026-01-01T00:00:01.123456789Z","value":1,"tags":{"key":"a"}}}
{"metric":"acknowledged","type":"Point","data":{"time":"2026-01-01T01:00:03+01:00","value":1,"tags":{"key":"c"}}}
"""


def test_acknowledged_writes_are_read_in_order_of_time() -> None:
    assert [each.key for each in acknowledged_of(POINTS.splitlines())] == ["a", "b", "c"]


def test_the_gap_is_the_longest_between_two_writes() -> None:
    assert longest_gap_s(acknowledged_of(POINTS.splitlines())) == pytest.approx(1.376544)
    assert longest_gap_s([]) == 0


def test_a_write_is_lost_where_its_value_is_not_there() -> None:
    writes = acknowledged_of(POINTS.splitlines())
    there = {key: f"value of {key}" for key in "abc"}
    assert lost(writes, there) == []
    assert lost(writes, {**there, "b": "value of another"}) == ["b"]
    assert lost(writes, {"a": there["a"]}) == ["b", "c"]


def test_the_compose_command_can_be_named() -> None:
    assert compose_command({"RAFTKV_COMPOSE": "some/docker compose"}) == ["some/docker", "compose"]
