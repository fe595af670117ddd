"""The benchmarks run: real servers, a real load generator, for a second or two each."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.bench.campaign import measure
from cluster.bench.load import Load
from cluster.bench.requests import Case
from cluster.bench.results import from_document
from cluster.bench.systems import EtcdGateway, PlainPySyncObj

ROOT = Path(__file__).parents[2]
PUT = Case("put", 128, 16)

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")


def bench(directory: Path, *words: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "bench.py"), "--directory", str(directory), *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done, json.loads((directory / "results.json").read_text())


@needs_wrk
def test_bench_measures_raftkv_against_its_ceiling(tmp_path: Path) -> None:
    done, document = bench(
        tmp_path,
        *("--systems", "raftkv", "ceiling", "--operations", "put", "get", "--connections", "16"),
        *("--value-bytes", "128", "4096", "--seconds", "1", "--rounds", "1"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    samples = [from_document(each) for each in document["samples"]]
    assert {(each.system, each.case.operation) for each in samples} == {
        (system, operation) for system in ("raftkv", "ceiling") for operation in ("put", "get")
    }
    assert all(each.operations > 0 and each.server_cpu_seconds > 0 for each in samples)
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith("data-")] == []


@needs_wrk
def test_bench_measures_raftkv_with_tls_and_tokens(tmp_path: Path) -> None:
    done, document = bench(
        tmp_path,
        *("--systems", "raftkv-secured", "--operations", "put", "get", "batch", "--connections", "16"),
        *("--value-bytes", "128", "--seconds", "1", "--rounds", "1"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    samples = [from_document(each) for each in document["samples"]]
    assert {each.case.operation for each in samples} == {"put", "get", "batch"}
    assert all(each.operations > 0 for each in samples)


@needs_wrk
@pytest.mark.parametrize(("name", "situations"), [("follower", 5), ("instruments", 6)])
def test_a_probe_plays_its_situations(tmp_path: Path, name: str, situations: int) -> None:
    """Whether its bounds hold is for a quiet machine to say."""
    words = ("--directory", str(tmp_path), "--probe", name, "--seconds", "1", "--rounds", "1")
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "bench.py"), *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    document = json.loads((tmp_path / f"probe-{name}.json").read_text())
    assert len({each["situation"] for each in document["seen"]}) == situations
    assert all(each["rate"] > 10 and not each["refused"] for each in document["seen"])
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith("data-")] == []


@needs_wrk
@pytest.mark.parametrize("kind", [PlainPySyncObj, EtcdGateway])
def test_a_peer_has_what_it_acknowledged(kind: type[PlainPySyncObj | EtcdGateway], tmp_path: Path) -> None:
    system = kind(tmp_path)
    if (lacking := system.missing()) is not None:
        pytest.skip(lacking)
    try:
        system.start(tmp_path)
        sample = measure(1, system, PUT, seconds=1)
    finally:
        system.stop()
    assert sample.problem == ""
    assert sample.operations > 0


@needs_wrk
def test_requests_that_fail_make_a_sample_that_does_not_count(tmp_path: Path) -> None:
    """Reads of keys that nobody wrote: every answer is a 404."""

    class Misdirected(PlainPySyncObj):
        def run(self, case: Case, tag: str, seconds: int) -> Load:
            return super().run(Case("stale", 128, 16), tag, seconds)

    system = Misdirected(tmp_path)
    try:
        system.start(tmp_path)
        sample = measure(1, system, PUT, seconds=1)
    finally:
        system.stop()
    assert "requests failed" in sample.problem
