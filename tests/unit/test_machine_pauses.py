"""The promise that no snapshot and no collection holds the loop, at a size that a test can take."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

from raftkv.kv import collector

ROOT = Path(__file__).parents[2]


def test_no_step_of_a_snapshot_is_long_and_no_key_costs_much() -> None:
    script = ROOT / "scripts" / "measure_pauses.py"
    done = subprocess.run(
        [sys.executable, str(script), "--keys", "100000"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "snapshot of 100,000 keys" in done.stdout


def test_settling_takes_what_stands_out_of_the_collectors_sight() -> None:
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    try:
        collector.settle()
        assert gc.get_freeze_count() > max(frozen, 10_000)
        assert gc.get_threshold()[0] == collector.YOUNG_OBJECTS
        assert gc.isenabled()
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
