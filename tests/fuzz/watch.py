"""Runs one input of a target and holds it to its bounds: an error that is documented, in time, in memory."""

from __future__ import annotations

import resource
import time
import tracemalloc
from typing import Any

from tests.fuzz.targets import Target

SECONDS_MAX = 2.0  # inputs have a few KiB; the slowest takes milliseconds, and the machine may be busy
MEASURED_EVERY = 16  # tracing allocations costs a few times the run itself
ADDRESS_SPACE_BYTES = 1 << 30  # beyond what the process has: any single input that wants more fails


class Finding(AssertionError):
    """A bound that an input broke."""


class Watch:
    """`run` raises whatever the target raises, and Finding."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.inputs = 0
        self.slowest_s = 0.0
        self.hungriest_bytes = 0
        target.run(b"")  # what is imported and cached on first use is nobody's allocation

    def run(self, data: bytes) -> None:
        measured = self.inputs % MEASURED_EVERY == 0
        self.inputs += 1
        if measured:
            tracemalloc.start()
        started = time.perf_counter()
        try:
            self._target.run(data)
        finally:
            seconds = time.perf_counter() - started
            peak = 0
            if measured:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
        self.slowest_s = max(self.slowest_s, seconds)
        self.hungriest_bytes = max(self.hungriest_bytes, peak)
        if seconds > SECONDS_MAX:
            raise Finding(f"{seconds:.2f} s for {len(data)} bytes; {SECONDS_MAX} s are allowed")
        bound = self._target.bytes_fixed + self._target.bytes_each * len(data)
        if peak > bound:
            raise Finding(f"{peak} bytes allocated for an input of {len(data)}; {bound} are allowed")


def limit_memory() -> None:
    """A hard bound on every input: an allocation beyond it is a MemoryError, which no target documents."""
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    limits: Any = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + ADDRESS_SPACE_BYTES, limits[1]))
