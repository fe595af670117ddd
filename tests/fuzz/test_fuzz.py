"""A share of the fuzzing, the same inputs every time; `scripts/fuzz.py` looks for new ones."""

from __future__ import annotations

import itertools

import pytest

from tests.fuzz.mutation import inputs
from tests.fuzz.targets import TARGETS, Target
from tests.fuzz.watch import Watch

INPUTS = 8_000  # times a target's share


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_any_bytes_are_read_or_refused_within_bounds(target: Target) -> None:
    watch = Watch(target)
    for data in itertools.islice(inputs(target.samples(), seed=1), int(INPUTS * target.share)):
        watch.run(data)
