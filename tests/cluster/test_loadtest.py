"""The k6 scripts run against a cluster that is started for them, and their thresholds hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not (Path(sys.executable).parent / "k6").exists(), reason="k6 comes with the bench extra"
)


@pytest.mark.parametrize(
    ("name", "words"),
    [("smoke", "smoke: passed"), ("cas", "cas: passed"), ("failover", "led and was killed")],
)
def test_a_script_passes(name: str, words: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cluster.bench.loadtest", name, "--duration", "5s", "--output", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert words in done.stdout
    metrics = json.loads((tmp_path / f"{name}.json").read_text())["metrics"]
    assert metrics["checks"]["passes"] > 0
    assert metrics["checks"]["fails"] == 0
    assert "<html" in (tmp_path / f"{name}.html").read_text()[:1000].lower()
    assert "THRESHOLDS" in (tmp_path / f"{name}.txt").read_text()
    assert not list(tmp_path.glob("data-*"))
