#!/usr/bin/env python3
"""Campaigns that look for what no single test run finds; `scripts/test` runs a share of each.

    simulation   scripts/simulate.py: whole clusters from seeds, of 3 and of 5 nodes in turn
    nemesis      scripts/nemesis.py: real processes under load, killed, paused, partitioned; members that
                 come, go and are replaced
    fuzz         scripts/fuzz.py: whatever reads bytes from outside, with inputs guided by coverage
    crashes      tests/fault: a crash at every operation of the journal, with new workloads
    examples     tests/unit: every Hypothesis test with new examples

Each campaign gets its share of the time and runs in rounds, each round with seeds of its own, drawn from
--seed: the same seed asks the same questions, as many as the time allows. Every round's output is in
build/soak/; one that failed is printed with the command that repeats it. Exits 1 if any failed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.seeds import FIRST_SEED  # noqa: E402

SIMULATION_SEEDS = 400  # a round of about two minutes on two cores
NEMESIS_MINUTES_MAX = 5.0
FUZZ_INPUTS_A_MINUTE = 60_000  # on a busy machine
FUZZ_INPUTS_MAX = 1_000_000
ROUND_OVERRUN_S = 900  # a round that takes this much longer than the campaign had left is a hang
INTERRUPTED_S = 30  # to clean up after an interrupt


@dataclass(slots=True)
class Campaign:
    """`command(rng, number, minutes_left)` is the command line of one round."""

    name: str
    share: float
    command: Callable[[random.Random, int, float], list[str]]
    rounds: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    last_line: str = ""


def simulation(rng: random.Random, number: int, _minutes_left: float) -> list[str]:
    return [
        *(sys.executable, "scripts/simulate.py"),
        *("--nodes", "3" if number % 2 == 0 else "5"),
        *("--seeds", str(SIMULATION_SEEDS)),
        *("--start", str(rng.randrange(1 << 31))),
        *("--jobs", str(os.cpu_count() or 1)),
    ]


def nemesis(rng: random.Random, number: int, minutes_left: float) -> list[str]:
    """Three nodes, then members that come and go, then five."""
    kind = (["--nodes", "3"], ["--membership"], ["--nodes", "5"])[number % 3]
    return [
        *(sys.executable, "scripts/nemesis.py"),
        *("--minutes", f"{max(0.5, min(NEMESIS_MINUTES_MAX, minutes_left)):.1f}"),
        *("--seed", str(rng.randrange(1 << 31))),
        *kind,
    ]


def fuzz(rng: random.Random, number: int, minutes_left: float) -> list[str]:
    """The two engines in turn: what one is blind to, inside a decoder in C, the other tries at random."""
    inputs = max(10_000, min(FUZZ_INPUTS_MAX, int(minutes_left * FUZZ_INPUTS_A_MINUTE)))
    engine = [] if number % 2 == 0 else ["--engine", "mutation"]
    seed = str(rng.randrange(1 << 31))
    return [sys.executable, "scripts/fuzz.py", "--inputs", str(inputs), "--seed", seed, *engine]


def pytest(*places: str) -> Callable[[random.Random, int, float], list[str]]:
    def command(rng: random.Random, _number: int, _minutes_left: float) -> list[str]:
        seed = str(rng.randrange(1 << 31))
        options = ["--hypothesis-profile=soak", f"--hypothesis-seed={seed}"]
        return ["env", f"{FIRST_SEED}={seed}", sys.executable, "-m", "pytest", "-q", *options, *places]

    return command


def campaigns() -> list[Campaign]:
    return [
        Campaign("simulation", 0.40, simulation),
        Campaign("nemesis", 0.30, nemesis),
        Campaign("fuzz", 0.10, fuzz),
        Campaign("crashes", 0.10, pytest("tests/fault")),
        Campaign("examples", 0.10, pytest("tests/unit")),
    ]


def main() -> int:
    options = _options()
    chosen = [each for each in campaigns() if not options.only or each.name in options.only]
    whole = sum(each.share for each in chosen)
    logs = ROOT / "build" / "soak" / time.strftime("%Y%m%d-%H%M%S")
    logs.mkdir(parents=True)
    print(f"soak: {options.minutes:g} minutes, seed {options.seed}, output in {logs}", flush=True)
    for campaign in chosen:
        run(
            campaign,
            options.minutes * campaign.share / whole,
            random.Random(f"{options.seed}{campaign.name}"),
            logs,
        )
    return summary(chosen)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="for all campaigns together (60)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31), help="of the seeds (drawn)")
    parser.add_argument(
        "--only", action="append", choices=[each.name for each in campaigns()], help="this one"
    )
    return parser.parse_args()


def run(campaign: Campaign, minutes: float, rng: random.Random, logs: Path) -> None:
    """Rounds until the time is over, and at least one."""
    started = time.monotonic()
    while campaign.rounds == 0 or time.monotonic() - started < minutes * 60:
        left_s = max(0.0, minutes * 60 - (time.monotonic() - started))
        command = campaign.command(rng, campaign.rounds, left_s / 60)
        log = logs / f"{campaign.name}-{campaign.rounds}.log"
        failure = _round(command, log, left_s + ROUND_OVERRUN_S)
        campaign.rounds += 1
        campaign.last_line = _last_line(log)
        print(f"{campaign.name} {campaign.rounds}: {campaign.last_line}", flush=True)
        if failure:
            campaign.failures.append(f"{failure}: {shlex.join(command)}   # {log}")
            print(f"FAILED {campaign.failures[-1]}", flush=True)
    campaign.seconds = time.monotonic() - started


def _round(command: list[str], log: Path, timeout_s: float) -> str:
    """What went wrong, or nothing. Whatever the round started ends with it."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return f"no end after {timeout_s:.0f} s"
        finally:
            _end(process)
    return "" if code == 0 else f"exit code {code}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """An interrupt first: a campaign has nodes to stop and namespaces to remove."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(INTERRUPTED_S)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return next((line for line in reversed(lines) if line.strip()), "no output")


def summary(done: list[Campaign]) -> int:
    print("\ncampaign      rounds  minutes  failed")
    for each in done:
        print(f"{each.name:12}  {each.rounds:6}  {each.seconds / 60:7.1f}  {len(each.failures):6}")
        for failure in each.failures:
            print(f"    {failure}")
    failed = sum(len(each.failures) for each in done)
    print(f"soak: {sum(each.rounds for each in done)} rounds, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
