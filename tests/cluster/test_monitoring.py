"""What real nodes tell in `/metrics`: against the documentation, and through a real Prometheus against what
the dashboard and the alert rules ask for."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from cluster.local import LocalCluster, find_base_port, port_is_free
from raftkv.client import SyncClient
from tests.unit.test_alerts import MONITORING, RULES
from tests.unit.test_docs import READING

DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    store = tmp_path_factory.mktemp("store")
    with LocalCluster(
        tmp_path_factory.mktemp("cluster"),
        base_port=find_base_port(),
        extra_args=("--snapshots", f"file://{store}", "--quota-bytes", "1GiB"),
        tls=True,
    ) as cluster:
        cluster.start_all()
        cluster.wait_ready()
        yield cluster


def families(nodes: LocalCluster, name: str) -> dict[str, Metric]:
    status, body = nodes.get(name, "/metrics")
    assert status == 200
    return {family.name: family for family in text_string_to_metric_families(body.decode())}


def value(found: dict[str, Metric], name: str, sample: str = "", **labels: str) -> float:
    """Of the one sample of that family with these labels."""
    (only,) = (
        each.value
        for each in found[name].samples
        if each.name == (sample or each.name) and labels.items() <= each.labels.items()
    )
    return only


def exposed(found: dict[str, Metric]) -> set[str]:
    """Names as a person looks for them: counters with their suffix, histograms without theirs."""
    return {name + "_total" if family.type == "counter" else name for name, family in found.items()}


def documented() -> set[str]:
    section = READING.partition("## `GET /metrics`")[2].partition("## Alarms")[0]
    return set(re.findall(r"`(raftkv_\w+)(?:\{[\w,]+\})?`", section))


def test_reading_a_node_lists_exactly_what_nodes_expose(nodes: LocalCluster) -> None:
    leader = nodes.wait_leader()
    with SyncClient(nodes.api_urls(), tls=nodes.client_tls) as client:
        client.put("a", b"1")
        client.create_snapshot()
    told = set[str]()
    for name in nodes.names:
        told |= exposed(families(nodes, name))
    assert told == documented()
    assert {"raftkv_peer_lag", "raftkv_archive_age_seconds"} <= exposed(families(nodes, leader))


def test_what_is_done_is_counted(nodes: LocalCluster) -> None:
    leader = nodes.wait_leader()
    with SyncClient(nodes.api_url(leader), tls=nodes.client_tls) as client:
        client.put("the first", b"")
        nodes.get(leader, "/v1/kv/the%20first")
        before = families(nodes, leader)
        for number in range(20):
            client.put(f"counted/{number}", b"x" * 100)
            nodes.get(leader, f"/v1/kv/counted/{number}")
    after = families(nodes, leader)

    def grown(name: str, sample: str = "", **labels: str) -> float:
        return value(after, name, sample, **labels) - value(before, name, sample, **labels)

    key = {"route": "/v1/kv/{key}"}
    assert grown("raftkv_commands_applied") == 20
    assert grown("raftkv_batch_commands", "raftkv_batch_commands_sum") == 20
    assert grown("raftkv_keys") == 20
    assert grown("raftkv_journal_sync_seconds", "raftkv_journal_sync_seconds_count") >= 20
    assert grown("raftkv_journal_sync_bytes", "raftkv_journal_sync_bytes_sum") > 20 * 100
    assert grown("raftkv_read_rounds") >= 20
    assert grown("raftkv_http_received_bytes") > 20 * 100
    assert grown("raftkv_http_sent_bytes") > 20 * 100
    assert grown("raftkv_http_requests", method="PUT", status="201", **key) == 20
    counted = "raftkv_http_request_seconds_count"
    assert grown("raftkv_http_request_seconds", counted, method="GET", **key) == 20


def test_numbers_agree_with_the_status(nodes: LocalCluster) -> None:
    for name in nodes.names:
        status = nodes.status(name)
        assert status is not None
        found = families(nodes, name)
        assert value(found, "raftkv_role", role=status["role"]) == 1
        assert sum(each.value for each in found["raftkv_role"].samples) == 1
        assert value(found, "raftkv_members", role="voter") == 3
        assert value(found, "raftkv_keys") == status["keys"]
        peers = {each.labels["peer"]: each.value for each in found["raftkv_peer_reachable"].samples}
        assert peers == dict.fromkeys(nodes.names, 1.0)
        round_trips = found["raftkv_peer_round_trip_seconds"].samples
        assert {each.labels["peer"] for each in round_trips} == set(nodes.names) - {name}
        assert all(0 < each.value < 1 for each in round_trips)
        assert value(found, "raftkv_disk_free_bytes") > 0
        assert status["journal"]["disk_bytes"] == value(found, "raftkv_disk_bytes")
        assert sum(each.value for each in found["raftkv_alarm"].samples) == len(status["alarms"]) == 0


# --- the dashboard and the rules --------------------------------------------------------------------------


def expressions() -> list[tuple[str, str]]:
    """(where it stands, PromQL) of every panel and rule."""
    of_panels = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
    return of_panels + [(rule["alert"], rule["expr"]) for rule in RULES]


def test_every_metric_of_a_panel_or_a_rule_is_there(nodes: LocalCluster) -> None:
    with SyncClient(nodes.api_urls(), tls=nodes.client_tls) as client:
        client.put("a", b"1")
        client.create_snapshot()
    there = set[str]()
    for name in nodes.names:
        for family in families(nodes, name).values():
            there |= {sample.name for sample in family.samples}
    named = {(where, name) for where, text in expressions() for name in re.findall(r"\braftkv_\w+", text)}
    assert len(named) > 80
    assert {(where, name) for where, name in named if name not in there} == set()


class Prometheus:
    """A real one, that scrapes the nodes every second and evaluates the rules."""

    def __init__(self, nodes: LocalCluster, directory: Path) -> None:
        self._port = next(
            port for port in range(nodes.base_port + 100, 32_000) if port_is_free("127.0.0.1", port)
        )
        scrape = {
            "job_name": "raftkv",
            "scheme": "https",
            "tls_config": {"ca_file": str(nodes.tls_dir / "ca.pem")},
            "static_configs": [
                {"targets": [nodes.api_url(name).removeprefix("https://") for name in nodes.names]}
            ],
        }
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(MONITORING / "alerts.yml")],
            "scrape_configs": [scrape],
        }
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._log = (directory / "log").open("wb")
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{self._port}",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        self._log.close()

    def ask(self, path: str) -> Any:
        """None where it does not answer yet."""
        status, body = _get(self._port, path)
        document = None if status in (0, 503) else json.loads(body)
        assert document is None or document["status"] == "success", (path, document)
        return document and document["data"]

    def query(self, expression: str) -> list[Any]:
        found = self.ask(f"/api/v1/query?query={quote(expression, safe='')}")
        return [] if found is None else list(found["result"])

    def wait(self, expression: str, timeout_s: float = 60) -> list[Any]:
        """The first answer that is not empty."""
        deadline = time.monotonic() + timeout_s
        while not (found := self.query(expression)):
            assert time.monotonic() < deadline, f"no answer to {expression} in {timeout_s} s"
            assert self._process.poll() is None, "Prometheus ended"
            time.sleep(0.2)
        return found


def _get(port: int, target: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", target)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except ConnectionRefusedError:
        return 0, b""
    finally:
        connection.close()


def put(nodes: LocalCluster, name: str, key: str, **headers: str) -> int:
    connection = http.client.HTTPSConnection(
        "127.0.0.1", nodes.api_port(name), timeout=10, context=nodes.client_tls
    )
    try:
        connection.request(
            "PUT", f"/v1/kv/{key}", b"x", {each.replace("_", "-"): headers[each] for each in headers}
        )
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs prometheus: apt-get install prometheus")
def test_every_panel_shows_something_and_no_alert_fires(nodes: LocalCluster, tmp_path: Path) -> None:
    leader = nodes.wait_leader()
    follower = next(name for name in nodes.names if name != leader)

    def load() -> None:
        for name in nodes.names:
            nodes.get(name, "/v1/kv/monitored")
        assert put(nodes, leader, "monitored") in (200, 201)
        assert put(nodes, follower, "monitored") == 307
        assert put(nodes, follower, "monitored", Raftkv_Route="forward") in (200, 201)
        assert put(nodes, follower, "monitored", Raftkv_Route="local") == 503

    with SyncClient(nodes.api_urls(), tls=nodes.client_tls) as client:
        client.put("a", b"1")
        client.create_snapshot()
    load()
    prometheus = Prometheus(nodes, tmp_path)
    try:
        for scrapes in range(1, 5):  # what a request adds is to be seen between two of them
            prometheus.wait(f'min(count_over_time(up{{job="raftkv"}}[1m])) >= {scrapes}')
            load()
        prometheus.wait('min(count_over_time(up{job="raftkv"}[1m])) >= 6')
        empty = [
            (where, expression)
            for where, expression in (
                (panel["title"], t["expr"]) for panel in PANELS for t in panel["targets"]
            )
            if not prometheus.query(filled_in(expression))
        ]
        assert empty == []
        (group,) = prometheus.ask("/api/v1/rules")["groups"]
        assert [rule["name"] for rule in group["rules"]] == [rule["alert"] for rule in RULES]
        assert {rule["name"]: rule["lastError"] for rule in group["rules"] if rule["health"] != "ok"} == {}
        assert [rule["name"] for rule in group["rules"] if rule["state"] == "firing"] == []
    finally:
        prometheus.close()


def filled_in(expression: str) -> str:
    """As Grafana does it, with all nodes chosen."""
    return expression.replace("$__rate_interval", "10s").replace("$job", "raftkv").replace("$instance", ".*")
