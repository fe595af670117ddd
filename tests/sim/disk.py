"""A directory that behaves as badly as a real one may. Deterministic from one `random.Random`.

It implements `raftkv.journal.disk.Disk`. What a process sees is the page cache; what a power cut leaves is:

- of the sectors (512 bytes) written since the last sync: none, all, the first ones, whole pages here and
  there, or any subset; a write that the crash interrupted stops at any byte besides;
- of a file's length: what is needed to hold the sectors that got there, or more;
- of the names changed since the last directory sync: each its old value or any later one, on its own.

A failed sync is worse than none: any part of the sectors got there, and the kernel holds the rest for clean.
The next sync succeeds and writes none of them, and reads show what no disk has (fsyncgate; "Can Applications
Recover from fsync Failures?", USENIX ATC 2020).

Operations are counted from 1, so that a sweep can stop at every one: `crash_at` raises `Crash` in the middle
of that operation, `fail_at` fails it with an errno. Then `kill()` or `power_cut()`, and a new process may
`lock()`.
"""

from __future__ import annotations

import errno
import os
import random
from dataclasses import dataclass, field

SECTOR = 512
PAGE = 4096


class Crash(BaseException):
    """The process ends here. Not an Exception, so that no handler can swallow it."""


@dataclass(eq=False, slots=True)
class _Inode:
    """`cached` is what reads see, `durable` what the disk has; both without trailing zeros up to the size."""

    cached: bytearray = field(default_factory=bytearray)
    size: int = 0
    durable: bytearray = field(default_factory=bytearray)
    durable_size: int = 0
    dirty: list[tuple[int, int]] = field(default_factory=list)

    def sectors(self) -> list[int]:
        """The numbers of the sectors written since the last sync, in order."""
        return sorted({n for start, end in self.dirty for n in range(start // SECTOR, -(-end // SECTOR))})

    def persist(self, sectors: list[int]) -> None:
        for number in sectors:
            start, end = number * SECTOR, min((number + 1) * SECTOR, len(self.cached))
            if start >= end:
                continue  # cut away meanwhile
            if len(self.durable) < end:
                self.durable.extend(bytes(end - len(self.durable)))
            self.durable[start:end] = self.cached[start:end]
            self.durable_size = max(self.durable_size, end)


class MemoryDisk:
    """One node's disk. It outlives its processes: after `kill` or `power_cut` the next one may `lock` it."""

    def __init__(
        self, rng: random.Random, *, capacity_bytes: int | None = None, preallocates: bool = True
    ) -> None:
        self.directory = "memory"
        self.operations = 0
        self.trail: list[str] | None = None  # a list: what each operation was, from then on
        self.crash_at: int | None = None
        self.fail_at: dict[int, int] = {}
        self.capacity_bytes = capacity_bytes
        self.preallocates = preallocates
        self._rng = rng
        self._life = 0
        self._locked = False
        self._fail_next_sync = False
        self._names: dict[str, _Inode] = {}
        self._durable_names: dict[str, _Inode] = {}
        self._changed: dict[str, list[_Inode | None]] = {}  # name -> its values since the last directory sync

    # --- faults -----------------------------------------------------------------------------------------

    def fail_next_sync(self) -> None:
        """The next sync of a file fails with EIO."""
        self._fail_next_sync = True

    def kill(self) -> None:
        """The process is gone (kill -9); the page cache is not."""
        self._life += 1
        self._locked = False
        self._fail_next_sync = False
        self.crash_at = None
        self.fail_at = {}

    def power_cut(self) -> None:
        """The machine is gone, with all that the disk does not have."""
        self.kill()
        names = dict(self._durable_names)
        for name, values in self._changed.items():
            value = self._rng.choice([names.get(name), *values])
            if value is None:
                names.pop(name, None)
            else:
                names[name] = value
        self._names = names
        self._durable_names = dict(names)
        self._changed = {}
        for inode in dict.fromkeys(names.values()):
            self._forget(inode)

    def _forget(self, inode: _Inode) -> None:
        inode.persist(self.survivors(inode.sectors()))
        if inode.size > inode.durable_size:  # a length is metadata, and may get there before the data
            inode.durable_size = self._rng.choice((inode.durable_size, inode.size))
        inode.size = inode.durable_size
        inode.cached = bytearray(inode.durable)
        inode.dirty = []

    def survivors(self, sectors: list[int]) -> list[int]:
        """Which of them reach the disk when something goes wrong."""
        match self._rng.randrange(5):
            case 0:
                return []
            case 1:
                return sectors
            case 2:
                return sectors[: self._rng.randint(0, len(sectors))]
            case 3:
                kept = {n * SECTOR // PAGE for n in sectors if self._rng.random() < 0.5}
                return [n for n in sectors if n * SECTOR // PAGE in kept]
            case _:
                return [n for n in sectors if self._rng.random() < 0.5]

    # --- Disk -------------------------------------------------------------------------------------------

    def lock(self) -> None:
        assert not self._locked, "two processes share one simulated disk"
        self._locked = True

    def close(self) -> None:
        self._locked = False

    def names(self) -> list[str]:
        return sorted(self._names)

    def read(self, name: str, size: int = -1) -> bytes:
        inode = self._names.get(name)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        end = inode.size if size < 0 else min(size, inode.size)
        return bytes(inode.cached[:end]).ljust(end, b"\0")

    def create(self, name: str) -> MemoryFile:
        self.operate("create", name)
        if name in self._names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        inode = _Inode()
        self._set_name(name, inode)
        return MemoryFile(self, inode, name)

    def rename(self, name: str, to: str) -> None:
        crashed = self.operate("rename", to)
        inode = self._names[name]
        if not crashed or self._rng.random() < 0.5:
            self._set_name(name, None)
            self._set_name(to, inode)
        self._end_if(crashed)

    def unlink(self, name: str) -> None:
        crashed = self.operate("unlink", name)
        if not crashed or self._rng.random() < 0.5:
            self._set_name(name, None)
        self._end_if(crashed)

    def sync_directory(self) -> None:
        crashed = self.operate("sync_directory", "")
        if not crashed:
            self._durable_names = dict(self._names)
            self._changed = {}
        self._end_if(crashed)

    # --- inside -----------------------------------------------------------------------------------------

    @property
    def used_bytes(self) -> int:
        return sum(inode.size for inode in dict.fromkeys(self._names.values()))

    @property
    def life(self) -> int:
        return self._life

    def room_for(self, more: int) -> int:
        """How many of `more` bytes there is room for."""
        if self.capacity_bytes is None:
            return more
        return max(0, min(more, self.capacity_bytes - self.used_bytes))

    def sync_fails(self) -> bool:
        failing, self._fail_next_sync = self._fail_next_sync, False
        return failing

    def part_of(self, data: bytes) -> bytes:
        return data[: self._rng.randint(0, len(data))]

    def operate(self, kind: str, name: str) -> bool:
        """Whether the process ends in the middle of this operation. Raises what it fails with."""
        self.operations += 1
        if self.trail is not None:
            self.trail.append(f"{kind} {name}")
        code = self.fail_at.get(self.operations)
        if code is not None and kind not in ("write", "sync"):
            raise OSError(code, os.strerror(code), name)
        if code is not None and kind == "sync":
            self._fail_next_sync = True
        if self.operations != self.crash_at:
            return False
        if kind in ("create", "preallocate"):
            raise Crash(self.operations)
        return True

    def _end_if(self, crashed: bool) -> None:
        if crashed:
            raise Crash(self.operations)

    def _set_name(self, name: str, inode: _Inode | None) -> None:
        if inode is None:
            del self._names[name]
        else:
            self._names[name] = inode
        self._changed.setdefault(name, []).append(inode)


class MemoryFile:
    """A file of a `MemoryDisk`, open in one life of its process."""

    def __init__(self, disk: MemoryDisk, inode: _Inode, name: str) -> None:
        self._disk = disk
        self._inode = inode
        self._name = name
        self._life = disk.life

    def preallocate(self, size: int) -> bool:
        self._check("preallocate")
        if not self._disk.preallocates:
            return False
        if self._disk.room_for(size - self._inode.size) < size - self._inode.size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._name)
        self._inode.size = max(self._inode.size, size)
        return True

    def write(self, offset: int, data: bytes) -> None:
        crashed = self._check("write")
        code = self._disk.fail_at.get(self._disk.operations)
        room = self._disk.room_for(max(0, offset + len(data) - self._inode.size))
        fitting = data[: max(0, self._inode.size - offset) + room]
        if crashed or code is not None:
            fitting = self._disk.part_of(fitting)
        self._put(offset, fitting)
        if crashed:
            raise Crash(f"write {self._name}")
        if code is not None:
            raise OSError(code, os.strerror(code), self._name)
        if len(fitting) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._name)

    def sync(self) -> None:
        crashed = self._check("sync")
        inode = self._inode
        if crashed or self._disk.sync_fails():
            inode.persist(self._disk.survivors(inode.sectors()))
            if crashed:
                raise Crash(f"sync {self._name}")
            inode.dirty = []
            raise OSError(errno.EIO, os.strerror(errno.EIO), self._name)
        inode.persist(inode.sectors())
        inode.durable_size = inode.size
        inode.dirty = []

    def close(self) -> None:
        """Syncs nothing."""

    def _put(self, offset: int, data: bytes) -> None:
        if not data:
            return
        inode = self._inode
        if len(inode.cached) < offset + len(data):
            inode.cached.extend(bytes(offset + len(data) - len(inode.cached)))
        inode.cached[offset : offset + len(data)] = data
        inode.size = max(inode.size, len(inode.cached))
        inode.dirty.append((offset, offset + len(data)))

    def _check(self, kind: str) -> bool:
        assert self._life == self._disk.life, "a process that is gone still writes"
        return self._disk.operate(kind, self._name)
