#!/usr/bin/env python3
"""How long the loop thread is held while a snapshot is made, and what a key costs in memory.

    scripts/measure_pauses.py [--keys 1000000] [--value-bytes 128] [--writes-per-second 5000]

Fills a state machine; then, while the loop thread applies a steady stream of writes (decoding them as it
would from the log), takes an image and reads it page by page, and a worker thread encodes, compresses and
syncs the pages into a directory. At the end the snapshot is loaded again and compared. A step is what the
loop does without looking up: one page, or one batch of writes. Its cost is CPU time of the loop thread
(`time.thread_time`), so neighbours on the machine don't count; wall time is shown beside it.

Exits 1 where a step or a garbage collection took more than 10 ms, or the memory is more than 2.5 times the
data (keys and values).
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from raftkv.kv import collector  # noqa: E402
from raftkv.kv.command import Delete, DeletePrefix, Put, decode_entry, encode, encode_entry  # noqa: E402
from raftkv.kv.image import PAGE_RECORDS  # noqa: E402
from raftkv.kv.machine import Machine  # noqa: E402
from raftkv.model import Membership  # noqa: E402
from raftkv.snapshot.codec import Manifest  # noqa: E402
from raftkv.snapshot.directory import DirectoryStore  # noqa: E402
from raftkv.snapshot.loader import load_machine  # noqa: E402
from raftkv.snapshot.store import SnapshotWriter  # noqa: E402

BURST_MS_MAX = 10.0
MEMORY_FACTOR_MAX = 2.5
BATCH = 64
TICK_S = 0.002


class Steps:
    """The longest steps of each kind, in ms of this thread's CPU time and of the wall."""

    def __init__(self) -> None:
        self.rows: dict[str, list[float]] = {}  # kind -> [count, cpu sum, cpu max, wall max]
        self.collections: dict[int, list[float]] = {}  # generation -> [count, cpu max]
        self._began = 0.0
        gc.callbacks.append(self._on_collection)

    @contextmanager
    def step(self, kind: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.thread_time()
        yield
        cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
        row = self.rows.setdefault(kind, [0, 0.0, 0.0, 0.0])
        row[0] += 1
        row[1] += cpu * 1000
        row[2] = max(row[2], cpu * 1000)
        row[3] = max(row[3], wall * 1000)

    def _on_collection(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.thread_time()
            return
        row = self.collections.setdefault(info["generation"], [0, 0.0])
        row[0] += 1
        row[1] = max(row[1], (time.thread_time() - self._began) * 1000)

    def longest_ms(self) -> float:
        return max([row[2] for row in self.rows.values()] + [row[1] for row in self.collections.values()])

    def show(self) -> None:
        print(f"\n{'step':34}{'count':>9}{'mean ms':>10}{'max ms':>9}{'wall max ms':>13}")
        for kind, (count, total, longest, wall) in self.rows.items():
            print(f"{kind:34}{count:9.0f}{total / count:10.3f}{longest:9.2f}{wall:13.2f}")
        for generation, (count, longest) in sorted(self.collections.items()):
            print(f"{f'garbage collection, generation {generation}':34}{count:9.0f}{'':10}{longest:9.2f}")


def main() -> int:
    options = _options()
    collector.settle()
    steps = Steps()
    machine = Machine()
    before = rss_bytes()
    fill(machine, options.keys, options.value_bytes, steps)
    used = rss_bytes() - before
    factor = used / machine.bytes
    print(f"keys {machine.keys:,}, data {machine.bytes:,} bytes ({machine.bytes / machine.keys:.0f} a key)")
    print(f"memory {used:,} bytes, {used / machine.keys:.0f} a key: {factor:.2f} times the data")
    with steps.step("full garbage collection"):
        gc.collect()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        store = DirectoryStore.open(Path(directory))
        manifest, expected = snapshot(machine, store, options.writes_per_second, steps)
        peak = peak_bytes() - before
        print(f"snapshot {manifest.bytes:,} bytes in {len(manifest.chunks)} chunks; memory at most {peak:,}")
        began = time.perf_counter()
        loaded = load_machine(store, manifest.id)
        print(f"loaded {loaded.keys:,} keys in {time.perf_counter() - began:.2f} s")
        assert (loaded.revision, loaded.keys, loaded.bytes) == expected
        store.close()
    bulk(machine, steps)
    steps.show()
    longest = steps.longest_ms()
    print(f"\nlongest step {longest:.2f} ms (at most {BURST_MS_MAX:.0f})")
    print(f"memory {factor:.2f} times the data (at most {MEMORY_FACTOR_MAX})")
    return 0 if longest <= BURST_MS_MAX and factor <= MEMORY_FACTOR_MAX else 1


def fill(machine: Machine, keys: int, value_bytes: int, steps: Steps) -> None:
    rng = random.Random(1)
    order = list(range(keys))
    rng.shuffle(order)  # the hard case: sorted keys fill whole blocks
    apply = applier(machine, steps, "fill: 64 puts of new keys")
    for at in range(0, keys, BATCH):
        part = order[at : at + BATCH]
        apply([encode(Put(b"key/%012d" % n, rng.randbytes(value_bytes))) for n in part])


def applier(machine: Machine, steps: Steps, kind: str) -> Callable[[list[bytes]], None]:
    def apply(encoded: list[bytes]) -> None:
        payload = encode_entry(machine.log_time_ms + 1, encoded)
        with steps.step(kind):
            log_time_ms, commands = decode_entry(payload)
            index = machine.applied_index + 1
            for command in commands:
                machine.apply(index, log_time_ms, command)

    return apply


def snapshot(
    machine: Machine, store: DirectoryStore, writes_per_second: int, steps: Steps
) -> tuple[Manifest, tuple[int, int, int]]:
    """The loop thread's part, paced by the worker; and what the image was of."""
    expected = machine.revision, machine.keys, machine.bytes
    apply = applier(machine, steps, "snapshot: 64 writes")
    rng, keys = random.Random(2), machine.keys
    wake = threading.Event()
    with ThreadPoolExecutor(1) as worker:
        with steps.step("snapshot: take the image"):
            image = machine.image()
        writer = SnapshotWriter(
            store,
            cluster="measured",
            index=machine.applied_index,
            term=1,
            membership=Membership("measured", (), ()),
            image=image,
        )
        job: Future[Any] | None = None
        written, began, kept = 0, time.perf_counter(), 0
        while True:
            if job is None or job.done():
                if job is not None:
                    job.result()
                with steps.step(f"snapshot: a page of {PAGE_RECORDS}"):
                    page = image.next_page(PAGE_RECORDS)
                if not page:
                    break
                wake.clear()
                job = worker.submit(writer.write, page)
                job.add_done_callback(lambda _: wake.set())
            if written < (time.perf_counter() - began) * writes_per_second:
                apply([a_write(rng, keys) for _ in range(BATCH)])
                written += BATCH
                kept = max(kept, image.kept)
            else:
                wake.wait(TICK_S)
        manifest = worker.submit(writer.commit).result()
    took = time.perf_counter() - began
    print(f"snapshot of {manifest.keys:,} keys in {took:.1f} s beside {written:,} writes, ", end="")
    print(f"for which it kept {kept:,} old records at most")
    return manifest, expected


def a_write(rng: random.Random, keys: int) -> bytes:
    key = b"key/%012d" % rng.randrange(keys * 11 // 10)
    return encode(Delete(key)) if rng.random() < 0.05 else encode(Put(key, rng.randbytes(128)))


def bulk(machine: Machine, steps: Steps) -> None:
    """The longest single commands that the API allows."""
    for _ in range(5):
        with steps.step("delete the first 10,000 of a prefix"):
            machine.apply(machine.applied_index + 1, 0, DeletePrefix(b"key/", 10_000))
        with steps.step("scan 1,000 items"):
            machine.scan(b"key/", None, 1_000)


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How long the loop is held while a snapshot is made.")
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--value-bytes", type=int, default=128)
    parser.add_argument("--writes-per-second", type=int, default=5_000)
    parser.add_argument("--directory", help="where the snapshot goes (default: the system's temporary one)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
