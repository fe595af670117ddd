#!/usr/bin/env python3
"""Good clients beside bad ones: 2,000 idle connections, and 1,000 that drip a header byte a second.

    .venv/bin/python scripts/flood.py             over plain HTTP
    .venv/bin/python scripts/flood.py --tls       over TLS

Three nodes on this machine; the bad connections are all the leader's. The load is wrk's with 64 connections,
PUT and then linearizable GET, for --seconds each, without the bad ones and with them, in turns; ratios are of
medians. Exits 1 where a bar is missed: good clients keep 80% of their rate, drips are cut at
--header-seconds-max (10 s) and no more than a second later, no idle connection is lost, and the leader's
memory grows by less than 128 KiB a bad connection.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cluster.bench import load  # noqa: E402
from cluster.bench.requests import Case, requests  # noqa: E402
from cluster.flood import flooding, resident_bytes  # noqa: E402
from cluster.local import LocalCluster, find_base_port  # noqa: E402

CASES = (Case("put", 128, 64), Case("get", 128, 64))
RATE_KEPT_MIN = 0.8
HEADER_SECONDS_MAX = 10.0
CUT_LATE_SECONDS_MAX = 1.0
CONNECTION_BYTES_MAX = 128 << 10


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tls", action="store_true", help="clients, good and bad, speak TLS; the nodes too")
    parser.add_argument("--idle", type=int, default=2000, metavar="N")
    parser.add_argument("--dripping", type=int, default=1000, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--seconds", type=int, default=8, metavar="S", help="of each load; default 8")
    return parser.parse_args()


def main() -> int:
    chosen = arguments()
    with (
        tempfile.TemporaryDirectory(prefix="raftkv-flood-") as directory,
        LocalCluster(Path(directory), base_port=find_base_port(), tls=chosen.tls) as cluster,
    ):
        cluster.start_all()
        cluster.wait_ready()
        return judge(cluster, chosen)


def judge(cluster: LocalCluster, chosen: argparse.Namespace) -> int:
    leader = cluster.wait_leader()
    pid = cluster.pid(leader)
    assert pid is not None
    rates: dict[tuple[str, bool], list[float]] = {}
    cut_after_s: list[float] = []
    errors = idle_lost = connection_bytes = 0
    count = chosen.idle + chosen.dripping
    measure(cluster, leader, CASES[0], 2)  # warm
    for number in range(1, chosen.rounds + 1):
        for case in CASES:
            rate, failed = measure(cluster, leader, case, chosen.seconds)
            rates.setdefault((case.operation, False), []).append(rate)
            errors += failed
        before = resident_bytes(pid)
        ca_file = cluster.tls_dir / "ca.pem" if chosen.tls else None
        with flooding(
            cluster.api_url(leader), idle=chosen.idle, dripping=chosen.dripping, ca_file=ca_file
        ) as flood:
            time.sleep(HEADER_SECONDS_MAX + 2)  # from now on connections are cut and replaced all the time
            standing = resident_bytes(pid)
            for case in CASES:
                rate, failed = measure(cluster, leader, case, chosen.seconds)
                rates.setdefault((case.operation, True), []).append(rate)
                errors += failed
            most = max(standing, resident_bytes(pid))
            seen = flood.end()
        cut_after_s += seen.cut_after_s
        idle_lost += seen.idle_lost
        connection_bytes = max(connection_bytes, (most - before) // count)
        print(
            f"round {number}: "
            + ", ".join(
                f"{case.operation} {rates[case.operation, False][-1]:.0f}/s alone, "
                f"{rates[case.operation, True][-1]:.0f}/s beside them"
                for case in CASES
            )
            + f"; leader {before >> 20} MiB, {most >> 20} MiB with {count} more connections",
            flush=True,
        )
        assert cluster.leader() == leader, "the leader changed: the figures mean nothing"
    return verdict(rates, cut_after_s, idle_lost, errors, connection_bytes)


def measure(cluster: LocalCluster, leader: str, case: Case, seconds: int) -> tuple[float, int]:
    seen = load.wrk(
        cluster.api_url(leader), requests("raftkv", case, f"{time.monotonic():.3f}"), case, seconds
    )
    return seen.requests / seen.seconds, seen.errors


def verdict(
    rates: dict[tuple[str, bool], list[float]],
    cut_after_s: list[float],
    idle_lost: int,
    errors: int,
    connection_bytes: int,
) -> int:
    bars: list[tuple[str, bool]] = []
    for case in CASES:
        alone, beside = (median(rates[case.operation, flooded]) for flooded in (False, True))
        text = f"{case.operation}: {beside:.0f}/s of {alone:.0f}/s, {beside / alone:.0%}"
        bars.append((f"{text} (bar: {RATE_KEPT_MIN:.0%})", beside >= RATE_KEPT_MIN * alone))
    longest = max(cut_after_s, default=float("inf"))
    bars.append(
        (
            f"drips cut: {len(cut_after_s)}, median {median(cut_after_s or [0]):.2f} s after their first "
            f"byte, longest {longest:.2f} s (bar: {HEADER_SECONDS_MAX:g} s, a second late at most)",
            longest <= HEADER_SECONDS_MAX + CUT_LATE_SECONDS_MAX,
        )
    )
    bars.append((f"idle connections lost: {idle_lost} (bar: 0)", idle_lost == 0))
    bars.append((f"failed requests of the good clients: {errors} (bar: 0)", errors == 0))
    bars.append(
        (
            f"memory: {connection_bytes >> 10} KiB a connection (bar: {CONNECTION_BYTES_MAX >> 10})",
            connection_bytes < CONNECTION_BYTES_MAX,
        )
    )
    for text, met in bars:
        print(f"{'met   ' if met else 'MISSED'} {text}")
    return 0 if all(met for _, met in bars) else 1


if __name__ == "__main__":
    sys.exit(main())
