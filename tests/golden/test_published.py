"""A store as the first release wrote it: every later one reads it. `python -m tests.golden.test_published`
writes what is not there yet."""

from __future__ import annotations

import shutil
from pathlib import Path

from raftkv.snapshot.directory import DirectoryStore
from raftkv.snapshot.loader import load_machine, verify
from raftkv.snapshot.remote import Retention, open_remote
from tests.golden.test_state_formats import SNAPSHOT, a_machine
from tests.unit.snapshot_samples import CLUSTER, dump

PUBLISHED = Path(__file__).parent / "published_1"


def test_a_store_of_format_1_is_read_and_goes_on(tmp_path: Path) -> None:
    shutil.copytree(PUBLISHED, tmp_path / "store")
    store = open_remote((tmp_path / "store").as_uri(), {})
    (manifest,) = store.list()
    assert verify(store, manifest.id) == manifest
    assert dump(load_machine(store, manifest.id)) == dump(a_machine())
    newest = store.newest(CLUSTER)
    assert newest is not None
    assert (newest.term, newest.publisher) == (3, "n1")
    assert len(store.prune(retention=Retention(1)).unfinished) == 1
    assert len(list((tmp_path / "store" / "objects").iterdir())) == 2
    store.delete(manifest.id)
    assert store.list() == []


def write() -> None:
    store = open_remote(PUBLISHED.as_uri(), {})
    local = DirectoryStore.open(SNAPSHOT)
    (manifest,) = local.list()

    def killed() -> bool:
        raise KeyboardInterrupt

    try:
        store.publish(local, manifest.id, term=2, publisher="n0", going_on=killed)
    except KeyboardInterrupt:
        store.publish(local, manifest.id, term=3, publisher="n1")


if __name__ == "__main__":
    write()
