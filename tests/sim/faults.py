"""The schedule of faults of one run, drawn from the seed before anything happens.

Swarm testing (Groce 2012): each run draws which kinds it has and how dense they are, so that some runs
are all partitions and others all power cuts; a mixture of everything in every run finds less.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

# kind -> how often it is drawn, among those that a run has
KINDS: dict[str, int] = {
    "kill": 4,
    "power_cut": 4,
    "power_cut_all": 2,
    "isolate": 4,
    "isolate_leader": 5,
    "split": 3,
    "one_way": 3,
    "reset": 3,
    "pause": 3,
    "clock_jump": 2,
    "slow_disk": 3,
    "slow_link": 2,
    "sync_fails": 2,
    "transfer": 3,
    "snapshot": 3,
    "contest": 3,
    "trap": 5,
    "crash_at_job": 5,
    "depose": 2,
}


@dataclass(frozen=True, slots=True)
class Fault:
    at: float
    kind: str
    lasts_s: float
    seed: int  # for what is decided when it happens


def schedule(rng: random.Random, duration_s: float) -> list[Fault]:
    kinds = rng.sample(list(KINDS), rng.randint(1, len(KINDS)))
    weights = [KINDS[kind] for kind in kinds]
    gap_s = rng.choice((0.15, 0.3, 0.6, 1.2))
    lasts_s = rng.choice((0.3, 0.8, 2.0))
    faults = []
    at = rng.uniform(0.0, 2.0)
    while at < duration_s:
        kind = rng.choices(kinds, weights)[0]
        faults.append(Fault(at, kind, rng.expovariate(1 / lasts_s), rng.getrandbits(32)))
        at += rng.expovariate(1 / gap_s)
    return faults
