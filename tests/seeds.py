"""Which seeds a sweep runs: the same ones every time, or, for `scripts/soak`, ones that were never tried."""

from __future__ import annotations

import os

FIRST_SEED = "TEST_FIRST_SEED"


def seeds(count: int) -> range:
    first = int(os.environ.get(FIRST_SEED, "1"))
    return range(first, first + count)
