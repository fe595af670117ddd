"""Machines and snapshots that the tests of the stores share."""

from __future__ import annotations

import random

from raftkv.kv.command import Idempotency, Increment, Put
from raftkv.kv.image import Page
from raftkv.kv.machine import Machine
from raftkv.model import Member, Membership
from raftkv.snapshot.codec import Manifest, encode_page
from raftkv.snapshot.store import SnapshotWriter, Store

CLUSTER = "1f0c2a77" * 4
MEMBERSHIP = Membership(
    CLUSTER,
    (Member("n1", "127.0.0.1:8401", "http://127.0.0.1:8400"),),
    (("n1", "ab" * 16),),
)


def a_machine(seed: int, keys: int = 40) -> Machine:
    rng = random.Random(seed)
    machine = Machine()
    for n in range(1, keys + 1):
        keyed = (None, Idempotency(b"client/%d" % n, b"f" * 16), Idempotency(rng.randbytes(9), b"f" * 16))
        command = Put(b"key/%d" % n, rng.randbytes(60), "text/plain", idempotency=keyed[n % 3])
        machine.apply(n, n * 10, command)
    machine.apply(keys + 1, keys * 10, Increment(b"counter", seed))
    return machine


def publish(store: Store, machine: Machine, term: int = 3, page_records: int = 5) -> Manifest:
    """As a node does it, in small pages."""
    image = machine.image()
    writer = SnapshotWriter(
        store,
        cluster=CLUSTER,
        index=machine.applied_index,
        term=term,
        membership=MEMBERSHIP,
        image=image,
    )
    try:
        while page := image.next_page(page_records):
            writer.write(page)
        return writer.commit()
    except Exception:
        writer.abort()
        raise
    finally:
        image.close()


def pages_of(machine: Machine) -> list[Page]:
    image = machine.image()
    found = []
    while page := image.next_page():
        found.append(page)
    return found


def dump(machine: Machine) -> bytes:
    return b"".join(map(encode_page, pages_of(machine)))
