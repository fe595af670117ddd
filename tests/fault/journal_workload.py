"""A workload that asks a journal for all that it can do. The same seed stages the same records.

Run as a program it works on a real directory and writes a line when a group commit has returned:

    python -m tests.fault.journal_workload DIRECTORY SEED COMMITS

It imports nothing but the journal, so that a sweep can start it a hundred times.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

from raftkv.errors import JournalFailed
from raftkv.journal.disk import Disk, OsDisk
from raftkv.journal.wal import Wal

SEGMENT_BYTES = 2048
LIVES = 3
COMMITS = 10  # in each life, unless told
State = tuple[list[tuple[bytes, int, int]], int, str | None, int]

NOTHING_YET: State = ([], 0, None, 1)


def state_of(wal: Wal) -> State:
    return wal[:], wal.getCurrentTerm(), wal.getVotedForNodeId(), wal.getRaftCommitIndex()


def open_wal(disk: Disk) -> Wal:
    return Wal.open(disk, SEGMENT_BYTES, clock=lambda: 0.0, draw_id=lambda size: b"j" * size)


def run(
    disk: Callable[[], Disk],
    seed: int,
    cut: Callable[[State], None],
    synced: Callable[[State], None],
    commits: int = COMMITS,
) -> None:
    """`cut` and `synced` are told the state that the batch brings."""
    rng = random.Random(seed)
    last = NOTHING_YET
    for _ in range(LIVES):
        wal = open_wal(disk())
        assert state_of(wal) == last
        for _ in range(commits):
            for _ in range(rng.randint(1, 4)):
                stage_something(wal, rng)
            while (batch := wal.cut()) is not None:
                last = state_of(wal)
                cut(last)
                wal.write(batch)
                wal.synced(batch)
                synced(last)
                assert not len(wal) or wal.durable_index == wal[-1][1]
        wal.close()


def stage_something(wal: Wal, rng: random.Random) -> None:
    term = wal.getCurrentTerm()
    match rng.choices(("add", "vote", "truncate", "compact", "reset", "clear"), (24, 4, 3, 3, 1, 0.3))[0]:
        case "add":
            for _ in range(rng.randint(1, 3)):
                wal.add(a_payload(rng), wal[-1][1] + 1 if len(wal) else rng.randint(1, 9), term)
        case "vote":
            wal.setCurrentTerm(term + 1, rng.choice((None, "n1", "n2")))
        case "truncate" if len(wal) > 1:
            wal.deleteEntriesFrom(rng.randint(max(1, len(wal) - 5), len(wal) - 1))
        case "compact" if len(wal):
            index = rng.choice(wal[:])[1]
            wal.compact(index, wal[index - wal[0][1]][2])
        case "reset":
            wal.setCurrentTerm(term + 1, None)
            wal.reset((wal[-1][1] if len(wal) else 0) + rng.randint(1, 50), term + 1, a_payload(rng))
        case "clear":
            wal.clear()
    # As PySyncObj, which tells its commit index again with every message.
    wal.setRaftCommitIndex(rng.choice(wal[:])[1] if len(wal) else 1)


def a_payload(rng: random.Random) -> bytes:
    size = rng.choice((0, 1, 30, 200, 700, 1500, 5000))
    return rng.choice((bytes(size), rng.randbytes(size), b"RKVF" * (size // 4)))


def main(directory: str, seed: str, commits: str) -> None:
    try:
        run(lambda: OsDisk(Path(directory)), int(seed), lambda _: None, lambda _: acknowledge(), int(commits))
    except JournalFailed as failure:
        sys.exit(f"{type(failure).__name__}: {failure}")


def acknowledge() -> None:
    os.write(1, b"synced\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
