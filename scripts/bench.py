#!/usr/bin/env python3
"""raftkv and its peers under the same load, one after another, round after round.

    .venv/bin/python scripts/bench.py                 everything: an hour and a half
    .venv/bin/python scripts/bench.py --bars          only what the bars in docs/benchmarks.md need
    .venv/bin/python scripts/bench.py --quick         the same with two seconds a case and three rounds
    .venv/bin/python scripts/bench.py --redraw FILE…  tables and chart of earlier runs: rounds of one campaign
    .venv/bin/python scripts/bench.py --probe NAME    raftkv alone: knee, follower, growth, instruments

Starts every system itself, on loopback, each on fresh data on the same disk, and ends it. A system that
something is missing for is left out, with a word on what to install; --install does that (as root). Results
go to --output as JSON after every round; the tables are printed at the end. Exits 1 if a sample failed, 2 if
nothing could be measured. What each case means: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cluster.bench import chart, results  # noqa: E402
from cluster.bench.campaign import play_round, sync_ms  # noqa: E402
from cluster.bench.probes import PROBES, probe  # noqa: E402
from cluster.bench.requests import Case  # noqa: E402
from cluster.bench.systems import SYSTEMS, System  # noqa: E402

PACKAGES = ("wrk", "etcd-server", "redis-server", "golang-go", "golang-etcd-server-dev")
CONNECTIONS = (1, 16, 64, 256)
VALUE_BYTES = (128, 4096)
START_SECONDS = 8  # of one system in one round: start, warm-up, filling, stop
CASE_SECONDS = 1  # of a case beside the load itself


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, help="default 5, with --quick 3")
    parser.add_argument("--seconds", type=int, help="of each case; default 5, with --quick 2")
    parser.add_argument("--quick", action="store_true", help="short, and the bars' cases only: for a trial")
    parser.add_argument("--bars", action="store_true", help="only the cases of the bars and the chart")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), metavar="NAME")
    parser.add_argument(
        "--operations", nargs="+", choices=["put", "get", "stale", "mix", "batch"], metavar="NAME"
    )
    parser.add_argument("--connections", nargs="+", type=int, default=CONNECTIONS, metavar="N")
    parser.add_argument("--value-bytes", nargs="+", type=int, default=VALUE_BYTES, metavar="N")
    parser.add_argument(
        "--directory", type=Path, default=ROOT / "build" / "bench", help="for data and results"
    )
    parser.add_argument("--output", type=Path, help="JSON; default results.json in the directory")
    parser.add_argument("--chart", type=Path, help="PNG and SVG under this name; default beside the JSON")
    parser.add_argument(
        "--redraw", type=Path, nargs="+", metavar="FILE", help="measure nothing, show these results together"
    )
    parser.add_argument("--probe", choices=PROBES, help="instead: how raftkv alone behaves; probe-NAME.json")
    parser.add_argument("--install", action="store_true", help=f"first: apt-get install {' '.join(PACKAGES)}")
    chosen = parser.parse_args()
    chosen.bars = chosen.bars or chosen.quick
    chosen.rounds = chosen.rounds or (3 if chosen.quick else 5)
    chosen.seconds = chosen.seconds or (2 if chosen.quick else 5)
    chosen.output = chosen.output or chosen.directory / "results.json"
    chosen.chart = chosen.chart or chosen.output.with_suffix("")
    return chosen


def main() -> int:
    chosen = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it cleans up as after Ctrl-C
    if chosen.redraw:
        samples, about = results.joined([json.loads(path.read_text()) for path in chosen.redraw])
        if len(chosen.redraw) > 1:
            save(chosen.output, samples, about)
        return show(samples, about, chosen.chart)
    if chosen.install:
        install()
    chosen.directory.mkdir(parents=True, exist_ok=True)
    if chosen.probe:
        return probe(chosen.probe, chosen.rounds, chosen.seconds, chosen.directory)
    plan = planned(chosen)
    if not plan:
        print("nothing to measure", file=sys.stderr)
        return 2
    samples, about = run(chosen, plan)
    return show(samples, about, chosen.chart)


def install() -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}  # no service is wanted
    command = ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]
    subprocess.run(["apt-get", "update", "-qq"], check=True, timeout=600)
    subprocess.run(command, check=True, timeout=1800, env=environment)


def planned(chosen: argparse.Namespace) -> list[tuple[System, list[Case]]]:
    plan: list[tuple[System, list[Case]]] = []
    for name in chosen.systems:
        system = SYSTEMS[name](chosen.directory / "programs")
        lacking = system.missing()
        if lacking is not None:
            print(f"without {name}: {lacking}", file=sys.stderr)
        elif cases := cases_of(system, chosen):
            plan.append((system, cases))
    return plan


def cases_of(system: System, chosen: argparse.Namespace) -> list[Case]:
    operations = [each for each in system.operations if each in (chosen.operations or system.operations)]
    everything = [
        Case(operation, size, connections)
        for operation in operations
        for size in chosen.value_bytes
        for connections in (chosen.connections if operation != "batch" else [results.BATCH_CONNECTIONS])
    ]
    if not chosen.bars:
        return everything
    wanted = {side for bar in results.BARS for side in (bar.over, bar.under)}
    wanted |= {(name, case) for name in chart.LABELS for case in chart.GROUPS}
    return [case for case in everything if (system.name, case) in wanted]


def run(
    chosen: argparse.Namespace, plan: list[tuple[System, list[Case]]]
) -> tuple[list[results.Sample], dict[str, Any]]:
    count = sum(len(cases) for _, cases in plan)
    estimate = chosen.rounds * (count * (chosen.seconds + CASE_SECONDS) + len(plan) * START_SECONDS)
    print(
        f"{len(plan)} systems, {count} cases, {chosen.rounds} rounds: about {estimate / 60:.0f} minutes",
        flush=True,
    )
    about = machine(chosen, [system for system, _ in plan])
    samples: list[results.Sample] = []
    with tempfile.TemporaryDirectory(prefix="data-", dir=chosen.directory) as directory:
        for number in range(1, chosen.rounds + 1):
            middle, worst = sync_ms(Path(directory))
            about["sync_ms"].append({"round": number, "median": middle, "p99": worst})
            print(f"{number}  fdatasync of 4 KiB: median {middle:.2f} ms, p99 {worst:.2f} ms", flush=True)
            samples += play_round(
                number, plan, Path(directory), chosen.seconds, lambda text: print(text, flush=True)
            )
            save(chosen.output, samples, about)
    return samples, about


def machine(chosen: argparse.Namespace, systems: list[System]) -> dict[str, Any]:
    memory = Path("/proc/meminfo").read_text().split()[1]
    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    file_system = subprocess.run(
        ["findmnt", "-no", "FSTYPE", "-T", str(chosen.directory)], capture_output=True, text=True, check=False
    )
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "command": shlex.join(["scripts/bench.py", *sys.argv[1:]]),
        "cores": os.cpu_count(),
        "processor": models[0].partition(":")[2].strip() if models else platform.machine(),
        "memory_gib": round(int(memory) / 2**20),
        "kernel": platform.release(),
        "file_system": file_system.stdout.strip(),
        "python": platform.python_version(),
        "load_average_before": os.getloadavg()[0],
        "systems": {system.name: {"about": system.about, "version": system.version()} for system in systems},
        "sync_ms": [],
    }


def save(path: Path, samples: list[results.Sample], about: dict[str, Any]) -> None:
    document = {
        "about": about,
        "bars": [asdict(each) for each in results.verdicts(samples)],
        "samples": [each.document() for each in samples],
    }
    scratch = path.with_suffix(".new")
    scratch.write_text(json.dumps(document, indent=1) + "\n")
    scratch.replace(path)


def show(samples: list[results.Sample], about: dict[str, Any], picture: Path) -> int:
    print(f"\n{about['date']}, {about['cores']} cores ({about['processor']}), {about['file_system']}")
    print(f"{about['command']}\n")
    print(results.table(samples), "\n\nCPU seconds are per 1,000 operations.\n", sep="")
    print(results.bars_table(samples))
    neighbours = sorted(each.neighbours_cpu_share for each in samples if not each.problem)
    if neighbours:
        print(
            f"\nneighbours took {neighbours[len(neighbours) // 2]:.0%} of the machine (median of all samples)"
        )
    subtitle = (
        f"{about['date'][:10]}, {about['cores']} cores shared by servers and load generator, three nodes"
    )
    if not chart.bars(samples):
        print("no chart: none of its cases was measured")
        return verdict(samples)
    try:
        chart.draw(samples, subtitle, picture.with_suffix(".svg"), picture.with_suffix(".png"))
        print(f"chart: {picture.with_suffix('.svg')} and .png")
    except ImportError:
        print("no chart: matplotlib is in the bench extra: .venv/bin/pip install -e '.[bench]'")
    return verdict(samples)


def verdict(samples: list[results.Sample]) -> int:
    failed = results.problems(samples)
    print(
        "\n".join(["", "FAILED", *failed])
        if failed
        else "every answer was a success, every sampled key right"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
