"""The alert rules: each fires where it should and stays silent where it should, by promtool's own evaluation,
and each has a page of what to do. That their metrics exist is tests/cluster/test_monitoring.py's."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "cluster" / "monitoring"
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool: apt-get install prometheus"
)

STEP_S = 30
Series = Mapping[str, str]


class Case(NamedTuple):
    """Series that must raise the alert within `minutes`, and others that must not at any moment of them.

    Values are promtool's: `a+bxn` is a, then n more times b added; one sample in thirty seconds.
    """

    alert: str
    bad: Series
    good: Series
    minutes: int = 20


def node(metric: str, instance: str = "n1:8402", **labels: str) -> str:
    known = {"job": "raftkv", "instance": instance} | labels
    return metric + "{" + ",".join(f'{name}="{value}"' for name, value in known.items()) + "}"


def on_all(metric: str, *values: str, **labels: str) -> Series:
    return {node(metric, f"n{at + 1}:8402", **labels): value for at, value in enumerate(values)}


def steady(value: float) -> str:
    return f"{value}+0x400"


def histogram(metric: str, slow: str, fast: str, **labels: str) -> Series:
    """A hundred a step below the bound that is fast, or above it."""
    return {node(metric + "_bucket", le=bound, **labels): "0+100x400" for bound in (fast, slow, "+Inf")}


def shifted(series: Series, fast: str) -> Series:
    """The same with nothing in the fast bucket."""
    return {name: steady(0) if f'le="{fast}"' in name else values for name, values in series.items()}


def requests(*counts: tuple[str, str]) -> Series:
    return {
        node("raftkv_http_requests_total", route="/v1/kv/{key}", method="PUT", status=status): values
        for status, values in counts
    }


VOTERS = on_all("raftkv_members", *[steady(3)] * 3, role="voter")
SYNCS = histogram("raftkv_journal_sync_seconds", slow="0.25", fast="0.001")
LATE = histogram("raftkv_loop_late_seconds", slow="0.25", fast="0.001")
PUTS = histogram("raftkv_http_request_seconds", slow="1.0", fast="0.005", route="/v1/kv/{key}", method="PUT")
FULL = on_all("raftkv_disk_bytes", steady(100e9))
WRITTEN = on_all("raftkv_revision", "0+10x400")
NOTHING_WRITTEN = on_all("raftkv_revision", steady(10))
LOG_IS_THERE = on_all("raftkv_log_archive_lag_seconds", steady(1))

CASES = [
    Case(
        "RaftkvNoLeader",
        bad=on_all("raftkv_is_leader", *[steady(0)] * 3),
        good=on_all("raftkv_is_leader", steady(0), steady(1), steady(0)),
        minutes=1,
    ),
    Case(
        "RaftkvQuorumAtRisk",
        bad={**on_all("raftkv_ready", steady(1), steady(1), steady(0)), **VOTERS},
        good={**on_all("raftkv_ready", *[steady(1)] * 3), **VOTERS},
    ),
    Case("RaftkvNodeDown", bad=on_all("up", steady(1), steady(0)), good=on_all("up", steady(1), steady(1))),
    Case(
        "RaftkvNodeNotReady",
        bad=on_all("raftkv_ready", steady(1), steady(0)),
        good=on_all("raftkv_ready", steady(1), "0+0x3 1+0x400"),  # less than two minutes at its start
    ),
    Case(
        "RaftkvRestarting",
        bad=on_all("raftkv_process_start_time_seconds", "1000+0x8 2000+0x8 3000+0x8 4000+0x100"),
        good=on_all("raftkv_process_start_time_seconds", "1000+0x30 2000+0x400"),
        minutes=16,
    ),
    Case(
        "RaftkvLeaderFlapping",
        bad=on_all("raftkv_leader_changes_total", "0+1x400"),
        good=on_all("raftkv_leader_changes_total", "0+0x60 1+0x400"),
    ),
    Case(
        "RaftkvPeerUnreachable",
        bad=on_all("raftkv_peer_reachable", steady(0), peer="n2"),
        good=on_all("raftkv_peer_reachable", steady(1), peer="n2"),
    ),
    Case(
        "RaftkvFollowerLagging",
        bad=on_all("raftkv_peer_lag", "2000+10x400", peer="n2"),
        good=on_all("raftkv_peer_lag", "0+0x20 50000+0x3 0+0x400", peer="n2"),  # a moment behind
    ),
    Case(
        "RaftkvStateDiverged",
        bad=on_all("raftkv_state_diverged", steady(0), steady(1)),
        good=on_all("raftkv_state_diverged", steady(0), steady(0)),
    ),
    Case("RaftkvFsyncSlow", bad=shifted(SYNCS, "0.001"), good=SYNCS),
    Case(
        "RaftkvDiskLow",
        bad=on_all("raftkv_alarm", steady(1), alarm="disk_low"),
        good={
            **on_all("raftkv_alarm", steady(0), alarm="disk_low"),
            **on_all("raftkv_alarm", steady(1), alarm="no_leader"),
        },
    ),
    Case(
        "RaftkvDiskFilling",
        bad={**on_all("raftkv_disk_free_bytes", "20000000000-60000000x400"), **FULL},
        good={**on_all("raftkv_disk_free_bytes", "20000000000-100000x400"), **FULL},
        minutes=45,
    ),
    Case(
        "RaftkvSnapshotFailing",
        bad=on_all("raftkv_snapshot_failing", steady(1)),
        good=on_all("raftkv_snapshot_failing", steady(0)),
    ),
    Case(
        "RaftkvBackupFailing",
        bad={
            **on_all("raftkv_archive_failing", steady(0)),
            **on_all("raftkv_log_archive_failing", steady(1)),
        },
        good={
            **on_all("raftkv_archive_failing", steady(0)),
            **on_all("raftkv_log_archive_failing", steady(0)),
        },
    ),
    Case(
        "RaftkvBackupOld",
        bad={**on_all("raftkv_archive_age_seconds", "3000+10x400"), **WRITTEN, **LOG_IS_THERE},
        good={**on_all("raftkv_archive_age_seconds", "3000+10x400"), **NOTHING_WRITTEN, **LOG_IS_THERE},
        minutes=60,
    ),
    Case(
        "RaftkvNoRoom",
        bad={
            **on_all("raftkv_room_refusing", steady(0), steady(1), what="disk"),
            **on_all("raftkv_is_leader", steady(0), steady(1)),
        },
        good={  # a follower's own matter
            **on_all("raftkv_room_refusing", steady(0), steady(1), what="disk"),
            **on_all("raftkv_is_leader", steady(1), steady(0)),
        },
    ),
    Case(
        "RaftkvQuotaNear",
        bad={
            **on_all("raftkv_store_bytes", steady(900)),
            **on_all("raftkv_quota_bytes", steady(1000)),
        },
        good={  # no quota
            **on_all("raftkv_store_bytes", steady(900)),
            **on_all("raftkv_quota_bytes", steady(0)),
        },
    ),
    Case(
        "RaftkvHighErrorRate",
        bad=requests(("200", "0+90x400"), ("503", "0+10x400")),
        good=requests(("200", "0+99x400"), ("404", "0+50x400"), ("503", "0+1x400")),
    ),
    Case(
        "RaftkvOverloaded",
        bad=requests(("200", "0+90x400"), ("429", "0+100x400")),
        good=requests(("200", "0+90x400"), ("429", "0+1x400")),
    ),
    Case("RaftkvWritesSlow", bad=shifted(PUTS, "0.005"), good=PUTS),
    Case("RaftkvLoopBlocked", bad=shifted(LATE, "0.001"), good=LATE),
    Case(
        "RaftkvMemoryNear",
        bad={
            **on_all("raftkv_process_resident_memory_bytes", steady(900e6)),
            **on_all("raftkv_memory_limit_bytes", steady(1e9)),
        },
        good={
            **on_all("raftkv_process_resident_memory_bytes", steady(500e6)),
            **on_all("raftkv_memory_limit_bytes", steady(1e9)),
        },
    ),
    Case(
        "RaftkvFilesNear",
        bad={
            **on_all("raftkv_process_open_fds", steady(900)),
            **on_all("raftkv_process_max_fds", steady(1024)),
        },
        good={
            **on_all("raftkv_process_open_fds", steady(100)),
            **on_all("raftkv_process_max_fds", steady(1024)),
        },
    ),
    Case(
        "RaftkvCertificateExpiring",
        bad=on_all("raftkv_tls_certificate_expiry_seconds", "1209700-10x400", use="api"),
        good=on_all("raftkv_tls_certificate_expiry_seconds", "5000000-10x400", use="api"),
        minutes=45,
    ),
    Case(
        "RaftkvCertificateReloadFailing",
        bad=on_all("raftkv_tls_reload_failing", steady(1), port="api"),
        good=on_all("raftkv_tls_reload_failing", steady(0), port="api"),
    ),
    Case(
        "RaftkvDenials",
        bad=on_all("raftkv_auth_denials_total", "0+100x400", code="unauthenticated"),
        good=on_all("raftkv_auth_denials_total", "0+1x400", code="unauthenticated"),
    ),
    Case(
        "RaftkvSecurityOff",
        bad=on_all("raftkv_security_on", steady(1), steady(0), what="auth"),
        good=on_all("raftkv_security_on", steady(1), steady(1), what="auth"),
        minutes=65,
    ),
]


def promtool_test(alert: str, series: Series, minutes: int, *, fires: bool) -> dict[str, Any]:
    firing = f'ALERTS{{alertname="{alert}", alertstate="firing"}}'
    return {
        "name": f"{alert} {'fires' if fires else 'is silent'}",
        "interval": f"{STEP_S}s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f"clamp_max(count(count_over_time({firing}[{minutes}m])), 1) or vector(0)",
                "eval_time": f"{minutes}m",
                "exp_samples": [{"labels": "{}", "value": int(fires)}],
            }
        ],
    }


@needs_promtool
def test_every_alert_fires_and_stays_silent(tmp_path: Path) -> None:
    tests = [
        promtool_test(case.alert, series, case.minutes, fires=fires)
        for case in CASES
        for series, fires in ((case.bad, True), (case.good, False))
    ]
    document = {
        "rule_files": [str(MONITORING / "alerts.yml")],
        "evaluation_interval": f"{STEP_S}s",
        "tests": tests,
    }
    file = tmp_path / "alerts_test.yml"
    file.write_text(json.dumps(document))  # which is YAML
    done = subprocess.run(
        ["promtool", "test", "rules", str(file)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_its_cases() -> None:
    assert [case.alert for case in CASES] == [rule["alert"] for rule in RULES]


@needs_promtool
@pytest.mark.parametrize("check", [("rules", "alerts.yml"), ("config", "prometheus.yml")])
def test_promtool_accepts_the_files(check: tuple[str, str]) -> None:
    command = ["promtool", "check", check[0], str(MONITORING / check[1])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_it_is_and_where_to_read_on(rule: dict[str, Any]) -> None:
    said = rule["annotations"]
    assert set(said) == {"summary", "description", "runbook"}
    assert all(said.values())
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert said["runbook"] == f"docs/operations.md#alert-{rule['alert'].lower()}"
    heading = rf"^### Alert: {rule['alert']}$"
    assert re.search(heading, OPERATIONS, re.MULTILINE), (
        f"docs/operations.md has no '### Alert: {rule['alert']}'"
    )


def test_every_page_of_what_to_do_is_for_an_alert() -> None:
    described = re.findall(r"^### Alert: (\w+)$", OPERATIONS, re.MULTILINE)
    assert described == [rule["alert"] for rule in RULES]


def test_the_dashboard_is_what_its_script_makes() -> None:
    made = subprocess.run([ROOT / "scripts" / "dashboard.py", "--check"], capture_output=True, timeout=60)
    assert made.returncode == 0, made.stderr.decode()
