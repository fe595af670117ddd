"""The node's numbers as `/metrics` tells them: what it knows of itself, what it holds, what its server does.

Those of consensus and of the disk are `raft/measures.py`'s. Labels are names of this file and of members,
never a key. Everything here is looked up when somebody reads.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from typing import Protocol

from raftkv.access.audit import Audit
from raftkv.api.alarms import ALARMS, alarms
from raftkv.api.request_log import RequestLog
from raftkv.metrics import Sample
from raftkv.raft.status import ArchiveStatus, LogArchiveStatus, NodeStatus
from raftkv.room import Room
from raftkv.service import KVService
from raftkv.tls.credentials import Security

DENIAL_CODES = ("unauthenticated", "forbidden", "rate_limited")


class HttpCounts(Protocol):
    """What the server counts; `api/app.py` has it."""

    connections_open: int
    connections_accepted: int
    requests_in_flight: int
    bytes_received: int
    bytes_sent: int
    requests: RequestLog

    @property
    def forwarded(self) -> int: ...


def samples(service: KVService, version: str, security: Security) -> Iterable[Sample]:
    """The node's numbers, as Prometheus sees them."""
    known: NodeStatus = service.consensus.status()
    machine = service.machine
    numbers: list[tuple[str, str, float]] = [
        ("term", "Raft term.", known.term),
        ("is_leader", "1 where this node leads.", known.role == "leader"),
        ("has_leader", "1 where this node knows a leader.", known.leader is not None),
        ("ready", "1 where the node says it is ready.", known.ready),
        ("commit_index", "Index of the last committed entry.", known.commit_index),
        ("applied_index", "Index of the last applied entry.", known.applied_index),
        ("revision", "Revision of the store.", machine.revision),
        ("keys", "Keys in the store.", machine.keys),
        ("store_bytes", "Bytes of keys and values.", machine.bytes),
        ("idempotency_records", "Outcomes of keyed writes that are kept.", machine.idempotency_records),
        ("idempotency_bytes", "Bytes that they take.", machine.idempotency_bytes),
        ("journal_first_index", "First entry of the journal.", known.journal.first_index),
        ("journal_last_index", "Last entry of the journal.", known.journal.last_index),
        ("journal_durable_index", "Last entry that is synced.", known.journal.durable_index),
        ("journal_bytes", "Bytes of the journal on disk.", known.journal.bytes),
        ("journal_segments", "Segments of the journal.", known.journal.segments),
        ("snapshot_index", "Index of the newest local snapshot.", known.snapshot.index),
        ("snapshot_bytes", "Bytes of the newest local snapshot.", known.snapshot.bytes),
        (
            "state_diverged",
            "1 where this node's state was found to differ from its leader's.",
            known.agreement.divergence is not None,
        ),
        ("state_hash_checked_index", "Where it was last compared.", known.agreement.checked_index),
        ("writes_in_flight", "Writes that wait for their commit.", service.writes_in_flight),
        ("write_bytes_in_flight", "Bytes of those.", service.write_bytes_in_flight),
        ("reads_in_flight", "Reads that wait for their read index.", service.reads_in_flight),
        ("exports", "Exports under way.", service.exports),
        (
            "staleness_seconds",
            "Since the last contact with a leader.",
            service.consensus.staleness_ms() / 1000,
        ),
    ]
    for name, help, value in numbers:
        yield Sample(name, help, float(value), {})
    if known.log_archive is not None:
        yield from _log_archive_samples(known.log_archive)
    if known.archive is not None:
        yield from _archive_samples(known.archive)
    yield Sample("info", "Who this is, and of which release.", 1.0, labels_of_info(known, version))
    for what in ("tls", "peer_tls", "auth"):
        help = "1 where it is on: TLS for clients, between members, and tokens."
        yield Sample("security_on", help, float(what not in security.off), {"what": what})
    refusing = service.room.refusing(machine.bytes)
    yield from room_samples(service.room, refusing)
    raised = {alarm.name for alarm in alarms(known, machine.bytes, security, refusing)}
    for name in ALARMS:
        help = "1 where the node says that something needs a person, by what."
        yield Sample("alarm", help, float(name in raised), {"alarm": name})
    checks = known.agreement
    yield Sample("state_hash_checks", "Comparisons with the leader.", checks.checks, {}, counter=True)
    yield Sample("state_hash_mismatches", "Those that differed.", checks.mismatches, {}, counter=True)


def labels_of_info(known: NodeStatus, version: str) -> dict[str, str]:
    return {
        "node": known.name,
        "cluster_id": known.cluster_id,
        "version": version,
        "python": platform.python_version(),
    }


def http_samples(counts: HttpCounts) -> Iterable[Sample]:
    """What the server counts beside the requests themselves."""
    gauges: list[tuple[str, str, float]] = [
        (
            "http_requests_in_flight",
            "Requests that were taken and not answered yet.",
            counts.requests_in_flight,
        ),
        ("http_connections", "Connections of clients.", counts.connections_open),
    ]
    for name, help, value in gauges:
        yield Sample(name, help, float(value), {})
    counters: list[tuple[str, str, float]] = [
        ("http_connections_accepted", "Connections that clients made.", counts.connections_accepted),
        ("http_received_bytes", "From clients, heads and bodies.", counts.bytes_received),
        ("http_sent_bytes", "To clients, heads and bodies.", counts.bytes_sent),
        ("http_forwarded", "Requests that were passed on to the leader.", counts.forwarded),
        ("http_slow", "Requests that took --slow-request-ms or longer.", counts.requests.slow),
    ]
    for name, help, value in counters:
        yield Sample(name, help, float(value), {}, counter=True)


def tls_samples(security: Security) -> Iterable[Sample]:
    for port in security.ports:
        for each in port.certificates:
            help = "Seconds until the certificate expires; below 0 it has."
            yield Sample("tls_certificate_expiry_seconds", help, each.seconds_left(), {"use": each.use})
    for port in security.ports:
        help = "1 where the files on disk are wrong and the old ones serve."
        yield Sample("tls_reload_failing", help, float(bool(port.problem)), {"port": port.use})
    for port in security.ports:
        at = {"port": port.use}
        yield Sample("tls_reloads", "Certificates and keys read again.", port.reloads, at, counter=True)
        yield Sample(
            "tls_reload_failures", "Times that the files were wrong.", port.failures, at, counter=True
        )
        yield Sample("tls_handshakes_refused", "TLS handshakes that failed.", port.refused, at, counter=True)


def _log_archive_samples(known: LogArchiveStatus) -> Iterable[Sample]:
    """`log_archive_lag_seconds` is what would be lost with all disks."""
    gauges: list[tuple[str, str, float]] = [
        ("log_archive_failing", "1 where the last attempt failed.", known.state == "failing"),
        ("log_archive_lagging", "1 where it is behind or failing.", known.state in ("failing", "lagging")),
        ("log_archive_index", "The log is in the store up to there.", known.index),
        ("log_archive_lag_entries", "Entries that are not in the store yet.", known.lag_entries),
        ("log_archive_lag_seconds", "How long the oldest of those has waited.", known.lag_s),
    ]
    for name, help, value in gauges:
        yield Sample(name, help, float(value), {})
    counters: list[tuple[str, str, float]] = [
        ("log_archive_ranges", "Ranges of the log sent.", known.ranges),
        ("log_archive_bytes", "Bytes of those.", known.bytes),
        ("log_archive_gaps", "Times that entries were compacted before they were sent.", known.gaps),
        ("log_archive_failures", "Attempts that failed.", known.failures),
    ]
    for name, help, value in counters:
        yield Sample(name, help, float(value), {}, counter=True)


def _archive_samples(known: ArchiveStatus) -> Iterable[Sample]:
    """Of the store; what only a publisher knows is left out elsewhere."""
    numbers = [
        (
            "archive_publishing",
            "1 where this node publishes to the snapshot store.",
            known.state != "standby",
        ),
        ("archive_failing", "1 where its last attempt failed.", known.state == "failing"),
    ]
    for name, help, value in numbers:
        yield Sample(name, help, float(value), {})
    if known.age_s is not None:
        yield Sample("archive_age_seconds", "Age of the newest published snapshot.", known.age_s, {})
    if known.seconds_last is not None:
        yield Sample("archive_upload_seconds", "What the last upload took.", known.seconds_last, {})
    counts = [
        ("archive_uploads", "Snapshots published.", known.uploads),
        ("archive_upload_bytes", "Bytes of those.", known.bytes),
        ("archive_failures", "Attempts that failed.", known.failures),
    ]
    for name, help, count in counts:
        yield Sample(name, help, float(count), {}, counter=True)


def room_samples(room: Room, refusing: Mapping[str, str]) -> Iterable[Sample]:
    """Whether there is room for more. What is left of the disk is among `raft/measures.py`'s."""
    yield Sample("quota_bytes", "What store_bytes may come to; 0: anything.", float(room.quota_bytes), {})
    available = room.reading.memory_available
    if available is not None:
        help = "Memory left before the system's or the container's limit."
        yield Sample("memory_available_bytes", help, float(available), {})
    help = "1 where writes that grow would be refused, by what there is too little of."
    for what in ("quota", "disk", "memory"):
        yield Sample("room_refusing", help, float(what in refusing), {"what": what})
    help = "Writes that were refused for that."
    yield Sample("room_refusals", help, float(room.refused), {}, counter=True)


def access_samples(audit: Audit, tokens: int) -> Iterable[Sample]:
    """Whom the node let in, and whom not."""
    yield Sample("tokens", "Tokens that the cluster has.", float(tokens), {})
    help = "Requests and lines of batches that were turned away, by why."
    for code in DENIAL_CODES:
        yield Sample("auth_denials", help, float(audit.denials[code]), {"code": code}, counter=True)
    yield Sample("admin_actions", "Requests of administrators.", float(audit.actions), {}, counter=True)
