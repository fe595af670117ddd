"""Clients that mean no good: idle connections, and such as drip a header byte a second. A process of its own.

    python -m cluster.flood URL --idle N --dripping N [--ca-file FILE]

Prints a line of JSON when all connections stand (`standing`), and another when its stdin ends: what the
nodes did to them. A dripping connection that is cut is replaced, so that there are always as many.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import resource
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import uvloop

from cluster.bench.processes import die_with_parent
from raftkv.tls.credentials import client_context

CONNECTING_MAX = 64  # at once: a flood of connections, not of handshakes
CONNECT_SECONDS = 20.0
DRIP_SECONDS = 1.0
TICK_SECONDS = 0.05
HEAD = b"PUT /v1/kv/dripping HTTP/1.1\r\nHost: example.org\r\nX-Never-Ending: "
FILES_RESERVED = 100


@dataclass
class Seen:
    """What became of the connections. `cut_after_s`: from a dripping one's first byte to its end."""

    idle_lost: int = 0
    cut_after_s: list[float] = field(default_factory=list)
    dripping_longest_s: float = 0.0  # of those that stand at the end
    failed: int = 0  # attempts to connect that failed; they are repeated


class _Connection(asyncio.Protocol):
    """Says nothing by itself, and calls `ended` when the node has closed it."""

    def __init__(self, ended: Callable[[_Connection], None]) -> None:
        self._ended = ended
        self.first_byte_s: float | None = None
        self.sent = 0
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def drip(self, now_s: float) -> None:
        if self.first_byte_s is None:
            self.first_byte_s = now_s
        self._transport.write(HEAD[self.sent : self.sent + 1] or b"x")
        self.sent += 1

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self._ended(self)


class _Flood:
    def __init__(self, url: str, idle: int, dripping: int, tls: ssl.SSLContext | None) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._address = (parts.hostname, parts.port)
        self._tls = tls if parts.scheme == "https" else None
        self._idle = idle
        self._slots: list[_Connection | None] = [None] * dripping
        self._connecting = asyncio.Semaphore(CONNECTING_MAX)
        self.seen = Seen()

    async def run(self) -> None:
        """Few tasks and timers: the nodes are to be measured beside this, not this."""
        loop = asyncio.get_running_loop()
        lines = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        await asyncio.gather(*(self._connect(self._idle_ended) for _ in range(self._idle)))
        async with asyncio.TaskGroup() as group:
            self._group = group
            ticking = group.create_task(self._tick())
            while None in self._slots:  # noqa: ASYNC110 filled by many
                await asyncio.sleep(TICK_SECONDS)
            print(json.dumps({"standing": self._idle + len(self._slots)}), flush=True)
            await lines.read()
            self.seen.dripping_longest_s = max(self._standing(loop.time()), default=0.0)
            print(json.dumps(asdict(self.seen)), flush=True)
            ticking.cancel()
            os._exit(0)  # the connections end with the process

    def _standing(self, now_s: float) -> Iterator[float]:
        for each in self._slots:
            if each is not None and each.first_byte_s is not None:
                yield now_s - each.first_byte_s

    async def _connect(self, ended: Callable[[_Connection], None]) -> _Connection:
        async with self._connecting, asyncio.timeout(CONNECT_SECONDS):
            _, protocol = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(ended), *self._address, ssl=self._tls
            )
        return protocol

    def _idle_ended(self, _: _Connection) -> None:
        self.seen.idle_lost += 1

    async def _tick(self) -> None:
        """A byte a second from each dripping connection, some at a time; what was cut is replaced."""
        loop = asyncio.get_running_loop()
        steps = round(DRIP_SECONDS / TICK_SECONDS)
        for step in itertools.count():
            for slot in range(step % steps, len(self._slots), steps):
                connection = self._slots[slot]
                if connection is not None:
                    connection.drip(loop.time())
                else:
                    self._group.create_task(self._fill(slot))
            await asyncio.sleep(TICK_SECONDS)

    async def _fill(self, slot: int) -> None:
        try:
            connection = await self._connect(lambda ended: self._cut(slot, ended))
            self._slots[slot] = None if connection.lost else connection
        except OSError:
            self.seen.failed += 1

    def _cut(self, slot: int, connection: _Connection) -> None:
        if connection.first_byte_s is not None:
            self.seen.cut_after_s.append(asyncio.get_running_loop().time() - connection.first_byte_s)
        if self._slots[slot] is connection:
            self._slots[slot] = None


def main() -> None:
    parser = argparse.ArgumentParser(description="See the module's docstring.")
    parser.add_argument("url")
    parser.add_argument("--idle", type=int, required=True)
    parser.add_argument("--dripping", type=int, required=True)
    parser.add_argument("--ca-file", type=Path)
    chosen = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < chosen.idle + chosen.dripping + FILES_RESERVED:
        sys.exit(f"this process may have {hard} files open, too few for so many connections: ulimit -Hn")
    tls = client_context(chosen.ca_file) if chosen.ca_file else None

    async def flood() -> None:
        await _Flood(chosen.url, chosen.idle, chosen.dripping, tls).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(flood())


class Flooding:
    """The process, as who started it sees it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def end(self) -> Seen:
        """Ends it; what it saw until then."""
        out, _ = self._process.communicate("", timeout=30)
        return Seen(**json.loads(out.splitlines()[-1]))

    def _wait_standing(self) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if "standing" not in line:
            raise RuntimeError(f"the flood did not get its connections: {line or 'see above'}")


@contextmanager
def flooding(url: str, *, idle: int, dripping: int, ca_file: Path | None = None) -> Iterator[Flooding]:
    """Returns once all connections stand."""
    words: list[Any] = [sys.executable, "-m", "cluster.flood", url, "--idle", idle, "--dripping", dripping]
    words += ["--ca-file", ca_file] if ca_file else []
    process = subprocess.Popen(
        [str(word) for word in words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent(os.getpid()),
    )
    try:
        made = Flooding(process)
        made._wait_standing()
        yield made
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


def resident_bytes(pid: int) -> int:
    """What the process holds in memory now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
