"""Child processes of a benchmark: their start, their CPU time, their end.

A child dies with the thread that started it, whatever that dies of, so no run leaves servers behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

POLL_SECONDS = 0.05
END_TIMEOUT_SECONDS = 10.0
PR_SET_PDEATHSIG = 1
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
libc = ctypes.CDLL(None, use_errno=True)


class StartFailed(Exception):
    """A process ended, or did not answer in time, where it should have started."""


class Children:
    """The processes of one system, each with a log of its own in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes.values()]

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        with self.log_path(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env={**os.environ, **(env or {})},
                start_new_session=True,
                preexec_fn=die_with_parent(os.getpid()),
            )

    def log_path(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def wait_until(self, ready: Callable[[], bool], what: str, timeout_s: float = 30) -> None:
        """Raises StartFailed with the end of the logs where a child dies or `ready` stays false."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            dead = [name for name, process in self._processes.items() if process.poll() is not None]
            if dead or time.monotonic() > deadline:
                why = f"{', '.join(dead)} ended" if dead else f"not {what} after {timeout_s:g} s"
                raise StartFailed(f"{why}\n{self._log_ends(dead or list(self._processes))}")
            time.sleep(POLL_SECONDS)

    def end(self) -> None:
        """SIGTERM to all, then SIGKILL to those that are still there."""
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + END_TIMEOUT_SECONDS
        for process in self._processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def _log_ends(self, names: Iterable[str]) -> str:
        ends = []
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                lines = self.log_path(name).read_text(errors="replace").splitlines()[-10:]
                ends.append(f"--- {name}.log\n" + "\n".join(lines))
        return "\n".join(ends)


def die_with_parent(parent: int) -> Callable[[], None]:
    """Run in the child between fork and exec."""

    def prepare() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return prepare


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of all threads of these processes, so far."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / TICKS_A_SECOND


def machine_busy_seconds() -> float:
    """CPU time spent by everybody on this machine since it started, all cores together."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = (
        int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / TICKS_A_SECOND


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
