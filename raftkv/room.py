"""Whether there is room for more: the quota, and what is left of disk and memory. PURE but for its log.

A write that makes the state grow is refused where that would take it beyond `--quota-bytes`, or while the
data directory's file system or the memory has less left than it must. What makes it no larger always passes:
deletes, and values that are replaced by ones of the same length or shorter. So whoever is over the quota can
get below it again, and then everything passes by itself.

It is looked at where a write is admitted, on the leader, and never where it is applied: replicas have to
agree on what a command does, and their disks differ. So the quota can be overshot, by the keys and content
types of the writes that are in flight, and after a change of leader by what the one before had in flight.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

from raftkv.errors import DiskSpaceLow, MemoryLow, NoRoom, QuotaExceeded
from raftkv.kv import record
from raftkv.kv.command import (
    Append,
    Command,
    CreateToken,
    Delete,
    DeletePrefix,
    Get,
    Increment,
    Operation,
    Put,
    RevokeToken,
    Transaction,
)
from raftkv.kv.machine import Machine
from raftkv.model import DEFAULT_CONTENT_TYPE

log = logging.getLogger("raftkv.room")

Reason = Literal["quota", "disk", "memory"]

OVERHEAD_BYTES_MAX = 4096 + 1024  # of one command: its key and content type
DIGITS_MAX = 20  # of a number that incr makes
CLEAR_PART = 8  # a floor counts as cleared this part of it above it, so that it does not come and go


@dataclass(frozen=True, slots=True)
class Reading:
    """Bytes; None where they could not be told."""

    disk_free: int | None = None
    memory_available: int | None = None
    memory_resident: int | None = None


class Room:
    """`quota_bytes` 0: no quota. The floors 0: not watched."""

    def __init__(
        self, *, quota_bytes: int = 0, disk_free_bytes_min: int = 0, memory_available_bytes_min: int = 0
    ) -> None:
        self.quota_bytes = quota_bytes
        self.disk_free_bytes_min = disk_free_bytes_min
        self.memory_available_bytes_min = memory_available_bytes_min
        self.reading = Reading()
        self.refused = 0
        self._low: dict[Reason, str] = {}
        self._over_quota = False
        self.bounded = quota_bytes > 0  # or something is low: else there is nothing to look at

    # --- what is left ------------------------------------------------------------------------------

    def read(self, reading: Reading) -> None:
        """What is left now."""
        self.reading = reading
        free, least = reading.disk_free, self.disk_free_bytes_min
        if self._is_low("disk", free, least):
            self._low["disk"] = (
                f"the data directory's file system has {free} bytes left; below {least} "
                "(--disk-free-bytes-min) nothing that grows is taken: make room on it, or delete keys"
            )
        available, least = reading.memory_available, self.memory_available_bytes_min
        if self._is_low("memory", available, least):
            self._low["memory"] = (
                f"the node has {available} bytes of memory left; below {least} "
                "(--memory-available-bytes-min) nothing that grows is taken: give it more, or delete keys"
            )
        self.bounded = self.quota_bytes > 0 or bool(self._low)

    def _is_low(self, reason: Reason, left: int | None, least: int) -> bool:
        was = reason in self._low
        if left is None or not least:
            low = False
        else:
            low = left < (least + least // CLEAR_PART if was else least)
        if low and not was:
            log.warning("room_low what=%s left=%d least=%d", reason, left, least)
        if was and not low:
            log.info("room_again what=%s left=%d", reason, left or 0)
            del self._low[reason]
        return low

    def look_at_quota(self, state_bytes: int) -> None:
        """Tells when the state comes to the quota, and when it is below it again."""
        over = 0 < self.quota_bytes <= state_bytes
        if over and not self._over_quota:
            log.warning("room_low what=quota bytes=%d quota=%d", state_bytes, self.quota_bytes)
        elif self._over_quota and not over:
            log.info("room_again what=quota bytes=%d quota=%d", state_bytes, self.quota_bytes)
        self._over_quota = over

    def refusing(self, state_bytes: int) -> dict[str, str]:
        """Why writes that grow are refused now, in a sentence each."""
        found: dict[str, str] = {}
        if 0 < self.quota_bytes <= state_bytes:
            found["quota"] = str(self._beyond(state_bytes))
        return {**found, **{str(reason): detail for reason, detail in self._low.items()}}

    # --- one write, or several ---------------------------------------------------------------------

    def fits(
        self, commands: Sequence[Command], machine: Machine, in_flight_bytes: int, size_bytes: int
    ) -> int:
        """How many of the first commands there is room for, beside `in_flight_bytes` of others. Their values
        have `size_bytes` together. Only to be asked where `bounded`."""
        taken = machine.bytes + in_flight_bytes
        enough = taken + size_bytes + OVERHEAD_BYTES_MAX * len(commands) <= self.quota_bytes
        if not self._low and enough:
            return len(commands)
        for number, command in enumerate(commands):
            more = growth(command, machine)
            keyed = command.idempotency
            if more > 0 and not (keyed is not None and machine.has_outcome(keyed.key)):
                if self._low or 0 < self.quota_bytes < taken + more:
                    return number
                taken += more
        return len(commands)

    def refusal(self, machine: Machine) -> NoRoom:
        """Of a command that did not fit."""
        self.refused += 1
        for reason, detail in self._low.items():
            return DiskSpaceLow(detail) if reason == "disk" else MemoryLow(detail)
        return self._beyond(machine.bytes)

    def _beyond(self, state_bytes: int) -> QuotaExceeded:
        return QuotaExceeded(
            f"keys and values have {state_bytes} bytes; with this write they would have more than the quota "
            f"of {self.quota_bytes} (--quota-bytes): delete keys, which always passes, or raise it",
            limit=self.quota_bytes,
            size=state_bytes,
            flag="--quota-bytes",
        )


# --- how much a command adds -----------------------------------------------------------------------------


def growth(command: Command, machine: Machine) -> int:
    """Bytes that the state would have more, at most; what has a condition is taken to happen. 0 or less: it
    can't grow by it. A number that is there already counts as no longer than before."""
    match command:
        case Transaction(success=success, failure=failure):
            return max(_growth_of_all(success, machine), _growth_of_all(failure, machine))
        case DeletePrefix():
            return 0
        case Put() | Append() | Increment() | Delete():
            return _growth_of_all((command,), machine)
        case CreateToken():
            return 1  # it counts for no quota, but takes room
        case RevokeToken():
            return 0
        case _:
            assert_never(command)


def _growth_of_all(operations: Sequence[Operation], machine: Machine) -> int:
    """One after another, so that what the first deletes makes room for the next."""
    sizes: dict[bytes, int | None] = {}
    total = 0
    for operation in operations:
        if isinstance(operation, Get):
            continue
        key = operation.key
        before = sizes[key] if key in sizes else _size(key, machine)
        after = _size_after(operation, before)
        sizes[key] = after
        total += (after or 0) - (before or 0)
    return total


def _size(key: bytes, machine: Machine) -> int | None:
    """As the machine counts it; None where the key is absent."""
    found = machine.lookup(key)
    return None if found is None else len(key) + len(found) - record.HEAD_BYTES


def _size_after(operation: Put | Append | Increment | Delete, before: int | None) -> int | None:
    match operation:
        case Delete():
            return None
        case Put(key=key, value=value, content_type=kind):
            return len(key) + len(value) + _length_of_type(kind)
        case Append(key=key, value=value, content_type=kind):
            if before is None:
                return len(key) + len(value) + _length_of_type(kind)
            return before + len(value)
        case Increment(key=key):
            return len(key) + DIGITS_MAX if before is None else before


def _length_of_type(kind: str) -> int:
    return 0 if kind == DEFAULT_CONTENT_TYPE else len(kind.encode())
