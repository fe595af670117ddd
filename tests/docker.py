"""A Docker for the tests that need one: the machine's own where it answers, else a daemon started for them.

All that the own daemon has is in one directory, and all of it goes at the end. It leaves the machine's
firewall alone (`--iptables=false`), because Docker's rules would drop what other tests forward; so builds use
the host's network, and published ports go through Docker's proxy. No image is pulled: the base is made from
Debian's packages by scripts/base-image.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DAEMON_SECONDS_MAX = 60.0  # ready in under a second on a quiet machine
COMMAND_SECONDS_MAX = 120.0
BUILD_SECONDS_MAX = 600.0


class Docker:
    """The command line, against one daemon. `environment` is what a shell needs to talk to it, too."""

    def __init__(self, command: str, host: str | None) -> None:
        self.command = command
        self.environment = {**os.environ, "RAFTKV_DOCKER": command}
        # Docker's own directory first, so that `docker` is the same for what is started from here.
        self.environment["PATH"] = f"{Path(command).parent}:{os.environ['PATH']}"
        if host is not None:
            self.environment["DOCKER_HOST"] = host

    def run(self, *words: str, timeout_s: float = COMMAND_SECONDS_MAX) -> str:
        return self.shell(self.command, *words, timeout_s=timeout_s)

    def shell(
        self, *words: str, timeout_s: float = COMMAND_SECONDS_MAX, more: Mapping[str, str] | None = None
    ) -> str:
        """stdout of any command that finds this Docker; fails with all that it said."""
        done = subprocess.run(
            words,
            cwd=ROOT,
            env={**self.environment, **(more or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def answers(self) -> bool:
        return (
            subprocess.run(
                [self.command, "info"], env=self.environment, capture_output=True, timeout=30, check=False
            ).returncode
            == 0
        )

    def has_image(self, name: str) -> bool:
        return bool(self.run("images", "--quiet", name).strip())


@contextmanager
def some_docker() -> Iterator[Docker]:
    """Skips the test where there is none and none can be started."""
    # Debian's before another in PATH, which may be a newer client without its build plugin.
    command = shutil.which("docker", path="/usr/bin") or shutil.which("docker")
    if command is None:
        pytest.skip("needs docker: see scripts/apt-packages")
    there = Docker(command, os.environ.get("DOCKER_HOST"))
    if there.answers():
        yield there
        return
    if os.geteuid() != 0:
        pytest.skip("no Docker answers, and only root can start one")
    daemon = shutil.which("dockerd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    missing = [name for name in ("mmdebstrap", "iptables") if shutil.which(name) is None]
    if daemon is None or missing:
        pytest.skip(f"not installed: {', '.join(['dockerd', *missing])}: see scripts/apt-packages")
    with own_daemon(daemon, command) as docker:
        yield docker


@contextmanager
def own_daemon(daemon: str, command: str) -> Iterator[Docker]:
    directory = Path(tempfile.mkdtemp(prefix="raftkv-docker-", dir="/tmp"))
    docker = Docker(command, f"unix://{directory}/docker.sock")
    words = [f"--data-root={directory}/data", f"--exec-root={directory}/exec", f"--pidfile={directory}/pid"]
    words += [
        f"--host=unix://{directory}/docker.sock",
        "--iptables=false",
        "--bridge=none",
    ]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [daemon, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + DAEMON_SECONDS_MAX
        while not docker.answers():
            if process.poll() is not None or time.monotonic() > deadline:
                said = (directory / "log").read_text(errors="replace")[-2000:]
                if process.poll() is not None:
                    pytest.skip(f"dockerd does not run on this machine: {said}")
                pytest.fail(f"dockerd is not ready after {DAEMON_SECONDS_MAX:g} s: {said}")
            time.sleep(0.05)
        yield docker
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _unmount_below(directory)
        shutil.rmtree(directory, ignore_errors=True)


def _unmount_below(directory: Path) -> None:
    """A daemon that was stopped in order leaves none; one that was killed may."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in sorted(mounts, reverse=True):
        if mount.startswith(f"{directory}/"):
            subprocess.run(["umount", "--lazy", mount], capture_output=True, check=False)
