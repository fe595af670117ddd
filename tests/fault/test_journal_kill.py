"""A real process on a real directory, killed with SIGKILL at every system call that changes the disk.

strace ends it on entry to the Nth call. What it wrote to its pipe before was acknowledged; a restart must
find that state, or the one of the batch that was on its way.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from raftkv.journal.disk import OsDisk
from tests.fault.journal_workload import NOTHING_YET, SEGMENT_BYTES, State, open_wal, run, state_of
from tests.sim.disk import MemoryDisk

ROOT = Path(__file__).parents[2]
SEED, COMMITS = 11, 5
CALLS = ("pwrite64", "fdatasync", "fsync", "rename", "unlink")
DEADLINE_S = 60


@pytest.fixture(scope="module")
def states() -> list[State]:
    """The state after each group commit of the workload, the empty one first."""
    disk = MemoryDisk(Random(0))
    found = [NOTHING_YET]
    run(lambda: disk, SEED, lambda _: None, found.append, COMMITS)
    return found


def traced(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    strace = shutil.which("strace")
    assert strace is not None, "these tests need strace: apt-get install strace"
    tracer = [strace, "-f", "-qq", "-o", str(directory.with_suffix(".trace")), *options]
    # Without site-packages it starts in a third of the time; without -B it may rename bytecode files.
    program = [sys.executable, "-S", "-E", "-B", "-m", "tests.fault.journal_workload"]
    return subprocess.run(
        [*tracer, *program, str(directory), str(SEED), str(COMMITS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Counter[str]:
    """How often the workload makes each call when nothing stops it."""
    directory = tmp_path_factory.mktemp("whole") / "journal"
    result = traced(directory, "-e", f"trace={','.join(CALLS)}")
    assert result.returncode == 0, result.stderr
    lines = directory.with_suffix(".trace").read_text().splitlines()
    return Counter(match[1] for line in lines if (match := re.match(r"(?:\d+ +)?(\w+)\(", line)))


def check_restart(directory: Path, output: str, states: Sequence[State], where: str) -> None:
    acknowledged = output.count("synced\n")
    wal = open_wal(OsDisk(directory))
    found = state_of(wal)
    wal.close()
    assert found in states[acknowledged : acknowledged + 2], f"{where}: {acknowledged} were acknowledged"
    assert sum(path.suffix == ".journal" for path in directory.iterdir()) == 1


@pytest.mark.parametrize("call", CALLS)
def test_sigkill_at_every_call_loses_nothing_acknowledged(
    call: str, calls: Counter[str], states: list[State], tmp_path: Path
) -> None:
    assert calls[call] > 3
    for number in range(1, calls[call] + 1):
        directory = tmp_path / f"{call}-{number}"
        result = traced(directory, "-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={number}")
        assert result.returncode == -signal.SIGKILL, (call, number, result)
        check_restart(directory, result.stdout, states, f"{call} {number}")
        shutil.rmtree(directory)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ("fdatasync", "EIO", "JournalFailed: .* is not retried"),
        ("pwrite64", "EIO", "JournalFailed: .* is not retried"),
        ("pwrite64", "ENOSPC", "DiskFull: no room left in .* wanted [1-9]"),
        ("fallocate", "ENOSPC", f"DiskFull: no room left in .* wanted {SEGMENT_BYTES} bytes"),
        ("rename", "ENOSPC", "DiskFull: no room left in"),
        ("unlink", "EIO", "JournalFailed: deleting"),
    ],
)
def test_a_failing_call_stops_the_process_and_loses_nothing_acknowledged(
    call: str, error: str, message: str, states: list[State], tmp_path: Path
) -> None:
    for number in (1, 3):
        directory = tmp_path / f"journal-{number}"
        result = traced(directory, "-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={number}")
        assert result.returncode == 1, result
        assert re.search(message, result.stderr), result.stderr
        check_restart(directory, result.stdout, states, f"{call} {number}")


def test_a_journal_grows_as_it_is_written_where_nothing_can_be_preallocated(
    states: list[State], tmp_path: Path
) -> None:
    directory = tmp_path / "journal"
    result = traced(directory, "-e", "trace=fallocate", "-e", "inject=fallocate:error=EOPNOTSUPP")
    assert result.returncode == 0, result.stderr
    check_restart(directory, result.stdout, states, "no preallocation")
