"""Small files that the first release wrote: this one reads them, and writes the same.

Made once by `python -m tests.golden.test_formats`, which leaves alone what is there.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import msgspec

from raftkv.model import Member, Membership
from raftkv.raft import identity
from raftkv.raft.membership import decode_membership, encode_membership
from raftkv.snapshot.ranges import Range, decode_range, encode_range

HERE = Path(__file__).parent
RANGE, IDENTITY = HERE / "range_1.range", HERE / "identity_1.json"
MEMBERSHIP = HERE / "membership_1.json"

MEMBERS = tuple(Member(f"n{i}", f"10.0.0.{i}:8401", f"http://10.0.0.{i}:8400") for i in (1, 2))
FOUNDING = Membership("c1" * 16, MEMBERS, (("n1", "1a" * 16), ("n2", "2b" * 16)))
GROWN = msgspec.structs.replace(
    FOUNDING,
    members=(*MEMBERS, Member("n3", "[::1]:8421", "https://n3.example:8420")),
    instances=(*FOUNDING.instances, ("n3", "")),
    learners=("n3",),
    promoting=("n3",),
    term=7,
    index=4711,
)
ENTRIES = [(3, b"\x00first"), (3, b"\x01"), (5, bytes(range(256)))]
TIMES = [(8, 1_764_000_000_000), (9, 1_764_000_000_250)]


def a_range() -> bytes:
    return encode_range(
        cluster="c1" * 16, first=7, base_term=2, previous="ab" * 32, times=TIMES, entries=ENTRIES
    )


def write_identity(directory: Path) -> identity.Stored:
    stored = identity.load_or_create(directory, "n1", draw=lambda: "1a" * 16)
    return identity.settle(directory, stored, FOUNDING)


def without_place(found: Range) -> object:
    """All but how zstd packed it, which may differ from release to release."""
    return found.head, found.entries


def test_a_range_of_format_1() -> None:
    assert without_place(decode_range(RANGE.read_bytes())) == without_place(decode_range(a_range()))


def test_an_identity_of_format_1(tmp_path: Path) -> None:
    shutil.copy(IDENTITY, tmp_path / identity.FILE)
    written = write_identity(tmp_path / "new")
    assert identity.load_or_create(tmp_path, "n1") == written
    assert (tmp_path / "new" / identity.FILE).read_bytes() == IDENTITY.read_bytes()


def test_memberships_of_level_1() -> None:
    for line, membership in zip(MEMBERSHIP.read_bytes().splitlines(), (FOUNDING, GROWN), strict=True):
        assert decode_membership(b"\x02" + line) == membership
        assert encode_membership(membership) == b"\x02" + line


def write() -> None:
    with tempfile.TemporaryDirectory() as directory:
        write_identity(Path(directory))
        made = {
            RANGE: a_range(),
            IDENTITY: (Path(directory) / identity.FILE).read_bytes(),
            MEMBERSHIP: b"".join(encode_membership(each)[1:] + b"\n" for each in (FOUNDING, GROWN)),
        }
    for path, data in made.items():
        if not path.exists():
            path.write_bytes(data)


if __name__ == "__main__":
    write()
