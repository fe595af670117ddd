"""A real Ceph for the tests that need one: one monitor and one OSD, by `scripts/ceph-dev.sh`, on loopback.

Started when the first test asks for it, stopped at the end of the run; all of its state is in one directory.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from raftkv.snapshot.rados import Location, RadosBucket, load_binding

SCRIPT = Path(__file__).parents[1] / "scripts" / "ceph-dev.sh"
_numbers = itertools.count(1)


class Ceph:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.conf = directory / "client.conf"
        self.keyring = directory / "client.keyring"

    def run(self, *arguments: str) -> str:
        """`scripts/ceph-dev.sh` with these arguments."""
        environment = {**os.environ, "CEPH_DIR": str(self.directory), "CEPH_OSD_SIZE": str(4 << 30)}
        done = subprocess.run(
            [str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, timeout=180
        )
        assert done.returncode == 0, f"ceph-dev.sh {arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self) -> None:
        """And writes what a client's configuration usually is: without the script's own settings for one."""
        self.run("start")
        lines = (self.directory / "ceph.conf").read_text().splitlines(keepends=True)
        self.conf.write_text("".join(line for line in lines if not line.startswith("objecter")))

    def admin(self, *arguments: str) -> str:
        return self.run("ceph", *arguments)

    def new_location(self) -> Location:
        """A namespace that nothing is in."""
        return Location("raftkv", f"test{next(_numbers)}", str(self.conf), str(self.keyring))

    def url(self, location: Location) -> str:
        return f"{location.url}?conf={location.conf}&keyring={location.keyring}&user={location.user}"

    def user(self, name: str, osd_caps: str) -> Path:
        """A keyring with a new user's key."""
        keyring = self.directory / f"{name}.keyring"
        keyring.write_text(
            self.admin("auth", "get-or-create", f"client.{name}", "mon", "allow r", "osd", osd_caps)
        )
        return keyring

    def object_names(self, location: Location) -> set[str]:
        """By a listing, which only a test may trust: the daemons are up, and nobody writes."""
        bucket = RadosBucket(location)
        try:
            with bucket._io() as io:
                return {each.key for each in io.list_objects()}
        finally:
            bucket.close()

    def corrupt(self, location: Location, name: str, data: bytes) -> None:
        RadosBucket(replace(location)).write([(name, data)])


@pytest.fixture(scope="session")
def ceph() -> Iterator[Ceph]:
    if shutil.which("ceph-mon", path="/usr/bin:/usr/sbin") is None or not importlib.util.find_spec("rados"):
        pytest.skip("needs Debian's ceph-mon, ceph-osd and python3-rados: see scripts/apt-packages")
    load_binding()
    # Short: admin sockets live in it, whose paths have 107 bytes at most.
    directory = Path(tempfile.mkdtemp(prefix="raftkv-ceph-", dir="/tmp")) / "c"
    cluster = Ceph(directory)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.run("reset")
        shutil.rmtree(directory.parent, ignore_errors=True)
