"""The index is taken apart and put together without losing a byte, and a difference is seen."""

from __future__ import annotations

import pytest

from cluster.packages import (
    PackagesDiffer,
    index_of,
    lines_of,
    packages_of,
    values_of,
)

RECORD = b"Package: %s\nVersion: 1:2.0-1\nArchitecture: amd64\nDescription: a\n more: of it\n .\n end"
INDEX = RECORD % b"b" + b"\n\n" + RECORD % b"a" + b" \xe4\n\n" + RECORD % b"c" + b"\n\n"


def test_round_trip_keeps_every_byte_and_the_order() -> None:
    packages = packages_of(INDEX)
    assert [package.key for package in packages] == [
        "debian/b/1:2.0-1/amd64",
        "debian/a/1:2.0-1/amd64",
        "debian/c/1:2.0-1/amd64",
    ]
    in_key_order = b"".join(sorted(lines_of(packages).splitlines(keepends=True)))
    assert index_of(packages, values_of(in_key_order)) == INDEX


def test_what_is_missing_or_too_much_or_double_is_named() -> None:
    packages = packages_of(INDEX)
    values = {package.key: package.record for package in packages}
    with pytest.raises(PackagesDiffer, match="1 of 3 keys are missing, the first is 'debian/b/"):
        index_of(packages, {key: value for key, value in values.items() if "/b/" not in key})
    with pytest.raises(PackagesDiffer, match="never written, the first is 'debian/z'"):
        index_of(packages, {**values, "debian/z": b""})
    with pytest.raises(PackagesDiffer, match="comes twice"):
        values_of(lines_of(packages) * 2)


def test_records_that_make_no_key_of_their_own_are_refused() -> None:
    with pytest.raises(ValueError, match="same name"):
        packages_of(INDEX + INDEX)
    with pytest.raises(ValueError, match="without"):
        packages_of(b"Package: a\nVersion: 1\n\n")
