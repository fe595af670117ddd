#!/usr/bin/env python3
"""Whole clusters in one process, from one seed each: real engine, journal, state machine and snapshots over
simulated time, network and disks. See tests/sim.

    scripts/simulate.py --seeds 1000 --nodes 3          1,000 seeds, from 0
    scripts/simulate.py --start 4711 --seeds 1 --trace  one of them, with everything that happened
    scripts/simulate.py --members --seeds 100           members come, go and lose their disks meanwhile
    scripts/simulate.py --stock --seeds 100             PySyncObj as released: must show violations
    scripts/simulate.py --mutant all                    plants each bug in turn; each must be found

Exits 0 when what was asked for held: no violation, or, with --stock or --mutant, violations found.
"""

from __future__ import annotations

import argparse
import collections
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MUTANT_SEEDS_MAX = 1000


def main() -> int:
    options = _options()
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets of names iterate in the order of their hashes
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    sys.path.insert(0, str(ROOT))
    logging.disable(
        logging.CRITICAL
    )  # the nodes tell of every fault; the transcript has it all, and in order
    if options.list_mutants:
        from tests.sim.mutants import MUTANTS

        for mutant in MUTANTS:
            print(f"{mutant.name:28} {mutant.story}")
        return 0
    if options.mutant is not None:
        return _hunt(options)
    return _simulate(options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, help="how many (100; with --mutant at most this many, 1000)")
    parser.add_argument("--seed", type=int, help="this one alone")
    parser.add_argument("--start", type=int, default=0, help="the first (0)")
    parser.add_argument("--nodes", type=int, help="cluster size: 1, 3 or 5 (3; a mutant has its own)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (1)")
    parser.add_argument("--stock", action="store_true", help="run PySyncObj as released instead of raftkv")
    parser.add_argument("--members", action="store_true", help="nodes are added, promoted, removed and wiped")
    parser.add_argument("--mutant", metavar="NAME", help="plant this bug, or each one in turn: all")
    parser.add_argument("--list-mutants", action="store_true")
    parser.add_argument("--trace", action="store_true", help="print everything that happens")
    parser.add_argument("--hashes", action="store_true", help="print each seed's trace hash")
    return parser.parse_args()


def run(job: tuple[int, int, str, str | None, bool]) -> object:
    """One seed; in a process of its own where there are several."""
    from tests.sim.members import run_members
    from tests.sim.mutants import find, planted
    from tests.sim.node import run_node
    from tests.sim.stock import run_stock

    seed, nodes, kind, mutant, trace = job
    transcript = print if trace else None
    if kind == "stock":
        return run_stock(seed, nodes, transcript)
    with planted(None if mutant is None else find(mutant)):
        return (run_members if kind == "members" else run_node)(seed, nodes, transcript)


def _results(
    options: argparse.Namespace, seeds: range, nodes: int, mutant: str | None, members: bool
) -> Iterator:
    kind = "stock" if options.stock else "members" if members else "nodes"
    jobs = [(seed, nodes, kind, mutant, options.trace) for seed in seeds]
    if options.jobs == 1:
        yield from map(run, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(
        options.jobs, logging.disable, (logging.CRITICAL,)
    ) as pool:
        yield from pool.imap(run, jobs, chunksize=4)


def _seeds(options: argparse.Namespace, default: int) -> range:
    if options.seed is not None:
        return range(options.seed, options.seed + 1)
    return range(options.start, options.start + (options.seeds or default))


def _simulate(options: argparse.Namespace) -> int:
    seeds, nodes = _seeds(options, 100), options.nodes or 3
    started = time.monotonic()
    kinds: collections.Counter[str] = collections.Counter()
    counts: collections.Counter[str] = collections.Counter()
    operations = commits = undecided = violations = 0
    for result in _results(options, seeds, nodes, None, options.members):
        operations += result.operations
        commits += result.committed
        undecided += result.undecided
        counts.update(result.counts)
        if options.hashes:
            print(f"seed {result.seed} trace {result.trace}")
        if result.violation is not None:
            violations += 1
            kinds[result.violation] += 1
            print(f"seed {result.seed}: {result.violation}: {result.message}", flush=True)
    elapsed = time.monotonic() - started
    found = f" ({', '.join(f'{kind} {count}' for kind, count in kinds.most_common())})" if kinds else ""
    print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    what = "stock PySyncObj, " if options.stock else "with changing members, " if options.members else ""
    print(
        f"{what}{nodes} nodes: {len(seeds)} seeds, {violations} violations{found},"
        f" {operations} operations, {commits} entries committed, {undecided} histories undecided,"
        f" {len(seeds) / elapsed:.1f} seeds/s"
    )
    if options.stock:
        return 0 if violations else 1
    return 1 if violations else 0


def _hunt(options: argparse.Namespace) -> int:
    from tests.sim.mutants import MUTANTS, find

    mutants = MUTANTS if options.mutant == "all" else (find(options.mutant),)
    seeds = _seeds(options, MUTANT_SEEDS_MAX)
    escaped = 0
    for mutant in mutants:
        started = time.monotonic()
        nodes = options.nodes or mutant.nodes
        for result in _results(options, seeds, nodes, mutant.name, mutant.members):
            if result.violation is not None:
                where = f"seed {result.seed:4} ({result.violation}: {result.message})"
                break
        else:
            where = f"NOT FOUND in {len(seeds)} seeds"
            escaped += 1
        print(f"{mutant.name:28} {time.monotonic() - started:6.1f} s  {where}", flush=True)
    print(f"{len(mutants)} mutants, {len(mutants) - escaped} found")
    return 1 if escaped else 0


if __name__ == "__main__":
    sys.exit(main())
