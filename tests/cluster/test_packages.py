"""A share of the Debian package index in and out, byte for byte, while leaders die."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cluster import packages

RECORDS = 3000


def test_a_share_of_the_package_index_survives_kills_of_the_leader(tmp_path: Path) -> None:
    if shutil.which("apt-cache") is None:
        pytest.skip("needs apt-cache, of Debian")
    index = packages.read_index(RECORDS)
    said: list[str] = []
    packages.run(index, tmp_path, say=said.append)
    assert len([line for line in said if line.startswith("killed the leader")]) == 2
    assert len([line for line in said if line.startswith("export from")]) == 6
