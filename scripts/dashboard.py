#!/usr/bin/env python3
"""Writes cluster/monitoring/dashboard.json, for Grafana 9 and newer. Change the dashboard here.

scripts/dashboard.py            writes it
scripts/dashboard.py --check    says whether it is what this file makes
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

PLACE = Path(__file__).resolve().parents[1] / "cluster" / "monitoring" / "dashboard.json"
SOURCE = {"type": "prometheus", "uid": "${source}"}
COLUMNS = 24

# What every query selects: the cluster, and the nodes that were chosen above.
CLUSTER = 'job="$job"'
NODES = 'job="$job", instance=~"$instance"'
KEY = 'route="/v1/kv/{key}"'
CALLS = NODES + ', route=~"/v1/.*"'
REDIRECTS = NODES + ', status="307"'
FAILURES = NODES + ', status=~"5..|429"'


class Panel(NamedTuple):
    """`queries` are (PromQL, legend). `options` and `field` go into Grafana's own of that name."""

    title: str
    what: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = 7
    options: dict[str, Any] = {}  # noqa: RUF012  # never changed
    field: dict[str, Any] = {}  # noqa: RUF012
    overrides: Sequence[dict[str, Any]] = ()


def steps(*thresholds: tuple[str, float | None]) -> dict[str, Any]:
    return {
        "color": {"mode": "thresholds"},
        "thresholds": {
            "mode": "absolute",
            "steps": [{"color": color, "value": value} for color, value in thresholds],
        },
    }


def stat(title: str, what: str, query: str, legend: str = "", **more: Any) -> Panel:
    options = {
        "colorMode": "background",
        "graphMode": "none",
        "textMode": "value",
        "reduceOptions": {"calcs": ["lastNotNull"], "values": False},
    } | more.pop("options", {})
    return Panel(title, what, [(query, legend)], kind="stat", width=4, height=4, options=options, **more)


def stacked() -> dict[str, Any]:
    return {"custom": {"fillOpacity": 25, "stacking": {"mode": "normal", "group": "A"}}}


def rate(metric: str, labels: str = NODES) -> str:
    return f"rate({metric}{{{labels}}}[$__rate_interval])"


def quantile(share: float, metric: str, by: str, labels: str = NODES) -> str:
    return f"histogram_quantile({share}, sum by (le, {by}) ({rate(metric + '_bucket', labels)}))"


def mean(metric: str, by: str, labels: str = NODES) -> str:
    return (
        f"sum by ({by}) ({rate(metric + '_sum', labels)}) / sum by ({by}) ({rate(metric + '_count', labels)})"
    )


def per_node(metric: str) -> list[tuple[str, str]]:
    return [(f"{metric}{{{NODES}}}", "{{instance}}")]


GOOD_IS_MORE = steps(("red", None), ("orange", 1), ("green", 2))
RED_ABOVE_0 = steps(("green", None), ("red", 1))
LATENCY = steps(("green", None), ("orange", 0.05), ("red", 0.25))

OVERVIEW = [
    stat(
        "Leader",
        "The node that leads. Without one there are no writes, and no reads but stale ones.",
        f"max by (instance) (raftkv_is_leader{{{CLUSTER}}}) == 1",
        "{{instance}}",
        options={"textMode": "name"},
        field=steps(("green", None)) | {"noValue": "none"},
    ),
    stat(
        "Can still fail",
        "How many of the voting members that are ready the cluster can do without.",
        f"sum(raftkv_ready{{{CLUSTER}}}) - floor(max(raftkv_members{{{CLUSTER}, role='voter'}}) / 2) - 1",
        field=steps(("red", None), ("orange", 0), ("green", 1)),
    ),
    stat(
        "Nodes that answer",
        "Of those that Prometheus knows.",
        f"sum(up{{{CLUSTER}}})",
        field=steps(("red", None), ("orange", 2), ("green", 3)),
    ),
    stat(
        "Alarms",
        "What nodes say themselves that needs a person; /v1/status has a sentence about each.",
        f"sum(raftkv_alarm{{{CLUSTER}}})",
        field=RED_ABOVE_0,
    ),
    stat(
        "Durable writes, p99",
        "PUT of one key, from its bytes to its answer, which comes when a majority has it on disk.",
        quantile(0.99, "raftkv_http_request_seconds", "job", f'{CLUSTER}, {KEY}, method="PUT"'),
        unit="s",
        field=LATENCY,
    ),
    stat(
        "Linearizable reads, p99",
        "GET of one key, stale ones among them.",
        quantile(0.99, "raftkv_http_request_seconds", "job", f'{CLUSTER}, {KEY}, method="GET"'),
        unit="s",
        field=LATENCY,
    ),
    Panel(
        "Requests",
        "Answered a second, by method, on all nodes together. Probes and scrapes are left out.",
        [
            (
                f"sum by (method) ({rate('raftkv_http_requests_total', CALLS)})",
                "{{method}}",
            )
        ],
        "reqps",
        width=12,
        field=stacked(),
    ),
    Panel(
        "Latency of one key",
        "Median and p99 of PUT and GET.",
        [
            (
                quantile(
                    share, "raftkv_http_request_seconds", "method", f'{NODES}, {KEY}, method=~"GET|PUT"'
                ),
                f"{{{{method}}}} {name}",
            )
            for share, name in ((0.5, "p50"), (0.99, "p99"))
        ],
        "s",
        width=12,
    ),
]

RAFT = [
    Panel(
        "Who leads",
        "1 where a node leads. Bars that are short are leaders that did not last.",
        [(f"raftkv_is_leader{{{NODES}}}", "{{instance}}")],
        kind="state-timeline",
        options={"showValue": "never", "mergeValues": True},
        field={
            "mappings": [
                {
                    "type": "value",
                    "options": {
                        "0": {"text": "follows", "color": "dark-blue"},
                        "1": {"text": "leads", "color": "green"},
                    },
                }
            ]
        },
    ),
    Panel(
        "Elections",
        "Campaigns that nodes began, and changes of leader that they saw, in the last ten minutes.",
        [
            (f"increase(raftkv_campaigns_total{{{NODES}}}[10m])", "{{instance}} campaigned"),
            (f"increase(raftkv_leader_changes_total{{{NODES}}}[10m])", "{{instance}} saw another leader"),
        ],
    ),
    Panel(
        "Followers behind",
        "Log entries that a member is behind its leader. What grows is a slow disk or link.",
        [(f"max by (peer) (raftkv_peer_lag{{{CLUSTER}}})", "{{peer}}")],
    ),
    Panel(
        "Commands a second",
        "Client commands applied. All nodes apply all of them.",
        [(rate("raftkv_commands_applied_total"), "{{instance}}")],
        "ops",
    ),
    Panel(
        "Commands in a batch",
        "In one log entry, on average and at most for half of them: so many share one sync.",
        [
            (mean("raftkv_batch_commands", "instance"), "{{instance}} mean"),
            (quantile(0.5, "raftkv_batch_commands", "instance"), "{{instance}} median"),
        ],
    ),
    Panel(
        "On their way",
        "Commands that the leader has taken and not applied yet, and requests that wait for theirs.",
        [
            (f"raftkv_proposals_in_flight{{{NODES}}}", "{{instance}} commands"),
            (f"raftkv_writes_in_flight{{{NODES}}}", "{{instance}} writes"),
            (f"raftkv_reads_in_flight{{{NODES}}}", "{{instance}} reads"),
        ],
    ),
    Panel(
        "Read rounds",
        "Confirmations of leadership a second. One serves every read that waited when it began.",
        [(rate("raftkv_read_rounds_total"), "{{instance}}")],
        "ops",
    ),
    Panel(
        "Applying",
        "p99 of what was applied in one go; the loop does nothing else meanwhile.",
        [(quantile(0.99, "raftkv_apply_seconds", "instance"), "{{instance}}")],
        "s",
    ),
    Panel(
        "Round trip between nodes",
        "As the kernel measures it: the least of the last five minutes.",
        [(f"raftkv_peer_round_trip_seconds{{{NODES}}}", "{{instance}} to {{peer}}")],
        "s",
    ),
    Panel(
        "Links",
        "1 where a node's connection to a member is up.",
        [(f"raftkv_peer_reachable{{{NODES}}}", "{{instance}} to {{peer}}")],
        field={"min": 0, "max": 1},
    ),
    Panel(
        "Since the last word of a leader",
        "Rises towards the election timeout where a leader is slow or gone.",
        [(f"raftkv_staleness_seconds{{{NODES}}}", "{{instance}}")],
        "s",
    ),
    Panel(
        "Log",
        "Where each node's log is committed and applied.",
        [
            (f"raftkv_commit_index{{{NODES}}}", "{{instance}} committed"),
            (f"raftkv_applied_index{{{NODES}}}", "{{instance}} applied"),
        ],
        "none",
    ),
]

DISK = [
    Panel(
        "fsync",
        "Median and p99 of one group commit. Every write waits for about one.",
        [
            (quantile(share, "raftkv_journal_sync_seconds", "instance"), f"{{{{instance}}}} {name}")
            for share, name in ((0.5, "p50"), (0.99, "p99"))
        ],
        "s",
    ),
    Panel(
        "Group commits",
        "Syncs a second.",
        [(rate("raftkv_journal_sync_seconds_count"), "{{instance}}")],
        "ops",
    ),
    Panel(
        "Written to the journal",
        "Bytes a second.",
        [(rate("raftkv_journal_sync_bytes_sum"), "{{instance}}")],
        "Bps",
    ),
    Panel(
        "Journal",
        "On disk. It falls after each snapshot; where it only grows, snapshots fail.",
        per_node("raftkv_journal_bytes"),
        "bytes",
    ),
    Panel(
        "Free on the disk",
        "In the file system of the data directory.",
        per_node("raftkv_disk_free_bytes"),
        "bytes",
        field={"min": 0},
    ),
    Panel(
        "Snapshots",
        "Made here, failed, and taken over from a leader, in the last hour.",
        [
            (f"increase(raftkv_snapshots_made_total{{{NODES}}}[1h])", "{{instance}} made"),
            (f"increase(raftkv_snapshot_failures_total{{{NODES}}}[1h])", "{{instance}} failed"),
            (f"increase(raftkv_snapshots_installed_total{{{NODES}}}[1h])", "{{instance}} installed"),
        ],
    ),
    Panel(
        "Age of the newest local snapshot",
        "One is made when the log has grown to its bound, so an idle cluster makes none.",
        [(f"time() - (raftkv_snapshot_time_seconds{{{NODES}}} > 0)", "{{instance}}")],
        "s",
    ),
    Panel(
        "Age of the newest backup",
        "Of the newest snapshot in the cluster's store, and of the oldest entry of the log that is not there "
        "yet. Empty without --snapshots.",
        [
            (f"max by (job) (raftkv_archive_age_seconds{{{CLUSTER}}})", "snapshot"),
            (f"max by (job) (raftkv_log_archive_lag_seconds{{{CLUSTER}}})", "log"),
        ],
        "s",
    ),
    Panel(
        "Attempts to back up that failed",
        "In the last hour.",
        [
            (f"increase(raftkv_archive_failures_total{{{NODES}}}[1h])", "{{instance}} snapshot"),
            (f"increase(raftkv_log_archive_failures_total{{{NODES}}}[1h])", "{{instance}} log"),
        ],
    ),
]

HTTP = [
    Panel(
        "By route",
        "Requests a second.",
        [(f"sum by (route, method) ({rate('raftkv_http_requests_total')})", "{{method}} {{route}}")],
        "reqps",
        field=stacked(),
    ),
    Panel(
        "By status",
        "Requests a second. 307 sends a write to the leader, 412 is a condition that did not hold.",
        [(f"sum by (status) ({rate('raftkv_http_requests_total')})", "{{status}}")],
        "reqps",
        field=stacked(),
    ),
    Panel(
        "Errors",
        "Requests a second that ended in 5xx or 429, by node.",
        [
            (
                f"sum by (instance, status) ({rate('raftkv_http_requests_total', FAILURES)})",
                "{{instance}} {{status}}",
            )
        ],
        "reqps",
    ),
    Panel(
        "p99 by route",
        "From a request's bytes to its answer; of streams, to their end.",
        [(quantile(0.99, "raftkv_http_request_seconds", "route, method"), "{{method}} {{route}}")],
        "s",
    ),
    Panel(
        "In flight",
        "Requests that were taken and not answered yet.",
        per_node("raftkv_http_requests_in_flight"),
    ),
    Panel("Connections", "Open now.", per_node("raftkv_http_connections")),
    Panel(
        "Received and sent",
        "Bytes a second, heads and bodies; received are below the line.",
        [
            (rate("raftkv_http_sent_bytes_total"), "{{instance}} sent"),
            ("-" + rate("raftkv_http_received_bytes_total"), "{{instance}} received"),
        ],
        "Bps",
    ),
    Panel(
        "Slow requests",
        "A second, that took --slow-request-ms or longer. The log names them.",
        [(rate("raftkv_http_slow_total"), "{{instance}}")],
        "reqps",
    ),
    Panel(
        "Passed on",
        "Writes a second that reached a follower: passed on to the leader, or sent there with a 307.",
        [
            (rate("raftkv_http_forwarded_total"), "{{instance}} passed on"),
            (
                f"sum by (instance) ({rate('raftkv_http_requests_total', REDIRECTS)})",
                "{{instance}} redirected",
            ),
        ],
        "reqps",
    ),
]

STATE = [
    Panel("Keys", "All nodes hold the same.", per_node("raftkv_keys")),
    Panel("Size", "Bytes of keys and values.", per_node("raftkv_store_bytes"), "bytes"),
    Panel(
        "Of the quota",
        "Used of --quota-bytes; empty where there is none.",
        [(f"raftkv_store_bytes{{{NODES}}} / (raftkv_quota_bytes{{{NODES}}} > 0)", "{{instance}}")],
        "percentunit",
    ),
    Panel(
        "No room",
        "1 where writes that grow are refused, by what there is too little of, and how many a second were.",
        [
            (f"max by (what) (raftkv_room_refusing{{{NODES}}})", "{{what}}"),
            (f"sum({rate('raftkv_room_refusals_total')})", "refused a second"),
        ],
        field={"min": 0},
    ),
    Panel("Changes a second", "Of the revision.", [(rate("raftkv_revision"), "{{instance}}")], "ops"),
    Panel(
        "Kept outcomes",
        "Of writes with an idempotency key, and the bytes that they take.",
        [
            (f"raftkv_idempotency_records{{{NODES}}}", "{{instance}} records"),
            (f"raftkv_idempotency_bytes{{{NODES}}}", "{{instance}} bytes"),
        ],
        overrides=[
            {
                "matcher": {"id": "byRegexp", "options": ".* bytes"},
                "properties": [
                    {"id": "unit", "value": "bytes"},
                    {"id": "custom.axisPlacement", "value": "right"},
                ],
            }
        ],
    ),
    Panel(
        "Comparisons with the leader",
        "Of the hash of all data, in the last hour.",
        [(f"increase(raftkv_state_hash_checks_total{{{NODES}}}[1h])", "{{instance}}")],
    ),
    Panel(
        "State that differs",
        "Anything but 0 is an alarm.",
        [
            (f"raftkv_state_diverged{{{NODES}}}", "{{instance}} diverged"),
            (f"raftkv_state_hash_mismatches_total{{{NODES}}}", "{{instance}} comparisons that differed"),
        ],
        field={"min": 0},
    ),
]

PROCESS = [
    Panel(
        "CPU",
        "Cores. One loop runs a node, so about one and a third is its most.",
        [(rate("raftkv_process_cpu_seconds_total"), "{{instance}}")],
    ),
    Panel(
        "Memory",
        "Resident, and what the process may use.",
        [
            (f"raftkv_process_resident_memory_bytes{{{NODES}}}", "{{instance}}"),
            (f"raftkv_memory_limit_bytes{{{NODES}}}", "{{instance}} limit"),
            (f"raftkv_memory_available_bytes{{{NODES}}}", "{{instance}} left on the machine"),
        ],
        "bytes",
        overrides=[
            {
                "matcher": {"id": "byRegexp", "options": ".* limit"},
                "properties": [
                    {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [6, 6]}},
                    {"id": "custom.fillOpacity", "value": 0},
                ],
            }
        ],
    ),
    Panel(
        "Loop",
        "p99 of how late its timer was: what holds the loop holds every request.",
        [(quantile(0.99, "raftkv_loop_late_seconds", "instance"), "{{instance}}")],
        "s",
    ),
    Panel(
        "Garbage collector",
        "Its share of the time.",
        [(rate("raftkv_gc_seconds_total"), "{{instance}}")],
        "percentunit",
    ),
    Panel(
        "Open files",
        "Of those that it may have.",
        [(f"raftkv_process_open_fds{{{NODES}}} / raftkv_process_max_fds{{{NODES}}}", "{{instance}}")],
        "percentunit",
    ),
    Panel(
        "Running since",
        "Seconds since the process began.",
        [(f"time() - raftkv_process_start_time_seconds{{{NODES}}}", "{{instance}}")],
        "s",
    ),
    Panel(
        "Certificates",
        "How long each is good.",
        [(f"raftkv_tls_certificate_expiry_seconds{{{NODES}}}", "{{instance}} {{use}}")],
        "s",
    ),
    Panel(
        "TLS handshakes refused",
        "A second.",
        [(rate("raftkv_tls_handshakes_refused_total"), "{{instance}} {{port}}")],
        "ops",
    ),
    Panel(
        "Turned away",
        "Requests a second without a good token, by why.",
        [(f"sum by (code) ({rate('raftkv_auth_denials_total')})", "{{code}}")],
        "reqps",
    ),
    Panel(
        "Administrators",
        "Their requests in the last hour.",
        [(f"sum by (instance) (increase(raftkv_admin_actions_total{{{NODES}}}[1h]))", "{{instance}}")],
    ),
    Panel("Tokens", "That the cluster has.", [(f"max(raftkv_tokens{{{NODES}}})", "tokens")]),
    Panel(
        "Security",
        "1 where it is on.",
        [(f"min by (what) (raftkv_security_on{{{NODES}}})", "{{what}}")],
        field={"min": 0, "max": 1},
    ),
    Panel(
        "Releases",
        "What each node runs.",
        [(f"raftkv_info{{{NODES}}}", "")],
        kind="table",
        width=24,
        height=6,
    ),
]

ROWS = [
    ("Overview", OVERVIEW),
    ("Consensus", RAFT),
    ("Journal, disk, backups", DISK),
    ("Requests", HTTP),
    ("Data", STATE),
    ("Process and security", PROCESS),
]


def dashboard() -> dict[str, Any]:
    return {
        "uid": "raftkv",
        "title": "raftkv",
        "description": "A raftkv cluster: who leads, how fast it answers, and what its nodes are short of.",
        "tags": ["raftkv"],
        "schemaVersion": 38,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": list(variables())},
        "annotations": {"list": [alerts_on_the_graphs()]},
        "links": [],
        "panels": list(laid_out()),
    }


def variables() -> Iterator[dict[str, Any]]:
    yield {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    for name, label, query, many in (
        ("job", "Cluster", "label_values(raftkv_info, job)", False),
        ("instance", "Nodes", 'label_values(raftkv_info{job="$job"}, instance)', True),
    ):
        yield {
            "name": name,
            "label": label,
            "type": "query",
            "datasource": SOURCE,
            "definition": query,
            "query": {"query": query, "refId": name},
            "refresh": 2,
            "sort": 1,
            "multi": many,
            "includeAll": many,
            "current": {"selected": True, "text": "All", "value": "$__all"} if many else {},
        }


def alerts_on_the_graphs() -> dict[str, Any]:
    return {
        "name": "Alerts",
        "enable": True,
        "iconColor": "red",
        "datasource": SOURCE,
        "expr": f'ALERTS{{alertname=~"Raftkv.*", alertstate="firing", {CLUSTER}}}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{instance}}",
    }


def laid_out() -> Iterator[dict[str, Any]]:
    """Rows of panels, left to right and down."""
    number, top = 1, 0
    for title, panels in ROWS:
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "gridPos": {"x": 0, "y": top, "w": COLUMNS, "h": 1},
            "panels": [],
        }
        number, top, left, height = number + 1, top + 1, 0, 0
        for panel in panels:
            if left + panel.width > COLUMNS:
                top, left, height = top + height, 0, 0
            yield made(panel, number, {"x": left, "y": top, "w": panel.width, "h": panel.height})
            number, left, height = number + 1, left + panel.width, max(height, panel.height)
        top += height


def made(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    table = panel.kind == "table"
    field = {"unit": panel.unit, **panel.field}
    options = panel.options
    if panel.kind == "timeseries":
        custom = {"lineWidth": 1, "fillOpacity": 8, "showPoints": "never"} | panel.field.get("custom", {})
        field |= {"custom": custom}
        options = {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    document = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.what,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": field, "overrides": list(panel.overrides)},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + at),
                "datasource": SOURCE,
                "expr": query,
                "legendFormat": legend,
                "instant": table,
                "range": not table,
                "format": "table" if table else "time_series",
            }
            for at, (query, legend) in enumerate(panel.queries)
        ],
    }
    if table:
        hidden = dict.fromkeys(("Time", "Value", "__name__", "job"), True)
        document["transformations"] = [{"id": "organize", "options": {"excludeByName": hidden}}]
    return document


def text() -> str:
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(
            0 if PLACE.read_text() == text() else f"{PLACE} is not what scripts/dashboard.py makes: run it"
        )
    PLACE.write_text(text())
