"""`raftkv` with its counters and timers taken out, to be measured beside one that has them.

    python -m cluster.bench.uncounted serve …        as python -m raftkv

What stays is the clock that is read for each request and the numbers that flow control goes by: those are
no instruments. Never for anything but a measurement: such a node's /metrics is empty of what it did.
"""

from __future__ import annotations

from raftkv.metrics import Histogram, RequestTimes
from raftkv.raft.measures import Measures


def _nothing(*_: object) -> None:
    pass


RequestTimes.add = Histogram.add = _nothing  # type: ignore[method-assign,assignment]
Measures.synced = Measures.follows = _nothing  # type: ignore[method-assign,assignment]
Measures.watch_collector = _nothing  # type: ignore[method-assign,assignment]

if __name__ == "__main__":
    from cluster.cli import main

    main()
