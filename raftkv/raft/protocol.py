"""Which releases run together: two adjacent protocols, and one level for the whole cluster.

A release speaks every protocol from `PROTOCOL_MIN` to `PROTOCOL`, and says so in the handshake. The
replicated membership has the cluster's **level**: 1 at its founding; the leader raises it, by a change of
membership like any other, when it is connected to every member and all of them speak a higher one. Whatever
a release adds to the log, to snapshots or to messages between members waits for its level (`Engine.level`):
so a mixed cluster writes and sends nothing that its older members can't read, and while the level is old, a
member can go back to the older release. Once it is raised there is no way back: who speaks less is refused
by the others, and by its own disk.

    1   the first

The version in the handshake's greeting (`handshake.VERSION`) is another matter: it changes only when two
releases can't even tell each other what they speak.
"""

from __future__ import annotations

from raftkv.errors import ReleaseTooOld
from raftkv.model import Membership

PROTOCOL = 1
PROTOCOL_MIN = 1  # never below the one before: a cluster upgrades from release to release


def check_level(membership: Membership, where: str) -> None:
    """Raises ReleaseTooOld for the membership of a cluster that writes what this release can't read."""
    if membership.level > PROTOCOL:
        raise ReleaseTooOld(
            f"{where}: cluster {membership.cluster} has reached level {membership.level} of the protocol, "
            f"and this release speaks {PROTOCOL} at most: start the release that ran here before, or a newer"
        )
