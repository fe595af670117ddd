"""What is left of disk and memory, as the kernel has it. Blocks, if the file system does.

Memory is what can still be had before something ends badly: what the system has available, and below each
limit of the control groups that this process is in (a container's is one of them), whichever is less. Of a
group's usage the file pages that it would give back first do not count. Both versions of control groups.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from raftkv.room import Reading

UNLIMITED_BYTES = 1 << 60  # what version 1 says for no limit is above this


def read(data_dir: Path, root: Path = Path("/")) -> Reading:
    return Reading(disk_free(data_dir), memory_available(root), memory_resident(root))


def disk_free(path: Path) -> int | None:
    """What this user may still write there."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def memory_available(root: Path = Path("/")) -> int | None:
    known = [left for left in (_of_system(root), *_of_groups(root)) if left is not None]
    return min(known, default=None)


def memory_resident(root: Path = Path("/")) -> int | None:
    words = _text(root / "proc/self/statm").split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE") if len(words) > 1 else None


def _of_system(root: Path) -> int | None:
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return None


def _of_groups(root: Path) -> Iterator[int | None]:
    """Below the limit of each group, from that of this process up."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            yield _left(top.joinpath(*parts[:depth]), *names)


def _left(group: Path, limit_name: str, usage_name: str, cache_name: str) -> int | None:
    limit, usage = _text(group / limit_name).strip(), _text(group / usage_name).strip()
    if not limit.isdigit() or not usage.isdigit() or int(limit) >= UNLIMITED_BYTES:
        return None
    cache = 0
    for line in _text(group / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == cache_name:
            cache = int(value)
    return max(0, int(limit) - int(usage) + cache)


def _text(path: Path) -> str:
    """Empty where there is nothing to read."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
