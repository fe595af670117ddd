"""What a node knows about itself and its cluster, as frozen values. PURE; imports nothing of raft.

`Leadership` is the small part that stands in the headers of every answer, so the node keeps one at hand
and replaces it when something in it changes. `NodeStatus` is the whole picture, built when asked for.
Nothing here was agreed with anybody: it is what this node believes at the moment it is asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["leader", "follower", "candidate", "learner"]


@dataclass(frozen=True, slots=True)
class Leadership:
    """`leader` is a name and `leader_url` its advertised client URL; both None where no leader is known."""

    role: Role
    term: int
    leader: str | None
    leader_url: str | None


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """A member of the cluster as this node sees it; the node itself is one of them.

    `match_index` and `lag` (entries behind the leader's last) are known to a leader only, else None.
    `last_contact_ms` is the time since the last authenticated message from it; None: none since the start.
    """

    name: str
    peer: str
    client_url: str
    role: Role
    match_index: int | None
    lag: int | None
    reachable: bool
    last_contact_ms: int | None


@dataclass(frozen=True, slots=True)
class JournalStatus:
    """Indexes are inclusive. Bytes are those on disk, of all segments. `disk_free_bytes`: what the node may
    still write in that file system of `disk_bytes`; None where it could not be asked."""

    first_index: int
    last_index: int
    last_term: int
    durable_index: int
    bytes: int
    segments: int
    sync_ms_last: float | None = None
    disk_free_bytes: int | None = None
    disk_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class SnapshotStatus:
    """The newest local snapshot; `id` is None before there is one. `state` says what is under way,
    `failures_in_row` how many attempts to make one have failed since the last that did not."""

    id: str | None
    index: int
    term: int
    bytes: int
    state: Literal["idle", "writing", "sending", "installing"] = "idle"
    store: str = ""
    failures_in_row: int = 0


@dataclass(frozen=True, slots=True)
class LogArchiveStatus:
    """The committed log's way to the store, which is the leader's work. `index`: archived up to there.
    `lag_s`: with all disks gone now, what was written in so many seconds would be lost. `gaps`: how often
    entries were compacted away before the store had them, since the start."""

    state: Literal["standby", "current", "lagging", "failing"]
    index: int
    lag_entries: int
    lag_s: float
    ranges: int = 0
    bytes: int = 0
    gaps: int = 0
    failures: int = 0
    failures_in_row: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Divergence:
    """An alarm: at `index` this node's state had another hash than its leader's. Hashes in hex."""

    index: int
    hash: str
    leaders_hash: str
    leader: str


@dataclass(frozen=True, slots=True)
class AgreementStatus:
    """`hash` is of the state at the applied index, "" where it is not known. The leader's was last compared
    at `checked_index`; a leader, which compares with nobody, says 0."""

    hash: str = ""
    checked_index: int = 0
    checks: int = 0
    mismatches: int = 0
    divergence: Divergence | None = None


@dataclass(frozen=True, slots=True)
class ArchiveStatus:
    """Publishing to the snapshot store that the cluster shares. The leader's to do, so others are `standby`,
    and know nothing of what is there. `error` says why the last attempt failed, "" where it didn't."""

    store: str
    state: Literal["standby", "idle", "publishing", "failing"]
    id: str | None
    index: int
    age_s: float | None
    uploads: int
    bytes: int
    seconds_last: float | None
    failures: int
    failures_in_row: int
    error: str


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """`ready_reason` is a sentence that says what is missing, "" where `ready`."""

    name: str
    cluster_id: str
    role: Role
    term: int
    leader: str | None
    leader_url: str | None
    commit_index: int
    applied_index: int
    journal: JournalStatus
    snapshot: SnapshotStatus
    peers: tuple[PeerStatus, ...]
    ready: bool
    ready_reason: str
    started: bool = True  # recovered, formed, and once ready
    draining: bool = False
    protocol_level: int = 0  # of the cluster; 0 before it has formed
    agreement: AgreementStatus = AgreementStatus()
    archive: ArchiveStatus | None = None  # None: no store is configured
    log_archive: LogArchiveStatus | None = None  # None: no store, or an interval of 0
