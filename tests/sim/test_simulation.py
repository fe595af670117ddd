"""The simulation finds nothing in raftkv, something in stock PySyncObj, and each planted bug.

Each test runs `scripts/simulate.py`, as a person would, in a process of its own: the hash seed must be fixed
before Python starts, or a seed that fails here is not the same run there.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.mutants import MUTANTS, Mutant

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "simulate.py"


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=600, check=False
    )


@pytest.mark.parametrize(("nodes", "seeds"), [(3, 300), (5, 120), (1, 30)])
def test_no_seed_violates_an_invariant(nodes: int, seeds: int) -> None:
    done = simulate("--nodes", str(nodes), "--seeds", str(seeds))

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{seeds} seeds, 0 violations" in done.stdout


def test_no_seed_violates_an_invariant_while_members_come_and_go() -> None:
    done = simulate("--members", "--seeds", "80")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "80 seeds, 0 violations" in done.stdout
    for what in ("add", "promote", "remove", "wipe", "excluded"):
        assert re.search(rf"[1-9]\d* {what}", done.stdout), f"{what}: never in {done.stdout}"


def test_the_seeds_reach_what_they_are_for() -> None:
    """A run in which nothing went wrong proves nothing."""
    done = simulate("--seeds", "100")

    for what in ("elections", "kill", "power cut", "disk failed", "snapshots installed", "torn tails cut"):
        found = re.search(rf"(\d+) {what}", done.stdout)
        assert found is not None, f"{what}: never in {done.stdout}"
        assert int(found[1]) > 0


def test_one_seed_is_one_run() -> None:
    first, second = (simulate("--seeds", "6", "--start", "20", "--hashes").stdout for _ in range(2))

    hashes = [line for line in first.splitlines() if line.startswith("seed ")]
    assert len(hashes) == 6
    assert hashes == [line for line in second.splitlines() if line.startswith("seed ")]


def test_stock_pysyncobj_violates_state_machine_safety() -> None:
    done = simulate("--stock", "--seeds", "100")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "state-machine safety" in done.stdout


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_found(mutant: Mutant) -> None:
    """The hunt starts at a seed that found it once, and may take 1,000."""
    done = simulate("--mutant", mutant.name, "--start", str(mutant.seed), "--seeds", "1000")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 mutants, 1 found" in done.stdout
