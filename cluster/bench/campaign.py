"""Rounds of systems and cases: A B C, A B C, …, each system alone on the machine while it is measured.

A round starts each system in turn on fresh data, fills it, runs its cases and stops it; so what changes on
the machine over the minutes (neighbours, the disk) meets every system in every round. A sample counts only
if nothing failed and the system has what it acknowledged: see `check`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median, quantiles

from cluster.bench.load import Load, LoadFailed
from cluster.bench.processes import StartFailed, machine_busy_seconds
from cluster.bench.requests import (
    KEYS,
    Case,
    operations_a_request,
    value,
    writes_expected,
    written,
)
from cluster.bench.results import Sample
from cluster.bench.systems import Refused, System
from cluster.local import NodeFailed

MEMORY_DIRECTORY = Path("/dev/shm")
FILLING_THREADS = 16
WARM_UP = Case("put", 128, 64)
WARM_UP_SECONDS = 1
SYNC_PROBES = 200
FAILURES = (StartFailed, NodeFailed, Refused, LoadFailed, OSError)

Say = Callable[[str], None]


def play_round(
    number: int, plan: Sequence[tuple[System, Sequence[Case]]], directory: Path, seconds: int, say: Say
) -> list[Sample]:
    samples: list[Sample] = []
    for system, cases in plan:
        if cases:
            samples += play_system(number, system, cases, directory, seconds, say)
    return samples


def play_system(
    number: int, system: System, cases: Sequence[Case], directory: Path, seconds: int, say: Say
) -> list[Sample]:
    """A system that does not start, or dies, gives failed samples rather than an end of the whole run."""
    samples: list[Sample] = []
    home = Path(
        tempfile.mkdtemp(prefix=f"{system.name}-", dir=MEMORY_DIRECTORY if system.in_memory else directory)
    )
    try:
        system.start(home)
        warm_up(system)
        filled = 0
        for case in sorted(cases, key=lambda each: each.value_bytes):
            if case.value_bytes != filled:
                filled = case.value_bytes
                fill(system, filled)
            samples.append(measure(number, system, case, seconds))
            say(line(samples[-1]))
    except FAILURES as error:
        done = {sample.case for sample in samples}
        samples += [failed(number, system, case, str(error)) for case in cases if case not in done]
        say(f"{system.name}: {error}")
    finally:
        system.stop()
        shutil.rmtree(home, ignore_errors=True)
    return samples


def warm_up(system: System) -> None:
    system.store(0, value(0, "warm", WARM_UP.value_bytes))
    system.run(WARM_UP, "warm", WARM_UP_SECONDS)


def fill(system: System, size: int) -> None:
    """Every key, so that no read finds nothing."""
    system.store(
        0, value(0, "fill", size)
    )  # on this thread: a process that it starts lives as long as the thread
    if system.stores:
        with ThreadPoolExecutor(FILLING_THREADS) as threads:
            list(
                threads.map(lambda number: system.store(number, value(number, "fill", size)), range(1, KEYS))
            )


def measure(number: int, system: System, case: Case, seconds: int) -> Sample:
    tag = f"{case.operation}{case.connections}r{number}"
    system.aim()
    writes, cpu, busy = system.writes_made(), system.cpu_seconds(), machine_busy_seconds()
    began = time.monotonic()
    load = system.run(case, tag, seconds)
    took = time.monotonic() - began
    cpu, busy = system.cpu_seconds() - cpu, machine_busy_seconds() - busy
    operations = load.requests * operations_a_request(case)
    capacity = took * (os.cpu_count() or 1)
    return Sample(
        system=system.name,
        round=number,
        case=case,
        operations=operations,
        operations_per_second=operations / load.seconds,
        p50_ms=load.p50_ms,
        p99_ms=load.p99_ms,
        max_ms=load.max_ms,
        server_cpu_seconds=cpu,
        client_cpu_seconds=load.client_cpu_seconds,
        errors=load.errors,
        neighbours_cpu_share=max(0.0, busy - cpu - load.client_cpu_seconds) / capacity,
        problem=check(system, case, tag, load, writes),
    )


def check(system: System, case: Case, tag: str, load: Load, writes_before: int | None) -> str:
    """A sentence on what is wrong with the answers; empty where nothing is.

    The load generators see statuses above 399 and broken connections. What they don't see: redirects, which
    write nothing (the system's own count of writes tells), answers without the value (their size tells), and
    values that are not what was put (a few are read back).
    """
    if load.errors:
        return f"{load.errors} requests failed, {load.requests} succeeded"
    if not load.requests:
        return "no request was answered"
    if writes_before is not None and (expected := writes_expected(case, load.requests)):
        made = (system.writes_made() or 0) - writes_before
        if made < expected:
            return f"{expected} writes were acknowledged, {made} were made"
    reads = case.operation in ("get", "stale")
    if reads and load.bytes_an_answer is not None and load.bytes_an_answer < case.value_bytes:
        return f"an answer has {load.bytes_an_answer:.0f} bytes, a value {case.value_bytes}"
    for each in written(case, load.requests) if system.stores else ():
        found, expected_value = system.fetch(each), value(each, tag, case.value_bytes)
        if found != expected_value:
            return f"key {each} holds {str(found)[:40]!r} and not {expected_value[:40]!r}"
    return ""


def failed(number: int, system: System, case: Case, problem: str) -> Sample:
    return Sample(system.name, number, case, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0.0, problem or "failed")


def line(sample: Sample) -> str:
    if sample.problem:
        return f"{sample.round}  {sample.system:13} {sample.case!s:46} FAILED: {sample.problem}"
    return (
        f"{sample.round}  {sample.system:13} {sample.case!s:46} {sample.operations_per_second:>9,.0f}/s"
        f"  p50 {sample.p50_ms:7.2f} ms  p99 {sample.p99_ms:7.2f} ms"
        f"  neighbours {sample.neighbours_cpu_share:4.0%}"
    )


def sync_ms(directory: Path) -> tuple[float, float]:
    """Median and 99th percentile of appending 4 KiB and fdatasync, in ms: what a durable write can't beat."""
    taken: list[float] = []
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        for _ in range(SYNC_PROBES):
            began = time.perf_counter()
            file.write(b"x" * 4096)
            os.fdatasync(file.fileno())
            taken.append((time.perf_counter() - began) * 1000)
    return median(taken), quantiles(taken, n=100)[-1]
