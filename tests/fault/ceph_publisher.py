"""A process that publishes snapshots to a Ceph until it is killed: `python -m tests.fault.ceph_publisher URL
LOCAL TERM`. Prints a line for each snapshot that it has published."""

from __future__ import annotations

import sys
from pathlib import Path

from raftkv.errors import StoreFenced
from raftkv.snapshot.directory import DirectoryStore
from raftkv.snapshot.remote import Retention, open_remote


def main(url: str, directory: str, term: int) -> None:
    local, store = DirectoryStore.open(Path(directory)), open_remote(url, {})
    snapshots = [each.id for each in local.list()]
    print("ready", flush=True)
    for _ in range(1_000):  # more than its killer waits for
        for snapshot in snapshots:
            try:
                store.publish(local, snapshot, term=term, publisher=f"p{term}")
                print(snapshot, flush=True)
                store.prune(retention=Retention(2), cluster=local.manifest(snapshot).cluster, term=term)
            except StoreFenced:
                return


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
