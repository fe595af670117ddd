"""What a member counts while it runs, and all of its numbers as `/metrics` shows them.

Counting happens where the thing itself happens: batches in `proposals.py`, rounds in `reads.py`, applying
and campaigns in `engine.py`, snapshots in `compaction.py` and `catchup.py`. `Measures` has what the shell
around the engine sees: syncs, late timers, changes of leader, the collector's pauses. All are additions to
plain numbers, on the loop's thread; what costs more, such as asking the disk how full it is, is done when
somebody reads.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from raftkv.metrics import COUNT_BUCKETS, SHORT_BUCKETS, Distribution, Histogram, Sample
from raftkv.raft.engine import Engine
from raftkv.raft.status import NodeStatus

BYTES_BUCKETS = tuple(float(256 << 2 * power) for power in range(9))  # 256 B to 16 MiB, times four
_NONE = Histogram(SHORT_BUCKETS)
_NO_BATCHES = Histogram(COUNT_BUCKETS)


class Measures:
    """One node's; called where something happened."""

    def __init__(self) -> None:
        self.sync_seconds = Histogram(SHORT_BUCKETS)
        self.sync_bytes = Histogram(BYTES_BUCKETS)
        self.late_seconds = Histogram(SHORT_BUCKETS)
        self.leader_changes = 0
        self.collector_seconds = 0.0
        self._collecting_since = 0.0
        self._leader: tuple[str, int] | None = None

    def synced(self, seconds: float, size: int) -> None:
        """One group commit is on disk."""
        self.sync_seconds.add(seconds)
        self.sync_bytes.add(size)

    def follows(self, leader: str | None, term: int) -> None:
        """Whom this node knows as leader now. The first one that it learns of is no change."""
        if leader is None or (leader, term) == self._leader:
            return
        if self._leader is not None:
            self.leader_changes += 1
        self._leader = (leader, term)

    def watch_collector(self) -> None:
        gc.callbacks.append(self._on_collector)

    def forget_collector(self) -> None:
        if self._on_collector in gc.callbacks:
            gc.callbacks.remove(self._on_collector)

    def _on_collector(self, phase: str, _: Mapping[str, int]) -> None:
        if phase == "start":
            self._collecting_since = time.perf_counter()
        else:
            self.collector_seconds += time.perf_counter() - self._collecting_since


# --- what is told ----------------------------------------------------------------------------------------

Told = Iterable[Sample | Distribution]


def engine_samples(engine: Engine | None) -> Told:
    """All of it is there before the cluster has formed too, so that a rate has where to start from."""
    proposals = None if engine is None else engine.proposals
    compaction = None if engine is None else engine.compaction
    numbers: list[tuple[str, str, float]] = [
        (
            "proposals_in_flight",
            "Commands that this node proposed, or is about to, and that are not applied yet.",
            0 if proposals is None else proposals.outstanding,
        ),
        (
            "snapshot_running",
            "1 while a snapshot is being made.",
            compaction is not None and compaction.running,
        ),
        (
            "snapshot_failing",
            "1 where the last attempt to make a local snapshot failed.",
            compaction is not None and compaction.failures_in_row > 0,
        ),
        (
            "snapshot_seconds",
            "What the last local snapshot took.",
            0.0 if compaction is None else compaction.seconds_last,
        ),
        (
            "snapshot_time_seconds",
            "When the newest local snapshot was made, in Unix time; 0 before there is one.",
            0.0 if compaction is None or compaction.manifest is None else compaction.manifest.time_ms / 1000,
        ),
    ]
    for name, help, value in numbers:
        yield Sample(name, help, float(value), {})
    counts: list[tuple[str, str, int]] = [
        (
            "campaigns",
            "Terms in which this node stood for election.",
            0 if engine is None else engine.campaigns,
        ),
        (
            "commands_applied",
            "Client commands applied here.",
            0 if engine is None else engine.applied_commands,
        ),
        (
            "read_rounds",
            "Rounds that confirmed reads, or questions to the leader for them.",
            0 if engine is None else engine.reads.rounds,
        ),
        ("snapshots_made", "Local snapshots made.", 0 if compaction is None else compaction.made),
        (
            "snapshot_failures",
            "Attempts to make one that failed.",
            0 if compaction is None else compaction.failures,
        ),
        (
            "snapshots_installed",
            "Snapshots taken over from a leader.",
            0 if engine is None else engine.catchup.installed,
        ),
    ]
    for name, help, count in counts:
        yield Sample(name, help, float(count), {}, counter=True)
    batches = _NO_BATCHES if proposals is None else proposals.batch_commands
    yield Distribution("batch_commands", "Client commands in one log entry of this leader.", batches)
    applying = _NONE if engine is None else engine.apply_seconds
    yield Distribution("apply_seconds", "What was applied in one go.", applying)


def shell_samples(measures: Measures) -> Told:
    yield Sample(
        "leader_changes",
        "Times that another leader or term followed.",
        measures.leader_changes,
        {},
        counter=True,
    )
    yield Distribution("journal_sync_seconds", "fdatasync of one group commit.", measures.sync_seconds)
    yield Distribution("journal_sync_bytes", "Bytes of one group commit.", measures.sync_bytes)
    yield Distribution(
        "loop_late_seconds", "How late the 20 ms timer of the loop was.", measures.late_seconds
    )
    yield Sample(
        "gc_seconds", "Time that the garbage collector held.", measures.collector_seconds, {}, counter=True
    )
    for generation, known in enumerate(gc.get_stats()):
        labels = {"generation": str(generation)}
        yield Sample(
            "gc_collections", "Of the garbage collector.", known["collections"], labels, counter=True
        )


def membership_samples(known: NodeStatus) -> Told:
    roles = {"voter": 0, "learner": 0}
    for peer in known.peers:
        roles["learner" if peer.role == "learner" else "voter"] += 1
    for role, count in roles.items():
        yield Sample("members", "Members of the cluster.", float(count), {"role": role})
    for role in ("leader", "follower", "candidate", "learner"):
        yield Sample("role", "1 for the role that this node has.", float(known.role == role), {"role": role})
    for peer in known.peers:
        labels = {"peer": peer.name}
        yield Sample("peer_reachable", "1 where a member is reachable.", float(peer.reachable), labels)
        if peer.lag is not None:
            yield Sample(
                "peer_lag", "Entries that a member is behind; known to the leader.", peer.lag, labels
            )
        if peer.match_index is not None:
            help = "A member's disk has the log up to there; known to the leader."
            yield Sample("peer_match_index", help, peer.match_index, labels)
        if peer.last_contact_ms is not None:
            help = "Since the last authenticated message of a member."
            yield Sample("peer_contact_seconds", help, peer.last_contact_ms / 1000, labels)


def machine_samples(data_dir: Path) -> Told:
    """Of the machine that the node runs on, as far as it bounds the node."""
    free, total = disk_room(data_dir)
    if free is not None and total is not None:
        help = "What the node may still write in the file system of its data directory."
        yield Sample("disk_free_bytes", help, float(free), {})
        yield Sample("disk_bytes", "The size of that file system.", float(total), {})
    yield Sample(
        "memory_limit_bytes",
        "What the process may use: its control group's limit, or the machine's memory.",
        float(memory_limit_bytes()),
        {},
    )


def disk_room(data_dir: Path) -> tuple[int, int] | tuple[None, None]:
    """Bytes that an ordinary process may still write there, and bytes of the file system."""
    try:
        disk = os.statvfs(data_dir)
    except OSError:
        return None, None  # the journal says it in its own way
    return disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize


def memory_limit_bytes(root: Path = Path("/")) -> int:
    """The control group's limit where it has one below the machine's memory."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = (root / name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            return min(limit, int(text))
    return limit
