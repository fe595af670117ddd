"""What a node knows by itself to need a person. PURE.

Only what lasts and what nobody but the node can see: what a time series tells (a slow disk, a leader that
changes often) is for the rules in `cluster/monitoring/`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from raftkv.raft.status import NodeStatus
from raftkv.tls.credentials import EXPIRES_SOON_SECONDS, Security

# Beside the next snapshot: what the journal may grow by until that is done, twice --snapshot-log-bytes-max.
DISK_RESERVE_BYTES = 256 << 20

ALARMS = (
    "no_leader",
    "state_diverged",
    "disk_low",
    "no_room",
    "snapshot_failing",
    "archive_failing",
    "log_archive_failing",
    "certificate_expiring",
    "certificate_reload_failing",
)


@dataclass(frozen=True, slots=True)
class Alarm:
    """`name` is one of `ALARMS`; `detail` a sentence."""

    name: str
    detail: str


def alarms(
    known: NodeStatus, state_bytes: int, security: Security, refusing: Mapping[str, str] | None = None
) -> tuple[Alarm, ...]:
    """`state_bytes`: of keys and values, what a snapshot takes at most. `refusing`: why writes that grow
    would be refused, as `room.Room` has it. One an alarm's name."""
    no_room = (Alarm("no_room", "; ".join(refusing.values())),) if refusing else ()
    return (*_raised(known, state_bytes), *no_room, *_of_certificates(security))


def _of_certificates(security: Security) -> Iterator[Alarm]:
    certificates = [each for port in security.ports for each in port.certificates]
    first = min(certificates, key=lambda each: each.not_after, default=None)
    if first is not None and first.seconds_left() < EXPIRES_SOON_SECONDS:
        days = first.seconds_left() / 86_400
        yield Alarm(
            "certificate_expiring",
            f"{first.file} expires in {days:.1f} days" if days > 0 else f"{first.file} has expired",
        )
    problems = [port.problem for port in security.ports if port.problem]
    if problems:
        yield Alarm("certificate_reload_failing", "; ".join(problems))


def _raised(known: NodeStatus, state_bytes: int) -> Iterator[Alarm]:
    if known.leader is None:
        yield Alarm("no_leader", known.ready_reason or "no leader is known here")
    divergence = known.agreement.divergence
    if divergence is not None:
        yield Alarm(
            "state_diverged",
            f"at index {divergence.index} the state here differed from that of {divergence.leader}",
        )
    free, needed = known.journal.disk_free_bytes, DISK_RESERVE_BYTES + state_bytes
    if free is not None and free < needed:
        yield Alarm("disk_low", f"{free} bytes are free, the next snapshot and the journal may need {needed}")
    if known.snapshot.failures_in_row:
        yield Alarm(
            "snapshot_failing",
            f"{known.snapshot.failures_in_row} attempts in a row to make a local snapshot have failed",
        )
    if known.archive is not None and known.archive.state == "failing":
        yield Alarm("archive_failing", known.archive.error)
    if known.log_archive is not None and known.log_archive.state == "failing":
        yield Alarm("log_archive_failing", known.log_archive.error)
