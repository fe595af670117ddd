"""What `raftkv doctor` finds of a machine and of nodes: each check a name, a state, and what to do about it.

The checks of nodes are pure: they judge what a survey brought. A machine is asked here, by reading and by
timing small writes; nothing is left behind.
"""

from __future__ import annotations

import os
import resource
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cluster.survey import Node, Readings, quantile
from raftkv.raft.measures import memory_limit_bytes

SYNCS = 200  # enough for a p99 with two beyond it
SYNC_BYTES = 4096
# Every write waits for one of these on the leader and on a majority. Above, elections begin to suffer.
SYNC_S_P99_MAX = 0.05
ROUND_TRIP_S_MAX = 0.1  # a fifth of the election timeout's default; elections want several in theirs
CLOCK_S_MAX = 1.0
LATE_S_P99_MAX = 0.1
DISK_BYTES_MIN = 2 << 30
OPEN_FILES_MIN = 4096
FILES_BESIDE_CONNECTIONS = 256  # as raftkv/api/app.py reserves them
SHARE_MAX = 0.85  # of memory, and of open files
CERTIFICATE_DAYS_MIN = 30
# File systems that are not a disk of this machine: a sync there means something else, or nothing.
NOT_LOCAL = {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "glusterfs"}
NOT_DURABLE = {"tmpfs", "ramfs"}


class Check(NamedTuple):
    name: str
    state: Literal["ok", "warn", "fail"]
    detail: str


# --- the machine -----------------------------------------------------------------------------------------


def machine_checks(data_dir: Path) -> Iterator[Check]:
    """Of this machine, for a node whose data directory that is."""
    yield sync_check(data_dir)
    yield file_system_check(data_dir)
    yield room_check(data_dir)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield files_check(hard)
    yield memory_check(memory_limit_bytes())


def sync_check(directory: Path) -> Check:
    """fdatasync of small appends, as the journal's."""
    path = directory / f".raftkv-doctor-{secrets.token_hex(4)}"
    times_ms = []
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            for number in range(SYNCS):
                os.pwrite(descriptor, b"\0" * SYNC_BYTES, number * SYNC_BYTES)
                began = time.perf_counter()
                os.fdatasync(descriptor)
                times_ms.append((time.perf_counter() - began) * 1000)
        finally:
            os.close(descriptor)
            path.unlink()
    except OSError as error:
        return Check(
            "disk", "fail", f"{directory}: {error.strerror}: a node could not write its journal there"
        )
    times_ms.sort()
    p50, p99 = times_ms[len(times_ms) // 2], times_ms[int(len(times_ms) * 0.99)]
    detail = f"fdatasync of {SYNC_BYTES} bytes: p50 {p50:.2f} ms, p99 {p99:.2f} ms"
    if p99 > SYNC_S_P99_MAX * 1000:
        return Check("disk", "warn", f"{detail}: every write waits for one; use a disk with less to do")
    return Check("disk", "ok", detail)


def file_system_check(directory: Path, mounts: Path = Path("/proc/self/mounts")) -> Check:
    kind, where = mounted(directory.resolve(), mounts)
    if kind in NOT_DURABLE:
        return Check("file system", "fail", f"{where} is {kind}: nothing there survives a restart")
    if kind in NOT_LOCAL:
        detail = f"{where} is {kind}: what a sync means is the server's to say; use a local disk"
        return Check("file system", "warn", detail)
    return Check("file system", "ok", f"{kind or 'unknown'} at {where}")


def mounted(directory: Path, mounts: Path) -> tuple[str, str]:
    """(kind, where) of the file system that a directory lies in; ("", "") where nobody says."""
    found = ("", "")
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        _, where, kind, *_ = line.split(" ")
        where = where.replace("\\040", " ")
        if directory.is_relative_to(where) and len(where) >= len(found[1]):
            found = (kind, where)
    return found


def room_check(directory: Path) -> Check:
    disk = os.statvfs(directory)
    free = disk.f_bavail * disk.f_frsize
    detail = f"{gib(free)} of {gib(disk.f_blocks * disk.f_frsize)} free"
    if free < DISK_BYTES_MIN:
        return Check("room", "warn", f"{detail}: journal and snapshots need three times the data and 1 GiB")
    return Check("room", "ok", detail)


def files_check(limit: int) -> Check:
    unlimited = limit == resource.RLIM_INFINITY
    detail = f"{'any number of' if unlimited else limit} open files may be had"
    if not unlimited and limit < OPEN_FILES_MIN:
        return Check(
            "open files", "warn", f"{detail}: each connection is one; raise `ulimit -Hn`, LimitNOFILE"
        )
    return Check("open files", "ok", detail)


def memory_check(limit: int) -> Check:
    return Check("memory", "ok", f"{gib(limit)}: enough for some {gib(int(limit / 2.5))} of keys and values")


# --- nodes -----------------------------------------------------------------------------------------------


def node_checks(nodes: Sequence[Node], limits: Mapping[str, Any]) -> Iterator[Check]:
    """Of nodes that were asked for their metrics; `limits` are `/v1/limits` of one of them."""
    for node in nodes:
        yield link_check(node)
    there = [node for node in nodes if node.answers]
    if not there:
        return
    yield members_check(there)
    yield versions_check(there)
    yield clocks_check(there)
    for node in there:
        yield from (Check(f"{node.name}: alarm", "fail", each["detail"]) for each in alarms_of(node))
        if node.readings is not None:
            yield from readings_checks(node.name, node.readings, limits)


def alarms_of(node: Node) -> Iterator[Mapping[str, Any]]:
    """But for what other checks say."""
    told = ("no_leader", "certificate_expiring")
    return (each for each in node.status.get("alarms", ()) if each["name"] not in told)


def link_check(node: Node) -> Check:
    if not node.answers:
        return Check("node", "fail", f"{node.name or node.url}: {node.error}")
    who = f"{node.name} at {node.url}"
    away = [peer["name"] for peer in node.status["peers"] if not peer["reachable"]]
    if not node.status["ready"]:
        return Check("node", "fail", f"{who}: {node.status['ready_reason']}")
    if away:
        return Check("node", "warn", f"{who} can't reach {', '.join(away)} at their raft addresses")
    return Check("node", "ok", f"{who}: {node.status['role']}, reaches every member")


def members_check(nodes: Sequence[Node]) -> Check:
    voters = sum(peer["role"] != "learner" for peer in nodes[0].status["peers"])
    if voters == 1:
        return Check("members", "warn", "one voter: nothing is left when its disk is")
    if voters % 2 == 0:
        detail = f"{voters} voters can lose {(voters - 1) // 2}, as {voters - 1} can: make it an odd number"
        return Check("members", "warn", detail)
    return Check("members", "ok", f"{voters} voters can lose {(voters - 1) // 2}")


def versions_check(nodes: Sequence[Node]) -> Check:
    versions = {node.status["version"] for node in nodes}
    if len(versions) > 1:
        told = ", ".join(f"{node.name} {node.status['version']}" for node in nodes)
        return Check("versions", "warn", f"{told}: fine during an upgrade, finish it")
    return Check("versions", "ok", next(iter(versions)))


def clocks_check(nodes: Sequence[Node]) -> Check:
    """Nothing that raftkv promises depends on clocks: logs, backups' times and certificates do."""
    timed = [node for node in nodes if "time" in node.status]
    if not timed:
        return Check("clocks", "ok", "no node tells its time")
    first, last = (each(timed, key=lambda node: node.offset_s) for each in (min, max))
    apart, unsure = last.offset_s - first.offset_s, (first.answered_s + last.answered_s) / 2
    detail = f"{apart * 1000:.0f} ms apart at most, give or take {unsure * 1000:.0f}"
    if apart - unsure > CLOCK_S_MAX:
        return Check(
            "clocks",
            "warn",
            f"{first.name} and {last.name}: {detail}. Run NTP: logs, backups and certificates need it",
        )
    return Check("clocks", "ok", detail)


def readings_checks(name: str, now: Readings, limits: Mapping[str, Any]) -> Iterator[Check]:
    """From one node's numbers since its start."""
    yield from (
        each._replace(name=f"{name}: {each.name}")
        for each in (
            fsync_of(now),
            late_of(now),
            trips_of(now),
            disk_of(now),
            memory_of(now),
            files_of(now, limits),
            certificates_of(now),
        )
        if each is not None
    )


def fsync_of(now: Readings) -> Check | None:
    p99 = since_start(now, 0.99, "raftkv_journal_sync_seconds")
    if p99 is None:
        return None
    detail = f"p99 {p99 * 1000:.1f} ms since its start"
    if p99 > SYNC_S_P99_MAX:
        return Check("fsync", "warn", f"{detail}: every write waits for one; use a disk with less to do")
    return Check("fsync", "ok", detail)


def late_of(now: Readings) -> Check | None:
    p99 = since_start(now, 0.99, "raftkv_loop_late_seconds")
    if p99 is None:
        return None
    detail = f"loop late by {p99 * 1000:.1f} ms (p99) since its start"
    if p99 > LATE_S_P99_MAX:
        return Check("cpu", "warn", f"{detail}: it gets too little CPU, and its requests wait for that")
    return Check("cpu", "ok", detail)


def trips_of(now: Readings) -> Check | None:
    trips = now.by("raftkv_peer_round_trip_seconds", "peer")
    if not trips:
        return None
    peer, longest = max(trips.items(), key=lambda pair: pair[1])
    detail = f"{longest * 1000:.2f} ms at most, to {peer}"
    if longest > ROUND_TRIP_S_MAX:
        return Check("round trip", "warn", f"{detail}: raise the election timeouts on every node")
    return Check("round trip", "ok", detail)


def disk_of(now: Readings) -> Check | None:
    free, whole = now.sum("raftkv_disk_free_bytes"), now.sum("raftkv_disk_bytes")
    if free is None or not whole:
        return None
    detail = f"{gib(free)} of {gib(whole)} free"
    if free < DISK_BYTES_MIN + 2 * (now.sum("raftkv_store_bytes") or 0.0):
        return Check("room", "warn", f"{detail}: journal and snapshots need three times the data and 1 GiB")
    return Check("room", "ok", detail)


def memory_of(now: Readings) -> Check | None:
    used, limit = now.sum("raftkv_process_resident_memory_bytes"), now.sum("raftkv_memory_limit_bytes")
    if used is None or not limit:
        return None
    detail = f"{gib(used)} of {gib(limit)} used"
    if used > SHARE_MAX * limit:
        return Check("memory", "warn", f"{detail}: beyond that the kernel kills it; all nodes hold the same")
    return Check("memory", "ok", detail)


def files_of(now: Readings, limits: Mapping[str, Any]) -> Check | None:
    used, most = now.sum("raftkv_process_open_fds"), now.sum("raftkv_process_max_fds")
    if used is None or not most:
        return None
    wanted = connections_max(limits) + FILES_BESIDE_CONNECTIONS
    detail = f"{used:.0f} of {most:.0f} in use"
    if used > SHARE_MAX * most:
        return Check("open files", "warn", f"{detail}: raise `ulimit -Hn`, LimitNOFILE")
    if most < wanted:
        detail += f", and --connections-max may want {wanted}: it takes fewer connections than that"
        return Check("open files", "warn", f"{detail}. Raise `ulimit -Hn`, LimitNOFILE")
    return Check("open files", "ok", detail)


def connections_max(limits: Mapping[str, Any]) -> int:
    return next(
        (int(each["value"]) for each in limits.get("limits", ()) if each["name"] == "connections_max"), 0
    )


def certificates_of(now: Readings) -> Check | None:
    left = now.by("raftkv_tls_certificate_expiry_seconds", "use")
    if not left:
        return None
    use, seconds = min(left.items(), key=lambda pair: pair[1])
    days = seconds / 86_400
    if days <= 0:
        return Check("certificates", "fail", f"the one for {use} has expired: replace its files")
    detail = f"the first to end, for {use}, is good for {days:.0f} days"
    if days < CERTIFICATE_DAYS_MIN:
        return Check("certificates", "warn", f"{detail}: replace its files; the node takes them by itself")
    return Check("certificates", "ok", detail)


def since_start(now: Readings, share: float, name: str) -> float | None:
    buckets = now.buckets(name)
    return quantile(share, list(buckets), list(buckets.values()))


def gib(size: float) -> str:
    return f"{size / (1 << 30):.1f} GiB"
